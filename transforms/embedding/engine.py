"""One engine a process embeds the assets of all bundles with the same settings; a bundle hands it batches.

This module does not use Beam. An engine lives as long as somebody uses it: its event loop and its rate limiter stay.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from ...configs import EmbedConfig, PrepareConfig
from ...configs.caller import Caller
from ...configs.errors import ApiError
from ...configs.schema import EMULATOR
from ...index.versions.layout import DeadLetter
from ..epithre.client import Client
from ..epithre.emulator import EmulatorSettings, emulator_fingerprint
from ..epithre.probe import probe
from ..epithre.rate_limit.memory_backend import WINDOW_S
from ..epithre.rate_limit.spending import SpendingLimit
from ..planning.embedding_config import made_by_json
from ..sources.asset_reader import AssetReader
from ..sources.references import Reference
from .access import ApiAccess
from .arguments import TRANSFORM
from .assets import AssetEmbedder, BatchFiller, Facts, Origin, Positioned, bytes_held
from .in_flight import ByteLimit, SentContents
from .vector_cache import NewVector, VectorCache

_T = TypeVar("_T")
_PAYLOAD_SHARE = 0.4
_SENT_KEPT = 2048
_VECTOR_COPIES = 2
_CLOSE_WITHIN_S = 5.0
_UNKEPT_SHARE = 2
"""Batches of a process that are in flight or not kept yet, at most, for each request that may be in flight."""


class EmbeddedVector(NamedTuple):
    """The result of an asset with a vector."""

    facts: Facts
    vector: npt.NDArray[np.float32]
    """float32, (dimension,), unit norm. Shared: do not change it."""
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """The settings of an engine. Part of the pipeline graph, so it contains no secrets."""

    embed: EmbedConfig
    prepare: PrepareConfig
    scope: str
    """The pipeline, whose steps count their requests together for `max_requests` and `max_cost`."""
    within: tuple[str, ...] | None = None
    """The folders that an asset's `uri` may point into; None: everywhere."""
    storage_options: str = "{}"
    """A JSON object with the options for fsspec."""
    cache: str | None = None
    window_s: float = WINDOW_S
    """Length of the server's window; tests shorten it."""
    caller: Caller = TRANSFORM
    """For messages."""


class Engine:
    """Reads, prepares and sends assets. Use `engine_for`.

    Raises:
        RefusedKeyError: When the variable of the key is not set in this process.
        ApiError: When a cache is given, and the API does not answer or refuses the key.
    """

    def __init__(self, setup: EngineSetup) -> None:
        self.setup = setup
        self._caller = replace(setup.caller, keeps_vectors=setup.cache is not None)
        with contextlib.ExitStack() as stack:
            self._access = access = ApiAccess(
                setup.embed,
                emulator=emulator_settings(setup.embed),
                spending=SpendingLimit.of(setup.embed),
                scope=setup.scope,
                stack=stack,
                window_s=setup.window_s,
                caller=self._caller,
            )
            self.embed = embed = access.settings
            self.memory, self.loop = access.memory, access.loop
            self._lock = threading.Lock()
            self._unkept = asyncio.Semaphore(_UNKEPT_SHARE * embed.max_concurrency)
            self._emulator: str | None = None
            self._cache = self._open_cache()
            self.made_by = made_by_json(embed, self._emulator)
            """What makes the vectors, as in `EmbeddedAsset`; known when the first one is there."""
            self.reader = AssetReader(
                setup.prepare, within=setup.within, storage_options=orjson.loads(setup.storage_options)
            )
            stack.callback(self.reader.close)
            threads = ThreadPoolExecutor(embed.readers, thread_name_prefix="read")
            local_threads = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="prepare")
            for pool in (threads, local_threads):
                stack.callback(pool.shutdown, wait=False, cancel_futures=True)
            self._embedder = AssetEmbedder(
                embed=embed,
                prepare=setup.prepare,
                reader=self.reader.references,
                client=self._client(),
                threads=threads,
                local_threads=local_threads,
                bytes_in_flight=ByteLimit(int(self.memory * _PAYLOAD_SHARE)),
                sent=SentContents(_SENT_KEPT, is_of_one_run=False),
                reusable=None if self._cache is None else self._cache.open(),
            )
            self._stack = stack.pop_all()

    def embedder(self) -> AssetEmbedder:
        """Return the embedder, with a new client if the last one was stopped: the cause may be gone by now.

        Raises:
            ApiError: While the pause lasts that the API asked for when it stopped a client of this process.
        """
        with self._lock:
            client = self._embedder.client
            self._access.check_pause()
            if client.stopped_by is not None:
                self._embedder = replace(self._embedder, client=self._client())
                self._access.close_client(client)
            return self._embedder

    async def embed_batch(self, embedder: AssetEmbedder, batch: Sequence[Positioned]) -> "Finished":
        """Embed a batch and keep what is new in the cache, also if an error ends it.

        With a cache, few batches are under way at a time: a process that is killed loses no more of what was sent.
        """
        if self._cache is None:
            return await self._embed_batch(embedder, batch)
        async with self._unkept:
            return await self._embed_batch(embedder, batch)

    async def _embed_batch(self, embedder: AssetEmbedder, batch: Sequence[Positioned]) -> "Finished":
        finished = Finished()
        references = dict(batch)
        try:
            await embedder.embed_batch(batch, finished)
        except BaseException as error:  # raised in the bundle's thread
            finished.error = error
        client = embedder.client
        if client.has_vectors and client.emulator != self._emulator:
            self._emulator, self.made_by = client.emulator, made_by_json(self.embed, client.emulator)
        new: list[NewVector] = [
            (references[position], result.facts, result.vector)
            for position, result in finished.results
            if isinstance(result, EmbeddedVector) and result.origin == "sent"
        ]
        if self._cache is not None and new:
            cache = self._cache
            try:
                await embedder.in_thread(lambda: cache.keep(new))
            except Exception as error:
                finished.error = finished.error or error
        return finished

    def counts(self) -> dict[str, int]:
        """Return the growth of the counts since the last call, by the names of Beam's metrics. Thread-safe."""
        return self._access.counts()

    def close(self) -> None:
        self._access.close_client(self._embedder.client)
        self._stack.close()

    def _client(self) -> Client:
        access = self._access
        return Client(
            self.embed,
            access.key,
            rate_limiter=access.limiter,
            account=access.account,
            meter=access.meter,
            caller=self._caller,
        )

    def fingerprint(self) -> str | None:
        """Ask the API for the fingerprint of an emulator, within the limits. None: it is none, or nothing may be sent.

        Raises:
            ApiError: When the API does not answer or refuses the key.
        """

        async def ask() -> str | None:
            limiter, account = self._access.limiter, self._access.account
            lease = await limiter.acquire(items=0, tokens=0)
            try:
                reservation = await account.reserve(0, 0)
                if reservation is None:
                    return None
                try:
                    found = await asyncio.to_thread(probe, self.embed, self._access.key, tries=1, caller=self._caller)
                except ApiError as error:
                    limiter.client_stopped(error)
                    raise
                finally:
                    account.reconcile(reservation, 0)
                self._access.meter.requests += found.requests
                limiter.key_accepted()
                return found.emulator
            finally:
                limiter.answered(lease)

        self._access.check_pause()
        return asyncio.run_coroutine_threadsafe(ask(), self.loop).result()

    def _open_cache(self) -> VectorCache | None:
        if self.setup.cache is None:
            return None
        self._emulator = self.fingerprint()
        return VectorCache(self.setup.cache, self.embed, self.setup.prepare, self._emulator)


class Finished:
    """A sink: the results of one batch, and the error that ended it."""

    def __init__(self) -> None:
        self.results: list[tuple[int, EmbeddedVector | DeadLetter]] = []
        self.error: BaseException | None = None

    def embedded(self, position: int, facts: Facts, vector: npt.NDArray[np.float32], origin: Origin) -> None:
        self.results.append((position, EmbeddedVector(facts, vector, origin)))

    def dead(self, position: int, letter: DeadLetter) -> None:
        self.results.append((position, letter))


@dataclass
class AssetBundle(Generic[_T]):
    """The assets of one bundle: batches are filled, sent concurrently, and their results taken, all in one thread.

    A bundle holds no more bytes in flight than `embed.memory_mb`: then `add` waits for results.
    """

    engine: Engine
    _next: int = 0
    _tags: dict[int, _T] = field(default_factory=dict)
    _fillers: dict[str, BatchFiller] = field(default_factory=dict)
    _finished: "queue.SimpleQueue[tuple[int, Finished]]" = field(default_factory=queue.SimpleQueue)
    _in_flight: int = 0
    _bytes: int = 0

    def __post_init__(self) -> None:
        self._embedder = self.engine.embedder()

    def add(self, reference: Reference, tag: _T) -> Iterator[tuple[_T, EmbeddedVector | DeadLetter]]:
        """Add an asset and yield the results that are there by now, each with the tag of its asset.

        Raises:
            ApiError: When no further request can succeed.
        """
        position, self._next = self._next, self._next + 1
        self._tags[position] = tag
        filler = self._fillers.get(reference.kind)
        if filler is None:
            filler = self._fillers[reference.kind] = BatchFiller(self.engine.embed, self.engine.setup.prepare)
        if batch := filler.add(position, reference):
            yield from self._submit(batch)
        while not self._finished.empty():
            yield from self._take()

    def finish(self) -> Iterator[tuple[_T, EmbeddedVector | DeadLetter]]:
        """Send what is left and yield all remaining results."""
        for filler in self._fillers.values():
            if batch := filler.take():
                yield from self._submit(batch)
        while self._in_flight:
            yield from self._take()

    def _submit(self, batch: list[Positioned]) -> Iterator[tuple[_T, EmbeddedVector | DeadLetter]]:
        vectors = len(batch) * self.engine.embed.dimension * 4 * _VECTOR_COPIES
        size = bytes_held(batch, self.engine.setup.prepare) + vectors
        while self._in_flight and self._bytes + size > self.engine.memory:
            yield from self._take()
        self._in_flight += 1
        self._bytes += size
        running = asyncio.run_coroutine_threadsafe(self.engine.embed_batch(self._embedder, batch), self.engine.loop)
        put = self._finished.put

        def note(done: "Future[Finished]") -> None:
            put((size, done.result()))

        running.add_done_callback(note)

    def _take(self) -> Iterator[tuple[_T, EmbeddedVector | DeadLetter]]:
        size, finished = self._finished.get()
        self._in_flight -= 1
        self._bytes -= size
        if finished.error is not None:
            raise finished.error
        for position, result in finished.results:
            yield self._tags.pop(position), result


_engines: dict[EngineSetup, tuple[Engine, int]] = {}
_engines_lock = threading.Lock()


def acquire_engine(setup: EngineSetup) -> Engine:
    """Return the engine of this process with these settings; call `release_engine` once for each call."""
    with _engines_lock:
        engine, users = _engines.get(setup, (None, 0))
        if engine is None:
            engine = Engine(setup)
        _engines[setup] = (engine, users + 1)
        return engine


def release_engine(engine: Engine) -> None:
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


def fingerprint_of(setup: EngineSetup) -> str | None:
    """Return the fingerprint of the emulator that embeds with these settings; None for the API itself.

    Raises:
        ApiError: When the API does not answer or refuses the key.
    """
    if setup.embed.base_url == EMULATOR:
        return emulator_fingerprint(emulator_settings(setup.embed))
    engine = acquire_engine(replace(setup, cache=None))
    try:
        return engine.fingerprint()
    finally:
        release_engine(engine)


def emulator_settings(embed: EmbedConfig) -> EmulatorSettings:
    """Return the settings of the emulator that a worker starts."""
    return EmulatorSettings(model=embed.emulator_model, dimension=embed.dimension)
