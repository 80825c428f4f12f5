"""The rate limiter's backend in memory: counts the requests against the limits.

It uses a **strict lease window**. A request holds a lease from before it is sent until one window (60 s) after its
answer, and the weights of all leases never exceed the limit. The server counts a request at some time between sending
and answer; if it counts it within (x, x + 60], the lease covers x + 60. So all requests of that window hold a lease at
the same instant, and there are at most as many as the limit allows, whatever the network does. In addition, sends are
paced, so that they are spread over the minute instead of sent in one burst.

A `MemoryBackend` belongs to one process. Other backends with the same rules share the limits between the processes of
a host (`transforms.embedding.host_backend`) or between machines (`redis_backend`).
"""

import heapq
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from .spending import Purse, SpendingLimit, Totals, Verdict

WINDOW_S = 60.0
MARGIN_S = 0.1
"""Added to a lease, because clocks run at slightly different speeds."""
BURST_S = 0.1
"""How far sending may fall behind its pace and catch up; timers are late by milliseconds."""
CUT = 0.7
CUT_EVERY_S = 5.0
"""Refusals within this time count as one event: their requests were in flight when the first refusal arrived."""
RECOVERY_A_MINUTE = 0.05
LOWEST_FACTOR = 0.05
WEIGHTS = ("requests", "items", "tokens")


@dataclass(frozen=True, kw_only=True)
class RateLimiterSettings:
    """The limits of a rate limiter's backend. All processes that share a backend must use the same settings."""

    limits: Mapping[str, float]
    """Weights per window, by name (`WEIGHTS`)."""
    window_s: float = WINDOW_S
    hold_s: float = 120.0
    """Longest duration of a request; the lease of a process that died expires after it."""
    spent: int = 0
    """Number of requests sent earlier that the server may still count."""
    max_pause_s: float = 600.0
    """Longest pause, whatever a server asks for or a shared backend has stored."""

    @property
    def longest_pause_s(self) -> float:
        """The longest pause in seconds, including the wait after a shared backend lost its data."""
        return max(self.max_pause_s, self.hold_s + self.window_s + MARGIN_S)


@dataclass(frozen=True)
class Answer:
    """A lease, or how long to wait before asking again."""

    lease: str | None
    wait_s: float = 0.0


class RateLimiterBackend(Protocol):
    """The interface of a rate limiter's backend."""

    is_remote: bool
    """Whether a call may wait for the network and so must not run on an event loop."""

    def try_acquire(self, weights: Mapping[str, float]) -> Answer:
        """Return a lease for one request of these weights, or the wait. Raises RateLimiterLostError."""

    def answered(self, lease: str, tokens: float | None = None) -> None:
        """End the lease one window from now, because its request is complete.

        Args:
            lease: The lease.
            tokens: The tokens that the server billed, which count from now on instead of those of the lease; None:
                those of the lease stay.
        """

    def slow_down(self, retry_after_s: float | None) -> None:
        """Lower the rate after a refusal, and pause all requests for `retry_after_s`."""

    def learn(self, limits: Mapping[str, float]) -> None:
        """Adopt limits that the server states, where none is configured."""

    def reserve(self, scope: str, limit: SpendingLimit, user: str, after: Totals, request: Totals) -> Verdict:
        """Count one request against the spending limits of a scope (`Purse.reserve`). Raises RateLimiterLostError."""

    def report(self, scope: str, user: str, totals: Totals) -> None:
        """Set what a user of a scope has spent (`Purse.report`)."""


class _Lease(NamedTuple):
    ends_at: float
    weights: Mapping[str, float]


class _LeaseEnd(NamedTuple):
    """A possible end of a lease. An answered lease has a second, later entry."""

    at: float
    lease: str


@dataclass
class MemoryBackend:
    """A backend in memory, for one process. Thread-safe."""

    settings: RateLimiterSettings
    clock: Callable[[], float] = time.monotonic
    is_remote: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._limits = dict(self.settings.limits)
        self._used = dict.fromkeys(WEIGHTS, 0.0)
        self._leases: dict[str, _Lease] = {}
        self._lease_ends: list[_LeaseEnd] = []
        self._serial = 0
        self._next_at = self._pause_until = self._cut_at = -math.inf
        self._factor, self._factor_at = 1.0, self.clock()
        self._purses: dict[str, Purse] = {}
        self._lock = threading.Lock()
        self.count(self.settings.spent)

    def count(self, requests: int) -> None:
        """Count requests that were sent just before, without a lease."""
        for _ in range(requests):
            with self._lock:
                lease = self._take({"requests": 1.0}, self.clock())
            self.answered(lease)

    def try_acquire(self, weights: Mapping[str, float]) -> Answer:
        with self._lock:
            now = self.clock()
            self._end_leases(now)
            wait = max(self._pause_until - now, self._next_at - now if self._limits else 0.0)
            for name, limit in self._limits.items():
                # A request heavier than the whole limit is sent when no other request counts.
                if self._used[name] + min(weights.get(name, 0.0), limit) > limit:
                    wait = max(wait, self._lease_ends[0].at - now)
            return Answer(None, wait) if wait > 0 else Answer(self._take(weights, now))

    def answered(self, lease: str, tokens: float | None = None) -> None:
        with self._lock:
            if lease in self._leases:
                now = self.clock()
                ends_at = now + self.settings.window_s + MARGIN_S
                weights = self._leases[lease].weights
                if tokens is not None:
                    billed = {**weights, "tokens": tokens}
                    self._used["tokens"] += tokens - weights.get("tokens", 0.0)
                    self._next_at += self._interval_s(billed, now) - self._interval_s(weights, now)
                    weights = billed
                self._leases[lease] = _Lease(ends_at, weights)
                heapq.heappush(self._lease_ends, _LeaseEnd(ends_at, lease))

    def slow_down(self, retry_after_s: float | None) -> None:
        with self._lock:
            now = self.clock()
            if retry_after_s is not None and retry_after_s > 0:
                self._pause_until = max(self._pause_until, now + min(retry_after_s, self.settings.longest_pause_s))
            if now - self._cut_at >= min(CUT_EVERY_S, self.settings.window_s):
                self._factor = max(LOWEST_FACTOR, self._recovered(now) * CUT)
                self._cut_at = self._factor_at = now

    def learn(self, limits: Mapping[str, float]) -> None:
        with self._lock:
            for name, limit in limits.items():
                if name not in self.settings.limits and limit >= 1:
                    self._limits[name] = limit

    def reserve(self, scope: str, limit: SpendingLimit, user: str, after: Totals, request: Totals) -> Verdict:
        return self._purse(scope).reserve(limit, user, after, request)

    def report(self, scope: str, user: str, totals: Totals) -> None:
        self._purse(scope).report(user, totals)

    def _purse(self, scope: str) -> Purse:
        with self._lock:
            return self._purses.setdefault(scope, Purse(self.settings.hold_s, self.clock))

    def _take(self, weights: Mapping[str, float], now: float) -> str:
        self._serial += 1
        lease = str(self._serial)
        for name, weight in weights.items():
            self._used[name] += weight
        ends_at = now + self.settings.hold_s + self.settings.window_s
        self._leases[lease] = _Lease(ends_at, weights)
        heapq.heappush(self._lease_ends, _LeaseEnd(ends_at, lease))
        self._next_at = max(self._next_at, now - BURST_S) + self._interval_s(weights, now)
        return lease

    def _end_leases(self, now: float) -> None:
        while self._lease_ends:
            ends_at, lease = self._lease_ends[0]
            current = self._leases.get(lease)
            if current is not None and current.ends_at == ends_at:
                if ends_at > now:
                    return
                for name, weight in current.weights.items():
                    self._used[name] -= weight
                del self._leases[lease]
            # Otherwise the lease was answered meanwhile and has a later entry.
            heapq.heappop(self._lease_ends)

    def _interval_s(self, weights: Mapping[str, float], now: float) -> float:
        """Return the seconds of the window that this request uses."""
        if not self._limits:
            return 0.0
        share = max(min(weights.get(name, 0.0), limit) / limit for name, limit in self._limits.items())
        return share * self.settings.window_s / self._recovered(now)

    def _recovered(self, now: float) -> float:
        minutes = (now - self._factor_at) / self.settings.window_s
        return min(1.0, self._factor + minutes * RECOVERY_A_MINUTE)
