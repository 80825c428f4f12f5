"""The rate limiter of a process: takes leases from a backend and adapts the number of requests in flight.

A refusal (429, 503, Retry-After) lowers the rate: all requests pause, then the rate is 0.7 of the previous one and
recovers by 5 % of the limit per minute. If no limit is known, the number of requests in flight adapts.

Until an answer shows that the API accepts the key, one request is in flight, so that a refused key costs one request.
"""

import asyncio
import contextlib
import functools
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ....configs.errors import ApiError, ApiPausedError, RateLimiterLostError, RefusedKeyError, SpentQuotaError
from .memory_backend import CUT, CUT_EVERY_S, WINDOW_S, Answer, MemoryBackend, RateLimiterBackend, RateLimiterSettings
from .spending import SpendingLimit, Totals, Verdict

_T = TypeVar("_T")
_START_CONCURRENCY = 8
_LOST_PAUSE_S = 1.0
_LONGEST_LOSS_S = 600.0
_REMOTE_POLL_S = 1.0
"""Longest time between two calls of a shared backend, because other lanes may have released leases meanwhile."""
_FIRST_SPREAD_S = 0.004

log = logging.getLogger("epithre_beam.rate_limiter")


def next_wait_s(wait_s: float, refusals: int, rng: random.Random) -> float:
    """Return the seconds that a lane waits before it calls a shared backend again.

    All lanes receive the same time for the next request; if all called again at that time, only one would succeed. So
    each lane adds a random time, whose range doubles with every consecutive refusal up to `_REMOTE_POLL_S`.

    Args:
        wait_s: Seconds until the next request may be sent, as the backend returned.
        refusals: Number of consecutive refusals, including this one.
        rng: Random generator of the lane.
    """
    spread_s = min(_REMOTE_POLL_S, _FIRST_SPREAD_S * 2.0 ** min(refusals - 1, 30))
    return min(wait_s, _REMOTE_POLL_S) + rng.random() * spread_s


@dataclass(eq=False)
class Lease:
    """The right to send one request. It ends one window after `RateLimiter.answered`."""

    name: str
    is_answered: bool = field(default=False, init=False)


class RateLimiter:
    """Decides when a request may be sent. All requests that share a rate limiter are sent on one event loop.

    Args:
        limits: Limits per minute, by name: `requests`, `items`, `tokens`. None or absent: not limited.
        max_concurrency: Maximum number of requests in flight, unless users state theirs (`in_use`).
        clock: Returns monotonic seconds.
        window_s: Length of the window in seconds; tests shorten it together with the server's.
        spent: Number of requests sent earlier that the server may still count.
        max_pause_s: Longest pause that a server may ask for, in seconds; used if `backend` is absent.
        backend: Backend shared with other processes; by default a new one in memory.
        is_key_accepted: Whether the API is known to accept the key.
    """

    def __init__(
        self,
        limits: Mapping[str, float | None],
        *,
        max_concurrency: int = 256,
        clock: Callable[[], float] = time.monotonic,
        window_s: float = WINDOW_S,
        spent: int = 0,
        max_pause_s: float = 600.0,
        backend: RateLimiterBackend | None = None,
        is_key_accepted: bool = True,
    ) -> None:
        known = {name: float(limit) for name, limit in limits.items() if limit is not None}
        settings = RateLimiterSettings(limits=known, window_s=window_s, spent=spent, max_pause_s=max_pause_s)
        self._backend = backend or MemoryBackend(settings, clock)
        self._is_limited = bool(known)
        self._learned: dict[str, float] = {}
        self._max_concurrency = max_concurrency
        self._users: tuple[int, ...] = ()
        self._users_lock = threading.Lock()
        self._is_key_accepted = is_key_accepted
        self.refusal: ApiError | None = None
        """A refusal that concerns all who use this key, until an answer shows that the API accepts requests again."""
        self._concurrency = math.inf if known else float(_START_CONCURRENCY)
        """What the latency and the refusals allow."""
        self._slow_start = not known
        self._clock = clock
        self._window_s = window_s
        self._in_flight = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._rng = random.Random()
        self._cut_at = -math.inf
        self._latency_s: float | None = None
        self._best_latency_s = math.inf
        # One thread, so that calls of a remote backend arrive in order.
        self._remote = ThreadPoolExecutor(1, thread_name_prefix="rate-limiter") if self._backend.is_remote else None
        self._known_limits = known
        self._spent: dict[tuple[str, str], Totals] = {}
        self.throttled_s = 0.0
        """Seconds that sending waited for a limit or a pause; overlapping waits count once."""

    @property
    def limits(self) -> dict[str, float]:
        """The current limits, configured or learned, by name."""
        return {**self._learned, **self._known_limits}

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def concurrency(self) -> int:
        """Current maximum number of requests in flight."""
        if not self._is_key_accepted:
            return 1
        return max(1, int(min(self._concurrency, self._most_in_flight)))

    @property
    def _most_in_flight(self) -> int:
        return min(self._users, default=self._max_concurrency)

    @contextlib.contextmanager
    def in_use(self, max_concurrency: int) -> Iterator[None]:
        """Keep the requests in flight of all users together within the smallest maximum of those who use it now.

        Thread-safe.
        """
        with self._users_lock:
            self._users = (*self._users, max_concurrency)
        try:
            yield
        finally:
            with self._users_lock:
                left = list(self._users)
                left.remove(max_concurrency)
                self._users = tuple(left)

    def key_accepted(self) -> None:
        """Record that the API accepts requests with this key."""
        self.refusal = None
        if not self._is_key_accepted:
            self._is_key_accepted = True
            self._changed.set()

    def client_stopped(self, error: ApiError) -> None:
        """Record that a client was stopped; after that one request is in flight until the API accepts one."""
        if isinstance(error, (RefusedKeyError, SpentQuotaError, ApiPausedError)):
            self.refusal = error
        self._is_key_accepted = False

    async def acquire(self, *, items: int, tokens: int) -> Lease:
        """Wait for a lease to send one request with `items` items and `tokens` tokens; first come, first served.

        Raises:
            RateLimiterLostError: If a shared backend was unreachable for ten minutes.
        """
        weights = {"requests": 1.0, "items": float(items), "tokens": float(tokens)}
        refusals = 0
        async with self._turn:
            while True:
                self._changed.clear()
                if self._in_flight >= self.concurrency:
                    await self._changed.wait()
                    continue
                answer: Answer = await self._ask(self._backend.try_acquire, weights)
                if answer.lease is not None:
                    self._in_flight += 1
                    return Lease(answer.lease)
                refusals += 1
                wait = answer.wait_s
                if self._remote is not None:
                    wait = next_wait_s(wait, refusals, self._rng)
                started = self._clock()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
                self.throttled_s += self._clock() - started

    def answered(self, lease: Lease, *, latency_s: float | None = None, tokens: int | None = None) -> None:
        """Record that the request is complete, answered or not; its lease ends one window from now.

        Args:
            lease: Lease from `acquire`. A second call for the same lease does nothing.
            latency_s: Seconds from sending to the end of a successful answer; None after a failure.
            tokens: The tokens that the server billed, if they are to count instead of those of the lease.
        """
        if lease.is_answered:
            return
        lease.is_answered = True
        self._in_flight -= 1
        self._report(self._backend.answered, lease.name, *(() if tokens is None else (tokens,)))
        if latency_s is not None:
            self._adapt(latency_s)
        self._changed.set()

    def slow_down(self, retry_after_s: float | None = None) -> None:
        """Lower the rate after a refusal or an overload, and pause all requests for `retry_after_s`."""
        now = self._clock()
        self._slow_start = False
        if now - self._cut_at >= min(CUT_EVERY_S, self._window_s):
            self._cut_at = now
            self._concurrency = max(1.0, min(self._concurrency, self._in_flight + 1.0) * CUT)
        self._report(self._backend.slow_down, retry_after_s)
        self._changed.set()

    def learn(self, limits: Mapping[str, float]) -> None:
        """Adopt limits that the server states, where none is configured."""
        new = {name: limit for name, limit in limits.items() if name not in self._known_limits and limit >= 1}
        if new and any(self._learned.get(name) != limit for name, limit in new.items()):
            self._learned.update(new)
            self._report(self._backend.learn, new)
            self._changed.set()

    def close(self) -> None:
        """Finish the pending calls of a remote backend and release it."""
        if self._remote is not None:
            self._remote.shutdown(wait=True)

    async def drain(self) -> None:
        """Wait until a remote backend has received all reports."""
        if self._remote is not None:
            await asyncio.get_running_loop().run_in_executor(self._remote, int)

    async def reserve(self, scope: str, limit: SpendingLimit, user: str, after: Totals, request: Totals) -> Verdict:
        """Count one request against the spending limits of a scope; see `Purse.reserve`.

        Raises:
            RateLimiterLostError: If a shared backend was unreachable for ten minutes.
        """
        self._spent[scope, user] = after
        try:
            verdict = await self._ask(self._backend.reserve, scope, limit, user, after, request)
        except BaseException:
            self._spent[scope, user] = after.minus(request)
            raise
        if verdict != Verdict.YES:
            self._spent[scope, user] = after.minus(request)
        return verdict

    def report_spent(self, scope: str, user: str, totals: Totals) -> None:
        """Tell the backend what a user has spent."""
        self._spent[scope, user] = totals
        self._report(self._backend.report, scope, user, totals)

    async def _ask(self, function: Callable[..., _T], *arguments: Any) -> _T:
        if self._remote is None:
            return function(*arguments)
        loop = asyncio.get_running_loop()
        lost_at: float | None = None
        while True:
            try:
                if lost_at is not None:
                    await loop.run_in_executor(self._remote, self._report_again)
                answer = await loop.run_in_executor(self._remote, functools.partial(function, *arguments))
            except RateLimiterLostError as error:
                now = self._clock()
                if lost_at is None:
                    log.warning("%s No request is sent until it is reachable again.", error)
                    lost_at = now
                if now - lost_at > _LONGEST_LOSS_S:
                    raise
                await asyncio.sleep(_LOST_PAUSE_S)
                self.throttled_s += _LOST_PAUSE_S
            else:
                if lost_at is not None:
                    log.warning("The rate limiter is reachable again after %.0f s.", self._clock() - lost_at)
                return answer

    def _report_again(self) -> None:
        """State what was spent to a backend that may have lost it, before anything more is sent."""
        for (scope, user), totals in list(self._spent.items()):
            self._backend.report(scope, user, totals)

    def _report(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call the backend. If a remote backend misses an answer, it keeps the lease longer, which is safe."""
        if self._remote is None:
            function(*arguments)
            return

        def report() -> None:
            with contextlib.suppress(RateLimiterLostError):
                function(*arguments)

        with contextlib.suppress(RuntimeError):  # already closed
            self._remote.submit(report)

    def _adapt(self, latency_s: float) -> None:
        """Increase the concurrency while the latency stays low: doubling per round trip at first, then additively."""
        self._best_latency_s = min(self._best_latency_s, latency_s)
        smooth = latency_s if self._latency_s is None else 0.8 * self._latency_s + 0.2 * latency_s
        self._latency_s = smooth
        if smooth > 3 * self._best_latency_s + 0.05 and not self._is_limited:
            self._slow_start = False
        elif self._in_flight + 1 >= self.concurrency and self._concurrency < self._most_in_flight:
            self._concurrency += 1.0 if self._slow_start else 1.0 / self._concurrency
