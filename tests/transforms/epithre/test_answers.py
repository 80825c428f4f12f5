"""Every answer is read as what it is, and no vector is taken on faith."""

import base64
import email.utils

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.transforms.epithre.answers import (
    AnswerEntry,
    BrokenAnswerError,
    Verdict,
    check_vectors,
    read_error,
    read_limits,
    read_retry_after,
    read_vector,
    short,
)
from epithre_beam.transforms.epithre.dialects.shape import OpenAIShape

DIMENSION = 16


def entries(count, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, [AnswerEntry(place, vector) for place, vector in enumerate(vectors)]


@given(st.permutations(range(7)))
def test_vectors_come_back_in_the_order_of_the_request_whatever_the_answers_order(order):
    vectors, pairs = entries(7)
    found, renormalised = check_vectors([pairs[i] for i in order], 7, DIMENSION)
    np.testing.assert_array_equal(found, vectors)
    assert renormalised == 0


def test_an_answer_without_indexes_is_in_order():
    vectors, pairs = entries(3)
    found, _ = check_vectors([AnswerEntry(None, vector) for _, vector in pairs], 3, DIMENSION)
    np.testing.assert_array_equal(found, vectors)


def _missing(pairs):
    return pairs[:-1]


def _doubled(pairs):
    return [*pairs[:-1], AnswerEntry(0, pairs[-1].vector)]


def _half_indexed(pairs):
    return [AnswerEntry(None, pairs[0].vector), *pairs[1:]]


def _beyond(pairs):
    return [*pairs[:-1], AnswerEntry(len(pairs), pairs[-1].vector)]


def _negative(pairs):
    return [*pairs[:-1], AnswerEntry(-1, pairs[-1].vector)]


def _short(pairs):
    return [*pairs[:-1], AnswerEntry(pairs[-1].place, pairs[-1].vector[:-1])]


def _nan(pairs):
    return [*pairs[:-1], AnswerEntry(pairs[-1].place, np.full(DIMENSION, np.nan, np.float32))]


def _infinite(pairs):
    return [*pairs[:-1], AnswerEntry(pairs[-1].place, np.full(DIMENSION, np.inf, np.float32))]


def _zero(pairs):
    return [*pairs[:-1], AnswerEntry(pairs[-1].place, np.zeros(DIMENSION, np.float32))]


@pytest.mark.parametrize(
    "spoil", [_missing, _doubled, _half_indexed, _beyond, _negative, _short, _nan, _infinite, _zero]
)
def test_nothing_is_taken_from_a_broken_answer(spoil):
    with pytest.raises(BrokenAnswerError):
        check_vectors(spoil(entries(4)[1]), 4, DIMENSION)


def test_a_vector_off_its_norm_is_normalised_and_counted():
    vectors, pairs = entries(4)
    found, renormalised = check_vectors([*pairs[:3], AnswerEntry(3, pairs[3].vector * 7)], 4, DIMENSION)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    assert renormalised == 1


def test_a_common_wrong_dimension_is_reported_as_such():
    with pytest.raises(BrokenAnswerError) as caught:
        check_vectors([AnswerEntry(0, np.ones(8, np.float32)), AnswerEntry(1, np.ones(8, np.float32))], 2, DIMENSION)
    assert caught.value.dimension == 8


def test_vectors_are_read_from_base64_and_from_lists():
    vector = entries(1)[0][0]
    np.testing.assert_array_equal(read_vector(base64.b64encode(vector.tobytes()).decode()), vector)
    np.testing.assert_allclose(read_vector(vector.tolist()), vector)


@pytest.mark.parametrize(
    "places",
    [
        [False, True, 2, 3],
        [0, True, 2, 3],
        [0, 1, 2, False],
        [0, 1, 2, None],
        [0, 1, 2, 3.5],
        [0, 1, 2, float("nan")],
        [0, 1, 2, "3 "],
        [0, 1, 2, "٣"],
        [0, 1, 2, "-3"],
        [0, 1, 2, "9" * 5000],
        [0, 1, 2, [3]],
        [0, 1, 2, {}],
        [0, 1, 2, 2**70],
        [0, 1, 2, 2.0],
    ],
    ids=str,
)
def test_indexes_that_are_no_numbers_or_not_those_of_the_request_are_refused(places):
    vectors, _ = entries(4)
    with pytest.raises(BrokenAnswerError, match="the indexes of the answer"):
        check_vectors([AnswerEntry(place, vector) for place, vector in zip(places, vectors, strict=True)], 4, DIMENSION)


@pytest.mark.parametrize("places", [[3.0, 0, 2, 1], ["3", "0", "2", "1"], [3, "0", 2.0, 1]], ids=str)
def test_indexes_that_are_written_as_other_numbers_are_those_numbers(places):
    vectors, _ = entries(4)
    found, _ = check_vectors([AnswerEntry(*pair) for pair in zip(places, vectors, strict=True)], 4, DIMENSION)
    np.testing.assert_array_equal(found, vectors[[1, 3, 2, 0]])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
VECTORS = st.lists(st.sampled_from([0.5, -0.5, 1, True, "1", None, [1]]) | st.floats(), min_size=3, max_size=5)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.fixed_dictionaries({"embedding": VECTORS | JSON}, optional={"index": JSON}), max_size=3))
def test_whatever_json_an_answer_is_no_vector_comes_to_stand_in_another_row(data):
    """Each row is the one vector that said, as a number, that it belongs there; or the whole answer is refused."""
    body = orjson.dumps({"data": data})
    data = orjson.loads(body)["data"]
    try:
        answered, _ = OpenAIShape(b"", b"").vectors(body)
        found, _ = check_vectors(answered, len(data), 4)
    except BrokenAnswerError:
        return
    told = [entry.get("index") for entry in data]
    assert not any(isinstance(place, bool) for place in told)
    rows = list(range(len(data))) if all(place is None for place in told) else [int(float(place)) for place in told]
    assert sorted(rows) == list(range(len(data)))
    for row, entry in zip(rows, data, strict=True):
        assert all(type(number) in {int, float} for number in entry["embedding"])
        expected = np.asarray(entry["embedding"], np.float64)
        np.testing.assert_allclose(found[row], expected / np.linalg.norm(expected), atol=1e-5)


@pytest.mark.parametrize(
    "value", [None, 3, {"a": 1}, "abc", ["x"], "%%%", [True] * 16, [1.0] * 15 + ["1"], [[1.0] * 16]]
)
def test_what_is_no_vector_is_a_broken_answer(value):
    with pytest.raises(BrokenAnswerError):
        check_vectors([AnswerEntry(0, read_vector(value))], 1, DIMENSION)


def error_body(**fields):
    return orjson.dumps({"error": {"message": "", "type": "", "param": None, "code": None, **fields}})


@pytest.mark.parametrize(
    ("status", "fields", "verdict", "item"),
    [
        (400, {"message": "bad", "param": "input[3]"}, Verdict.ITEM, 3),
        (422, {"message": "The input at index 5 was refused"}, Verdict.ITEM, 5),
        (400, {"message": "input[2] is bad"}, Verdict.ITEM, 2),
        (400, {"message": "something is bad"}, Verdict.BATCH, None),
        (400, {"message": "bad", "param": "input[64]"}, Verdict.BATCH, None),
        (400, {"message": "too many inputs: 64 of at most 20", "param": "input"}, Verdict.TOO_LARGE, None),
        (400, {"message": "maximum context length is 8192 tokens", "param": "input[1]"}, Verdict.ITEM, 1),
        (413, {}, Verdict.TOO_LARGE, None),
        (401, {"code": "invalid_api_key"}, Verdict.STOP, None),
        (403, {}, Verdict.STOP, None),
        (404, {"code": "model_not_found"}, Verdict.STOP, None),
        (400, {"code": "model_not_found"}, Verdict.STOP, None),
        (429, {"code": "insufficient_quota"}, Verdict.STOP, None),
        (429, {"type": "insufficient_quota"}, Verdict.STOP, None),
        (429, {"code": "rate_limit_exceeded"}, Verdict.RETRY, None),
        (408, {}, Verdict.RETRY, None),
        (409, {}, Verdict.RETRY, None),
        (425, {}, Verdict.RETRY, None),
        (500, {}, Verdict.RETRY, None),
        (503, {"code": "server_is_overloaded"}, Verdict.RETRY, None),
        (302, {}, Verdict.STOP, None),
    ],
)
def test_each_error_gets_its_verdict(status, fields, verdict, item):
    error = read_error(status, {}, error_body(**fields), 64)
    assert (error.verdict, error.item) == (verdict, item)


@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b"[1,2]", b'"x"', b'{"error":"no"}', b'{"detail":[1]}', b"\xff"]
)
def test_no_body_is_too_strange_to_be_read(body):
    assert read_error(502, {}, body, 1).verdict is Verdict.RETRY
    assert read_error(413, {}, body, 2).verdict is Verdict.TOO_LARGE


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:09 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 9.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_every_form(headers, seconds):
    assert read_retry_after(headers) == seconds


def test_stated_limits_are_read_and_nonsense_is_not():
    headers = {"x-ratelimit-limit-requests": "600", "x-ratelimit-limit-tokens": "x", "x-ratelimit-limit-items": "0"}
    assert read_limits(headers) == {"requests": 600.0}


def test_a_servers_words_are_short_and_keep_no_key():
    assert "sk-abc" not in short("Incorrect API key provided: sk-abc123 for Bearer xyz")
    assert "xyz" not in short("header was Bearer xyz")
    assert len(short("a" * 5000)) <= 200
    assert "\n" not in short("a\nb")


HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
WAIT = st.one_of(HEADER, st.floats().map(repr), st.integers().map(str), st.datetimes().map(email.utils.format_datetime))


@given(wait=WAIT, milliseconds=st.none() | WAIT, date=st.none() | WAIT)
@settings(max_examples=500)
def test_a_wait_is_a_finite_number_of_seconds_or_none_whatever_a_server_says(wait, milliseconds, date):
    headers = {"retry-after": wait, "retry-after-ms": milliseconds, "date": date}
    seconds = read_retry_after({name: value for name, value in headers.items() if value is not None})
    assert seconds is None or 0 <= seconds <= 30 * 365 * 86_400


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [
        ("1000000000", 946_080_000), ("1e308", 946_080_000), ("3600", 3600), ("-5", 0), ("0", 0), ("inf", None),
        ("1e999", None), ("nan", None), ("soon", None), ("", None), ("Fri, 31 Dec 2999 23:59:59 GMT", 946_080_000),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", None), ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
    ],
)  # fmt: skip
def test_a_wait_is_read_as_it_was_meant_and_no_longer_than_a_clock_can_count(wait, seconds):
    assert read_retry_after({"retry-after": wait}) == seconds
    if seconds is not None and wait in {"1000000000", "3600", "-5", "0"}:
        assert read_retry_after({"retry-after-ms": str(float(wait) * 1000)}) == pytest.approx(seconds)
