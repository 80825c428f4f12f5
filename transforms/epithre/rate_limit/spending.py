"""What several clients may spend together: `max_requests` and `max_cost`, counted where the rate limiter counts.

Each client is a user with a name, who always states everything it has spent so far. So a lost answer, a repeated call
or a counter that starts anew needs no repair: the next call states the right totals again.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Self

from ....configs import EmbedConfig


class Totals(NamedTuple):
    """What a user has spent. Requests in flight are part of it, with their estimated tokens."""

    requests: int = 0
    items: int = 0
    tokens: int = 0
    on_the_way: int = 0
    """Requests in flight: they may turn out cheaper."""

    def plus(self, other: "Totals") -> "Totals":
        return Totals(*(mine + its for mine, its in zip(self, other, strict=True)))

    def minus(self, other: "Totals") -> "Totals":
        return Totals(*(mine - its for mine, its in zip(self, other, strict=True)))


class Verdict(StrEnum):
    """Whether a request may be sent."""

    YES = "yes"
    WAIT = "wait"
    """It does not fit while requests in flight count with their estimates; ask again after their answers."""
    NO = "no"


@dataclass(frozen=True, kw_only=True)
class SpendingLimit:
    """The limits of a scope, such as a run. None: not limited."""

    max_requests: int | None = None
    max_cost: float | None = None
    price_of_request: float = 0.0
    price_of_item: float = 0.0
    price_of_token: float = 0.0

    @classmethod
    def of(cls, embed: EmbedConfig, *, requests_spent: int = 0) -> Self:
        """Return the limits of a config, less the requests that were sent before."""
        spent_cost = embed.cost(requests=requests_spent, items=0, tokens=0) or 0.0
        return cls(
            max_requests=None if embed.max_requests is None else max(0, embed.max_requests - requests_spent),
            max_cost=None if embed.max_cost is None else max(0.0, embed.max_cost - spent_cost),
            price_of_request=embed.price_per_1000_requests / 1e3,
            price_of_item=embed.price_per_1000_items / 1e3,
            price_of_token=embed.price_per_million_tokens / 1e6,
        )

    @property
    def is_limited(self) -> bool:
        return self.max_requests is not None or self.max_cost is not None

    def allows(self, totals: Totals) -> bool:
        """Whether so much may have been spent in all."""
        if self.max_requests is not None and totals.requests > self.max_requests:
            return False
        # A sum of prices such as 0.1 must not fail at its own limit.
        return self.max_cost is None or self.cost(totals) <= self.max_cost * (1 + 1e-9)

    def cost(self, totals: Totals) -> float:
        return (
            totals.requests * self.price_of_request
            + totals.items * self.price_of_item
            + totals.tokens * self.price_of_token
        )


@dataclass
class Purse:
    """What the users of one scope have spent, in memory. Thread-safe."""

    hold_s: float
    """Longest duration of a request: what a silent user had in flight is not waited for longer."""
    clock: Callable[[], float] = time.monotonic
    _users: dict[str, tuple[Totals, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reserve(self, limit: SpendingLimit, user: str, after: Totals, request: Totals) -> Verdict:
        """Count one request if the limits allow it.

        Args:
            limit: The limits, the same for all users.
            user: Who sends.
            after: Everything that the user has spent, this request included.
            request: This request alone.
        """
        with self._lock:
            now = self.clock()
            everything, on_the_way = after, after.on_the_way - request.on_the_way
            for name, (totals, at) in self._users.items():
                if name != user:
                    everything = everything.plus(totals)
                    on_the_way += totals.on_the_way if now - at <= self.hold_s else 0
            if limit.allows(everything):
                self._users[user] = (after, now)
                return Verdict.YES
            self._users[user] = (after.minus(request), now)
            return Verdict.WAIT if on_the_way and limit.max_cost is not None else Verdict.NO

    def report(self, user: str, totals: Totals) -> None:
        """Set what a user has spent, after an answer or at its start."""
        with self._lock:
            self._users[user] = (totals, self.clock())
