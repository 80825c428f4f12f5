"""Only the item at which a server fails is refused, and an outage refuses nothing permanently."""

import random
import time

import numpy as np
import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import ApiError
from epithre_beam.index.versions.layout import Reason
from epithre_beam.transforms.epithre import circuit_breaker
from epithre_beam.transforms.epithre.client import Refusal, RefusalReason

from .asking import embed as ask
from .asking import texts
from .hostile import DIMENSION, answer, good, serve, vector_of

NAN = {"error": {"message": "failed to encode response: json: unsupported value: NaN"}}


class _Address:
    """The attributes of a server that `asking.embed` needs."""

    api_key = "key-of-the-test"

    def __init__(self, base_url):
        self.base_url = base_url


def embed(server, contents, **changes):
    return ask(_Address(server.base_url), contents, **changes)


def failing_at(is_poison, failure=lambda: answer(500, NAN)):
    """A server that fails at each request with such an item and serves all others."""

    def respond(request):
        return failure() if any(map(is_poison, request.items)) else answer(200, good(request.items))

    return respond


def contents_with(poisoned, count=41):
    return [f"poison {i}".encode() if i in poisoned else f"text {i}".encode() for i in range(count)]


def is_poison(item):
    return "poison" in item


def assert_resolved(contents, results, refused):
    assert [i for i, result in enumerate(results) if isinstance(result, Refusal)] == sorted(refused)
    for content, result in zip(contents, results, strict=True):
        if not isinstance(result, Refusal):
            np.testing.assert_allclose(result, vector_of(content.decode()), atol=1e-5)


@pytest.mark.parametrize("position", [0, 1, 20, 39, 40])
def test_only_the_failing_item_is_refused(position):
    contents = contents_with({position})
    with serve(failing_at(is_poison)) as server:
        results, client = embed(server, contents)
    assert_resolved(contents, results, [position])
    assert results[position].reason is RefusalReason.REFUSED  # the server served other items meanwhile
    assert "unsupported value: NaN" in results[position].detail
    assert client.meter.requests == len(server.posts) <= 21
    assert client.meter.retries.total() <= 12


@pytest.mark.parametrize("count", [2, 3, 5, 17, 64])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_all_failing_items_are_found_and_no_other_is_refused_permanently(count, share):
    rng = random.Random(count)
    poisoned = set(rng.sample(range(count), max(1, round(share * count))))
    contents = contents_with(poisoned, count)
    with serve(failing_at(is_poison)) as server:
        results, _ = embed(server, contents, retry_share=1.0)
    refused = {i for i, result in enumerate(results) if isinstance(result, Refusal)}
    assert poisoned <= refused
    # With many bad items, the three items sent alone may all be bad: then it looks like an outage.
    unlucky = refused - poisoned
    assert share > 0.05 or not unlucky
    assert all(Reason(results[i].reason.value).is_transient for i in unlucky)
    assert_resolved(contents, results, refused)


def test_two_distant_failing_items_are_found_within_the_retry_budget(monkeypatch):
    monkeypatch.setattr(circuit_breaker, "_OUTAGE_S", 3600.0)  # a wait for the retry budget would never end
    contents = contents_with({3, 37})
    with serve(failing_at(is_poison)) as server:
        results, client = embed(server, contents)
    assert_resolved(contents, results, [3, 37])
    assert client.meter.requests <= 55


def test_a_failing_item_per_request_does_not_exhaust_the_retry_budget(monkeypatch):
    monkeypatch.setattr(circuit_breaker, "_OUTAGE_S", 3600.0)
    poisoned = set(range(5, 400, 16))
    contents = contents_with(poisoned, 400)
    with serve(failing_at(is_poison)) as server:
        results, _ = embed(server, contents, batch_items=16)
    assert_resolved(contents, results, poisoned)
    assert {results[i].reason for i in poisoned} == {RefusalReason.REFUSED}


@pytest.mark.parametrize(
    "failure",
    [lambda: None, lambda: answer(502, b"<html>Bad Gateway</html>"), lambda: answer(503, {}), lambda: answer(504, b"")],
    ids=["closed", "502", "503", "504"],
)
def test_a_gateway_failure_at_one_item_is_transient_for_that_item(failure):
    contents = contents_with({11})
    with serve(failing_at(is_poison, failure)) as server:
        results, _ = embed(server, contents)
    assert_resolved(contents, results, [11])
    assert results[11].reason is RefusalReason.RETRIES_EXHAUSTED  # the network may be the cause
    assert Reason(results[11].reason.value).is_transient


def test_only_the_item_that_times_out_is_refused():
    def hang():
        yield b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"
        while True:
            time.sleep(0.05)
            yield b" "

    contents = contents_with({2}, 8)
    with serve(failing_at(is_poison, hang)) as server:
        results, client = embed(server, contents, timeout_s=0.4)
    assert_resolved(contents, results, [2])
    assert results[2].reason is RefusalReason.RETRIES_EXHAUSTED
    assert client.meter.retries["timeout"] >= 5


def test_a_failing_item_and_a_named_item_are_both_refused():
    def respond(request):
        if any(map(is_poison, request.items)):
            return answer(500, NAN)
        if "text 30" in request.items:
            named = {"error": {"message": "no", "param": f"input[{request.items.index('text 30')}]"}}
            return answer(400, named)
        return answer(200, good(request.items))

    contents = contents_with({7})
    with serve(respond) as server:
        results, _ = embed(server, contents)
    assert_resolved(contents, results, [7, 30])
    assert {results[i].reason for i in (7, 30)} == {RefusalReason.REFUSED}


@pytest.mark.parametrize("max_sends", [1, 2, 3, 6])
def test_an_outage_sends_at_most_max_sends_requests(max_sends):
    with serve(lambda _: answer(500, NAN)) as server:
        results, _ = embed(server, contents_with(set()), max_sends=max_sends)
    assert len(server.posts) == max_sends
    assert all(Reason(result.reason.value).is_transient for result in results)
    assert sum(map(len, server.posts)) <= 41 * max_sends


@pytest.mark.parametrize("down", [(3, 9), (5, 20), (9, 60)])
def test_an_outage_during_the_search_refuses_no_valid_item_permanently(down):
    """All requests in the range `down` fail; the bad item always fails."""

    def respond(request):
        is_down = down[0] <= request.number < down[1]
        return answer(500, NAN) if is_down or any(map(is_poison, request.items)) else answer(200, good(request.items))

    contents = contents_with({13})
    with serve(respond) as server:
        results, _ = embed(server, contents, retry_share=1.0)
    for i, result in enumerate(results):
        if isinstance(result, Refusal) and i != 13:
            assert Reason(result.reason.value).is_transient
    assert len(server.posts) <= 80


def test_an_outage_opens_the_breaker_after_few_requests(monkeypatch):
    monkeypatch.setattr(circuit_breaker, "_OUTAGE_S", 1.0)
    with serve(lambda _: answer(500, NAN)) as server:
        with pytest.raises(ApiError, match=r"in a row.*unsupported value"):
            embed(server, texts(6400), max_sends=1000)
        assert len(server.posts) <= 300


@pytest.mark.parametrize("seed", range(3))
def test_random_failures_lose_nothing_and_cost_few_extra_requests(seed):
    rng = random.Random(seed)

    def respond(request):
        return answer(500, NAN) if rng.random() < 0.3 else answer(200, good(request.items))

    contents = texts(960)
    with serve(respond) as server:
        results, _ = embed(server, contents, batch_items=16, retry_share=1.0, max_sends=12)
    assert_resolved(contents, results, [])
    assert len(server.posts) <= 3 * 60


def test_random_failures_refuse_no_item_permanently():
    rng = random.Random(1)

    def respond(request):
        return answer(500, NAN) if rng.random() < 0.6 else answer(200, good(request.items))

    with serve(respond) as server:
        results, _ = embed(server, texts(300), batch_items=1, retry_share=1.0)
    refused = [result for result in results if isinstance(result, Refusal)]
    assert refused
    assert {result.reason for result in refused} == {RefusalReason.RETRIES_EXHAUSTED}


def test_the_search_stops_at_the_spending_limit():
    contents = contents_with({40})
    with serve(failing_at(is_poison)) as server:
        results, _ = embed(server, contents, max_requests=8)
    assert len(server.posts) == 8
    assert any(isinstance(result, np.ndarray) for result in results)
    assert results[40].reason is RefusalReason.NOT_SENT


def test_the_settings_of_these_tests_are_the_defaults():
    assert EmbedConfig(dimension=DIMENSION).max_sends == 6
