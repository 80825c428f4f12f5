"""What one client, or several in one process, spends of the limits of a scope."""

import asyncio
from typing import NamedTuple

from .rate_limiter import RateLimiter
from .spending import SpendingLimit, Totals, Verdict

_BILL_POLL_S = 0.02


class Reservation(NamedTuple):
    """A request that is counted: its items, and the tokens that were estimated and that are expected on the bill."""

    items: int
    tokens: int
    tokens_expected: int


class Account:
    """Counts a user's requests against the spending limits that it shares with others. Use it on one event loop.

    Requests in flight count with their estimate, times the highest factor by which a bill exceeded its estimate.

    Args:
        rate_limiter: Where all users of the scope are counted.
        limit: The limits of the scope.
        scope: Who shares the limits: the name of a run or a pipeline.
        user: The name of this user, unique in the scope.
        spent: What this user spent before, for example before its process was started again.
    """

    def __init__(
        self,
        rate_limiter: RateLimiter,
        limit: SpendingLimit,
        *,
        scope: str = "",
        user: str = "",
        spent: Totals | None = None,
    ) -> None:
        self._rate_limiter = rate_limiter
        self._limit = limit
        self._scope = scope
        self._user = user
        self._totals = spent or Totals()
        self._factor = 1.0
        self.is_spent = False
        """Whether the limits stopped a request; no further request is sent."""

    async def reserve(self, items: int, tokens: int) -> Reservation | None:
        """Count one request, or return None if the limits do not allow it. It may wait for the bills of others.

        Raises:
            RateLimiterLostError: If a shared rate limiter was unreachable for ten minutes.
        """
        while not self.is_spent:
            reservation = Reservation(items, tokens, round(tokens * self._factor))
            request = Totals(1, items, reservation.tokens_expected, 1)
            if not self._limit.is_limited:
                return reservation
            # Counted before the answer, so that what is reported meanwhile contains it.
            self._totals = self._totals.plus(request)
            try:
                verdict = await self._rate_limiter.reserve(self._scope, self._limit, self._user, self._totals, request)
            except BaseException:
                self._totals = self._totals.minus(request)
                raise
            if verdict == Verdict.YES:
                return reservation
            self._totals = self._totals.minus(request)
            if verdict == Verdict.NO:
                self.is_spent = True
            else:
                await asyncio.sleep(_BILL_POLL_S)
        return None

    def reconcile(self, reservation: Reservation, billed: int) -> None:
        """Count the answer of a request.

        Args:
            reservation: From `reserve`.
            billed: The tokens on its bill; 0: the answer has none, so those expected stay.
        """
        if billed:
            self._factor = max(self._factor, billed / max(reservation.tokens, 1))
        difference = billed - reservation.tokens_expected if billed else 0
        self._change(Totals(0, 0, difference, -1))

    def cancel(self, reservation: Reservation) -> None:
        """Take back a request that was not sent."""
        self._change(Totals(-1, -reservation.items, -reservation.tokens_expected, -1))

    def _change(self, change: Totals) -> None:
        if self._limit.is_limited:
            self._totals = self._totals.plus(change)
            self._rate_limiter.report_spent(self._scope, self._user, self._totals)
