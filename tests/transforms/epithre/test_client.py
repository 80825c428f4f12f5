"""Items in, a vector or a refusal for each out, against a real server with every fault it has."""

import asyncio
import time

import numpy as np
import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.transforms.epithre import client as client_module
from epithre_beam.transforms.epithre.budget import Budget
from epithre_beam.transforms.epithre.client import Client, Refusal, RefusalReason, RunStopped, _Cap, greet
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults, Limits
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector

DIMENSION = 64


def texts(count, start=0):
    return [f"text {i}".encode() for i in range(start, start + count)]


async def quick(seconds):
    await asyncio.sleep(min(seconds, 0.02))


def settings_for(emulator, **changes):
    return EmbedConfig(base_url=emulator.base_url, dimension=DIMENSION, **changes)


def embed(emulator, contents, *, budget=None, key=None, sleep=quick, **changes):
    """The results, and the client, closed, for its counts."""

    async def go():
        async with Client(
            settings_for(emulator, **changes), key or emulator.api_key, seed=1, sleep=sleep, budget=budget and budget()
        ) as client:
            return await client.embed([client.encode("text", content) for content in contents]), client

    return asyncio.run(go())


def serve(**settings):
    return Emulator(EmulatorSettings(dimension=DIMENSION, **settings))


def assert_right(contents, results):
    """Every item has a result, and every vector is the one of its own content."""
    assert len(results) == len(contents)
    for content, result in zip(contents, results, strict=True):
        if not isinstance(result, Refusal):
            np.testing.assert_allclose(result, hash_vector("text", content, DIMENSION), atol=1e-5)


FAULTS = {
    "rate_429": 0.3,
    "error_500": 0.3,
    "error_503": 0.3,
    "drop_connection": 0.3,
    "html_error": 0.3,
    "truncate_body": 0.3,
    "out_of_order": 1.0,
    "missing_item": 0.3,
    "duplicate_index": 0.3,
    "nan": 0.3,
    "wrong_dimension": 0.3,
    "unnormalised": 1.0,
    "ignore_base64": 1.0,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_loses_nothing_and_puts_no_vector_on_a_wrong_item(fault):
    contents = texts(320)
    with serve(faults=Faults(**{fault: FAULTS[fault]})) as emulator:
        results, client = embed(emulator, contents, batch_items=16, retry_share=1.0)
    assert_right(contents, results)
    assert not [r for r in results if isinstance(r, Refusal)]
    if fault == "unnormalised":
        assert client.meter.renormalised > 0


def test_a_hanging_server_costs_a_timeout_and_a_retry():
    contents = texts(32)
    with serve(faults=Faults(hang=1.0, hang_s=20, stop_at_request=1)) as emulator:
        started = time.monotonic()
        results, client = embed(emulator, contents, timeout_s=1.0)
    assert time.monotonic() - started < 10
    assert_right(contents, results)
    assert client.meter.retries["timeout"] == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_all_faults_at_once_loses_nothing(seed):
    contents = texts(1200)
    faults = Faults(**dict.fromkeys(FAULTS, 0.04), poison_marker="text 77", poison_names=("nowhere", "param")[seed % 2])
    with serve(faults=faults, seed=seed) as emulator:
        results, _ = embed(emulator, contents, batch_items=16, retry_share=1.0, max_sends=12)
    assert_right(contents, results)
    refused = {i for i, r in enumerate(results) if isinstance(r, Refusal)}
    assert refused == {77, *range(770, 780)}


def test_a_storm_of_thousands_of_requests_within_a_limit_loses_nothing_and_never_exceeds_it():
    contents = texts(2000)
    faults = Faults(**dict.fromkeys(FAULTS, 0.02), latency_s=0.01, latency_jitter_s=0.01, poison_marker="text 99")
    limits = Limits(requests_per_minute=800, window_s=1.0)
    with serve(faults=faults, limits=limits, seed=11) as emulator:
        budget = lambda: Budget({"requests": 800}, window_s=1.0)  # noqa: E731
        results, _ = embed(emulator, contents, batch_items=1, retry_share=1.0, max_sends=20, budget=budget)
        assert emulator.worst_window().requests <= 800
        assert not [a for a in emulator.log if a.status == 429 and not a.faults]
    assert_right(contents, results)
    refused = {i: r for i, r in enumerate(results) if isinstance(r, Refusal)}
    # Three broken answers in a row are a dead letter, and among 2000 items that may happen to one or two.
    unlucky = {i for i, r in refused.items() if r.reason is RefusalReason.BROKEN_ANSWER}
    assert set(refused) - unlucky == {99, *range(990, 1000)}
    assert len(unlucky) <= 5


@pytest.mark.parametrize(("names", "most"), [("param", 2), ("prose", 3), ("nowhere", 14)])
def test_one_poisoned_item_of_64_costs_few_requests_and_only_itself(names, most):
    for position in (0, 31, 63):
        contents = texts(64)
        contents[position] = b"poison"
        with serve(faults=Faults(poison_marker="poison", poison_names=names)) as emulator:
            results, client = embed(emulator, contents)
        assert [i for i, r in enumerate(results) if isinstance(r, Refusal)] == [position]
        assert results[position].reason is RefusalReason.REFUSED
        assert_right(contents, results)
        assert client.meter.requests <= most


def test_caps_of_the_server_are_learned_and_not_run_into_again_and_again():
    contents = texts(1000)
    with serve(limits=Limits(max_inputs=20, max_body_bytes=700)) as emulator:
        results, client = embed(emulator, contents)
        refused = sum(a.status in {400, 413} for a in emulator.log)
    assert_right(contents, results)
    assert not [r for r in results if isinstance(r, Refusal)]
    assert refused <= 0.5 * client.meter.requests


def test_a_learned_cap_recovers_up_to_what_was_refused():
    cap = _Cap(64)
    cap.shrink(64)
    assert cap.now == 32
    seen = []
    for _ in range(2000):
        cap.grow()
        seen.append(cap.now)
    assert seen == sorted(seen)
    assert seen[-1] == 63


def test_a_single_item_that_is_too_large_is_refused_as_such():
    with serve(limits=Limits(max_body_bytes=500)) as emulator:
        results, _ = embed(emulator, [b"x" * 2000, b"short"])
    assert results[0].reason is RefusalReason.TOO_LARGE
    assert isinstance(results[1], np.ndarray)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"refuse_all": 401}, "refused the key"),
        ({"refuse_all": 403}, "refused the key"),
        ({"refuse_all": 402}, "quota"),
        ({"quota_429": 1.0}, "quota"),
        ({"refuse_all": 400}, "failed 10 times in a row"),
        ({"wrong_dimension": 0.0}, "embed.model"),
    ],
)
def test_what_waiting_cannot_mend_stops_the_run_after_few_requests(faults, words):
    model = "no-such-model" if "wrong_dimension" in faults else "epithre-embed"
    with serve(faults=Faults(**faults)) as emulator:
        with pytest.raises(RunStopped, match=words):
            embed(emulator, texts(6400), model=model)
        assert len(emulator.log) <= 120


def test_another_dimension_than_configured_stops_the_run_and_says_which():
    with Emulator(EmulatorSettings(dimension=32)) as emulator, pytest.raises(RunStopped, match=r"embed\.dimension=32"):
        embed(emulator, texts(640))


def test_an_outage_stops_the_run_instead_of_making_dead_letters(monkeypatch):
    monkeypatch.setattr(client_module, "_OUTAGE_S", 2.0)
    with serve(faults=Faults(refuse_all=500)) as emulator, pytest.raises(RunStopped, match="in a row"):
        embed(emulator, texts(640), max_sends=1000)


def test_ten_percent_random_failures_cost_at_most_fifteen_percent_more_requests():
    contents = texts(6000)
    with serve(faults=Faults(rate_429=0.05, error_500=0.05), seed=3) as emulator:
        results, client = embed(emulator, contents, batch_items=4)
    assert not [r for r in results if isinstance(r, Refusal)]
    assert client.meter.requests <= 1.15 * 1500


def test_the_configured_limit_holds_by_the_servers_own_log():
    contents = texts(400)
    limits = Limits(requests_per_minute=100, window_s=1.0)
    with serve(limits=limits, faults=Faults(latency_s=0.03, latency_jitter_s=0.03)) as emulator:
        results, client = embed(
            emulator, contents, batch_items=1, budget=lambda: Budget({"requests": 100}, window_s=1.0)
        )
        assert emulator.worst_window().requests <= 100
        assert not [a for a in emulator.log if a.status == 429]
    assert_right(contents, results)
    assert client.meter.answers_429 == 0


def test_an_unconfigured_limit_is_learned_from_the_servers_headers():
    with serve(limits=Limits(requests_per_minute=50_000)) as emulator:
        _, client = embed(emulator, texts(64))
    assert client.budget.limits["requests"] == 50_000


@pytest.mark.parametrize("form", ["seconds", "float", "date", "milliseconds", "absent"])
def test_retry_after_is_waited_for_in_every_form(form):
    limits = Limits(requests_per_minute=5, window_s=1.0, retry_after=form, send_headers=False)
    contents = texts(8)
    with serve(limits=limits) as emulator:
        results, _ = embed(emulator, contents, batch_items=1, max_sends=200, retry_share=1.0)
        assert emulator.worst_window().requests <= 5
    assert not [r for r in results if isinstance(r, Refusal)]


def test_images_are_sent_as_the_guide_says():
    content = bytes(range(256)) * 10
    with serve() as emulator:

        async def go():
            async with Client(settings_for(emulator), emulator.api_key) as client:
                return await client.embed([client.encode("image", b"\xff\xd8\xff" + content)])

        (vector,) = asyncio.run(go())
    np.testing.assert_allclose(vector, hash_vector("image", b"\xff\xd8\xff" + content, DIMENSION), atol=1e-5)


def test_texts_of_any_script_and_control_characters_arrive_unchanged():
    contents = ["kucing oren tidur", "日本語", '🚲\n\t"\\', "\u0000\u2028", "é" * 500]
    with serve() as emulator:
        results, _ = embed(emulator, [text.encode() for text in contents])
    assert_right([text.encode() for text in contents], results)


def test_a_key_is_in_no_repr_and_no_error():
    key = "sk-very-secret-1234567890"
    with serve() as emulator:
        with pytest.raises(RunStopped) as caught:
            embed(emulator, texts(1), key=key)
        assert key not in str(caught.value)

        async def look():
            async with Client(settings_for(emulator), key) as client:
                return repr(client) + repr(client.budget) + repr(client.meter)

        assert key not in asyncio.run(look())


def test_greeting_finds_the_emulator_out_and_refuses_early_what_cannot_work():
    with serve() as emulator:
        greeting = greet(settings_for(emulator), emulator.api_key)
        assert greeting.emulator == emulator.model.fingerprint
        with pytest.raises(RunStopped, match="refused the key"):
            greet(settings_for(emulator), "wrong")
        with pytest.raises(RunStopped, match="'epithre-embde' is not served"):
            greet(settings_for(emulator, model="epithre-embde"), emulator.api_key)
        gone = settings_for(emulator)
    with pytest.raises(RunStopped, match="does not answer"):
        greet(gone, "any", pause_s=0.01)
