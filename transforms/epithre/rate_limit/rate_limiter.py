"""The budget of a lane: it asks the ledger for leases, and keeps as many requests in flight as the server takes.

What the server says (429, 503, Retry-After) only ever lowers the rate: a pause for everyone, then 0.7 of the rate,
recovered by 5 % of the limit a minute. Where no limit is known, the number of requests in flight adapts.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ....configs.errors import RateLimiterLostError
from .memory_backend import CUT, CUT_EVERY_S, WINDOW_S, Answer, MemoryBackend, RateLimiterSettings, RateLimiterBackend

_START_CONCURRENCY = 8
_LOST_PAUSE_S = 1.0
_LONGEST_LOSS_S = 600.0
_REMOTE_POLL_S = 1.0
"""A shared ledger is asked again after about so long at the latest: others may have freed it meanwhile."""
_FIRST_SPREAD_S = 0.004

log = logging.getLogger("epithre_beam.rate_limiter")


def next_wait_s(wait_s: float, refusals: int, rng: random.Random) -> float:
    """How long a lane waits before it asks a shared ledger again.

    All lanes hear of the same moment at which the next request may go; if all came back then, one would get it and the
    others would have asked in vain, a thousand times over. So each adds a random time, which doubles with every refusal
    in a row up to `_REMOTE_POLL_S`: the more lanes there are, the more of them are refused.

    Args:
        wait_s: Until the next request may go, as the ledger said.
        refusals: In a row, this one included.
        rng: The lane's own.
    """
    spread_s = min(_REMOTE_POLL_S, _FIRST_SPREAD_S * 2.0 ** min(refusals - 1, 30))
    return min(wait_s, _REMOTE_POLL_S) + rng.random() * spread_s


@dataclass(eq=False)
class Lease:
    """The right to send one request. It ends by itself a window after `RateLimiter.answered`."""

    name: str
    is_answered: bool = field(default=False, init=False)


class RateLimiter:
    """Decides when a request may be sent. For one event loop; all the requests of a lane share one.

    Args:
        limits: Weights a minute, by name: `requests`, `items`, `tokens`. None or absent: not limited.
        max_concurrency: Requests in flight at most.
        clock: Seconds, monotonic.
        window_s: The minute; tests shorten it together with the server's.
        spent: Requests that were sent before this budget existed and may still count on the server.
        max_pause_s: The longest pause that a server may ask for, where the ledger is one of its own.
        backend: Shared with other lanes; absent: one of its own, in memory.
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
    ) -> None:
        known = {name: float(limit) for name, limit in limits.items() if limit is not None}
        settings = RateLimiterSettings(limits=known, window_s=window_s, spent=spent, max_pause_s=max_pause_s)
        self._backend = backend or MemoryBackend(settings, clock)
        self._is_limited = bool(known)
        self._learned: dict[str, float] = {}
        self._max_concurrency = max_concurrency
        self._concurrency = float(max_concurrency if known else min(_START_CONCURRENCY, max_concurrency))
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
        # One thread, so that what is told to a remote ledger arrives in order.
        self._remote = ThreadPoolExecutor(1, thread_name_prefix="ledger") if self._backend.is_remote else None
        self._known_limits = known
        self.throttled_s = 0.0
        """Seconds that sending waited for the limit or for a pause; waiters that overlap count once."""

    @property
    def limits(self) -> dict[str, float]:
        """The limits in force, configured or learned, by name."""
        return {**self._learned, **self._known_limits}

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def concurrency(self) -> int:
        """Requests in flight at most, as adapted so far."""
        return max(1, int(self._concurrency))

    async def acquire(self, *, items: int, tokens: int) -> Lease:
        """Waits for the right to send one request with so many items and tokens, first come, first served.

        Raises:
            RateLimiterLostError: When a shared ledger was away for ten minutes.
        """
        weights = {"requests": 1.0, "items": float(items), "tokens": float(tokens)}
        refusals = 0
        async with self._turn:
            while True:
                self._changed.clear()
                if self._in_flight >= self.concurrency:
                    await self._changed.wait()
                    continue
                answer = await self._ask(weights)
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

    def answered(self, lease: Lease, *, latency_s: float | None = None) -> None:
        """The request is over, answered or not: its lease ends one window from now.

        Args:
            lease: From `acquire`. A second call for it does nothing.
            latency_s: From sending to the end of a good answer; absent when it was none.
        """
        if lease.is_answered:
            return
        lease.is_answered = True
        self._in_flight -= 1
        self._report(self._backend.answered, lease.name)
        if latency_s is not None:
            self._adapt(latency_s)
        self._changed.set()

    def slow_down(self, retry_after_s: float | None = None) -> None:
        """The server refused or was overloaded: everyone pauses as told, and the rate is lowered."""
        now = self._clock()
        self._slow_start = False
        if now - self._cut_at >= min(CUT_EVERY_S, self._window_s):
            self._cut_at = now
            self._concurrency = max(1.0, min(self._concurrency, self._in_flight + 1.0) * CUT)
        self._report(self._backend.slow_down, retry_after_s)
        self._changed.set()

    def learn(self, limits: Mapping[str, float]) -> None:
        """Takes limits that the server states, where none is configured."""
        new = {name: limit for name, limit in limits.items() if name not in self._known_limits and limit >= 1}
        if new and any(self._learned.get(name) != limit for name, limit in new.items()):
            self._learned.update(new)
            self._report(self._backend.learn, new)
            self._changed.set()

    def close(self) -> None:
        """Tells a remote ledger what is still to be told, and lets go of it."""
        if self._remote is not None:
            self._remote.shutdown(wait=True)

    async def _ask(self, weights: Mapping[str, float]) -> Answer:
        if self._remote is None:
            return self._backend.try_acquire(weights)
        loop = asyncio.get_running_loop()
        lost_at: float | None = None
        while True:
            try:
                answer = await loop.run_in_executor(self._remote, self._backend.try_acquire, weights)
            except RateLimiterLostError as error:
                now = self._clock()
                if lost_at is None:
                    log.warning("%s Nothing is sent until it is back.", error)
                    lost_at = now
                if now - lost_at > _LONGEST_LOSS_S:
                    raise
                await asyncio.sleep(_LOST_PAUSE_S)
                self.throttled_s += _LOST_PAUSE_S
            else:
                if lost_at is not None:
                    log.warning("The ledger is back after %.0f s.", self._clock() - lost_at)
                return answer

    def _report(self, function: Callable[..., None], argument: Any) -> None:
        """Tells the ledger. A remote one that does not hear of an answer keeps its lease longer, which is safe."""
        if self._remote is None:
            function(argument)
            return

        def report() -> None:
            with contextlib.suppress(RateLimiterLostError):
                function(argument)

        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._remote.submit(report)

    def _adapt(self, latency_s: float) -> None:
        """Additive increase of the concurrency, doubling a round trip at first, while latency does not suffer."""
        self._best_latency_s = min(self._best_latency_s, latency_s)
        smooth = latency_s if self._latency_s is None else 0.8 * self._latency_s + 0.2 * latency_s
        self._latency_s = smooth
        if smooth > 3 * self._best_latency_s + 0.05 and not self._is_limited:
            self._slow_start = False
        elif self._in_flight + 1 >= self.concurrency:
            step = 1.0 if self._slow_start else 1.0 / self._concurrency
            self._concurrency = min(float(self._max_concurrency), self._concurrency + step)
