"""The budget: how much may be sent, and when.

A **strict lease window**. A request holds a lease from before it is sent until 60 s after its answer, and at most
R leases exist. The server counts a request somewhere between sending and answer; if it counts it within
(x, x + 60], the lease covers x + 60. So every request of that window holds a lease at one instant, and there are
at most R of them: the limit holds over any sliding window, whatever the network does. Items and tokens are weights
on the same leases. On top, sends are paced, so that R is spread over the minute instead of leaving in one burst.

What the server says (429, 503, Retry-After) only ever lowers the rate: a pause for everyone, then 0.7 of the rate,
recovered by 5 % of the limit a minute.
"""

import asyncio
import contextlib
import heapq
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

WINDOW_S = 60.0
_MARGIN_S = 0.1
"""Added to a lease, for clocks that run at slightly different speeds."""
_BURST_S = 0.1
"""How far sending may lag behind its pace and catch up; timers are late by milliseconds."""
_CUT = 0.7
_CUT_EVERY_S = 5.0
"""Refusals closer together than this are one event: they were on their way when the first one came back."""
_RECOVERY_PER_S = 0.05 / 60
_LOWEST_FACTOR = 0.05
_START_CONCURRENCY = 8


@dataclass(eq=False)
class Lease:
    """The right to send one request. It ends by itself a window after `Budget.answered`."""

    weights: Mapping[str, float]
    sent_at: float
    is_answered: bool = field(default=False, init=False)


class Budget:
    """Decides when a request may be sent. For one event loop; all the requests of a lane share one.

    Args:
        limits: Weights a minute, by name: `requests`, `items`, `tokens`. None or absent: not limited.
        max_concurrency: Requests in flight at most.
        clock: Seconds, monotonic.
        window_s: The minute; tests shorten it together with the server's.
        spent: Requests that were sent before this budget existed and may still count on the server.
    """

    def __init__(
        self,
        limits: Mapping[str, float | None],
        *,
        max_concurrency: int = 256,
        clock: Callable[[], float] = time.monotonic,
        window_s: float = WINDOW_S,
        spent: int = 0,
    ) -> None:
        self._limits = {name: float(limit) for name, limit in limits.items() if limit is not None}
        self._configured = frozenset(self._limits)
        self._max_concurrency = max_concurrency
        self._concurrency = float(max_concurrency if self._limits else min(_START_CONCURRENCY, max_concurrency))
        self._slow_start = not self._limits
        self._clock = clock
        self._window_s = window_s
        self._used = {"requests": 0.0, "items": 0.0, "tokens": 0.0}
        self._ending: list[tuple[float, int, Lease]] = []
        self._order = 0
        self._in_flight = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._next_at = -math.inf
        self._pause_until = -math.inf
        self._factor = 1.0
        self._factor_at = clock()
        self._cut_at = -math.inf
        self._latency_s: float | None = None
        self._best_latency_s = math.inf
        self.throttled_s = 0.0
        """Seconds that sending waited for the limit or for a pause; waiters that overlap count once."""
        for _ in range(spent):
            lease = self._take({"requests": 1.0}, clock())
            self.answered(lease)

    @property
    def limits(self) -> dict[str, float]:
        """The limits in force, configured or learned, by name."""
        return dict(self._limits)

    @property
    def in_flight(self) -> int:
        return self._in_flight

    @property
    def concurrency(self) -> int:
        """Requests in flight at most, as adapted so far."""
        return max(1, int(self._concurrency))

    async def acquire(self, *, items: int, tokens: int) -> Lease:
        """Waits for the right to send one request with so many items and tokens, first come, first served."""
        weights = {"requests": 1.0, "items": float(items), "tokens": float(tokens)}
        async with self._turn:
            while True:
                now = self._clock()
                wait, is_throttled = self._wait_s(weights, now)
                if wait <= 0:
                    return self._take(weights, now)
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), None if math.isinf(wait) else wait)
                if is_throttled:
                    self.throttled_s += self._clock() - now

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
        self._order += 1
        heapq.heappush(self._ending, (self._clock() + self._window_s + _MARGIN_S, self._order, lease))
        if latency_s is not None:
            self._adapt(latency_s)
        self._changed.set()

    def slow_down(self, retry_after_s: float | None = None) -> None:
        """The server refused or was overloaded: everyone pauses as told, and the rate is lowered."""
        now = self._clock()
        if retry_after_s is not None and retry_after_s > 0:
            self._pause_until = max(self._pause_until, now + retry_after_s)
        self._slow_start = False
        if now - self._cut_at >= min(_CUT_EVERY_S, self._window_s):
            self._cut_at = now
            self._factor = max(_LOWEST_FACTOR, self._recovered(now) * _CUT)
            self._factor_at = now
            self._concurrency = max(1.0, min(self._concurrency, self._in_flight + 1.0) * _CUT)
        self._changed.set()

    def learn(self, limits: Mapping[str, float]) -> bool:
        """Takes limits that the server states, where none is configured. Returns whether any of them changed."""
        changed = False
        for name, limit in limits.items():
            if name not in self._configured and limit >= 1 and self._limits.get(name) != limit:
                self._limits[name] = limit
                changed = True
        if changed:
            self._changed.set()
        return changed

    def _take(self, weights: Mapping[str, float], now: float) -> Lease:
        for name, weight in weights.items():
            self._used[name] += weight
        self._in_flight += 1
        self._next_at = max(self._next_at, now - _BURST_S) + self._interval_s(weights, now)
        return Lease(weights=weights, sent_at=now)

    def _wait_s(self, weights: Mapping[str, float], now: float) -> tuple[float, bool]:
        """Seconds to wait (infinite: until something changes), and whether it is for the limit's sake."""
        while self._ending and self._ending[0][0] <= now:
            _, _, lease = heapq.heappop(self._ending)
            for name, weight in lease.weights.items():
                self._used[name] -= weight
        wait = max(self._pause_until - now, self._next_at - now if self._limits else 0.0)
        for name, limit in self._limits.items():
            # One request heavier than the whole limit could never go: it goes when nothing else counts.
            if self._used[name] + min(weights[name], limit) > limit:
                # Until the next lease ends, or, when all are in flight, until one is answered.
                wait = max(wait, self._ending[0][0] - now if self._ending else math.inf)
        if wait > 0:
            return wait, True
        return (math.inf, False) if self._in_flight >= self.concurrency else (0.0, False)

    def _interval_s(self, weights: Mapping[str, float], now: float) -> float:
        """Seconds that this request takes up of the minute."""
        if not self._limits:
            return 0.0
        share = max(min(weights.get(name, 0.0), limit) / limit for name, limit in self._limits.items())
        return share * self._window_s / self._recovered(now)

    def _recovered(self, now: float) -> float:
        return min(1.0, self._factor + (now - self._factor_at) * _RECOVERY_PER_S * (WINDOW_S / self._window_s))

    def _adapt(self, latency_s: float) -> None:
        """Additive increase of the concurrency, doubling a round trip at first, while latency does not suffer."""
        self._best_latency_s = min(self._best_latency_s, latency_s)
        smooth = latency_s if self._latency_s is None else 0.8 * self._latency_s + 0.2 * latency_s
        self._latency_s = smooth
        if smooth > 3 * self._best_latency_s + 0.05 and not self._configured:
            self._slow_start = False
        elif self._in_flight + 1 >= self.concurrency:
            step = 1.0 if self._slow_start else 1.0 / self._concurrency
            self._concurrency = min(float(self._max_concurrency), self._concurrency + step)
