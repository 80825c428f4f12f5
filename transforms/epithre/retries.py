"""Slow down after a 429 or another transient failure, and limit the delay and the share of retries."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...configs.words import of_pause
from .answers import ErrorAnswer
from .circuit_breaker import CircuitBreaker
from .meter import Meter
from .rate_limit.rate_limiter import RateLimiter

_FREE_RETRIES = 20
_LONGEST_JITTER_S = 30.0
_FIRST_JITTER_S = 0.5
_POLL_S = 0.1
_SLOWER = {0, 408, 429, 503}
"""Statuses after which all requests slow down; 0 means that no answer came."""
_WORTH_REPORTING_S = 10.0
"""Shorter pauses are normal with a limit per minute."""

log = logging.getLogger("epithre_beam.pause")


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A pause that the server asked for."""

    until_s: float
    """Seconds since the epoch."""
    asked_s: float
    why: str
    """Short text of the answer."""

    def __str__(self) -> str:
        return of_pause(self.until_s, self.asked_s, self.why)


ReportPause = Callable[[Pause], None]
"""Called for each pause long enough to report."""


def log_pause(pause: Pause) -> None:
    log.warning("%s", pause)


def report_long_pause(answer: ErrorAnswer, pause_s: float, report: ReportPause) -> float:
    """Report a pause of 10 s or more; return its end in seconds since the epoch."""
    until_s = time.time() + pause_s
    if pause_s >= _WORTH_REPORTING_S:
        report(Pause(until_s=until_s, asked_s=pause_s, why=str(answer)))
    return until_s


class Retries:
    """Delays retries: the pause that the server asks for, plus exponential jitter, within a retry budget.

    Args:
        share: Maximum share of retries among all requests; the first 20 retries are free.
        longest_pause_s: Longest pause that a server may ask for, in seconds.
        meter: Counts requests and retries.
        rate_limiter: The limiter to slow down.
        breaker: Reports when waiting is pointless.
        seed: Seed of the jitter.
        sleep: Waits for a number of seconds; tests may shorten it.
        report_pause: Called before a long pause.
    """

    def __init__(
        self,
        share: float,
        longest_pause_s: float,
        meter: Meter,
        rate_limiter: RateLimiter,
        breaker: CircuitBreaker,
        *,
        seed: int | None,
        sleep: Callable[[float], Any],
        report_pause: ReportPause = log_pause,
    ) -> None:
        self._share = share
        self._longest_pause_s = longest_pause_s
        self._meter = meter
        self._rate_limiter = rate_limiter
        self._breaker = breaker
        self.random = random.Random(seed)
        self._uncounted = 0
        self.turn = asyncio.Lock()
        """Held by the one request at a time that tests whether the server works."""
        self.failed_tests = 0
        """Number of consecutive failed tests."""
        self._sleep = sleep
        self._report_pause = report_pause
        self._last_reported_until_s = 0.0

    def slow_down(self, answer: ErrorAnswer) -> None:
        """Slow down all requests after a 429 or another overload answer, for as long as the server asks.

        Raises:
            ApiPausedError: If the server asks for a longer pause than the settings allow.
        """
        if answer.status == 429:
            self._meter.answers_429 += 1
        pause_s = answer.retry_after_s
        if answer.status in _SLOWER or pause_s is not None:
            self._rate_limiter.slow_down(None if pause_s is None else min(pause_s, self._longest_pause_s))
        if pause_s is None:
            return
        if pause_s > self._longest_pause_s:
            self._breaker.asked_to_pause(answer, pause_s)
        # Concurrent requests get similar answers; report the pause once.
        if time.time() + pause_s >= self._last_reported_until_s + _WORTH_REPORTING_S:
            self._last_reported_until_s = report_long_pause(answer, pause_s, self._report_pause)

    async def wait(
        self,
        reason: str,
        tries: int,
        retry_after_s: float | None,
        is_spent: Callable[[], bool],
        *,
        is_counted: bool = True,
        may_test: bool = False,
    ) -> bool:
        """Wait until the retry may be sent, and count it.

        Args:
            reason: Reason of the retry, for the report.
            tries: Number of times the request was sent.
            retry_after_s: Pause that the server asked for, in seconds.
            is_spent: Whether the spending limits are reached, so that waiting is pointless.
            is_counted: Whether the retry counts in the retry budget; False if the server is known to work.
            may_test: Whether the caller can test with a smaller request if the server works.

        Returns:
            Whether the retry may be sent. False: the retry budget is used up and no request succeeded for a while, so
            the caller must test whether there is an outage.
        """
        jitter_s = self.random.uniform(0, min(_LONGEST_JITTER_S, _FIRST_JITTER_S * 2**tries))
        await self._sleep(max(retry_after_s or 0.0, 0.0) + jitter_s)
        self._uncounted += not is_counted
        while is_counted and self._counted() >= _FREE_RETRIES + self._share * self._meter.requests:
            if is_spent():
                return True
            if may_test and self._breaker.is_quiet:
                return False
            if self._breaker.is_open or self._breaker.is_outage:
                break  # the circuit breaker decides
            await self._sleep(_POLL_S)
        self._meter.retries[reason] += 1
        return True

    def gave_up(self, what: str) -> None:
        """Report that a request failed for good without an answer."""
        self._breaker.gave_up(what)

    def _counted(self) -> int:
        return self._meter.retries.total() - self._uncounted
