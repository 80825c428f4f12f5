"""One engine a process asks about the rows of all bundles with the same settings.

This module does not use Beam. An engine lives as long as somebody uses it: its event loop and its rate limiter stay.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import orjson

from ...configs import PrepareConfig
from ...configs.chat_schema import ChatConfig
from ..embedding.access import ApiAccess
from ..embedding.arguments import CHAT_TRANSFORM
from ..embedding.in_flight import ByteLimit
from ..epithre.chat_client import ChatClient, ResponseFormat, spending_limit
from ..epithre.emulator import EmulatorSettings
from ..epithre.rate_limit.memory_backend import WINDOW_S
from ..sources.asset_reader import AssetReader
from .answer_cache import AnswerCache
from .answer_schema import AnswerSchema
from .asker import Asker, bytes_held
from .prompt import PromptTemplate
from .rows import Answer, DeadRow, Row

_T = TypeVar("_T")
_ROWS_A_REQUEST = 2
"""Rows of a bundle that are under way at most, for each request that may be in flight."""


@dataclass(frozen=True, kw_only=True)
class ChatSetup:
    """The settings of an engine. Part of the pipeline graph, so it contains no secrets."""

    chat_json: str
    """The `chat` section; a config with a schema in it cannot be hashed."""
    prepare: PrepareConfig
    scope: str
    """The pipeline, whose steps count their requests together for `max_requests` and `max_cost`."""
    within: tuple[str, ...] | None = None
    """The folders that a uri may point into; None: everywhere."""
    storage_options: str = "{}"
    """A JSON object with the options for fsspec."""
    cache: str | None = None
    """The folder in which answers are kept."""
    window_s: float = WINDOW_S
    """Length of the server's window; tests shorten it."""


def schema_of(chat: ChatConfig) -> AnswerSchema | None:
    """Return the schema of a config. Raises ConfigError if it is none."""
    return None if chat.answer_schema is None else AnswerSchema.of(chat.answer_schema)


class ChatEngine:
    """Renders, reads, sends and checks. Use `acquire_engine`.

    Raises:
        RefusedKeyError: When the variable of the key is not set in this process.
    """

    def __init__(self, setup: ChatSetup) -> None:
        self.setup = setup
        stated = chat = ChatConfig.model_validate_json(setup.chat_json)
        schema = schema_of(chat)
        with contextlib.ExitStack() as stack:
            self._access = access = ApiAccess(
                chat,
                emulator=EmulatorSettings(),
                spending=spending_limit(chat),
                scope=setup.scope,
                stack=stack,
                window_s=setup.window_s,
                caller=CHAT_TRANSFORM,
            )
            self.chat = chat = access.settings
            self._format = None if schema is None else response_format(schema)
            self.reader = AssetReader(
                setup.prepare, within=setup.within, storage_options=orjson.loads(setup.storage_options)
            )
            stack.callback(self.reader.close)
            threads = ThreadPoolExecutor(chat.readers, thread_name_prefix="read")
            local_threads = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="prepare")
            for pool in (threads, local_threads):
                stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            self._lock = threading.Lock()
            self._asker = Asker(
                chat=chat,
                prepare=setup.prepare,
                template=PromptTemplate(chat.prompt),
                schema=schema,
                reader=self.reader.references,
                client=self._client(),
                threads=threads,
                local_threads=local_threads,
                bytes_in_flight=ByteLimit(access.memory),
                # By the settings as they are given: an emulator that was started here has an address of its own.
                cache=None if setup.cache is None else AnswerCache(setup.cache, stated),
            )
            self._stack = stack.pop_all()

    def asker(self) -> Asker:
        """Return the asker, with a new client if the last one was stopped: the cause may be gone by now.

        Raises:
            ApiError: While the pause lasts that the API asked for when it stopped a client of this process.
        """
        with self._lock:
            client = self._asker.client
            self._access.check_pause()
            if client.stopped_by is not None:
                self._asker = replace(self._asker, client=self._client())
                self._access.close_client(client)
            return self._asker

    def submit(self, asker: Asker, row: Row) -> "Future[Answer | DeadRow]":
        """Start to ask about a row, on the process's event loop."""
        return asyncio.run_coroutine_threadsafe(asker.ask(row), self._access.loop)

    @property
    def memory(self) -> int:
        """The bytes that rows in flight may take."""
        return self._access.memory

    def counts(self) -> Mapping[str, int]:
        """Return the growth of the counts since the last call, by the names of Beam's metrics. Thread-safe."""
        return self._access.counts()

    def close(self) -> None:
        self._access.close_client(self._asker.client)
        self._stack.close()

    def _client(self) -> ChatClient:
        access = self._access
        return ChatClient(
            self.chat,
            access.key,
            response_format=self._format,
            rate_limiter=access.limiter,
            account=access.account,
            meter=access.meter,
            caller=CHAT_TRANSFORM,
        )


def response_format(schema: AnswerSchema) -> ResponseFormat:
    """Return a schema as a server takes it: strict where the schema allows that."""
    strict = schema.strict_schema()
    return ResponseFormat(name=schema.name, schema=dict(strict or schema.json_schema), is_strict=strict is not None)


@dataclass
class ChatBundle(Generic[_T]):
    """The rows of one bundle: sent concurrently, and their answers taken, all in one thread.

    A bundle has no more bytes in flight than `memory_mb`, and no more rows than twice the requests: then `add` waits.
    """

    engine: ChatEngine
    _finished: "queue.SimpleQueue[tuple[int, _T, Future[Answer | DeadRow]]]" = field(default_factory=queue.SimpleQueue)
    _in_flight: int = 0
    _bytes: int = 0

    def __post_init__(self) -> None:
        self._asker = self.engine.asker()
        self._most_rows = _ROWS_A_REQUEST * self.engine.chat.max_concurrency

    def add(self, row: Row, tag: _T) -> Iterator[tuple[_T, Answer | DeadRow]]:
        """Add a row and yield the answers that are there by now, each with the tag of its row.

        Raises:
            ApiError: When no further request can succeed.
        """
        size = bytes_held(row, self.engine.setup.prepare)
        while self._in_flight and (self._bytes + size > self.engine.memory or self._in_flight >= self._most_rows):
            yield self._take()
        self._in_flight += 1
        self._bytes += size
        put = self._finished.put
        self.engine.submit(self._asker, row).add_done_callback(lambda done: put((size, tag, done)))
        while not self._finished.empty():
            yield self._take()

    def finish(self) -> Iterator[tuple[_T, Answer | DeadRow]]:
        """Yield all remaining answers."""
        while self._in_flight:
            yield self._take()

    def _take(self) -> tuple[_T, Answer | DeadRow]:
        size, tag, done = self._finished.get()
        self._in_flight -= 1
        self._bytes -= size
        return tag, done.result()


_engines: dict[ChatSetup, tuple[ChatEngine, int]] = {}
_engines_lock = threading.Lock()


def acquire_engine(setup: ChatSetup) -> ChatEngine:
    """Return the engine of this process with these settings; call `release_engine` once for each call."""
    with _engines_lock:
        engine, users = _engines.get(setup, (None, 0))
        if engine is None:
            engine = ChatEngine(setup)
        _engines[setup] = (engine, users + 1)
        return engine


def release_engine(engine: ChatEngine) -> None:
    """Close the engine when nobody uses it any more."""
    with _engines_lock:
        found, users = _engines.get(engine.setup, (None, 0))
        if found is not engine:
            return
        if users > 1:
            _engines[engine.setup] = (engine, users - 1)
            return
        del _engines[engine.setup]
    engine.close()
