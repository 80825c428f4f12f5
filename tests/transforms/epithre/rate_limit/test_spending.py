"""What several users spend together never exceeds the limits of their scope, wherever it is counted."""

import asyncio
import random
import secrets
import threading

import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.transforms.embedding.host_backend import HostBackend
from epithre_beam.transforms.epithre.rate_limit.account import Account
from epithre_beam.transforms.epithre.rate_limit.memory_backend import MemoryBackend, RateLimiterSettings
from epithre_beam.transforms.epithre.rate_limit.rate_limiter import RateLimiter
from epithre_beam.transforms.epithre.rate_limit.redis_backend import RedisBackend
from epithre_beam.transforms.epithre.rate_limit.spending import Purse, SpendingLimit, Totals, Verdict

KINDS = ["memory", "host", "redis"]
ONE = Totals(1, 0, 0, 1)


def make(kind, redis_server, hold_s=120.0):
    settings = RateLimiterSettings(limits={}, hold_s=hold_s)
    if kind == "memory":
        return MemoryBackend(settings)
    if kind == "host":
        return HostBackend(f"test-{secrets.token_hex(4)}", settings)
    return RedisBackend(redis_server.url, secrets.token_hex(4), settings)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_spend_exactly_the_requests_of_their_scope(kind, redis_server):
    backend = make(kind, redis_server)
    limit = SpendingLimit(max_requests=25)
    sent = []

    def work(user):
        totals = Totals()
        while backend.reserve("run", limit, user, totals.plus(ONE), ONE) == Verdict.YES:
            totals = totals.plus(ONE)
            sent.append(user)

    threads = [threading.Thread(target=work, args=(f"user {i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 25
    assert backend.reserve("another run", limit, "user 0", ONE, ONE) == Verdict.YES


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_bills_above_the_estimate_do_not_exceed_the_cost_and_bills_below_it_are_used_up(kind, seed, redis_server):
    """Accounts of two processes' worth of clients; each bill is at most the factor that was seen before it."""
    limit = SpendingLimit(max_cost=1000.0, price_of_token=1.0)
    backend = make(kind, redis_server)
    rng = random.Random(seed)
    billed = []

    async def client(user):
        limiter = RateLimiter({}, backend=backend)
        account = Account(limiter, limit, scope="run", user=user)
        while (reservation := await account.reserve(1, rng.randint(1, 40))) is not None:
            await asyncio.sleep(rng.uniform(0, 0.002))
            bill = rng.randint(1, reservation.tokens)
            billed.append(bill)
            account.reconcile(reservation, bill)
        limiter.close()

    async def both():
        await asyncio.gather(*(client(f"user {i}") for i in range(3)))

    asyncio.run(both())
    assert sum(billed) <= 1000
    assert sum(billed) > 1000 - 40


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_was_not_sent_and_a_user_that_starts_again_cost_nothing(kind, redis_server):
    backend = make(kind, redis_server)
    limit = SpendingLimit(max_requests=2)

    async def go():
        limiter = RateLimiter({}, backend=backend)
        first = Account(limiter, limit, scope="run", user="a")
        first.cancel(await first.reserve(1, 1))
        assert await first.reserve(1, 1) is not None
        again = Account(limiter, limit, scope="run", user="a", spent=Totals(1, 1, 1))
        assert await again.reserve(1, 1) is not None
        assert await again.reserve(1, 1) is None
        assert again.is_spent
        limiter.close()

    asyncio.run(go())


def test_requests_of_a_user_that_died_are_not_waited_for():
    now = 0.0
    purse = Purse(hold_s=10.0, clock=lambda: now)
    limit = SpendingLimit(max_cost=10.0, price_of_token=1.0)
    request = Totals(1, 1, 10, 1)
    assert purse.reserve(limit, "dies", request, request) == Verdict.YES
    assert purse.reserve(limit, "lives", request, request) == Verdict.WAIT
    now = 10.1
    assert purse.reserve(limit, "lives", request, request) == Verdict.NO


def test_the_limits_of_a_config_are_less_by_the_requests_before():
    embed = EmbedConfig(max_requests=5, max_cost=1.0, price_per_1000_requests=100.0, price_per_million_tokens=2.0)
    limit = SpendingLimit.of(embed, requests_spent=2)
    assert (limit.max_requests, limit.max_cost) == (3, pytest.approx(0.8))
    assert limit.allows(Totals(3, 10**6, 250_000))
    assert not limit.allows(Totals(4, 0, 0))
    assert not limit.allows(Totals(3, 0, 260_000))
    assert not SpendingLimit().is_limited


def test_users_that_notice_a_loss_of_redis_state_again_what_they_spent(redis_server):
    """Each waits for a lease when Redis loses its data; before one of them sends, both have stated their totals."""
    limit = SpendingLimit(max_requests=7)
    settings = RateLimiterSettings(limits={"requests": 10_000.0}, window_s=0.5, hold_s=2.5)
    name = secrets.token_hex(4)

    async def send(limiter, account):
        lease = await limiter.acquire(items=1, tokens=1)
        reservation = await account.reserve(1, 1)
        limiter.answered(lease)
        if reservation is not None:
            account.reconcile(reservation, 0)
        return reservation is not None

    async def go():
        limiters = [
            RateLimiter(settings.limits, window_s=0.5, backend=RedisBackend(redis_server.url, name, settings))
            for _ in range(2)
        ]
        users = [(one, Account(one, limit, scope="run", user=f"{i}")) for i, one in enumerate(limiters)]
        limiters[0]._backend.create()
        sent = sum([await send(*user) for user in users for _ in range(3)])
        await asyncio.gather(*(one.drain() for one in limiters))
        redis_server.kill()
        first = [asyncio.create_task(send(*user)) for user in users]
        await asyncio.sleep(0.1)
        redis_server.start()
        sent += sum(await asyncio.gather(*first))
        for user in (users[0], users[1]):
            while await send(*user):
                sent += 1
        for one in limiters:
            one.close()
        return sent

    assert asyncio.run(go()) == 7
