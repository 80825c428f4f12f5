"""What follows a 429 and other passing refusals: all requests slow down, and each is sent again after a wait.

How long each waits, and how many retries there may be beside the requests that are none.
"""

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
"""Statuses after which all requests slow down; 0: no answer came."""
_WORTH_REPORTING_S = 10.0
"""A shorter pause is everyday within a limit a minute."""

log = logging.getLogger("epithre_beam.pause")


@dataclass(frozen=True, kw_only=True)
class Pause:
    """A pause that the server asked for, and that is kept."""

    until_s: float
    """Seconds since the epoch."""
    asked_s: float
    why: str
    """The answer, in a few words."""

    def __str__(self) -> str:
        return of_pause(self.until_s, self.asked_s, self.why)


ReportPause = Callable[[Pause], None]
"""Is told of each pause that a person would wonder at."""


def log_pause(pause: Pause) -> None:
    log.warning("%s", pause)


def report_long_pause(answer: ErrorAnswer, pause_s: float, report: ReportPause) -> float:
    """Tells of a pause that a person would wonder at; returns its end, seconds since the epoch."""
    until_s = time.time() + pause_s
    if pause_s >= _WORTH_REPORTING_S:
        report(Pause(until_s=until_s, asked_s=pause_s, why=str(answer)))
    return until_s


class Retries:
    """Waits before a retry, as the server asks plus jitter that doubles, and for a place in the retry budget.

    Args:
        share: Retries as a share of all requests at most; the first 20 are free.
        longest_pause_s: That a server may ask for.
        meter: Counts requests and retries.
        rate_limiter: What slows down.
        breaker: Says when waiting makes no sense any more.
        seed: Of the jitter.
        sleep: Waits; tests may make it shorter.
        report_pause: Is told of a pause before it is kept.
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
        """Held by the one request at a time that finds out whether the server works at all."""
        self.failed_tests = 0
        """Of these, in a row."""
        self._sleep = sleep
        self._report_pause = report_pause
        self._last_reported_until_s = 0.0

    def slow_down(self, answer: ErrorAnswer) -> None:
        """Slows all requests down after a 429 or another answer that says so, for as long as it asks.

        Raises:
            ApiPausedError: When it asks for a longer pause than is waited for: asking earlier is no use to anybody.
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
        # Requests that were on their way together are answered alike: one line tells of them all.
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
        """Returns when the retry may be sent, and counts it.

        Args:
            reason: What is retried, for the report.
            tries: How often it was sent.
            retry_after_s: As the server asked.
            is_spent: Whether nothing is sent any more, so that nothing need be waited for.
            is_counted: Whether it needs a place in the retry budget; not where it is known that the server works.
            may_test: Whether the caller can find out, with a smaller request, if the server works.

        Returns:
            Whether it may be sent. False: the retry budget is used up, and nothing was served for a while, so that only
            a test can make sure that it is no outage.
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
                break  # the failures in a row decide
            await self._sleep(_POLL_S)
        self._meter.retries[reason] += 1
        return True

    def _counted(self) -> int:
        return self._meter.retries.total() - self._uncounted
