"""Admission of requests: the sliding window, the log, and checks computed from the log.

Times are integer nanoseconds of the monotonic clock, so that the gate and the checks of its log compare exactly the
same numbers.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .settings import Limits

Reason = Literal["concurrency", "requests", "items", "tokens"]


class Weights(NamedTuple):
    """The weights of one request or of one window of requests."""

    requests: int
    items: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class Admission:
    """The record of one request; it is filled in while the request is served and complete once it is answered."""

    serial: int
    """Number among all requests, from 0."""
    number: int | None = None
    """Number among the embeddings requests, from 0; its faults are drawn from it."""
    request_id: str
    method: str
    path: str
    arrived_ns: int
    """Time when the request's head was read."""
    decided_ns: int | None = None
    """Time when the gate admitted or refused it, after the body, which has the items, was read."""
    decision: Literal["unmetered", "admitted", "refused"] = "unmetered"
    """`unmetered`: it did not reach the gate (not an embeddings request, or an invalid one)."""
    reason: str | None = None
    """Why the status is not 200: the limit that refused it, or the error's code."""
    status: int | None = None
    """None: still in service, or the connection was closed without an answer."""
    answered_ns: int | None = None
    delivered: bool = False
    """Whether the whole answer was passed to the network."""
    faults: tuple[str, ...] = ()
    items: int = 0
    tokens: int = 0
    body_bytes: int = 0
    answer_bytes: int = 0
    digests: tuple[str, ...] = ()
    """SHA-256 (hex) of kind and content of each item, in the order of the request."""

    @property
    def billed(self) -> bool:
        """Whether it was admitted and answered with 200, even if the client did not receive the whole answer."""
        return self.decision == "admitted" and self.status == 200


class Verdict(NamedTuple):
    """The gate's decision: admitted if `reason` is None, otherwise refused for at least `wait_ns`."""

    decided_ns: int
    reason: Reason | None
    wait_ns: int


class Gate:
    """A strict sliding window over requests, items and tokens, and a limit of concurrent requests.

    A request that arrives at t is admitted if the requests admitted in (t - window, t], including it, exceed no limit.
    Refused requests do not count.
    """

    def __init__(self, limits: Limits, *, concurrency_wait_s: float = 0.1) -> None:
        self._limits = limits
        self._caps = (limits.requests_per_minute, limits.items_per_minute, limits.tokens_per_minute)
        self._window_ns = round(limits.window_s * 1e9)
        # The time until another request ends is unknown; the usual service time is the best estimate.
        self._concurrency_wait_ns = round(concurrency_wait_s * 1e9)
        self._lock = threading.Lock()
        self._admitted: deque[tuple[int, Weights]] = deque()
        self._used = Weights(0, 0, 0)
        self._in_service = 0
        self._peak_in_service = 0

    def admit(self, weight: Weights) -> Verdict:
        """Admit or refuse a request now. Call `release` when an admitted request is complete."""
        with self._lock:
            # Read the clock under the lock, so that the order of decisions is the order of their times.
            now = time.monotonic_ns()
            self._expire(now)
            refusal = self._refusal(now, weight)
            if refusal is not None:
                return refusal
            self._admitted.append((now, weight))
            self._used = Weights(*(u + w for u, w in zip(self._used, weight, strict=True)))
            self._in_service += 1
            self._peak_in_service = max(self._peak_in_service, self._in_service)
            return Verdict(now, None, 0)

    def release(self) -> None:
        with self._lock:
            self._in_service -= 1

    @property
    def in_service(self) -> int:
        return self._in_service

    @property
    def peak_in_service(self) -> int:
        return self._peak_in_service

    def oversized(self, weight: Weights) -> Reason | None:
        """Return the limit that this request exceeds on its own, so that waiting is useless."""
        names: tuple[Reason, ...] = ("requests", "items", "tokens")
        for name, cap, own in zip(names, self._caps, weight, strict=True):
            if cap is not None and own > cap:
                return name
        return None

    def headers(self) -> dict[str, str]:
        """Return the current `x-ratelimit-*` headers; a reset is the time until the window is empty."""
        if not self._limits.send_headers:
            return {}
        with self._lock:
            now = time.monotonic_ns()
            self._expire(now)
            used = self._used
            refill_ns = self._admitted[-1][0] + self._window_ns - now if self._admitted else 0
        headers: dict[str, str] = {}
        for name, cap, spent in (
            ("requests", self._limits.requests_per_minute, used.requests),
            ("tokens", self._limits.tokens_per_minute, used.tokens),
        ):
            if cap is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(cap)
                headers[f"x-ratelimit-remaining-{name}"] = str(max(0, cap - spent))
                headers[f"x-ratelimit-reset-{name}"] = go_duration(refill_ns)
        return headers

    def _expire(self, now: int) -> None:
        horizon = now - self._window_ns
        while self._admitted and self._admitted[0][0] <= horizon:
            _, gone = self._admitted.popleft()
            self._used = Weights(*(u - w for u, w in zip(self._used, gone, strict=True)))

    def _refusal(self, now: int, weight: Weights) -> Verdict | None:
        limit = self._limits.concurrency
        if limit is not None and self._in_service >= limit:
            return Verdict(now, "concurrency", self._concurrency_wait_ns)
        worst: Verdict | None = None
        names: tuple[Reason, ...] = ("requests", "items", "tokens")
        for position, (name, cap) in enumerate(zip(names, self._caps, strict=True)):
            if cap is None:
                continue
            excess = self._used[position] + weight[position] - cap
            if excess <= 0:
                continue
            wait = self._time_until_freed(position, excess, now)
            if worst is None or wait > worst.wait_ns:
                worst = Verdict(now, name, wait)
        return worst

    def _time_until_freed(self, position: int, excess: int, now: int) -> int:
        for admitted_ns, weight in self._admitted:
            excess -= weight[position]
            if excess <= 0:
                return admitted_ns + self._window_ns - now
        return self._window_ns  # not reached: `oversized` refuses a request heavier than the limit


def worst_window(log: Iterable[Admission], window_s: float) -> Weights:
    """Return the maximum that was admitted during any `window_s` seconds, for each of the three weights.

    It reads only the log, not the gate, so it checks the gate as well as the client.
    """
    window_ns = round(window_s * 1e9)
    admitted = sorted(
        (record.decided_ns, Weights(1, record.items, record.tokens))
        for record in log
        if record.decision == "admitted" and record.decided_ns is not None
    )
    used, worst, oldest = [0, 0, 0], [0, 0, 0], 0
    for now, weight in admitted:
        while admitted[oldest][0] <= now - window_ns:
            for position, value in enumerate(admitted[oldest][1]):
                used[position] -= value
            oldest += 1
        for position, value in enumerate(weight):
            used[position] += value
            worst[position] = max(worst[position], used[position])
    return Weights(*worst)


def payments(log: Iterable[Admission]) -> Counter[str]:
    """Return how often each item was billed, by the hex digest of its kind and content."""
    return Counter(digest for record in log if record.billed for digest in record.digests)


def go_duration(duration_ns: int) -> str:
    """Format a duration like Go, rounded up to milliseconds: "6m0s", "1.5s", "20ms", "0s"."""
    milliseconds = max(0, -(-duration_ns // 1_000_000))
    if milliseconds == 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    seconds = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds
