"""The ledger: which requests count against the limit at this moment.

A **strict lease window**. A request holds a lease from before it is sent until a window (60 s) after its answer, and
the weights of all leases never add up to more than the limit. The server counts a request somewhere between sending
and answer; if it counts it within (x, x + 60], the lease covers x + 60. So every request of that window holds a lease
at one instant, and there are at most as many as the limit allows, whatever the network does. On top, sends are
paced, so that the limit is spread over the minute instead of leaving in one burst.

A `MemoryBackend` lives in one process. Others share one between the processes of a host
(`transforms.embedding.host_backend`) or between machines (`redis_backend`), with the same rules.
"""

import heapq
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

WINDOW_S = 60.0
MARGIN_S = 0.1
"""Added to a lease, for clocks that run at slightly different speeds."""
BURST_S = 0.1
"""How far sending may lag behind its pace and catch up; timers are late by milliseconds."""
CUT = 0.7
CUT_EVERY_S = 5.0
"""Refusals closer together than this are one event: they were on their way when the first one came back."""
RECOVERY_A_MINUTE = 0.05
LOWEST_FACTOR = 0.05
WEIGHTS = ("requests", "items", "tokens")


@dataclass(frozen=True, kw_only=True)
class RateLimiterSettings:
    """What a ledger enforces. The same on all that share one."""

    limits: Mapping[str, float]
    """Weights a window, by name (`WEIGHTS`)."""
    window_s: float = WINDOW_S
    hold_s: float = 120.0
    """No request is under way longer: the lease of a process that died in the middle ends by itself."""
    spent: int = 0
    """Requests that were sent before and may still count on the server."""
    max_pause_s: float = 600.0
    """No pause lasts longer, whatever a server asked for and whoever wrote that down."""

    @property
    def longest_pause_s(self) -> float:
        """The longest pause that may be meant: also what is waited where the count of a limit was lost."""
        return max(self.max_pause_s, self.hold_s + self.window_s + MARGIN_S)


@dataclass(frozen=True)
class Answer:
    """A lease, or how long to wait before asking again."""

    lease: str | None
    wait_s: float = 0.0


class RateLimiterBackend(Protocol):
    """What the budget asks of a ledger, wherever it lives."""

    is_remote: bool
    """Whether a call may wait for a network, so that it must not be made on an event loop."""

    def try_acquire(self, weights: Mapping[str, float]) -> Answer:
        """A lease for one request of these weights, or the wait. Raises RateLimiterLostError."""

    def answered(self, lease: str) -> None:
        """The request is over: its lease ends one window from now."""

    def slow_down(self, retry_after_s: float | None) -> None:
        """The server refused: everyone pauses as told, and the rate is lowered."""

    def learn(self, limits: Mapping[str, float]) -> None:
        """Takes limits that the server states, where none is configured."""


class _Lease(NamedTuple):
    ends_at: float
    weights: Mapping[str, float]


class _LeaseEnd(NamedTuple):
    """When a lease may end: one that was answered ends later, and has a second of these."""

    at: float
    lease: str


@dataclass
class MemoryBackend:
    """The ledger in memory. Its methods may be called from any thread."""

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
        self._lock = threading.Lock()
        for _ in range(self.settings.spent):
            lease = self._take({"requests": 1.0}, self.clock())
            self.answered(lease)

    def try_acquire(self, weights: Mapping[str, float]) -> Answer:
        with self._lock:
            now = self.clock()
            self._end_leases(now)
            wait = max(self._pause_until - now, self._next_at - now if self._limits else 0.0)
            for name, limit in self._limits.items():
                # One request heavier than the whole limit could never go: it goes when nothing else counts.
                if self._used[name] + min(weights.get(name, 0.0), limit) > limit:
                    wait = max(wait, self._lease_ends[0].at - now)
            return Answer(None, wait) if wait > 0 else Answer(self._take(weights, now))

    def answered(self, lease: str) -> None:
        with self._lock:
            if lease in self._leases:
                ends_at = self.clock() + self.settings.window_s + MARGIN_S
                self._leases[lease] = _Lease(ends_at, self._leases[lease].weights)
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
            # Otherwise the lease was answered since, and stands further on with its new end.
            heapq.heappop(self._lease_ends)

    def _interval_s(self, weights: Mapping[str, float], now: float) -> float:
        """Seconds of the window that this request takes up."""
        if not self._limits:
            return 0.0
        share = max(min(weights.get(name, 0.0), limit) / limit for name, limit in self._limits.items())
        return share * self.settings.window_s / self._recovered(now)

    def _recovered(self, now: float) -> float:
        minutes = (now - self._factor_at) / self.settings.window_s
        return min(1.0, self._factor + minutes * RECOVERY_A_MINUTE)
