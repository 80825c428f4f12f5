"""Act on each answer until every item of a request has a result or a refusal.

- A failed request is sent again.
- A request that is too large, or whose answers are broken, is split in halves.
- A refused request is bisected until the invalid item is alone.
- A request at which the server fails repeatedly (5xx, no answer) is bisected too, but only if the server serves other
  items of the same request: one item is sent alone to test that. During an outage no item is served, and nothing
  beyond the retries of each request is sent.
"""

import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from .answers import ErrorAnswer, Verdict, short
from .meter import Meter
from .packing import Item
from .retries import Retries
from .vectors import BrokenAnswerError

_T = TypeVar("_T")
_BROKEN_SENDS = 3
_WHOLE_SENDS = 3
"""Number of failures of a whole request before single items of it are sent."""
_ALONE_SENDS = 3
"""Number of sends of a request that are reserved for single items."""
_ISOLATED_FAILURES = 3
"""Number of times the server must fail at one half and serve the other before an item counts as the cause."""
_PASSING = {0, 502, 503, 504}
"""Transient failures of the network or the server: they never count as evidence against an item."""


class RefusalReason(StrEnum):
    """Why an item has no vector."""

    REFUSED = "refused"
    TOO_LARGE = "too_large_for_api"
    BROKEN_ANSWER = "broken_answer"
    RETRIES_EXHAUSTED = "retries_exhausted"
    NOT_SENT = "not_sent"
    """The run reached its spending limit."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An item without a vector: the reason, the server's message, and the number of sends."""

    reason: RefusalReason
    detail: str
    attempts: int


class Resolver(Generic[_T]):
    """Finds a result (a vector, or another one) or a refusal for each item of one call.

    Args:
        items: All items; a pack is a list of positions in them.
        send: Sends one request; returns None if the spending limits allow no further request.
        retries: Decides when a retry may be sent.
        is_spent: Whether the spending limits are reached.
        meter: Counts splits.
        max_sends: Maximum number of sends of a request, or of an item while the server serves nothing.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        send: Callable[[Sequence[Item]], Awaitable[Iterable[_T] | ErrorAnswer | BrokenAnswerError | None]],
        retries: Retries,
        is_spent: Callable[[], bool],
        meter: Meter,
        max_sends: int,
    ) -> None:
        self._items = items
        self._send = send
        self._retries = retries
        self._is_spent = is_spent
        self._meter = meter
        self._max_sends = max_sends
        self._whole_sends = max(1, min(_WHOLE_SENDS, max_sends - _ALONE_SENDS))
        self._sends = [0] * len(items)
        self.results: list[_T | Refusal | None] = [None] * len(items)
        """A result or a refusal for each resolved item."""

    async def resolve(self, pack: list[int]) -> None:
        """Send `pack` until each of its items has a vector or a refusal."""
        await self._resolve(pack)

    async def _resolve(
        self, pack: list[int], *, failures: int = 0, isolated: int = 0, is_trial: bool = False
    ) -> ErrorAnswer | None:
        """Send `pack` until each of its items has a result.

        Args:
            pack: Positions of items.
            failures: Number of times the server failed at this pack.
            isolated: Number of times the server served other items and failed at these.
            is_trial: Whether a failure of the server is returned instead of retried, leaving items unresolved.
        """
        broken = 0
        while pack:
            for i in pack:
                self._sends[i] += 1
            outcome = await self._send([self._items[i] for i in pack])
            if outcome is None:
                for i in pack:
                    self._sends[i] -= 1
                self._refuse(pack, RefusalReason.NOT_SENT, "the run's spending limit")
                return None
            if isinstance(outcome, BrokenAnswerError):
                broken += 1
                if broken < _BROKEN_SENDS:
                    await self._retries.wait("broken_answer", broken, None, self._is_spent)
                elif len(pack) == 1:
                    self._refuse(pack, RefusalReason.BROKEN_ANSWER, str(outcome))
                    return None
                else:
                    await self._split(pack)
                    return None
                continue
            if not isinstance(outcome, ErrorAnswer):
                for i, result in zip(pack, outcome, strict=True):
                    self.results[i] = result
                return None
            match outcome.verdict:
                case Verdict.RETRY:
                    failures += 1
                    if outcome.may_be_an_item:
                        if is_trial:
                            return outcome
                        if len(pack) > 1 and failures >= self._whole_sends:
                            await self._try_alone(pack, outcome, failures)
                            return None
                    if failures >= (self._max_sends if isolated < _ISOLATED_FAILURES else self._whole_sends):
                        self._give_up(pack, outcome, isolated)
                        return None
                    may_test = outcome.may_be_an_item and len(pack) > 1
                    if not await self._before_retry(outcome, failures, is_counted=isolated == 0, may_test=may_test):
                        await self._try_alone(pack, outcome, failures)
                        return None
                case Verdict.TOO_LARGE:
                    if len(pack) == 1:
                        self._refuse(pack, RefusalReason.TOO_LARGE, str(outcome))
                        return None
                    await self._split(pack)
                    return None
                case Verdict.ITEM if outcome.is_certain and outcome.item is not None:
                    named = pack[outcome.item]
                    self._refuse([named], RefusalReason.REFUSED, str(outcome))
                    pack = [i for i in pack if i != named]
                case Verdict.ITEM if outcome.item is not None and len(pack) > 1:
                    # A number in prose may count from 1 or mean something else: send the item alone before refusing it.
                    named = pack[outcome.item]
                    await self._resolve([named])
                    pack = [i for i in pack if i != named]
                    if not isinstance(self.results[named], Refusal):
                        await self._bisect(pack)
                        return None
                case _:
                    if len(pack) == 1:
                        self._refuse(pack, RefusalReason.REFUSED, str(outcome))
                        return None
                    await self._bisect(pack)
                    return None
        return None

    async def _split(self, pack: list[int]) -> None:
        """Send both halves, because the pack was too large or its answers were broken."""
        self._meter.splits += 1
        for half in _halves(pack):
            await self._resolve(half)

    async def _bisect(self, pack: list[int]) -> None:
        """Find the invalid items of a refused pack, which contains at least one.

        If the first half is valid, the second contains an invalid item and is split without being sent.
        """
        while len(pack) > 1:
            self._meter.splits += 1
            first, second = _halves(pack)
            await self._resolve(first)
            if any(isinstance(self.results[i], Refusal) for i in first):
                await self._resolve(second)
                return
            pack = second
        await self._resolve(pack)

    async def _try_alone(self, pack: list[int], error: ErrorAnswer, failures: int) -> None:
        """Send single items of a pack at which the server fails; if one is served, isolate the failing items.

        If none is served, all items are refused as transient failures, because the server may be the cause. Only one
        pack does this at a time, and the delay grows with each failure. So these sends do not count in the retry
        budget, which a server that fails at one item of every request would use up.
        """
        for item in itertools.cycle(self._retries.random.sample(pack, len(pack))):
            if failures >= self._max_sends:
                break
            async with self._retries.turn:
                await self._before_retry(error, self._retries.failed_tests, is_counted=False)
                failed = await self._resolve([item], is_trial=True)
                self._retries.failed_tests = 0 if failed is None else self._retries.failed_tests + 1
            if failed is None:
                await self._isolate([i for i in pack if i != item])
                return
            error, failures = failed, failures + 1
        self._give_up(pack, error, isolated=0)

    async def _isolate(self, pack: list[int], isolated: int = 0) -> None:
        """Find the items at which a working server fails: send both halves, and continue with the failed ones.

        If one half is served, retries of the other do not count in the retry budget: the server works, and they are
        few. If both halves fail, the cause is unknown, and single items of each half are sent again.
        """
        self._meter.splits += len(pack) > 1
        trials = [(half, await self._resolve(half, is_trial=True)) for half in _halves(pack)]
        failed = [(half, error) for half, error in trials if error is not None]
        for tried, error in failed:
            half = [i for i in tried if self.results[i] is None]
            known = isolated + 1 if len(failed) == 1 and len(pack) > 1 else 0
            if len(half) > 1 and not known:
                await self._try_alone(half, error, self._whole_sends)
                continue
            await self._before_retry(error, 1, is_counted=not known)
            if len(half) > 1:
                await self._isolate(half, known)
            else:
                await self._resolve(half, failures=1, isolated=known)

    async def _before_retry(self, error: ErrorAnswer, tries: int, *, is_counted: bool, may_test: bool = False) -> bool:
        reason = error.code or str(error.status)
        return await self._retries.wait(
            reason, tries, error.retry_after_s, self._is_spent, is_counted=is_counted, may_test=may_test
        )

    def _give_up(self, pack: list[int], error: ErrorAnswer, isolated: int) -> None:
        """Refuse the items after the last send failed."""
        if isolated >= _ISOLATED_FAILURES and error.status not in _PASSING and error.may_be_an_item:
            self._refuse(pack, RefusalReason.REFUSED, f"{error} (alone, while others were served)")
        else:
            if error.status in _PASSING:
                self._retries.gave_up(str(error))
            self._refuse(pack, RefusalReason.RETRIES_EXHAUSTED, str(error))

    def _refuse(self, pack: list[int], reason: RefusalReason, detail: str) -> None:
        for i in pack:
            if self.results[i] is None:
                self.results[i] = Refusal(reason=reason, detail=short(detail), attempts=self._sends[i])


def _halves(pack: list[int]) -> tuple[list[int], list[int]]:
    half = (len(pack) + 1) // 2
    return pack[:half], pack[half:]
