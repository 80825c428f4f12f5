"""The embedding client: sends items and returns a vector or a refusal for each.

`sender` sends each request within the limits, `replies` interprets its answer, and `resolving` acts on it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ...configs import EmbedConfig
from ...configs.caller import JOB, Caller
from ...configs.errors import ApiError
from .answers import ErrorAnswer, Verdict
from .bodies import Reply, most_answer_bytes
from .circuit_breaker import CircuitBreaker
from .dialects import DIALECTS
from .meter import Meter
from .packing import Item, Packer
from .rate_limit.account import Account
from .rate_limit.rate_limiter import RateLimiter
from .rate_limit.spending import SpendingLimit
from .replies import Outcome, read_reply_to
from .resolving import Refusal, RefusalReason, Resolver
from .retries import ReportPause, log_pause
from .sender import Answered, Request, Sender

IMAGE_TOKENS = 1000
"""The estimated tokens of an image; the provider publishes no tokeniser."""

__all__ = ["IMAGE_TOKENS", "Client", "Refusal", "RefusalReason"]

log = logging.getLogger("epithre_beam.client")


class Client:
    """Embeds items within the rate limits. Create, use and close it on one event loop.

    Args:
        settings: The `embed` section of a config.
        api_key: Sent as a bearer token; never logged or shown.
        rate_limiter: By default a new one, made from the settings.
        account: Counts what is spent of `max_requests` and `max_cost`; by default nobody else shares them.
        meter: Counts requests, items and tokens; by default a new one.
        seed: Seed of the retry jitter.
        sleep: Waits for a number of seconds; tests may shorten it.
        report_pause: Called before a pause that the server asks for.
        caller: Who embeds; for messages.

    Raises:
        ConfigError: If the environment names a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        settings: EmbedConfig,
        api_key: str,
        *,
        rate_limiter: RateLimiter | None = None,
        account: Account | None = None,
        meter: Meter | None = None,
        seed: int | None = None,
        sleep: Callable[[float], Any] = asyncio.sleep,
        report_pause: ReportPause = log_pause,
        caller: Caller = JOB,
    ) -> None:
        self._settings = settings
        self._sender = Sender(
            settings,
            api_key,
            limits=settings.limits,
            spending=SpendingLimit.of(settings),
            breaker=lambda on_open: CircuitBreaker(settings, caller=caller, on_open=on_open),
            rate_limiter=rate_limiter,
            account=account,
            meter=meter,
            seed=seed,
            sleep=sleep,
            report_pause=report_pause,
        )
        self.rate_limiter = self._sender.rate_limiter
        self.meter = self._sender.meter
        self._dialect = DIALECTS[settings.dialect](settings)
        self._packer = Packer(settings, self._dialect.overhead_bytes)
        self._has_warned_of_bill = False
        self.emulator: str | None = None
        """The fingerprint of the emulator that sent the last vectors; None for any other server."""
        self.has_vectors = False
        """Whether the server has sent vectors."""

    def __repr__(self) -> str:
        return f"Client({self._settings.base_url!r}, model={self._settings.model!r})"

    @property
    def is_spent(self) -> bool:
        """Whether the spending limits stopped a request; no further request is sent."""
        return self._sender.is_spent

    @property
    def unreachable(self) -> ApiError | None:
        """The error if a request got no answer however often it was sent, and no request of this client has succeeded.

        The items are refused (`retries_exhausted`), but they are not the cause.
        """
        return self._sender.breaker.unreachable

    @property
    def stopped_by(self) -> ApiError | None:
        """The error after which this client sends nothing more; None while it works."""
        return self._sender.breaker.error

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._sender.__aexit__(kind, error, trace)

    def encode(self, kind: str, content: bytes, *, is_query: bool = False) -> Item:
        """Encode UTF-8 text or an image file as an item. Thread-safe.

        Args:
            kind: `text` or `image`.
            content: UTF-8 text, or the bytes of an image file.
            is_query: Whether the item is a search query, not a document; some providers embed the two differently.

        Raises:
            ValueError: If the provider does not embed items of this kind.
        """
        # The provider publishes no tokeniser: assume 4 bytes per token of text and a constant for an image.
        tokens = -(-len(content) // 4) if kind == "text" else IMAGE_TOKENS
        return Item(piece=self._dialect.encode_item(kind, content), tokens=tokens, is_query=is_query)

    async def embed(self, items: Sequence[Item]) -> list[npt.NDArray[np.float32] | Refusal]:
        """Embed items, in as many requests as needed.

        Returns:
            For each item, in order, its vector (float32, (dimension,), unit norm) or its refusal.

        Raises:
            ApiError: If no further request can succeed.
        """
        resolver: Resolver[npt.NDArray[np.float32]] = Resolver(
            items,
            send=self._send,
            retries=self._sender.retries,
            is_spent=lambda: self.is_spent,
            meter=self.meter,
            max_sends=self._settings.max_sends,
        )
        try:
            async with asyncio.TaskGroup() as group:
                for pack in self._packer.pack(items):
                    group.create_task(resolver.resolve(pack))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first one is the cause; the other tasks were cancelled
        return [result for result in resolver.results if result is not None]

    async def _send(self, batch: Sequence[Item]) -> Outcome | None:
        """Send one request within the rate limits; None if the spending limits allow no further request."""
        tokens = sum(item.tokens for item in batch)
        size = 0

        def body() -> bytes:
            nonlocal size
            encoded = self._dialect.body([item.piece for item in batch], is_query=batch[0].is_query)
            size = len(encoded)
            return encoded

        request = Request(
            path=self._dialect.path,
            body=body,
            items=len(batch),
            tokens=tokens,
            amount=tokens,
            most_bytes=lambda size: most_answer_bytes(len(batch), self._settings.dimension, size),
        )
        outcome = await self._sender.send(
            request,
            lambda reply: self._read(reply, len(batch), tokens),
            # If every request has one item, only this detects a server that refuses everything.
            is_evidence=len(batch) > 1 or self._packer.items.most == 1,
        )
        if isinstance(outcome, np.ndarray):
            self._packer.grow()
        elif isinstance(outcome, ErrorAnswer) and outcome.verdict is Verdict.TOO_LARGE and len(batch) > 1:
            self._packer.shrink(len(batch), size, outcome.status)
        return outcome

    def _read(self, reply: Reply, count: int, tokens: int) -> Answered[npt.NDArray[np.float32]]:
        """Read a reply to `count` items (about `tokens` tokens)."""
        read = read_reply_to(
            self._dialect,
            reply,
            count=count,
            dimension=self._settings.dimension,
            tokens=tokens,
            scrubber=self._sender.scrubber,
        )
        if not read.is_bill_plausible and not self._has_warned_of_bill:
            self._has_warned_of_bill = True
            log.warning(
                "%s: the billed tokens for %d items (about %d tokens) are not plausible. The estimate is counted, or "
                "at most 1,000 times the estimate. This warning appears once.",
                self._settings.base_url,
                count,
                tokens,
            )
        if isinstance(read.outcome, np.ndarray):
            self.meter.tokens_billed += read.tokens
            self.meter.renormalised += read.renormalised
            self.meter.items_embedded += count
            self.emulator, self.has_vectors = read.emulator, True
        return Answered(outcome=read.outcome, amount=read.tokens)
