"""Sends requests to an API within the rate limits and the spending limits, and acts on what concerns all requests.

Every request, retries included, takes a lease from the rate limiter. What an answer contains is read by the caller:
vectors (`client.py`) or the answer to a question (`chat_client.py`).
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import httpx

from ...configs.errors import ApiError
from ...configs.schema import ApiConfig
from ...configs.scrubbing import Scrubber
from .answers import ErrorAnswer, Verdict, read_limits, read_transport_error
from .bodies import ACCEPTED, Reply
from .circuit_breaker import CircuitBreaker
from .connections import Connections
from .meter import Meter
from .proxies import way_to
from .rate_limit.account import Account
from .rate_limit.rate_limiter import RateLimiter
from .rate_limit.spending import SpendingLimit
from .replies import error_to_show
from .retries import ReportPause, Retries, log_pause
from .vectors import BrokenAnswerError

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to send."""

    path: str
    body: Callable[[], bytes]
    """Makes the body when the request is sent: what waits for the rate limit needs no memory for it."""
    items: int
    tokens: int
    """Estimated tokens, which count in the rate limiter."""
    amount: int
    """What is reserved of the spending limit, in the unit of its `price_of_token`."""
    most_bytes: Callable[[int], int]
    """The maximum size of the answer, from the size of the body."""


@dataclass(frozen=True, kw_only=True)
class Answered(Generic[_T]):
    """What a reply contains."""

    outcome: _T | BrokenAnswerError | ErrorAnswer
    tokens: int | None = None
    """Billed tokens, to count in the rate limiter instead of those of the request; None: those of the request stay."""
    amount: int = 0
    """What it costs, in the unit of `Request.amount`; 0: unknown."""


class Sender:
    """Sends requests. Create, use and close it on one event loop. `client.Client` describes the arguments."""

    def __init__(
        self,
        settings: ApiConfig,
        api_key: str,
        *,
        limits: dict[str, float | None],
        spending: SpendingLimit,
        breaker: Callable[[Callable[[ApiError], None]], CircuitBreaker],
        rate_limiter: RateLimiter | None = None,
        account: Account | None = None,
        meter: Meter | None = None,
        seed: int | None = None,
        sleep: Callable[[float], Any] = asyncio.sleep,
        report_pause: ReportPause = log_pause,
    ) -> None:
        self._settings = settings
        self.scrubber = Scrubber(api_key)
        self._way = way_to(settings.base_url)
        self._wait = sleep
        longest = settings.max_retry_after_s
        self.rate_limiter = rate_limiter or RateLimiter(
            limits, max_concurrency=settings.max_concurrency, max_pause_s=longest
        )
        self.meter = meter or Meter()
        self.breaker = breaker(self._stopped)
        self.retries = Retries(
            settings.retry_share,
            longest,
            self.meter,
            self.rate_limiter,
            self.breaker,
            seed=seed,
            sleep=self._sleep,
            report_pause=report_pause,
        )
        self._account = account or Account(self.rate_limiter, spending, scope=secrets.token_hex(8))
        self._refusal_before = self.rate_limiter.refusal
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

    @property
    def is_spent(self) -> bool:
        """Whether the spending limits stopped a request; no further request is sent."""
        return self._account.is_spent

    async def __aenter__(self) -> "Sender":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.close()

    async def _sleep(self, seconds: float) -> None:
        await self.breaker.unless_open(self._wait(seconds))

    def _stopped(self, error: ApiError) -> None:
        self.rate_limiter.client_stopped(error)

    async def send(
        self, request: Request, read: Callable[[Reply], Answered[_T]], *, is_evidence: bool
    ) -> _T | BrokenAnswerError | ErrorAnswer | None:
        """Send one request; None if the spending limits allow no further request.

        Args:
            request: The request.
            read: Reads the reply.
            is_evidence: Whether a refusal that names no item may concern every request.

        Raises:
            ApiError: If no further request can succeed.
        """
        if self.is_spent:
            return None
        acquiring = self.rate_limiter.acquire(items=request.items, tokens=request.tokens)
        lease = await self.breaker.unless_open(acquiring, undo=self.rate_limiter.answered)
        reservation = None
        amount = 0
        try:
            reservation = await self._account.reserve(request.items, request.amount)
            try:
                # While this request waited, another one, perhaps of another client, may have opened the breaker.
                refusal = self.rate_limiter.refusal
                if refusal is not None and refusal is not self._refusal_before:
                    self.breaker.stop(refusal)
                self.breaker.check()
            except ApiError:
                if reservation is not None:
                    self._account.cancel(reservation)
                    reservation = None
                raise
            if reservation is None:
                return None
            body = request.body()
            self.meter.requests += 1
            self.meter.items_sent += request.items
            self.meter.tokens_estimated += request.tokens
            self.meter.tokens_spent += reservation.tokens_expected
            self.meter.bytes_up += len(body)
            started = time.monotonic()
            tokens = None
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    most_bytes = request.most_bytes(len(body))
                    reply = await self._connections.post(request.path, body, most_bytes=most_bytes)
            except (httpx.HTTPError, TimeoutError, OSError) as error:
                outcome: _T | BrokenAnswerError | ErrorAnswer = read_transport_error(error, self.scrubber)
            else:
                self.meter.bytes_down += len(reply.content)
                if limits := read_limits(reply.headers):
                    self.rate_limiter.learn(limits)
                found = read(reply)
                outcome, tokens, amount = found.outcome, found.tokens, found.amount
                if amount:
                    self.meter.tokens_spent += amount - reservation.tokens_expected
            outcome = self._to_show(outcome)
            latency_s = time.monotonic() - started
            is_good = not isinstance(outcome, (BrokenAnswerError, ErrorAnswer))
            self.rate_limiter.answered(lease, latency_s=latency_s if is_good else None, tokens=tokens)
            if is_good:
                self.meter.latencies.add(latency_s)
            self._note(outcome, started, is_evidence=is_evidence)
            return outcome
        finally:
            self.rate_limiter.answered(lease)
            if reservation is not None:
                self._account.reconcile(reservation, amount)

    def _to_show(self, outcome: Any) -> Any:
        """Return the outcome with the API key removed from its messages."""
        if isinstance(outcome, ErrorAnswer):
            return error_to_show(outcome, self.scrubber, self._way)
        if isinstance(outcome, BrokenAnswerError):
            words = self.scrubber.text(str(outcome))
            return BrokenAnswerError(words, dimension=outcome.dimension, remedy=outcome.remedy)
        return outcome

    def _note(self, outcome: object, started: float, *, is_evidence: bool) -> None:
        """Update the rate and the breaker. Raises ApiError if no further request can succeed."""
        if isinstance(outcome, BrokenAnswerError):
            self.breaker.answered_badly(outcome, started)
            return
        if not isinstance(outcome, ErrorAnswer):
            self.rate_limiter.key_accepted()
            self.breaker.succeeded()
            return
        match outcome.verdict:
            case Verdict.STOP:
                if outcome.retry_after_s:  # of a quota: it holds for all that share the rate limiter
                    self.rate_limiter.slow_down(min(outcome.retry_after_s, self._settings.max_retry_after_s))
                self.breaker.refused(outcome)
            case Verdict.TOO_LARGE:
                pass  # the caller sends less
            case Verdict.RETRY:
                self.retries.slow_down(outcome)
                self.breaker.failed(str(outcome), started, is_patient=True)
            case Verdict.BATCH if is_evidence:
                self.breaker.failed(str(outcome), started, is_patient=False)
            case _:
                self.rate_limiter.key_accepted()  # the server works and names the item that it refuses
