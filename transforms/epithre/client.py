"""The embedding client: sends items and returns a vector or a refusal for each.

Every request, retries included, takes a lease from the rate limiter. `answers` interprets each answer, `resolving`
acts on it, and `_note` below updates the limits and the circuit breaker.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from ...configs import EmbedConfig
from ...configs.caller import JOB, Caller
from ...configs.errors import ApiError
from ...configs.scrubbing import Scrubber
from .answers import ErrorAnswer, Verdict, read_limits, read_transport_error
from .bodies import ACCEPTED, Reply, most_answer_bytes
from .circuit_breaker import CircuitBreaker
from .connections import Connections
from .dialects import DIALECTS
from .meter import Meter
from .packing import Item, Packer
from .proxies import way_to
from .rate_limit.account import Account
from .rate_limit.rate_limiter import RateLimiter
from .rate_limit.spending import SpendingLimit
from .replies import Outcome, error_to_show, read_reply_to
from .resolving import Refusal, RefusalReason, Resolver
from .retries import ReportPause, Retries, log_pause
from .vectors import BrokenAnswerError

IMAGE_TOKENS = 1000
"""The estimated tokens of an image; the provider publishes no tokeniser."""

__all__ = ["IMAGE_TOKENS", "Client", "Refusal", "RefusalReason", "limits_of"]

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
        self._scrubber = Scrubber(api_key)
        self._way = way_to(settings.base_url)
        self._wait = sleep
        longest = settings.max_retry_after_s
        self.rate_limiter = rate_limiter or RateLimiter(
            limits_of(settings), max_concurrency=settings.max_concurrency, max_pause_s=longest
        )
        self.meter = meter or Meter()
        self._dialect = DIALECTS[settings.dialect](settings)
        self._packer = Packer(settings, self._dialect.overhead_bytes)
        self._breaker = CircuitBreaker(settings, caller=caller, on_open=self._stopped)
        self._retries = Retries(
            settings.retry_share,
            longest,
            self.meter,
            self.rate_limiter,
            self._breaker,
            seed=seed,
            sleep=self._sleep,
            report_pause=report_pause,
        )
        self._account = account or Account(self.rate_limiter, SpendingLimit.of(settings), scope=secrets.token_hex(8))
        self._refusal_before = self.rate_limiter.refusal
        self._has_warned_of_bill = False
        self.emulator: str | None = None
        """The fingerprint of the emulator that sent the last vectors; None for any other server."""
        self.has_vectors = False
        """Whether the server has sent vectors."""
        options = self._way.client_options()  # once, because reading certificates takes longer than a request

        def connection() -> httpx.AsyncClient:
            return httpx.AsyncClient(
                base_url=settings.base_url,
                headers={
                    "authorization": f"Bearer {api_key}",
                    "content-type": "application/json",
                    "accept-encoding": ACCEPTED,
                },
                timeout=httpx.Timeout(settings.timeout_s, connect=min(10.0, settings.timeout_s), pool=None),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=1, keepalive_expiry=30.0),
                follow_redirects=False,  # the key must not travel to another host
                **options,
            )

        self._connections = Connections(connection)

    def __repr__(self) -> str:
        return f"Client({self._settings.base_url!r}, model={self._settings.model!r})"

    @property
    def is_spent(self) -> bool:
        """Whether the spending limits stopped a request; no further request is sent."""
        return self._account.is_spent

    @property
    def unreachable(self) -> ApiError | None:
        """The error if a request got no answer however often it was sent, and no request of this client has succeeded.

        The items are refused (`retries_exhausted`), but they are not the cause.
        """
        return self._breaker.unreachable

    @property
    def stopped_by(self) -> ApiError | None:
        """The error after which this client sends nothing more; None while it works."""
        return self._breaker.error

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.close()

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
        resolver = Resolver(
            items,
            send=self._send,
            retries=self._retries,
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

    async def _sleep(self, seconds: float) -> None:
        await self._breaker.unless_open(self._wait(seconds))

    def _stopped(self, error: ApiError) -> None:
        self.rate_limiter.client_stopped(error)

    async def _send(self, batch: Sequence[Item]) -> Outcome | None:
        """Send one request within the rate limits; None if the spending limits allow no further request."""
        tokens = sum(item.tokens for item in batch)
        if self.is_spent:
            return None
        acquiring = self.rate_limiter.acquire(items=len(batch), tokens=tokens)
        lease = await self._breaker.unless_open(acquiring, undo=self.rate_limiter.answered)
        reservation = None
        billed = 0
        try:
            reservation = await self._account.reserve(len(batch), tokens)
            try:
                # While this request waited, another one, perhaps of another client, may have opened the breaker.
                refusal = self.rate_limiter.refusal
                if refusal is not None and refusal is not self._refusal_before:
                    self._breaker.stop(refusal)
                self._breaker.check()
            except ApiError:
                if reservation is not None:
                    self._account.cancel(reservation)
                    reservation = None
                raise
            if reservation is None:
                return None
            body = self._dialect.body([item.piece for item in batch], is_query=batch[0].is_query)
            self.meter.requests += 1
            self.meter.items_sent += len(batch)
            self.meter.tokens_estimated += tokens
            self.meter.tokens_spent += reservation.tokens_expected
            self.meter.bytes_up += len(body)
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    most_bytes = most_answer_bytes(len(batch), self._settings.dimension, len(body))
                    reply = await self._connections.post(self._dialect.path, body, most_bytes=most_bytes)
            except (httpx.HTTPError, TimeoutError, OSError) as error:
                outcome: Outcome = self._to_show(read_transport_error(error, self._scrubber))
            else:
                self.meter.bytes_down += len(reply.content)
                outcome, billed = self._read(reply, len(batch), tokens)
                if billed:
                    self.meter.tokens_spent += billed - reservation.tokens_expected
            latency_s = time.monotonic() - started
            is_good = isinstance(outcome, np.ndarray)
            self.rate_limiter.answered(lease, latency_s=latency_s if is_good else None)
            if is_good:
                self.meter.latencies.add(latency_s)
            self._note(outcome, started, len(batch), len(body))
            return outcome
        finally:
            self.rate_limiter.answered(lease)
            if reservation is not None:
                self._account.reconcile(reservation, billed)

    def _read(self, reply: Reply, count: int, tokens: int) -> tuple[Outcome, int]:
        """Return the outcome of a reply to `count` items (about `tokens` tokens), and the tokens that it bills."""
        if limits := read_limits(reply.headers):
            self.rate_limiter.learn(limits)
        read = read_reply_to(
            self._dialect,
            reply,
            count=count,
            dimension=self._settings.dimension,
            tokens=tokens,
            scrubber=self._scrubber,
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
        return self._to_show(read.outcome), read.tokens

    def _to_show(self, outcome: Outcome) -> Outcome:
        """Return the outcome with the API key removed from its messages."""
        if isinstance(outcome, ErrorAnswer):
            return error_to_show(outcome, self._scrubber, self._way)
        if isinstance(outcome, BrokenAnswerError):
            words = self._scrubber.text(str(outcome))
            return BrokenAnswerError(words, dimension=outcome.dimension, remedy=outcome.remedy)
        return outcome

    def _note(self, outcome: Outcome, started: float, count: int, size: int) -> None:
        """Update the request sizes, the rate and the breaker. Raises ApiError if no further request can succeed."""
        if isinstance(outcome, np.ndarray):
            self.rate_limiter.key_accepted()
            self._breaker.succeeded()
            self._packer.grow()
            return
        if isinstance(outcome, BrokenAnswerError):
            self._breaker.answered_badly(outcome, started)
            return
        match outcome.verdict:
            case Verdict.STOP:
                if outcome.retry_after_s:  # of a quota: it holds for all that share the rate limiter
                    self.rate_limiter.slow_down(min(outcome.retry_after_s, self._settings.max_retry_after_s))
                self._breaker.refused(outcome)
            case Verdict.TOO_LARGE:
                if count > 1:
                    self._packer.shrink(count, size, outcome.status)
            case Verdict.RETRY:
                self._retries.slow_down(outcome)
                self._breaker.failed(str(outcome), started, is_patient=True)
            # If every request has one item, only this count detects a server that refuses everything.
            case Verdict.BATCH if count > 1 or self._packer.items.most == 1:
                self._breaker.failed(str(outcome), started, is_patient=False)
            case _:
                self.rate_limiter.key_accepted()  # the server works and names the item that it refuses


def limits_of(settings: EmbedConfig) -> dict[str, float | None]:
    """Return the configured limits per minute, by the names that the rate limiter uses."""
    return {
        "requests": settings.requests_per_minute,
        "items": settings.items_per_minute,
        "tokens": settings.tokens_per_minute,
    }
