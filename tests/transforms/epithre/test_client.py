"""The client returns a vector or a refusal for each item, against a real server with all its faults."""

import asyncio

import numpy as np
import pytest

from epithre_beam.configs.errors import ApiError
from epithre_beam.transforms.epithre.client import Client, Refusal, RefusalReason
from epithre_beam.transforms.epithre.emulator import Faults, Limits
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector
from epithre_beam.transforms.epithre.rate_limit.rate_limiter import RateLimiter

from .asking import DIMENSION, assert_right, embed, serve, settings_for, texts

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
def test_no_single_fault_loses_or_misplaces_a_vector(fault):
    contents = texts(320)
    with serve(faults=Faults(**{fault: FAULTS[fault]})) as emulator:
        results, client = embed(emulator, contents, batch_items=16, retry_share=1.0)
    assert_right(contents, results)
    assert not [r for r in results if isinstance(r, Refusal)]
    if fault == "unnormalised":
        assert client.meter.renormalised > 0


@pytest.mark.parametrize("seed", range(4))
def test_all_faults_together_lose_no_item(seed):
    contents = texts(1200)
    faults = Faults(**dict.fromkeys(FAULTS, 0.04), poison_marker="text 77", poison_names=("nowhere", "param")[seed % 2])
    with serve(faults=faults, seed=seed) as emulator:
        results, _ = embed(emulator, contents, batch_items=16, retry_share=1.0, max_sends=12)
    assert_right(contents, results)
    refused = {i for i, r in enumerate(results) if isinstance(r, Refusal)}
    assert refused == {77, *range(770, 780)}


@pytest.mark.slow
def test_thousands_of_faulty_requests_lose_no_item_and_keep_the_limit():
    contents = texts(2000)
    faults = Faults(**dict.fromkeys(FAULTS, 0.02), latency_s=0.01, latency_jitter_s=0.01, poison_marker="text 99")
    limits = Limits(requests_per_minute=800, window_s=1.0)
    with serve(faults=faults, limits=limits, seed=11) as emulator:
        rate_limiter = lambda: RateLimiter({"requests": 800}, window_s=1.0)  # noqa: E731
        results, _ = embed(emulator, contents, batch_items=1, retry_share=1.0, max_sends=20, rate_limiter=rate_limiter)
        assert emulator.worst_window().requests <= 800
        assert not [a for a in emulator.log if a.status == 429 and not a.faults]
    assert_right(contents, results)
    refused = {i: r for i, r in enumerate(results) if isinstance(r, Refusal)}
    # Three broken answers in a row make a dead letter, which may happen to a few of 2,000 items.
    unlucky = {i for i, r in refused.items() if r.reason is RefusalReason.BROKEN_ANSWER}
    assert set(refused) - unlucky == {99, *range(990, 1000)}
    assert len(unlucky) <= 20


@pytest.mark.parametrize(("names", "most"), [("param", 2), ("prose", 3), ("nowhere", 14)])
def test_one_poisoned_item_costs_few_requests_and_no_other_item(names, most):
    for position in (0, 31, 63):
        contents = texts(64)
        contents[position] = b"poison"
        with serve(faults=Faults(poison_marker="poison", poison_names=names)) as emulator:
            results, client = embed(emulator, contents)
        assert [i for i, r in enumerate(results) if isinstance(r, Refusal)] == [position]
        assert results[position].reason is RefusalReason.REFUSED
        assert_right(contents, results)
        assert client.meter.requests <= most


def test_a_too_large_item_is_refused_as_too_large():
    with serve(limits=Limits(max_body_bytes=500)) as emulator:
        results, _ = embed(emulator, [b"x" * 2000, b"short"])
    assert results[0].reason is RefusalReason.TOO_LARGE
    assert isinstance(results[1], np.ndarray)


def test_the_configured_limit_holds_in_the_servers_log():
    contents = texts(400)
    limits = Limits(requests_per_minute=100, window_s=1.0)
    with serve(limits=limits, faults=Faults(latency_s=0.03, latency_jitter_s=0.03)) as emulator:
        results, client = embed(
            emulator, contents, batch_items=1, rate_limiter=lambda: RateLimiter({"requests": 100}, window_s=1.0)
        )
        assert emulator.worst_window().requests <= 100
        assert not [a for a in emulator.log if a.status == 429]
    assert_right(contents, results)
    assert client.meter.answers_429 == 0


def test_an_unconfigured_limit_is_learned_from_headers():
    with serve(limits=Limits(requests_per_minute=50_000)) as emulator:
        _, client = embed(emulator, texts(64))
    assert client.rate_limiter.limits["requests"] == 50_000


def test_images_are_sent_in_the_documented_format():
    content = bytes(range(256)) * 10
    with serve() as emulator:

        async def go():
            async with Client(settings_for(emulator), emulator.api_key) as client:
                return await client.embed([client.encode("image", b"\xff\xd8\xff" + content)])

        (vector,) = asyncio.run(go())
    np.testing.assert_allclose(vector, hash_vector("image", b"\xff\xd8\xff" + content, DIMENSION), atol=1e-5)


def test_texts_in_any_script_arrive_unchanged():
    contents = ["kucing oren tidur", "日本語", '🚲\n\t"\\', "\u0000\u2028", "é" * 500]
    with serve() as emulator:
        results, _ = embed(emulator, [text.encode() for text in contents])
    assert_right([text.encode() for text in contents], results)


def test_no_repr_and_no_error_contains_the_key():
    key = "sk-very-secret-1234567890"
    with serve() as emulator:
        with pytest.raises(ApiError) as caught:
            embed(emulator, texts(1), key=key)
        assert key not in str(caught.value)

        async def look():
            async with Client(settings_for(emulator), key) as client:
                return repr(client) + repr(client.rate_limiter) + repr(client.meter)

        assert key not in asyncio.run(look())
