"""Errors, limits and retry delays are parsed from answers in any format."""

import email.utils

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import EmbedConfig
from epithre_beam.transforms.epithre.answers import (
    ErrorAnswer,
    Verdict,
    read_error,
    read_limits,
    read_retry_after,
    refusal_of,
    short,
)


def error_body(**fields):
    return orjson.dumps({"error": {"message": "", "type": "", "param": None, "code": None, **fields}})


@pytest.mark.parametrize(
    ("path", "status", "is_hinted"),
    [
        ("", 404, True),
        ("/api/", 404, True),
        ("/v1", 404, False),
        ("/v1/", 404, False),
        ("/v1beta", 404, False),
        ("", 405, False),
    ],
)
def test_an_unknown_path_below_an_address_without_v1_gets_a_hint(path, status, is_hinted):
    error = ErrorAnswer(verdict=Verdict.STOP, status=status, code="unknown_url", message="Unknown path")
    refusal = refusal_of(error, EmbedConfig(base_url=f"https://api.example.com{path}"))
    assert ("Does embed.base_url end in /v1? " in str(refusal)) is is_hinted


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
def test_read_error_gives_the_verdict_and_the_item(status, fields, verdict, item):
    error = read_error(status, {}, error_body(**fields), 64)
    assert (error.verdict, error.item) == (verdict, item)


@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b"[1,2]", b'"x"', b'{"error":"no"}', b'{"detail":[1]}', b"\xff"]
)
def test_read_error_accepts_any_body(body):
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


def test_read_limits_ignores_invalid_values():
    headers = {"x-ratelimit-limit-requests": "600", "x-ratelimit-limit-tokens": "x", "x-ratelimit-limit-items": "0"}
    assert read_limits(headers) == {"requests": 600.0}


def test_short_truncates_text_and_removes_keys():
    assert "sk-abc" not in short("Incorrect API key provided: sk-abc123 for Bearer xyz")
    assert "xyz" not in short("header was Bearer xyz")
    assert len(short("a" * 5000)) <= 200
    assert "\n" not in short("a\nb")


HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
WAIT = st.one_of(HEADER, st.floats().map(repr), st.integers().map(str), st.datetimes().map(email.utils.format_datetime))


@given(wait=WAIT, milliseconds=st.none() | WAIT, date=st.none() | WAIT)
@settings(max_examples=500)
def test_read_retry_after_returns_finite_seconds_or_none(wait, milliseconds, date):
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
def test_read_retry_after_caps_the_wait_at_30_years(wait, seconds):
    assert read_retry_after({"retry-after": wait}) == seconds
    if seconds is not None and wait in {"1000000000", "3600", "-5", "0"}:
        assert read_retry_after({"retry-after-ms": str(float(wait) * 1000)}) == pytest.approx(seconds)
