"""What is done about each answer, until every item of a request has a vector or a refusal.

A request that fails is sent again; one that is too large, or whose answers are broken, in halves; one that is refused
is halved until the item at fault stands alone. So is one at which the server fails (5xx, no answer) again and again,
but only while it serves other items of the same request: one item is sent alone to find that out. During an outage none
is served, and no more is sent than the retries of each request.
"""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from .answers import ErrorAnswer, Verdict, short
from .meter import Meter
from .packing import Item
from .replies import Outcome
from .retries import Retries
from .vectors import BrokenAnswerError

_BROKEN_SENDS = 3
_WHOLE_SENDS = 3
"""How often a request fails as a whole before single items of it are tried."""
_ALONE_SENDS = 3
"""How many of the sends of a request are left for single items."""
_PROOFS = 3
"""How often the server fails at the half with an item and serves the other, until the item is what it fails at."""
_PASSING = {0, 502, 503, 504}
"""Failures of the way to a server, or of its day: they prove nothing against an item."""


class RefusalReason(StrEnum):
    """Why an item has no vector."""

    REFUSED = "refused"
    TOO_LARGE = "too_large_for_api"
    BROKEN_ANSWER = "broken_answer"
    RETRIES_EXHAUSTED = "retries_exhausted"
    NOT_SENT = "not_sent"
    """The run had sent what it may."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """An item that got no vector: why, in the server's own words, and after how many sends."""

    reason: RefusalReason
    detail: str
    attempts: int


class Resolver:
    """The items of one call on their way to a vector or a refusal each.

    Args:
        items: All of them; packs are positions in them.
        send: One request within the budget; None when it may not be paid any more.
        retries: Says when a retry may be sent.
        is_spent: Whether nothing may be sent any more.
        meter: Counts splits.
        max_sends: Of one request, or of an item while nothing is served.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        send: Callable[[Sequence[Item]], Awaitable[Outcome | None]],
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
        self.results: list[npt.NDArray[np.float32] | Refusal | None] = [None] * len(items)
        """A vector (float32, (dimension,), unit norm) or a refusal for each item that was settled."""

    async def resolve(self, pack: list[int]) -> None:
        """Sends `pack` until each of its items has a vector or a refusal."""
        await self._resolve(pack)

    async def _resolve(
        self, pack: list[int], *, failures: int = 0, proofs: int = 0, is_trial: bool = False
    ) -> ErrorAnswer | None:
        """Sends `pack` until each of its items has a result.

        Args:
            pack: Positions of items.
            failures: How often the server has failed at it.
            proofs: How often it served other items and failed at these.
            is_trial: When the server fails at it, that is returned, and what is not settled is left so.
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
            if isinstance(outcome, np.ndarray):
                for i, vector in zip(pack, outcome, strict=True):
                    self.results[i] = vector
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
            match outcome.verdict:
                case Verdict.RETRY:
                    failures += 1
                    if outcome.may_be_an_item:
                        if is_trial:
                            return outcome
                        if len(pack) > 1 and failures >= self._whole_sends:
                            await self._try_alone(pack, outcome, failures)
                            return None
                    if failures >= (self._max_sends if proofs < _PROOFS else self._whole_sends):
                        self._give_up(pack, outcome, proofs)
                        return None
                    may_test = outcome.may_be_an_item and len(pack) > 1
                    if not await self._before_retry(outcome, failures, is_counted=proofs == 0, may_test=may_test):
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
                    # Prose may count from one or mean something else: the item is asked alone before it is given up.
                    named = pack[outcome.item]
                    await self._resolve([named])
                    pack = [i for i in pack if i != named]
                    if isinstance(self.results[named], np.ndarray):
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
        """Sends both halves: the pack was too large, or its answers were broken."""
        self._meter.splits += 1
        for half in _halves(pack):
            await self._resolve(half)

    async def _bisect(self, pack: list[int]) -> None:
        """Finds the items that spoil a refused pack, which is known to hold one at least.

        When the first half is good, the second must hold the culprit and is halved again without being asked.
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
        """Sends items of a pack alone, at which the server fails: once it serves one, the others are looked into.

        If it serves none, all are given up: for now, since it may be the server that is at fault. Of all packs, one
        does this at a time, and the more slowly the more often nothing is served; so it needs no place in the retry
        budget, which a server that fails at an item of each request would use up.
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
        self._give_up(pack, error, proofs=0)

    async def _isolate(self, pack: list[int], proofs: int = 0) -> None:
        """Finds the items at which a server fails that serves others: sends both halves, and looks into what failed.

        Where one half is served, retries of the other do not count in the budget of retries: the server works, and they
        are few. Where it fails at both, nothing is known, and of each half an item is tried alone again.
        """
        self._meter.splits += len(pack) > 1
        trials = [(half, await self._resolve(half, is_trial=True)) for half in _halves(pack)]
        failed = [(half, error) for half, error in trials if error is not None]
        for tried, error in failed:
            half = [i for i in tried if self.results[i] is None]
            known = proofs + 1 if len(failed) == 1 and len(pack) > 1 else 0
            if len(half) > 1 and not known:
                await self._try_alone(half, error, self._whole_sends)
                continue
            await self._before_retry(error, 1, is_counted=not known)
            if len(half) > 1:
                await self._isolate(half, known)
            else:
                await self._resolve(half, failures=1, proofs=known)

    async def _before_retry(self, error: ErrorAnswer, tries: int, *, is_counted: bool, may_test: bool = False) -> bool:
        reason = error.code or str(error.status)
        return await self._retries.wait(
            reason, tries, error.retry_after_s, self._is_spent, is_counted=is_counted, may_test=may_test
        )

    def _give_up(self, pack: list[int], error: ErrorAnswer, proofs: int) -> None:
        """The server failed at these items until the end."""
        if proofs >= _PROOFS and error.status not in _PASSING and error.may_be_an_item:
            self._refuse(pack, RefusalReason.REFUSED, f"{error} (alone, while others were served)")
        else:
            self._refuse(pack, RefusalReason.RETRIES_EXHAUSTED, str(error))

    def _refuse(self, pack: list[int], reason: RefusalReason, detail: str) -> None:
        for i in pack:
            if self.results[i] is None:
                self.results[i] = Refusal(reason=reason, detail=short(detail), attempts=self._sends[i])


def _halves(pack: list[int]) -> tuple[list[int], list[int]]:
    half = (len(pack) + 1) // 2
    return pack[:half], pack[half:]
