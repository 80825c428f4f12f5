"""Who is let in, and the record of it: the sliding window, the log, and what the log proves.

Times are integer nanoseconds of the monotonic clock, so that the gate and the proof over its log
compare the same numbers exactly.
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
    """What one request, or one window of requests, weighs."""

    requests: int
    items: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class Admission:
    """One request as the server saw it; filled in while it is served, complete once it is answered."""

    serial: int
    """Counts all requests, from 0."""
    number: int | None = None
    """Counts embeddings requests, from 0: what its faults were drawn from."""
    request_id: str
    method: str
    path: str
    arrived_ns: int
    """When the request's head had been read."""
    decided_ns: int | None = None
    """When the gate admitted or refused it: after the body was read, for items and tokens are in it."""
    decision: Literal["unmetered", "admitted", "refused"] = "unmetered"
    """`unmetered`: it never reached the gate (not an embeddings request, or not a valid one)."""
    reason: str | None = None
    """Why it was not answered 200: the limit that refused it, or the error's code."""
    status: int | None = None
    """None: still in service, or the connection was closed without an answer."""
    answered_ns: int | None = None
    delivered: bool = False
    """The whole answer was handed to the network."""
    faults: tuple[str, ...] = ()
    items: int = 0
    tokens: int = 0
    body_bytes: int = 0
    answer_bytes: int = 0
    digests: tuple[str, ...] = ()
    """SHA-256 (hex) of kind and content of each item, in the order of the request."""

    @property
    def billed(self) -> bool:
        """Admitted and answered 200, hence billed, even if the client got it mangled or not at all."""
        return self.decision == "admitted" and self.status == 200


class Verdict(NamedTuple):
    """The gate's answer: admitted when `reason` is None, else refused for at least `wait_ns`."""

    decided_ns: int
    reason: Reason | None
    wait_ns: int


class Gate:
    """A strict sliding window over requests, items and tokens, and a cap on requests in service.

    A request arriving at t is admitted if, with it, no limit is exceeded by what was admitted in
    (t - window, t]. Refused requests weigh nothing.
    """

    def __init__(self, limits: Limits, *, concurrency_wait_s: float = 0.1) -> None:
        self._limits = limits
        self._caps = (limits.requests_per_minute, limits.items_per_minute, limits.tokens_per_minute)
        self._window_ns = round(limits.window_s * 1e9)
        # When a place in service frees is not known; the usual service time is the best guess.
        self._concurrency_wait_ns = round(concurrency_wait_s * 1e9)
        self._lock = threading.Lock()
        self._admitted: deque[tuple[int, Weights]] = deque()
        self._used = Weights(0, 0, 0)
        self._in_service = 0
        self._peak_in_service = 0

    def admit(self, weight: Weights) -> Verdict:
        """Decide now. An admitted request must be given back with `release`."""
        with self._lock:
            # The clock is read under the lock: decisions are then in the order of their times.
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
        """The limit that this request exceeds all by itself, so that no waiting would help."""
        names: tuple[Reason, ...] = ("requests", "items", "tokens")
        for name, cap, own in zip(names, self._caps, weight, strict=True):
            if cap is not None and own > cap:
                return name
        return None

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-*` headers as of now; a reset is the time until everything is free again."""
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
        return self._window_ns  # heavier than the limit itself: `oversized` has refused it before


def worst_window(log: Iterable[Admission], window_s: float) -> Weights:
    """The most that was admitted during any `window_s` seconds, each of the three weights by itself.

    It reads only the log, not the gate, so it proves the gate as well as the client in front of it.
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
    """How often each item was billed, by the hex digest of its kind and content."""
    return Counter(digest for record in log if record.billed for digest in record.digests)


def go_duration(duration_ns: int) -> str:
    """A duration as Go prints it, to the next millisecond: "6m0s", "1.5s", "20ms", "0s"."""
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
