"""Whatever JSON comes, in any dialect: good vectors in the right rows, or what is wrong, and nothing else."""

import asyncio
import base64
import logging
import math

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import RefusedKeyError, SpentQuotaError, UnknownModelError
from epithre_beam.configs.scrubbing import Scrubber
from epithre_beam.transforms.epithre.answers import ErrorAnswer, Verdict, read_limits, read_retry_after
from epithre_beam.transforms.epithre.bodies import Reply
from epithre_beam.transforms.epithre.client import Client, Refusal, RefusalReason
from epithre_beam.transforms.epithre.dialects import DIALECTS
from epithre_beam.transforms.epithre.replies import read_reply_to
from epithre_beam.transforms.epithre.vectors import BrokenAnswerError

from .asking import quick
from .hostile import DIMENSION, answer, good, serve, vector_of

FEW = 4
"""Dimensions of the vectors that are drawn."""


def dialect(name="epithre"):
    return DIALECTS[name](
        EmbedConfig(dialect=name, base_url="http://127.0.0.1:1/v1", model="m", api_key_env="K", dimension=8)
    )


def read(body, count, name="epithre", status=200, headers=None, tokens=10, dimension=FEW):
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    reply = Reply(status_code=status, headers=httpx.Headers(headers or {}), content=content)
    return read_reply_to(
        dialect(name), reply, count=count, dimension=dimension, tokens=tokens, scrubber=Scrubber("the-key")
    )


# ------------------------------------------------------------------------------------------------ any JSON at all

NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FLOATS = st.lists(st.floats(-2, 2, width=32), min_size=FEW, max_size=FEW)
LISTS = st.lists(st.sampled_from([0.5, -0.5, 1, True, "1", None, [1]]) | st.floats(), min_size=3, max_size=5)
BASE64 = st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode())
VECTORS = FLOATS | FLOATS | LISTS | BASE64 | JSON
INDEXES = st.integers(0, 2) | st.sampled_from([True, False, "0", "1", 0.0, 1.0, None, -1, 3])
CODES = st.sampled_from([200, 400, 401, 404, 429, 502, "429", "502", "rate_limit_exceeded", "server_error", 1e300])
ERRORS = JSON | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("message", "code", "status", "type", "param", "detail"), CODES | JSON)
)
ENTRY = st.fixed_dictionaries({"embedding": VECTORS}, optional={"index": INDEXES | JSON})
BESIDE = {
    "usage": JSON | st.fixed_dictionaries({"total_tokens": JSON | NUMBERS}),
    "meta": JSON | st.fixed_dictionaries({"billed_units": st.fixed_dictionaries({"input_tokens": JSON | NUMBERS})}),
    "error": ERRORS,
    "message": JSON,
    "object": st.just("error"),
    "code": CODES,
}
ANSWERS = JSON | st.fixed_dictionaries(
    {
        "data": st.lists(ENTRY, min_size=1, max_size=3) | st.lists(ENTRY | JSON, max_size=3) | JSON,
        "embeddings": st.fixed_dictionaries({"float": st.lists(VECTORS, min_size=1, max_size=3) | JSON}) | JSON,
    },
    optional=BESIDE,
)


def rows_reported(body, name):
    """Which vector says of itself that it belongs in which row."""
    if name == "cohere":
        return list(enumerate(body["embeddings"]["float"]))
    reported = [(entry.get("index"), entry["embedding"]) for entry in body["data"]]
    assert not any(isinstance(place, bool) for place, _ in reported)
    if all(place is None for place, _ in reported):
        return [(row, vector) for row, (_, vector) in enumerate(reported)]
    return [(int(float(place)), vector) for place, vector in reported]


@settings(max_examples=400, deadline=None)
@given(ANSWERS, st.sampled_from(["cohere", "epithre", "openai"]), st.sampled_from([200, 200, 200, 400, 429, 500]))
def test_any_json_is_good_vectors_in_their_own_rows_or_an_error(body, name, status):
    raw = orjson.dumps(body)
    body = orjson.loads(raw)
    data = body.get("data") if isinstance(body, dict) else None
    count = len(data) if isinstance(data, list) and data else 1
    found = read(raw, count, name, status=status)
    assert 0 <= found.tokens <= 1000 * 10
    assert type(found.tokens) is int
    if not isinstance(found.outcome, np.ndarray):
        assert isinstance(found.outcome, (BrokenAnswerError, ErrorAnswer))
        assert found.tokens == 0
        assert len(str(found.outcome)) < 1000
        if isinstance(found.outcome, ErrorAnswer):
            assert found.outcome.item is None or 0 <= found.outcome.item < count
        return
    assert status == 200
    rows = rows_reported(body, name)
    assert sorted(row for row, _ in rows) == list(range(count))
    for row, reported in rows:
        if isinstance(reported, str):
            expected = np.frombuffer(base64.b64decode(reported), "<f4").astype(np.float64)
        else:
            assert all(type(number) in {int, float} for number in reported)
            expected = np.asarray(reported, np.float64)
        np.testing.assert_allclose(found.outcome[row], expected / np.linalg.norm(expected), atol=1e-5)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(sorted(DIALECTS)), st.integers(200, 599))
def test_any_bytes_are_an_error(body, name, status):
    assert isinstance(read(body, 2, name, status=status).outcome, (BrokenAnswerError, ErrorAnswer))


DEEP = b"[" * 900 + b"]" * 900


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 1_000_000,
        b'{"data":' + DEEP + b"}",
        b'{"error":{"message":' + DEEP + b"}}",
        b'{"error":{"code":' + DEEP + b',"type":' + DEEP + b',"param":' + DEEP + b"}}",
        b'{"detail":[{"msg":' + DEEP + b',"loc":' + DEEP + b"}]}",
        b'{"error":{"message":"x","param":"input[' + b"9" * 100_000 + b']"}}',
        b'{"error":{"message":"input ' + b"9" * 100_000 + b'"}}',
        b'{"error":{"code":"' + b"max batch" * 20_000 + b'"}}',
        b'{"error":{"code":"' + b"maximum " * 20_000 + b'"}}',
        b'{"error":{"message":"' + b"model: model: " * 10_000 + b'"}}',
        b'{"error":"\xed\xa0\x80"}',
    ],
    ids=range(11),
)
def test_deep_and_long_json_is_an_error_and_quickly(body, status, name):
    found = read(body, 2, name, status=status).outcome
    assert isinstance(found, (BrokenAnswerError, ErrorAnswer))
    assert len(str(found)) < 1000


HEADERS = st.one_of(
    st.sampled_from(["1e308", "1e999", "-1e308", "0.0001", "-5", "nan", "inf", "-inf", "1_000", "9" * 5000, "", " 7 "]),
    st.sampled_from(["Mon, 1 Jan 2020 00:00:00 +99999999999999", "Mon, 1 Jan 99999 00:00:00 GMT", "0 0 0 0", ",,,,"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
    st.floats().map(repr),
)


@settings(max_examples=200, deadline=None)
@given(HEADERS, HEADERS)
def test_any_header_is_a_limit_in_bounds_or_none(value, date):
    names = ("requests", "tokens", "items")
    found = read_limits({f"x-ratelimit-limit-{name}": value for name in names})
    assert all(1 <= limit <= 1e12 for limit in found.values())
    for name in ("retry-after", "retry-after-ms"):
        wait = read_retry_after({name: value, "date": date})
        assert wait is None or 0 <= wait < math.inf


# ------------------------------------------------------------------------------------------- what an answer bills


def body_with(usage, name="epithre"):
    vector = [1.0, 0.0, 0.0, 0.0]
    if name == "cohere":
        return {"embeddings": {"float": [vector, vector]}, "meta": usage}
    return {"data": [{"index": i, "embedding": vector} for i in range(2)], "usage": usage}


NOT_TRUE = [-1, -1e9, True, "unknown", "12", [5], {}, -1e308, -0.5]
TOO_MUCH = [10**18, 1e30, 1e308, 10_001]


@pytest.mark.parametrize("claim", NOT_TRUE, ids=repr)
def test_a_bill_that_is_no_number_takes_no_vector_away_and_bills_nothing(claim):
    for usage in ({"total_tokens": claim}, claim if not isinstance(claim, dict) else "x"):
        found = read(body_with(usage), 2)
        assert found.outcome.shape == (2, FEW)
        assert found.tokens == 0
        assert not found.is_bill_plausible


@pytest.mark.parametrize("claim", [*NOT_TRUE, *TOO_MUCH], ids=repr)
def test_so_it_is_in_cohere(claim):
    for units in ({"input_tokens": claim}, {"image_tokens": claim}, {"input_tokens": 5, "image_tokens": claim}):
        found = read(body_with({"billed_units": units}, "cohere"), 2, "cohere")
        assert found.outcome.shape == (2, FEW)
        assert 0 <= found.tokens <= 10_000
        assert not found.is_bill_plausible


@pytest.mark.parametrize("claim", TOO_MUCH, ids=repr)
def test_a_bill_of_more_than_a_request_can_be_is_cut(claim):
    found = read(body_with({"total_tokens": claim}), 2, tokens=10)
    assert (found.tokens, found.is_bill_plausible) == (10_000, False)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [(None, 0), ({}, 0), ({"total_tokens": None}, 0), ({"total_tokens": 0}, 0), ({"total_tokens": 12.7}, 12)],
)
def test_a_bill_that_says_little_is_believed(usage, tokens):
    found = read(body_with(usage), 2)
    assert (found.tokens, found.is_bill_plausible) == (tokens, True)


def embed(server, count=6, **changes):
    async def go():
        given = EmbedConfig(base_url=server.base_url, dimension=DIMENSION, **{"batch_items": 2, **changes})
        async with Client(given, "key", seed=1, sleep=quick) as client:
            bills = []
            results = []
            for i in range(count):
                before = client.meter.tokens_spent
                results += await client.embed([client.encode("text", b"text %d" % i)])
                bills.append(client.meter.tokens_spent - before)
            return results, client, bills

    return asyncio.run(go())


@pytest.mark.parametrize("claim", [-(10**9), 1e30, "unknown", True, None, [], {"total": 3}], ids=repr)
def test_the_bill_never_goes_down_and_a_wrong_one_is_told_of_once(claim, caplog):
    caplog.set_level(logging.WARNING, "epithre_beam.client")
    with serve(lambda r: answer(200, good(r.items, usage={"total_tokens": claim}))) as server:
        results, client, bills = embed(server)
    for i, vector in enumerate(results):
        np.testing.assert_allclose(vector, vector_of(f"text {i}"), atol=1e-5)
    assert all(bill > 0 for bill in bills)
    assert client.meter.tokens_billed >= 0
    assert sum(bills) <= 1000 * client.meter.tokens_estimated
    assert orjson.loads(orjson.dumps(client.meter.to_dict()))["tokens_spent"] == sum(bills)
    assert len(caplog.records) == (claim is not None)


def test_a_negative_bill_buys_no_more_than_the_run_may_spend():
    with serve(lambda r: answer(200, good(r.items, usage={"total_tokens": -(10**6)}))) as server:
        results, client, _ = embed(server, 20, price_per_million_tokens=1e6, max_cost=10.0)
    assert client.meter.tokens_spent <= 10
    assert {result.reason for result in results if isinstance(result, Refusal)} == {RefusalReason.NOT_SENT}


@pytest.mark.parametrize("value", ["1e308", "nan", "-1", "0.0001", "9" * 3000, "all of them"])
def test_limits_that_a_server_makes_up_neither_stop_nor_break_anything(value):
    headers = {f"x-ratelimit-limit-{name}": value for name in ("requests", "tokens", "items")}
    with serve(lambda r: answer(200, good(r.items), headers)) as server:
        results, client, _ = embed(server)
    assert not any(isinstance(result, Refusal) for result in results)
    assert client.rate_limiter.limits == {}


# -------------------------------------------------------------------------------------------- an error in a 200


@pytest.mark.parametrize(
    ("body", "verdict", "status"),
    [
        ({"error": {"message": "m", "code": 429}}, Verdict.RETRY, 429),
        ({"error": {"message": "m", "code": "429"}}, Verdict.RETRY, 429),
        ({"error": {"message": "m", "code": 429.0}}, Verdict.RETRY, 429),
        ({"error": {"message": "m", "code": "rate_limit_exceeded"}}, Verdict.RETRY, 429),
        ({"error": {"message": "m", "status": "RESOURCE_EXHAUSTED"}}, Verdict.RETRY, 429),
        ({"error": {"message": "m", "code": 502}}, Verdict.RETRY, 502),
        ({"error": {"message": "m", "code": "502 Bad Gateway"}}, Verdict.RETRY, 502),
        ({"error": {"message": "m", "code": "HTTP 503"}}, Verdict.RETRY, 503),
        ({"error": {"message": "m", "type": "server_error"}}, Verdict.RETRY, 502),
        ({"error": {"message": "m", "type": "overloaded_error"}}, Verdict.RETRY, 503),
        ({"error": {"message": "m"}, "status": 500}, Verdict.RETRY, 500),
        ({"object": "error", "message": "m", "code": 500}, Verdict.RETRY, 500),
        ({"data": None, "error": {"message": "m", "code": 503}}, Verdict.RETRY, 503),
        ({"data": [], "error": {"message": "m", "code": 503}}, Verdict.RETRY, 503),
        ({"error": {"message": "m", "code": 401}}, Verdict.STOP, 401),
        ({"error": {"message": "m", "code": "invalid_api_key"}}, Verdict.STOP, 200),
        ({"error": {"message": "m", "code": "insufficient_quota"}}, Verdict.STOP, 200),
        ({"error": {"message": "model x does not exist"}}, Verdict.STOP, 200),
        ({"error": {"message": "m", "code": 400}}, Verdict.BATCH, 400),
        ({"error": {"message": "m", "code": 400, "param": "input[1]"}}, Verdict.ITEM, 400),
        ({"error": {"message": "m", "param": "input[1]"}}, Verdict.ITEM, 200),
        ({"error": {"message": "too many inputs"}}, Verdict.TOO_LARGE, 200),
        ({"error": {"message": "m", "code": 413}}, Verdict.TOO_LARGE, 413),
        # Nothing in these says what to do: tried again, and given up for now.
        ({"error": {"message": "m"}}, None, None),
        ({"error": "m"}, None, None),
        ({"error": {"message": "m", "code": 7}}, None, None),
        ({"error": {"message": "m", "code": 200}}, None, None),
        ({"error": {"message": "m", "code": 42900}}, None, None),
        ({"error": {"message": "m", "code": True}}, None, None),
        ({"message": "m"}, None, None),
        ({"detail": "m"}, None, None),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("name", DIALECTS)
def test_an_error_in_a_200_is_what_its_own_status_says(body, verdict, status, name):
    found = read(body, 3, name).outcome
    words = "model x" if "model x" in str(body) else "too many" if "too many" in str(body) else "m"
    assert words in str(found)
    if verdict is None:
        assert isinstance(found, BrokenAnswerError)
        assert str(found) == "an error in a 200: m"
    else:
        assert (found.verdict, found.status) == (verdict, status)


@pytest.mark.parametrize("error", [None, "", {}, [], 0, False])
def test_good_vectors_are_taken_whatever_stands_beside_them(error):
    found = read(body_with({"total_tokens": 3}) | {"error": error, "code": 500, "message": "hello"}, 2)
    assert found.outcome.shape == (2, FEW)


def test_good_vectors_beside_an_error_are_taken():
    assert read(body_with({}) | {"error": {"message": "m", "code": 502}}, 2).outcome.shape == (2, FEW)


OUT = {"message": "upstream provider is out of capacity", "code": 502}


def test_a_gateways_errors_are_sent_again_and_cost_nothing():
    def respond(request):
        error = {"message": "slow down, please", "code": 429} if request.number % 2 else OUT
        return answer(200, {"error": error} if request.number < 4 else good(request.items))

    with serve(respond) as server:
        results, client, _ = embed(server, 1)
    np.testing.assert_allclose(results[0], vector_of("text 0"), atol=1e-5)
    assert client.meter.answers_429 == 2
    assert client.meter.retries.total() == 4


def test_the_gateways_words_stand_in_the_refusal():
    with serve(lambda _: answer(200, {"error": OUT})) as server:
        results, _, _ = embed(server, 1)
    assert results[0].reason is RefusalReason.RETRIES_EXHAUSTED
    assert results[0].detail == "502: upstream provider is out of capacity"
    with serve(lambda _: answer(200, {"error": {"message": "the cat sat on it"}})) as server:
        results, _, _ = embed(server, 1)
    assert results[0].reason is RefusalReason.BROKEN_ANSWER
    assert results[0].detail == "an error in a 200: the cat sat on it"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (401, RefusedKeyError),
        ("invalid_api_key", RefusedKeyError),
        (402, SpentQuotaError),
        ("insufficient_quota", SpentQuotaError),
        ("model_not_found", UnknownModelError),
    ],
)
def test_an_error_in_a_200_that_waiting_cannot_mend_stops_the_run(code, error):
    with serve(lambda _: answer(200, {"error": {"message": "as I say", "code": code}})) as server:
        with pytest.raises(error, match="as I say"):
            embed(server)
        assert len(server.posts) == 1


def test_an_outage_behind_a_gateway_gives_nothing_up_for_good():
    with serve(lambda _: answer(200, {"error": OUT})) as server:
        results, _, _ = embed(server, 3)
    assert {result.reason for result in results} == {RefusalReason.RETRIES_EXHAUSTED}
