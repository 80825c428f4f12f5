"""The client: items in, a vector or a refusal for each out, whatever the network and the server do.

Every request takes a lease of the budget, retries too. What each answer means stands in `answers`; what is done
about it stands here, in `_settle`.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from ...configs import EmbedConfig
from .answers import ApiError, BrokenAnswerError, Verdict, check_vectors, read_limits, short
from .budget import Budget
from .connections import Connections
from .dialects import DIALECTS
from .meter import Meter

IMAGE_TOKENS = 1000
"""What a picture is thought to be in tokens: the provider states no tokeniser."""
_BROKEN_SENDS = 3
_FAILURES_IN_A_ROW = 10
_OUTAGE_S = 15.0
_FREE_RETRIES = 20
_BILL_POLL_S = 0.02
_CAP_RECOVERY_SUCCESSES = 50
_FINGERPRINT = "x-emulator-fingerprint"


class RunStopped(Exception):  # noqa: N818 - it stops the run; the name says what it does
    """No further request makes sense; the message says why, and what to do."""


class SpendingLimitReached(RunStopped):
    """A run has sent what `embed.max_requests` or `embed.max_cost` allows; `facts` are for programs."""

    def __init__(self, message: str, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts = dict(facts or {})


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


@dataclass(frozen=True, kw_only=True)
class Item:
    """An item ready to be sent: its JSON, how many tokens it is thought to be, and whether it asks or is asked for."""

    piece: bytes
    tokens: int
    is_query: bool = False


@dataclass
class _Cap:
    """A limit of the server that is learned: halved when it refuses, raised again slowly, up to the setting."""

    most: int
    now: int = 0
    refused: int | None = None
    successes: int = 0

    def __post_init__(self) -> None:
        self.now = self.most

    def shrink(self, refused: int) -> None:
        self.refused = min(refused, self.refused or refused)
        self.now = max(1, min(self.now, refused // 2))
        self.successes = 0

    def grow(self) -> None:
        self.successes += 1
        if self.successes >= _CAP_RECOVERY_SUCCESSES and self.now < self.most:
            self.successes = 0
            # Never again quite as large as what was refused.
            highest = self.most if self.refused is None else min(self.most, self.refused - 1)
            self.now = max(self.now, min(highest, self.now + max(1, self.now // 10)))


class Client:
    """Embeds items within the budget. Make it, use it and close it on one event loop.

    Args:
        settings: The `embed` section of a config.
        api_key: Sent as a bearer token, and shown nowhere.
        budget: Absent: one of its own, from the settings.
        meter: Counts; absent: one of its own.
        seed: Of the jitter.
        sleep: Waits; tests may make it shorter.
    """

    def __init__(
        self,
        settings: EmbedConfig,
        api_key: str,
        *,
        budget: Budget | None = None,
        meter: Meter | None = None,
        seed: int | None = None,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        self._settings = settings
        self.budget = budget or Budget(limits_of(settings), max_concurrency=settings.max_concurrency)
        self.meter = meter or Meter()
        self._dialect = DIALECTS[settings.dialect](settings)
        self._random = random.Random(seed)
        self._sleep = sleep
        most = settings.items_per_request
        self._items_cap = _Cap(min(most, settings.items_per_minute or most))
        self._bytes_cap = _Cap(settings.batch_bytes)
        self._good_answers = 0
        self._failures = 0
        self._failed_at = -1.0
        self._succeeded_at = time.monotonic()
        self._stopped: RunStopped | None = None
        self._on_the_way = 0
        self._tokens_factor = 1.0
        self.is_spent = False
        """Whether a request was held back because the settings allow no more; none is sent after it."""
        tls = httpx.create_ssl_context()  # reads the system's certificates, which takes longer than a request

        def connection() -> httpx.AsyncClient:
            return httpx.AsyncClient(
                base_url=settings.base_url,
                headers={"authorization": f"Bearer {api_key}", "content-type": "application/json"},
                timeout=httpx.Timeout(settings.timeout_s, connect=min(10.0, settings.timeout_s), pool=None),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=1, keepalive_expiry=30.0),
                follow_redirects=False,  # the key must not travel to another host
                verify=tls,
            )

        self._connections = Connections(connection)

    def __repr__(self) -> str:
        return f"Client({self._settings.base_url!r}, model={self._settings.model!r})"

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connections.close()

    def encode(self, kind: str, content: bytes, *, is_query: bool = False) -> Item:
        """An item from UTF-8 text or a picture's file. Any thread may call it.

        Args:
            kind: `text` or `image`.
            content: UTF-8 text, or the bytes of a picture's file.
            is_query: Whether it will be searched with, not searched for; some providers embed the two differently.

        Raises:
            ValueError: When the provider embeds no items of that kind.
        """
        # The provider states no tokeniser: four bytes a token for text, a flat figure for a picture.
        tokens = -(-len(content) // 4) if kind == "text" else IMAGE_TOKENS
        return Item(piece=self._dialect.encode_item(kind, content), tokens=tokens, is_query=is_query)

    def pack(self, items: Sequence[Item]) -> list[list[int]]:
        """Cuts items, in their order, into requests that fit: positions in `items`, a list a request.

        No request has both queries and documents.
        """
        overhead = self._dialect.overhead_bytes
        max_tokens = min(
            (t for t in (self._settings.batch_tokens, self._settings.tokens_per_minute) if t is not None),
            default=None,
        )
        packs: list[list[int]] = []
        size = tokens = 0
        for i, item in enumerate(items):
            length = len(item.piece) + 1
            if (
                not packs
                or len(packs[-1]) >= self._items_cap.now
                or size + length > self._bytes_cap.now
                or (max_tokens is not None and tokens + item.tokens > max_tokens)
                or item.is_query != items[i - 1].is_query
            ):
                packs.append([])
                size, tokens = overhead, 0
            packs[-1].append(i)
            size += length
            tokens += item.tokens
        return packs

    async def embed(self, items: Sequence[Item]) -> list[npt.NDArray[np.float32] | Refusal]:
        """Embeds items, in as many requests as they need.

        Returns:
            For each item, in order, its vector (float32, (dimension,), unit norm) or its refusal.

        Raises:
            RunStopped: When no request will succeed any more.
        """
        results: list[npt.NDArray[np.float32] | Refusal | None] = [None] * len(items)
        sends = [0] * len(items)
        try:
            async with asyncio.TaskGroup() as group:
                for pack in self.pack(items):
                    group.create_task(self._settle(items, pack, results, sends))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first is the cause, the others were cancelled with it
        return [result for result in results if result is not None]

    async def _settle(
        self,
        items: Sequence[Item],
        pack: list[int],
        results: list[npt.NDArray[np.float32] | Refusal | None],
        sends: list[int],
    ) -> None:
        """Sends `pack` until each of its items has a vector or a refusal."""
        broken = retried = 0
        while pack:
            for i in pack:
                sends[i] += 1
            outcome = await self._send([items[i] for i in pack])
            if outcome is None:
                for i in pack:
                    results[i] = self._refusal(RefusalReason.NOT_SENT, "the run's spending limit", sends[i] - 1)
                return
            if isinstance(outcome, np.ndarray):
                for i, vector in zip(pack, outcome, strict=True):
                    results[i] = vector
                return
            if isinstance(outcome, BrokenAnswerError):
                broken += 1
                if broken < _BROKEN_SENDS:
                    await self._before_retry("broken_answer", broken, None)
                elif len(pack) == 1:
                    results[pack[0]] = self._refusal(RefusalReason.BROKEN_ANSWER, str(outcome), sends[pack[0]])
                    return
                else:
                    await self._split(items, pack, results, sends)
                    return
                continue
            match outcome.verdict:
                case Verdict.RETRY:
                    retried += 1
                    if retried >= self._settings.max_sends:
                        for i in pack:
                            results[i] = self._refusal(RefusalReason.RETRIES_EXHAUSTED, str(outcome), sends[i])
                        return
                    await self._before_retry(outcome.code or str(outcome.status), retried, outcome.retry_after_s)
                case Verdict.TOO_LARGE:
                    if len(pack) == 1:
                        results[pack[0]] = self._refusal(RefusalReason.TOO_LARGE, str(outcome), sends[pack[0]])
                        return
                    await self._split(items, pack, results, sends)
                    return
                case Verdict.ITEM if outcome.is_certain and outcome.item is not None:
                    named = pack[outcome.item]
                    results[named] = self._refusal(RefusalReason.REFUSED, str(outcome), sends[named])
                    pack = [i for i in pack if i != named]
                case Verdict.ITEM if outcome.item is not None and len(pack) > 1:
                    # Prose may count from one or mean something else: the item is asked alone before it is given up.
                    named = pack[outcome.item]
                    await self._settle(items, [named], results, sends)
                    pack = [i for i in pack if i != named]
                    if isinstance(results[named], np.ndarray):
                        await self._bisect(items, pack, results, sends)
                        return
                case _:
                    if len(pack) == 1:
                        results[pack[0]] = self._refusal(RefusalReason.REFUSED, str(outcome), sends[pack[0]])
                        return
                    await self._bisect(items, pack, results, sends)
                    return

    async def _split(
        self,
        items: Sequence[Item],
        pack: list[int],
        results: list[npt.NDArray[np.float32] | Refusal | None],
        sends: list[int],
    ) -> None:
        """Sends both halves: the pack was too large, or its answers were broken."""
        self.meter.splits += 1
        half = (len(pack) + 1) // 2
        await self._settle(items, pack[:half], results, sends)
        await self._settle(items, pack[half:], results, sends)

    async def _bisect(
        self,
        items: Sequence[Item],
        pack: list[int],
        results: list[npt.NDArray[np.float32] | Refusal | None],
        sends: list[int],
    ) -> None:
        """Finds the items that spoil a refused pack, which is known to hold one at least.

        When the first half is good, the second must hold the culprit and is halved again without being asked.
        """
        while len(pack) > 1:
            self.meter.splits += 1
            half = (len(pack) + 1) // 2
            await self._settle(items, pack[:half], results, sends)
            if any(isinstance(results[i], Refusal) for i in pack[:half]):
                await self._settle(items, pack[half:], results, sends)
                return
            pack = pack[half:]
        await self._settle(items, pack, results, sends)

    async def _send(self, batch: Sequence[Item]) -> npt.NDArray[np.float32] | BrokenAnswerError | ApiError | None:
        """One request within the budget: checked vectors, or what was wrong; None when it may not be paid any more."""
        tokens = sum(item.tokens for item in batch)
        if self.is_spent:
            return None
        lease = await self.budget.acquire(items=len(batch), tokens=tokens)
        try:
            may_send = await self._may_send(len(batch), tokens)  # from its answer to the counting nothing is awaited
            # Another request may have learned, while this one waited, that none will succeed.
            if self._stopped:
                raise self._stopped
            if not may_send:
                return None
            body = self._dialect.body([item.piece for item in batch], is_query=batch[0].is_query)
            self.meter.requests += 1
            self.meter.items_sent += len(batch)
            self.meter.tokens_estimated += tokens
            tokens_thought = round(tokens * self._tokens_factor)
            self.meter.tokens_spent += tokens_thought
            self.meter.bytes_up += len(body)
            started = time.monotonic()
            self._on_the_way += 1
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    response = await self._connections.post(self._dialect.path, body)
            except (httpx.HTTPError, TimeoutError, OSError) as error:
                outcome: npt.NDArray[np.float32] | BrokenAnswerError | ApiError = _transport_error(error)
            else:
                self.meter.bytes_down += len(response.content)
                billed = self.meter.tokens_billed
                outcome = self._read(response, len(batch))
                if billed := self.meter.tokens_billed - billed:
                    self.meter.tokens_spent += billed - tokens_thought
                    self._tokens_factor = max(self._tokens_factor, billed / max(tokens, 1))
            finally:
                self._on_the_way -= 1
            latency_s = time.monotonic() - started
            is_good = isinstance(outcome, np.ndarray)
            self.budget.answered(lease, latency_s=latency_s if is_good else None)
            if is_good:
                self.meter.latencies.add(latency_s)
            self._note(outcome, started, len(batch), len(body))
            return outcome
        finally:
            self.budget.answered(lease)

    async def _may_send(self, items: int, tokens: int) -> bool:
        """Whether one more request is within what the settings let a run spend.

        What is on its way counts as estimated, with the highest factor by which an answer's bill exceeded it; it may
        turn out cheaper, so a request that does not fit waits for it.
        """
        while not self.is_spent:
            if self._settings.may_send(
                requests=self.meter.requests + 1,
                items=self.meter.items_sent + items,
                tokens=self.meter.tokens_spent + round(tokens * self._tokens_factor),
            ):
                return True
            if not self._on_the_way or self._settings.max_cost is None:
                self.is_spent = True
            else:
                await asyncio.sleep(_BILL_POLL_S)
        return False

    def _read(self, response: httpx.Response, count: int) -> npt.NDArray[np.float32] | BrokenAnswerError | ApiError:
        if limits := read_limits(response.headers):
            self.budget.learn(limits)
        if response.status_code != 200:
            return self._dialect.error(response.status_code, response.headers, response.content, count)
        try:
            entries, tokens = self._dialect.vectors(response.content)
            vectors, renormalised = check_vectors(entries, count, self._settings.dimension)
        except BrokenAnswerError as error:
            return error
        self.meter.tokens_billed += tokens
        self.meter.renormalised += renormalised
        self.meter.items_embedded += count
        return vectors

    def _note(
        self,
        outcome: npt.NDArray[np.float32] | BrokenAnswerError | ApiError,
        started: float,
        count: int,
        size: int,
    ) -> None:
        """Learns from an outcome: caps, the rate, and whether to go on at all."""
        now = time.monotonic()
        if isinstance(outcome, np.ndarray):
            self._good_answers += 1
            self._failures = 0
            self._succeeded_at = now
            self._items_cap.grow()
            self._bytes_cap.grow()
            return
        if isinstance(outcome, BrokenAnswerError):
            self._fail(started, now, str(outcome), patient=True)
            if outcome.dimension is not None and not self._good_answers and self._failures >= _BROKEN_SENDS:
                self._stop(
                    f"embed.dimension is {self._settings.dimension}, but {self._settings.base_url} answers vectors of "
                    f"{outcome.dimension} dimensions: set embed.dimension={outcome.dimension}, or another model."
                )
            return
        match outcome.verdict:
            case Verdict.STOP:
                self._stop(_stop_sentence(outcome, self._settings))
            case Verdict.TOO_LARGE:
                if count > 1:
                    # The server does not say which of the two it was; bytes are the likelier limit of a large body.
                    if outcome.status == 413 and size > 100_000:
                        self._bytes_cap.shrink(size)
                    else:
                        self._items_cap.shrink(count)
            case Verdict.RETRY:
                if outcome.status == 429:
                    self.meter.answers_429 += 1
                if outcome.status in {0, 408, 429, 503} or outcome.retry_after_s is not None:
                    self.budget.slow_down(outcome.retry_after_s)
                self._fail(started, now, str(outcome), patient=True)
            # Where every request has one item, nothing else would tell a server that wants none from a bad asset.
            case Verdict.BATCH if count > 1 or self._items_cap.most == 1:
                self._fail(started, now, str(outcome), patient=False)
            case _:
                pass  # the server works, and says precisely what it does not want

    def _fail(self, started: float, now: float, what: str, *, patient: bool) -> None:
        """Counts failures in a row. Requests that overlapped failed together and count as one."""
        if started >= self._failed_at:
            self._failures += 1
            self._failed_at = now
        waited = now - self._succeeded_at
        # Where others were served, a stretch of bad assets is likelier than a server that wants none at all.
        most = _FAILURES_IN_A_ROW if patient or not self._good_answers else 3 * _FAILURES_IN_A_ROW
        if self._failures >= most and (not patient or waited >= _OUTAGE_S):
            self._stop(
                f"{self._settings.base_url} failed {self._failures} times in a row without a success "
                f"(last: {what}): what was embedded so far is kept, run again when the server works."
            )

    def _stop(self, sentence: str) -> None:
        self._stopped = self._stopped or RunStopped(sentence)
        raise self._stopped

    async def _before_retry(self, reason: str, tries: int, retry_after_s: float | None) -> None:
        """Waits before a retry: as told, plus jitter that doubles; and for a place in the retry budget."""
        await self._sleep(max(retry_after_s or 0.0, 0.0) + self._random.uniform(0, min(30.0, 0.5 * 2**tries)))
        while self.meter.retries.total() >= _FREE_RETRIES + self._settings.retry_share * self.meter.requests:
            if self.is_spent:
                return  # nothing is sent any more
            if self._stopped or time.monotonic() - self._succeeded_at > _OUTAGE_S:
                break  # an outage: the failures in a row decide
            await self._sleep(0.1)
        self.meter.retries[reason] += 1

    def _refusal(self, reason: RefusalReason, detail: str, attempts: int) -> Refusal:
        return Refusal(reason=reason, detail=short(detail), attempts=attempts)


def limits_of(settings: EmbedConfig) -> dict[str, float | None]:
    """The configured limits a minute, by the names of the budget's weights."""
    return {
        "requests": settings.requests_per_minute,
        "items": settings.items_per_minute,
        "tokens": settings.tokens_per_minute,
    }


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """What a server said of itself before the run began."""

    requests: int
    """How many requests it took to ask."""
    emulator: str | None
    """The fingerprint of an emulator's model; None for any other server."""


def greet(settings: EmbedConfig, api_key: str, *, tries: int = 3, pause_s: float = 0.5) -> Greeting:
    """Asks `/models` before anything is read or paid: is the server there, the key good, the model known?

    The guide does not promise that endpoint, so a server without it is taken at its word later; and so is one whose
    provider does not answer every good key there.

    Raises:
        RunStopped: With what is wrong and what to do.
    """
    headers = {"authorization": f"Bearer {api_key}"}
    dialect = DIALECTS[settings.dialect](settings)
    last = ""
    with httpx.Client(timeout=min(10.0, settings.timeout_s), follow_redirects=False) as http:
        for attempt in range(1, tries + 1):
            try:
                response = http.get(f"{settings.base_url}/models", headers=headers)
            except (httpx.HTTPError, OSError) as error:
                last = str(_transport_error(error))
                time.sleep(pause_s * attempt)
                continue
            if response.status_code in {404, 405, 501} or not dialect.lists_models:
                return Greeting(requests=attempt, emulator=response.headers.get(_FINGERPRINT))
            if response.status_code in {401, 402, 403} or 300 <= response.status_code < 400:
                error_read = dialect.error(response.status_code, response.headers, response.content, 0)
                raise RunStopped(_stop_sentence(error_read, settings))
            if response.status_code != 200:
                last = f"{response.status_code}"
                time.sleep(pause_s * attempt)
                continue
            return _greeting(response, settings, attempt)
    raise RunStopped(
        f"embed.base_url {settings.base_url} does not answer ({last}, asked {tries} times): "
        "check the address and the network, or use `embed.base_url: emulator` to try without a server."
    )


def _greeting(response: httpx.Response, settings: EmbedConfig, requests: int) -> Greeting:
    models: dict[str, Mapping[str, Any]] = {}
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        models = {str(entry["id"]): entry for entry in response.json()["data"]}
    if models and settings.model not in models:
        raise RunStopped(
            f"embed.model {settings.model!r} is not served by {settings.base_url}, "
            f"which has {', '.join(sorted(models))}."
        )
    return Greeting(requests=requests, emulator=response.headers.get(_FINGERPRINT))


def _transport_error(error: Exception) -> ApiError:
    """An exchange that ended without an answer, in the same terms as one that ended with an error."""
    is_timeout = isinstance(error, (httpx.TimeoutException, TimeoutError))
    words = "no answer in time" if is_timeout else short(str(error)) or type(error).__name__
    return ApiError(verdict=Verdict.RETRY, status=0, code="timeout" if is_timeout else "connection", message=words)


def _stop_sentence(error: ApiError, settings: EmbedConfig) -> str:
    where = settings.base_url
    if error.status in {401, 403}:
        return f"{where} refused the key ({error}): check the environment variable named by embed.api_key_env."
    if error.status == 402 or error.code == "insufficient_quota":
        return f"{where} says that the quota is used up ({error}): waiting does not help, raise it and run again."
    if 300 <= error.status < 400:
        return f"{where} redirects elsewhere ({error}), and the key does not follow: change embed.base_url."
    return f"{where} does not serve embed.model {settings.model!r} at this address ({error}): check both."
