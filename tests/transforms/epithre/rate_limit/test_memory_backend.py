"""A limit shared by threads, processes or machines holds for all of them, with every backend."""

import asyncio
import multiprocessing
import pickle
import random
import secrets
import threading
import time

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs.errors import RateLimiterLostError
from epithre_beam.transforms.embedding.host_backend import HostBackend
from epithre_beam.transforms.epithre.rate_limit.memory_backend import MemoryBackend, RateLimiterSettings
from epithre_beam.transforms.epithre.rate_limit.rate_limiter import RateLimiter
from epithre_beam.transforms.epithre.rate_limit.redis_backend import RedisBackend

WINDOW_S = 1.5
LIMIT = 60
SETTINGS = RateLimiterSettings(limits={"requests": LIMIT}, window_s=WINDOW_S, hold_s=2.0)


def worst(instants, window_s=WINDOW_S):
    instants = sorted(instants)
    best = start = 0
    for end, instant in enumerate(instants):
        while instants[start] <= instant - window_s:
            start += 1
        best = max(best, end - start + 1)
    return best


def work(backend, seconds, seed, counted):
    """One worker: sends as fast as the backend allows; records when a server could have counted each request."""
    rng = random.Random(seed)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        answer = backend.try_acquire({"requests": 1.0, "items": 1.0, "tokens": 1.0})
        if answer.lease is None:
            time.sleep(min(answer.wait_s, 0.05))
            continue
        time.sleep(rng.uniform(0, 0.01))
        counted.append(time.monotonic())
        time.sleep(rng.uniform(0, 0.01))
        backend.answered(answer.lease)


def make(kind, redis_server, settings=SETTINGS):
    if kind == "memory":
        return MemoryBackend(settings)
    if kind == "host":
        return HostBackend(f"test-{secrets.token_hex(4)}", settings)
    backend = RedisBackend(redis_server.url, "test", settings)
    backend.create()
    return backend


@pytest.mark.parametrize("kind", ["memory", "host", "redis"])
def test_the_limit_holds_over_threads_and_is_nearly_reached(kind, redis_server):
    backend = make(kind, redis_server)
    counted = []
    threads = [threading.Thread(target=work, args=(backend, 3 * WINDOW_S, seed, counted)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst(counted) <= LIMIT
    # The margin of 0.1 s is 7 % of this window, and 0.2 % of a minute; the rest is for a busy machine.
    assert len(counted) >= 0.6 * LIMIT * 3


def _process(backend, seed, results):
    counted = []
    work(backend, 3 * WINDOW_S, seed, counted)
    results.put(counted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["host", "redis"])
def test_the_limit_holds_over_four_processes(kind, redis_server):
    backend = make(kind, redis_server)
    if kind == "host":
        backend.try_acquire({"requests": 0.0})  # starts the backend in this process
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_process, args=(backend, seed, results)) for seed in range(4)]
    for process in processes:
        process.start()
    counted = [instant for _ in processes for instant in results.get(timeout=60)]
    for process in processes:
        process.join()
    assert worst(counted) <= LIMIT
    assert len(counted) >= 0.5 * LIMIT * 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0.001, 3))
def test_no_window_exceeds_the_limit_in_any_schedule(seed, limit, mean_latency):
    """A simulated clock: random latencies, lost answers, weights; the server counts at a random instant."""
    rng = random.Random(seed)
    now = 0.0
    backend = MemoryBackend(
        RateLimiterSettings(limits={"requests": limit, "items": 3 * limit}, hold_s=10.0), clock=lambda: now
    )
    counted, pending = [], []
    for _ in range(400):
        answer = backend.try_acquire({"requests": 1.0, "items": float(rng.randint(1, 6)), "tokens": 1.0})
        if answer.lease is None:
            step = min(answer.wait_s, rng.expovariate(1 / mean_latency)) + 1e-6
        else:
            latency = min(rng.expovariate(1 / mean_latency), 10.0)  # at most the longest duration of a request
            counted.append(now + rng.uniform(0, latency))
            if rng.random() < 0.9:
                pending.append((now + latency, answer.lease))
            step = rng.choice([0.0, rng.expovariate(1 / mean_latency)])
        now += step
        for at, lease in [p for p in pending if p[0] <= now]:
            backend.answered(lease)
            pending.remove((at, lease))
    assert worst(counted, 60.0) <= limit


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(10, 500), st.floats(0.001, 3))
def test_no_window_exceeds_the_limit_of_tokens_when_bills_are_lower(seed, limit, mean_latency):
    """As above: the server counts what it bills, at most what was reserved; some answers are lost or repeated."""
    rng = random.Random(seed)
    now = 0.0
    backend = MemoryBackend(RateLimiterSettings(limits={"tokens": limit}, hold_s=10.0), clock=lambda: now)
    counted, pending = [], []
    for _ in range(400):
        reserved = rng.randint(1, limit)
        answer = backend.try_acquire({"requests": 1.0, "tokens": float(reserved)})
        if answer.lease is None:
            step = min(answer.wait_s, rng.expovariate(1 / mean_latency)) + 1e-6
        else:
            latency = min(rng.expovariate(1 / mean_latency), 10.0)
            billed = rng.randint(0, reserved)
            counted.append((now + rng.uniform(0, latency), billed))
            if rng.random() < 0.9:
                pending.append((now + latency, answer.lease, billed))
            step = rng.choice([0.0, rng.expovariate(1 / mean_latency)])
        now += step
        for at, lease, billed in [p for p in pending if p[0] <= now]:
            for _ in range(rng.choice([1, 1, 2])):
                backend.answered(lease, billed)
            pending.remove((at, lease, billed))
    counted.sort()
    for first, (start, _) in enumerate(counted):
        assert sum(tokens for at, tokens in counted[first:] if at < start + 60.0) <= limit


@pytest.mark.parametrize("kind", ["memory", "host", "redis"])
def test_the_billed_tokens_count_after_the_answer(kind, redis_server):
    # A window of 40 s that none of these requests leaves; the burst of 100,000 paces nothing.
    many = RateLimiterSettings(limits={"tokens": 1_000_000}, window_s=40.0, hold_s=40.0)
    backend = make(kind, redis_server, many)

    def acquire(tokens):
        until = time.monotonic() + 20
        while (answer := backend.try_acquire({"requests": 1.0, "tokens": float(tokens)})).lease is None:
            if answer.wait_s > 10:  # for the end of a lease, and not for the pace
                return None
            assert time.monotonic() < until
            time.sleep(min(answer.wait_s, 0.05))
        return answer.lease

    first = acquire(800_000)
    assert acquire(300_000) is None
    for _ in range(3):  # an answer may be reported again
        backend.answered(first, 10)
    second = acquire(900_000)
    assert second is not None
    backend.answered(second, 999_000)  # a bill may be higher, too
    assert acquire(1_000) is None
    backend.answered(second)
    assert acquire(1_000) is None
    backend.answered("no such lease", 5)


def test_the_lease_of_a_dead_process_expires(redis_server):
    short = RateLimiterSettings(limits={"requests": 1}, window_s=0.3, hold_s=0.4)
    backend = RedisBackend(redis_server.url, "test", short)
    backend.create()
    assert backend.try_acquire({"requests": 1.0}).lease
    assert backend.try_acquire({"requests": 1.0}).lease is None
    assert wait_for_a_lease(backend, longest_s=0.7) > 0.2


def test_a_refusal_pauses_all_backends(redis_server):
    one, other = (RedisBackend(redis_server.url, "test", SETTINGS) for _ in range(2))
    one.create()
    one.slow_down(0.7)
    answer = other.try_acquire({"requests": 1.0})
    assert answer.lease is None
    assert 0.5 < answer.wait_s <= 0.7


BOUNDED = RateLimiterSettings(limits={}, window_s=0.1, hold_s=0.1, max_pause_s=0.6)
IN_2999 = 32_472_144_000.0


def wait_for_a_lease(backend, longest_s=BOUNDED.max_pause_s):
    """Wait for a lease and return the seconds it took; check that each returned wait is within the bound."""
    started = time.monotonic()
    while (answer := backend.try_acquire({"requests": 1.0})).lease is None:
        assert 0 < answer.wait_s <= longest_s
        time.sleep(answer.wait_s)
    return time.monotonic() - started


@pytest.mark.parametrize("kind", ["memory", "host", "redis"])
@pytest.mark.parametrize("asked_s", [0.7, IN_2999, 1e308, float("inf")])
def test_no_pause_is_longer_than_the_settings_allow(kind, redis_server, asked_s):
    backend = make(kind, redis_server, BOUNDED)
    backend.slow_down(asked_s)
    assert wait_for_a_lease(backend) > 0.4


@pytest.mark.parametrize("asked_s", [-1.0, float("-inf"), 0.0, None])
def test_a_pause_of_zero_or_less_is_ignored(redis_server, asked_s):
    for kind in ("memory", "redis"):
        backend = make(kind, redis_server, BOUNDED)
        backend.slow_down(asked_s)
        assert backend.try_acquire({"requests": 1.0}).lease


@pytest.mark.parametrize(
    "written",
    [
        {"pause_until": IN_2999},
        {"pause_until": "inf", "paused_at": 0},
        {"pause_until": IN_2999, "paused_at": IN_2999 - 5},
        {"pause_until": "1e300", "paused_at": "-1e300"},
    ],
    ids=str,
)
def test_a_stored_pause_until_2999_is_limited(redis_server, written):
    backend = make("redis", redis_server, BOUNDED)
    redis.Redis.from_url(redis_server.url).hset("epithre-beam:{test}:state", mapping=written)
    wait_for_a_lease(backend)
    backend.slow_down(0.3)
    assert 0 < backend.try_acquire({"requests": 1.0}).wait_s <= 0.3


def test_each_process_limits_a_pause_by_its_own_settings(redis_server):
    hasty, patient = (
        make("redis", redis_server, RateLimiterSettings(limits={}, window_s=0.1, hold_s=0.1, max_pause_s=longest))
        for longest in (0.6, 3600.0)
    )
    patient.slow_down(3000.0)
    wait_for_a_lease(hasty)
    assert 2000 < patient.try_acquire({"requests": 1.0}).wait_s <= 3000


def test_spent_requests_and_learned_limits_are_shared(redis_server):
    one, other = (
        RedisBackend(redis_server.url, "test", RateLimiterSettings(limits={}, window_s=5.0)) for _ in range(2)
    )
    one.create(spent=2)
    one.learn({"requests": 2.0})
    assert other.try_acquire({"requests": 1.0}).lease is None


def test_redis_without_its_data_grants_no_lease_before_old_requests_expire(redis_server):
    backend = RedisBackend(redis_server.url, "test", SETTINGS)
    backend.create()
    assert backend.try_acquire({"requests": 1.0}).lease
    redis_server.kill()
    with pytest.raises(RateLimiterLostError, match="cannot be reached"):
        backend.try_acquire({"requests": 1.0})
    redis_server.start()
    answer = backend.try_acquire({"requests": 1.0})
    assert answer.lease is None
    assert answer.wait_s >= SETTINGS.hold_s + SETTINGS.window_s - 0.5


def test_the_rate_limiter_pauses_with_a_warning_while_redis_is_down(redis_server, caplog):
    short = RateLimiterSettings(limits={"requests": 500}, window_s=0.5, hold_s=0.5)
    backend = RedisBackend(redis_server.url, "test", short)
    backend.create()

    async def go():
        rate_limiter = RateLimiter({"requests": 500}, window_s=0.5, backend=backend)
        rate_limiter.answered(await rate_limiter.acquire(items=1, tokens=1))
        redis_server.kill()
        waiting = asyncio.create_task(rate_limiter.acquire(items=1, tokens=1))
        async with asyncio.timeout(30):
            while "No request is sent until it is reachable again" not in caplog.text:  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.01)
        assert not waiting.done()
        redis_server.start()
        rate_limiter.answered(await asyncio.wait_for(waiting, 30))
        rate_limiter.close()

    asyncio.run(go())
    assert "is reachable again after" in caplog.text


def test_a_backend_is_picklable_and_its_repr_has_no_password(redis_server):
    backend = RedisBackend(redis_server.url, "test", SETTINGS, password="secret-word")
    assert "secret-word" not in repr(backend)
    host = pickle.loads(pickle.dumps(HostBackend("x", SETTINGS)))
    assert host.settings == SETTINGS
