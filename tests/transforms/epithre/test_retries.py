"""Failed requests are retried, not earlier than the server asks, and at little cost."""

import asyncio
import time

import numpy as np
import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import ApiPausedError, RefusedKeyError
from epithre_beam.transforms.epithre import retries as retries_module
from epithre_beam.transforms.epithre.client import Client, Refusal
from epithre_beam.transforms.epithre.emulator import Faults, Limits
from epithre_beam.transforms.epithre.probe import probe

from .answering import CannedReply, answering, error, good
from .asking import assert_right, embed, serve, texts


def test_a_hanging_request_times_out_and_is_retried():
    contents = texts(32)
    with serve(faults=Faults(hang=1.0, hang_s=20, stop_at_request=1)) as emulator:
        started = time.monotonic()
        results, client = embed(emulator, contents, timeout_s=1.0)
    assert time.monotonic() - started < 10
    assert_right(contents, results)
    assert client.meter.retries["timeout"] == 1


def test_ten_percent_failures_cost_at_most_fifteen_percent_more_requests():
    contents = texts(6000)
    with serve(faults=Faults(rate_429=0.05, error_500=0.05), seed=3) as emulator:
        results, client = embed(emulator, contents, batch_items=4)
    assert not [r for r in results if isinstance(r, Refusal)]
    assert client.meter.requests <= 1.15 * 1500


@pytest.mark.parametrize("form", ["seconds", "float", "date", "milliseconds", "absent"])
def test_the_client_waits_for_retry_after_in_every_form(form):
    limits = Limits(requests_per_minute=5, window_s=1.0, retry_after=form, send_headers=False)
    contents = texts(8)
    with serve(limits=limits) as emulator:
        results, _ = embed(emulator, contents, batch_items=1, max_sends=200, retry_share=1.0)
        assert emulator.worst_window().requests <= 5
    assert not [r for r in results if isinstance(r, Refusal)]


def ask(server, count=1, reported=None, sleep=asyncio.sleep, **changes):
    """The results of `count` texts, one request each."""
    settings = EmbedConfig(base_url=server.base_url, dimension=64, batch_items=1, **changes)
    options = {} if reported is None else {"report_pause": reported.append}

    async def go():
        async with Client(settings, "sk-of-the-test", seed=1, sleep=sleep, **options) as client:
            return await client.embed([client.encode("text", f"text {i}".encode()) for i in range(count)])

    return asyncio.run(go())


TOO_LONG = {
    "seconds": {"retry-after": "1000000000"},
    "one more than allowed": {"retry-after": "601"},
    "a date": {"retry-after": "Tue, 31 Dec 2999 23:59:59 GMT"},
    "a date beside another clock": {
        "retry-after": "Tue, 01 Jan 2008 12:00:00 GMT", "date": "Tue, 01 Jan 2008 10:00:00 GMT"
    },
    "nearly infinite": {"retry-after": "1e308"},
    "milliseconds": {"retry-after-ms": "3600000", "retry-after": "1"},
}  # fmt: skip


def in_a_200(reported):
    """The same error with status 200, as some gateways send it."""
    return CannedReply(body={"error": {**reported.body["error"], "code": reported.status}}, headers=reported.headers)


@pytest.mark.parametrize("wrap", [lambda reported: reported, in_a_200], ids=["as such", "in a 200"])
@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("form", TOO_LONG)
def test_a_too_long_pause_raises_at_once_with_the_retry_time(form, status, wrap):
    reported = wrap(
        CannedReply(status=status, body={"error": {"message": "daily quota, try tomorrow"}}, headers=TOO_LONG[form])
    )
    before = time.time()
    with answering(lambda _: reported) as server:
        why = rf"\({status}: daily quota, try tomorrow\), longer than the limit of 600 s"
        with pytest.raises(ApiPausedError, match=why) as said:
            ask(server, count=5)
        asked = server.count()
    assert asked <= 5  # the concurrent requests
    assert said.value.retry_after_s > 600
    assert said.value.facts["retry_at"] > time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before + 600))
    assert "Run again after" in str(said.value)


@pytest.mark.parametrize("wait", ["inf", "1e999", "-3", "nan", "soon", "Fri, 31 Dec 99999999999999999999 0:0:0 GMT"])
def test_an_invalid_retry_after_is_ignored(wait):
    with answering(lambda asked: good(asked) if asked.number else error(429, "slow", retry_after=wait)) as server:
        (vector,) = ask(server, sleep=lambda _: asyncio.sleep(0))
    assert isinstance(vector, np.ndarray)


def test_the_longest_pause_is_configurable_down_to_zero():
    with answering(lambda asked: good(asked) if asked.number else error(429, "slow", retry_after="0.3")) as server:
        started = time.monotonic()
        (vector,) = ask(server, max_retry_after_s=0.3)
        assert isinstance(vector, np.ndarray)
        assert time.monotonic() - started >= 0.3
    with answering(lambda _: error(429, "slow", retry_after="0.3")) as server, pytest.raises(ApiPausedError):
        ask(server, max_retry_after_s=0)


def test_a_permanent_refusal_with_retry_after_stays_permanent():
    """Waiting does not help against a refused key, whatever the header says."""
    with answering(lambda _: error(401, "no", retry_after="100000")) as server, pytest.raises(RefusedKeyError):
        ask(server)


@pytest.mark.parametrize("wrap", [lambda reported: reported, in_a_200], ids=["as such", "in a 200"])
def test_a_pause_is_reported_once_with_its_end_and_reason(monkeypatch, wrap):
    monkeypatch.setattr(retries_module, "_WORTH_REPORTING_S", 0.2)
    reported = []
    with answering(
        lambda asked: good(asked) if asked.number >= 6 else wrap(error(503, "busy, come back", retry_after="0.4"))
    ) as server:
        before = time.time()
        results = ask(server, count=6, reported=reported)
    assert all(isinstance(result, np.ndarray) for result in results)
    assert 1 <= len(reported) <= 2  # concurrent requests count as one pause
    assert reported[0].asked_s == 0.4
    assert before + 0.4 <= reported[0].until_s <= time.time() + 0.4
    sentence = str(reported[0])
    assert sentence.startswith("paused until ")
    assert sentence.endswith(": the server asked for 0 s (503: busy, come back)")


def test_a_short_pause_is_not_reported():
    reported = []
    with answering(lambda asked: good(asked) if asked.number else error(429, "slow", retry_after="0.1")) as server:
        ask(server, reported=reported)
    assert reported == []


@pytest.mark.parametrize("wrap", [lambda reported: reported, in_a_200], ids=["as such", "in a 200"])
def test_probe_waits_for_a_pause_and_raises_if_too_long(wrap):
    def answer(asked):
        return CannedReply(body={"data": []}) if asked.number else wrap(error(429, "slow", retry_after="0.4"))

    with answering(answer) as server:
        started = time.monotonic()
        settings = EmbedConfig(base_url=server.base_url, dimension=64)
        assert probe(settings, "sk-of-the-test", pause_s=0.001).requests == 2
        assert time.monotonic() - started >= 0.4
    with answering(lambda _: wrap(error(429, "tomorrow", retry_after="30"))) as server:
        settings = EmbedConfig(base_url=server.base_url, dimension=64)
        with pytest.raises(ApiPausedError, match=r"429: tomorrow\), longer than the limit of 5 s"):
            probe(settings, "sk-of-the-test", longest_pause_s=5.0)
        assert server.count("GET") == 1
