"""The limit is never exceeded in any window and nearly reached."""

import asyncio
import itertools
import random
import time

import pytest

from epithre_beam.transforms.epithre.rate_limit.memory_backend import MemoryBackend, RateLimiterSettings
from epithre_beam.transforms.epithre.rate_limit.rate_limiter import RateLimiter, next_wait_s

WINDOW_S = 1.5


async def drive(rate_limiter, seconds, latency, weights=lambda i: (1, 1), workers=40):
    """Send as fast as the rate limiter allows; return the times at which a server could have counted, with weights."""
    counted = []
    serial = itertools.count()
    until = time.monotonic() + seconds

    async def work():
        while time.monotonic() < until:
            items, tokens = weights(next(serial))
            lease = await rate_limiter.acquire(items=items, tokens=tokens)
            total = latency()
            early = random.Random(len(counted)).uniform(0, total)
            await asyncio.sleep(early)
            counted.append((time.monotonic(), items, tokens))
            await asyncio.sleep(total - early)
            rate_limiter.answered(lease, latency_s=total)

    await asyncio.gather(*(work() for _ in range(workers)))
    return sorted(counted)


def worst(counted, column, window_s):
    """The largest sum in any half-open window."""
    best = total = 0
    start = 0
    for end, entry in enumerate(counted):
        total += 1 if column == 0 else entry[column]
        while counted[start][0] <= entry[0] - window_s:
            total -= 1 if column == 0 else counted[start][column]
            start += 1
        best = max(best, total)
        del end
    return best


@pytest.mark.parametrize("seed", range(2))
def test_no_window_exceeds_the_limit_and_most_of_it_is_used(seed):
    rng = random.Random(seed)

    async def go():
        rate_limiter = RateLimiter({"requests": 60}, window_s=WINDOW_S)
        return await drive(rate_limiter, 3 * WINDOW_S, lambda: rng.uniform(0.005, 0.04))

    counted = asyncio.run(go())
    assert worst(counted, 0, WINDOW_S) <= 60
    # A lease ends 0.1 s after the window, which is 7 % of a window of 1.5 s, but 0.2 % of a minute.
    assert len(counted) >= 0.7 * 60 * 3  # the rest is for a busy machine


def test_items_and_tokens_are_limited_as_weights():
    rng = random.Random(5)

    async def go():
        rate_limiter = RateLimiter({"requests": 1000, "items": 300, "tokens": 5000}, window_s=WINDOW_S)
        return await drive(
            rate_limiter, 3 * WINDOW_S, lambda: rng.uniform(0, 0.03), lambda i: (1 + i % 20, 10 * (1 + i * 7 % 50))
        )

    counted = asyncio.run(go())
    assert worst(counted, 1, WINDOW_S) <= 300
    assert worst(counted, 2, WINDOW_S) <= 5000


def test_sends_are_spread_over_the_window():
    async def go():
        rate_limiter = RateLimiter({"requests": 100}, window_s=2.0)
        return await drive(rate_limiter, 1.0, lambda: 0.001)

    counted = asyncio.run(go())
    first = [at for at, *_ in counted if at < counted[0][0] + 1.0]
    assert len(first) <= 60  # half of the limit, plus the first burst


def test_retry_after_pauses_all_requests():
    async def go():
        rate_limiter = RateLimiter({"requests": 10_000}, window_s=WINDOW_S)
        lease = await rate_limiter.acquire(items=1, tokens=1)
        rate_limiter.answered(lease)
        started = time.monotonic()
        rate_limiter.slow_down(0.5)
        for _ in range(5):
            rate_limiter.answered(await rate_limiter.acquire(items=1, tokens=1))
        return time.monotonic() - started, rate_limiter.throttled_s

    waited, throttled = asyncio.run(go())
    assert waited >= 0.5
    assert throttled >= 0.45


def test_a_refusal_lowers_the_rate():
    def sent(refuse):
        """The number of requests in the first half of a window, with a simulated clock."""
        now, count = 0.0, 0
        backend = MemoryBackend(RateLimiterSettings(limits={"requests": 200}, window_s=1.0), clock=lambda: now)
        rate_limiter = RateLimiter({"requests": 200}, window_s=1.0, clock=lambda: now, backend=backend)
        if refuse:
            rate_limiter.slow_down(None)
        while now < 0.5:
            answer = backend.try_acquire({"requests": 1.0})
            count += answer.lease is not None
            now += answer.wait_s
        return count

    assert 0.6 * sent(False) < sent(True) < 0.8 * sent(False)


def test_concurrency_stays_within_its_maximum_and_falls_on_refusals():
    async def go():
        rate_limiter = RateLimiter({}, max_concurrency=12)
        most = 0

        async def work():
            nonlocal most
            for _ in range(30):
                lease = await rate_limiter.acquire(items=1, tokens=1)
                most = max(most, rate_limiter.in_flight)
                await asyncio.sleep(0.002)
                rate_limiter.answered(lease, latency_s=0.002)

        await asyncio.gather(*(work() for _ in range(30)))
        before = rate_limiter.concurrency
        rate_limiter.slow_down(None)
        return most, before, rate_limiter.concurrency

    most, before, after = asyncio.run(go())
    assert most <= 12
    assert after < before


def test_a_stated_limit_is_learned_only_if_none_is_configured():
    async def go():
        free, bound = RateLimiter({}), RateLimiter({"requests": 10})
        free.learn({"requests": 60.0})
        bound.learn({"requests": 60.0, "tokens": 900.0})
        return free.limits, bound.limits

    assert asyncio.run(go()) == ({"requests": 60.0}, {"requests": 10.0, "tokens": 900.0})


def test_earlier_requests_count():
    async def go():
        rate_limiter = RateLimiter({"requests": 3}, window_s=0.5, spent=2)
        started = time.monotonic()
        await rate_limiter.acquire(items=1, tokens=1)
        await rate_limiter.acquire(items=1, tokens=1)
        return time.monotonic() - started

    assert asyncio.run(go()) >= 0.5


def test_a_request_heavier_than_the_limit_is_sent_alone():
    async def go():
        rate_limiter = RateLimiter({"tokens": 10}, window_s=0.3)
        for _ in range(2):
            lease = await asyncio.wait_for(rate_limiter.acquire(items=1, tokens=50), 5)
            rate_limiter.answered(lease)

    asyncio.run(go())


def test_cancelling_one_wait_does_not_block_the_others():
    async def go():
        rate_limiter = RateLimiter({"requests": 1}, window_s=0.3)
        rate_limiter.answered(await rate_limiter.acquire(items=1, tokens=1))
        first = asyncio.create_task(rate_limiter.acquire(items=1, tokens=1))
        second = asyncio.create_task(rate_limiter.acquire(items=1, tokens=1))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.wait_for(second, 5)

    asyncio.run(go())


def test_refused_lanes_retry_at_different_times():
    rng = random.Random(0)
    for refusals, widest in ((1, 0.004), (4, 0.032), (60, 1.0)):
        waits = [next_wait_s(0.1, refusals, rng) for _ in range(1000)]
        assert min(waits) >= 0.1  # never before the next request may go
        assert max(waits) < 0.1 + widest
        assert max(waits) - min(waits) > 0.9 * widest
    assert max(next_wait_s(50.0, 60, rng) for _ in range(100)) < 2.0  # other lanes may have released leases meanwhile


def test_a_lower_bill_wakes_who_waits_for_tokens():
    async def run():
        rate_limiter = RateLimiter({"tokens": 1000}, max_concurrency=4, window_s=30.0)
        first = await rate_limiter.acquire(items=1, tokens=1000)
        waiting = asyncio.ensure_future(rate_limiter.acquire(items=1, tokens=500))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        rate_limiter.answered(first, latency_s=0.1, tokens=5)
        rate_limiter.answered(await asyncio.wait_for(waiting, 20))

    asyncio.run(run())
