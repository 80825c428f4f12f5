"""Ask about rows: render the prompt, read and prepare the images, send, check the answer, repair it once.

This module does not use Beam, and it writes nothing. Reading and rendering run in threads, sending runs on the event
loop. The bytes of rows in flight are limited.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from ...configs import PrepareConfig
from ...configs.chat_schema import ChatConfig
from ...index.versions.layout import Reason
from ..embedding.assets import ContentReader, read_content
from ..embedding.in_flight import ByteLimit
from ..epithre.answers import short
from ..epithre.chat_client import ChatClient, ChatReply, Conversation, image_part, message, text_part, tokens_of
from ..epithre.resolving import Refusal, RefusalReason
from ..sources.prepare import PreparedImage, prepare_image
from ..sources.references import local_path
from ..sources.unpreparable import Unpreparable
from .answer_cache import AnswerCache
from .answer_schema import AnswerError, AnswerSchema
from .prompt import PromptError, PromptTemplate
from .rows import Answer, ChatReason, DeadRow, Row, request_sha256

_T = TypeVar("_T")
_UNKNOWN_SIZE = 300_000
_COPIES = 3
"""An image in flight is in memory about three times: as base64, in the request body, in the send buffer."""
_ROW_BYTES = 20_000
_REPAIR = "This is not a valid answer: {problem}\n{instructions}"


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A row that is ready to be sent."""

    prompt: str
    images: tuple[PreparedImage, ...]
    sha256: str


@dataclass
class _Spent:
    """What the requests of a row have cost."""

    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0

    def add(self, reply: ChatReply) -> None:
        self.input_tokens += reply.input_tokens
        self.output_tokens += reply.output_tokens
        self.requests += 1


def bytes_held(row: Row, prepare: PrepareConfig) -> int:
    """Estimate the bytes in memory while a row is in flight."""
    sizes = (image.size_bytes if image.size_bytes is not None else _UNKNOWN_SIZE for image in row.images)
    return _ROW_BYTES + _COPIES * sum(min(size, prepare.max_image_bytes) * 4 // 3 for size in sizes)


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Asks about rows. Its parts are shared by all rows of a process."""

    chat: ChatConfig
    prepare: PrepareConfig
    template: PromptTemplate
    schema: AnswerSchema | None
    reader: ContentReader
    client: ChatClient
    threads: ThreadPoolExecutor
    """Threads for waiting work: remote files."""
    local_threads: ThreadPoolExecutor
    """Threads for CPU-bound work. One per core; more would slow each other down."""
    bytes_in_flight: ByteLimit
    cache: AnswerCache | None = None
    pending: dict[str, "asyncio.Future[None]"] = field(default_factory=dict)
    """Requests that are under way, by their hashes; only with a cache."""

    async def ask(self, row: Row) -> Answer | DeadRow:
        """Ask about a row.

        Raises:
            ApiError: When the API is not available, or has never answered.
        """
        held = await self.bytes_in_flight.acquire(bytes_held(row, self.prepare))
        try:
            if self.client.is_spent:
                return _not_sent()
            is_local = all(image.uri is None or local_path(image.uri) is not None for image in row.images)
            asked = await self._in_thread(lambda: self._prepare(row), is_local=is_local)
            if isinstance(asked, DeadRow):
                return asked
            if self.cache is None:
                return await self._send(row, asked)
            return await self._once(row, asked, self.cache)
        finally:
            self.bytes_in_flight.release(held)

    async def _once(self, row: Row, asked: _Asked, cache: AnswerCache) -> Answer | DeadRow:
        """Take the answer from the cache, or from another row with the same request, or ask and keep it."""
        sha256 = asked.sha256
        while (others := self.pending.get(sha256)) is not None:
            with contextlib.suppress(asyncio.CancelledError, Exception):  # then this row asks
                await asyncio.shield(others)
        promise: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending[sha256] = promise
        try:
            found = await self._in_thread(lambda: cache.find(sha256), is_local=False)
            if found is not None and (answer := self._reused(found, sha256)) is not None:
                return answer
            result = await self._send(row, asked)
            if isinstance(result, Answer):
                await self._in_thread(lambda: cache.keep(result), is_local=False)
            return result
        finally:
            del self.pending[sha256]
            promise.set_result(None)

    def _reused(self, found: Mapping[str, Any], sha256: str) -> Answer | None:
        """Return the answer of a cache; None if it is not of the schema, so that it is asked for again."""
        try:
            parsed = None if self.schema is None else self.schema.parse(found["text"])
        except AnswerError:
            return None
        nothing = self.chat.cost(requests=0, input_tokens=0, output_tokens=0)
        return Answer(**{**found, "requests": 0}, parsed=parsed, cost=nothing, request_sha256=sha256)

    async def _in_thread(self, function: Callable[[], _T], *, is_local: bool) -> _T:
        threads = self.local_threads if is_local else self.threads
        return await asyncio.get_running_loop().run_in_executor(threads, function)

    def _prepare(self, row: Row, *, smaller: bool = False) -> _Asked | DeadRow:
        stage = "prompt"
        try:
            prompt = self.template.render(row.fields)
            images, hashes = [], []
            for reference in row.images:
                stage = "read"
                data = read_content(reference, self.reader)
                stage = "prepare"
                image = prepare_image(data, self.prepare, smaller=smaller)
                images.append(image)
                hashes.append(f"{hashlib.sha256(data).hexdigest()} {image.prepared or ''}".strip())
        except PromptError as error:
            return DeadRow(stage=stage, reason=ChatReason.BAD_PROMPT, detail=short(str(error)), attempts=0)
        except Unpreparable as failure:
            return DeadRow(stage=stage, reason=failure.reason.value, detail=failure.detail, attempts=0)
        schema = None if self.schema is None else self.schema.sha256
        return _Asked(prompt=prompt, images=tuple(images), sha256=request_sha256(self.chat, prompt, hashes, schema))

    def _conversation(self, asked: _Asked) -> Conversation:
        chat, prompt = self.chat, asked.prompt
        if self.schema is not None and self.client.needs_instructions:
            prompt = f"{prompt}\n\n{self.schema.instructions()}"
        parts = [text_part(prompt), *(image_part(image.content, chat.image_detail) for image in asked.images)]
        messages = [message("user", parts)]
        tokens = tokens_of(prompt) + chat.image_tokens * len(asked.images)
        if chat.system is not None:
            messages.insert(0, message("system", [text_part(chat.system)]))
            tokens += tokens_of(chat.system)
        if self.schema is not None and not self.client.needs_instructions:
            tokens += tokens_of(self.schema.instructions())  # the schema counts, wherever it is
        return Conversation(messages=tuple(messages), input_tokens=tokens)

    async def _send(self, row: Row, asked: _Asked) -> Answer | DeadRow:
        spent = _Spent()
        first = self._conversation(asked)
        if (dead := self._not_affordable(first, spent)) is not None:
            return dead
        more: list[tuple[str, str]] = []
        is_smaller = False

        def conversation() -> Conversation:
            made = self._conversation(asked)
            for answer, problem in more:
                made = made.with_answer(answer, self._repair(problem))
            return made

        while True:
            reply = await self.client.ask(conversation)
            if (error := self.client.unreachable) is not None:
                raise error.with_traceback(None)
            if isinstance(reply, Refusal):
                if reply.reason is RefusalReason.TOO_LARGE and asked.images and not is_smaller:
                    is_smaller = True
                    smaller = await self._in_thread(lambda: self._prepare(row, smaller=True), is_local=True)
                    if isinstance(smaller, _Asked):
                        asked = replace(smaller, sha256=asked.sha256)
                        continue
                return _refused(reply)
            spent.add(reply)
            if (dead := _unusable(reply)) is not None:
                return dead
            try:
                parsed = None if self.schema is None else self.schema.parse(reply.text)
            except AnswerError as problem:
                dead = DeadRow(
                    stage="answer",
                    reason=ChatReason.NOT_OF_THE_SCHEMA,
                    detail=short(str(problem)),
                    attempts=spent.requests,
                    answer=reply.text,
                )
                if len(more) >= self.chat.max_repairs:
                    return dead
                more.append((reply.text, str(problem)))
                if self._not_affordable(conversation(), spent) is not None:
                    return dead
                continue
            return Answer(
                text=reply.text,
                parsed=parsed,
                finish_reason=reply.finish_reason,
                model=reply.model,
                emulator=reply.emulator,
                input_tokens=spent.input_tokens,
                output_tokens=spent.output_tokens,
                cost=self._cost(spent),
                requests=spent.requests,
                request_sha256=asked.sha256,
            )

    def _repair(self, problem: str) -> str:
        """Return what a model is told about an answer; also the schema, which a server may have ignored."""
        instructions = "" if self.schema is None else self.schema.instructions()
        return _REPAIR.format(problem=problem, instructions=instructions)

    def _cost(self, spent: _Spent) -> float | None:
        return self.chat.cost(
            requests=spent.requests, input_tokens=spent.input_tokens, output_tokens=spent.output_tokens
        )

    def _not_affordable(self, conversation: Conversation, spent: _Spent) -> DeadRow | None:
        """Return why a row must not be sent (again); None if it may."""
        if conversation.size > self.chat.max_request_bytes:
            return DeadRow(
                stage="prepare",
                reason=ChatReason.TOO_LARGE,
                detail=f"max_request_bytes is {self.chat.max_request_bytes:,}, but it has {conversation.size:,}",
                attempts=0,
            )
        most = (self._cost(spent) or 0.0) + self.client.reserved_cost(conversation)
        if self.chat.max_row_cost is not None and most > self.chat.max_row_cost * (1 + 1e-9):
            return DeadRow(
                stage="prepare",
                reason=ChatReason.TOO_EXPENSIVE,
                detail=f"max_row_cost allows {self.chat.max_row_cost:g}, the row may cost {most:.4g}",
                attempts=spent.requests,
            )
        return None


def _unusable(reply: ChatReply) -> DeadRow | None:
    """Return why a reply is no answer; None if it is one."""
    reason, detail = None, ""
    if reply.refusal is not None:
        reason, detail = ChatReason.REFUSED_BY_MODEL, reply.refusal
    elif reply.finish_reason == "content_filter":
        reason, detail = ChatReason.CONTENT_FILTER, "the server's filter stopped the answer"
    elif reply.finish_reason == "length":
        reason, detail = (
            ChatReason.CUT,
            f"the answer needs more than {reply.output_tokens} tokens: raise chat.max_tokens",
        )
    elif not reply.text.strip():
        reason, detail = ChatReason.EMPTY_ANSWER, "the answer is empty"
    if reason is None:
        return None
    return DeadRow(stage="answer", reason=reason, detail=short(detail), attempts=1, answer=reply.text or reply.refusal)


def _refused(refusal: Refusal) -> DeadRow:
    if refusal.reason is RefusalReason.NOT_SENT:
        return _not_sent()
    return DeadRow(stage="send", reason=refusal.reason.value, detail=refusal.detail, attempts=refusal.attempts)


def _not_sent() -> DeadRow:
    return DeadRow(stage="send", reason=Reason.NOT_SENT.value, detail="the run reached its spending limit", attempts=0)
