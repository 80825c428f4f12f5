"""Embed one unit (a unit of work): from its references to its file of vectors.

This module does not use Beam. Reading and preparing run in threads, sending runs on the event loop. Requests of one
unit and of several units run concurrently; the bytes that they hold in memory are limited.
"""

import asyncio
import functools
import hashlib
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...configs import EmbedConfig, PrepareConfig
from ...index.storage.store import Store
from ...index.vectors.reusable import ReusableVector, ReusableVectors
from ...index.vectors.units import (
    UnitFooter,
    UnitRecord,
    read_unit,
    read_unit_dead_letters,
    read_unit_footer,
    write_unit,
)
from ...index.versions.layout import DeadLetter, Reason, asset_fields
from ..epithre.client import Client, Refusal, RefusalReason
from ..epithre.packing import Item
from ..planning.plan import Unit
from ..sources.prepare import PreparedImage, prepare_image, prepare_text
from ..sources.reading import Reader
from ..sources.references import Reference, local_path
from ..sources.unpreparable import Unpreparable
from .reuse import reuse_or_prepare

_T = TypeVar("_T")
_UNKNOWN_SIZE = 300_000
_LOCAL_FILES_A_THREAD = 8
_COPIES = 3
"""An image in flight is in memory about three times: as base64, in the request body, in the send buffer."""


class ByteLimit:
    """A limit on bytes in flight, first come, first served. A request above the limit waits until it is alone."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = capacity
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, size: int) -> int:
        """Wait for `size` bytes and return the number to pass to `release`."""
        size = min(size, self._capacity)
        if self._waiting or size > self._free:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            await turn
        else:
            self._free -= size
        return size

    def release(self, size: int) -> None:
        self._free += size
        while self._waiting and self._waiting[0][0] <= self._free:
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= size
                turn.set_result(None)


class Sent(NamedTuple):
    """The result of a content that was sent."""

    result: npt.NDArray[np.float32] | Refusal
    prepared: str | None
    """How the content was prepared when it was sent last; an image that is too large for the API is sent smaller."""


class SentContents:
    """Recent results of a lane by content, so that copies in different units are sent once.

    A plan keeps possible copies in one unit, up to a few times the size of a unit. A placeholder image that is used a
    thousand times exceeds this. The least recently used results are dropped.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._futures: OrderedDict[tuple[str, str], asyncio.Future[Sent]] = OrderedDict()

    def find(self, kind: str, content_sha256: str) -> "asyncio.Future[Sent] | None":
        """Return the finished or pending result of an asset with this content; None if there is none."""
        key = (kind, content_sha256)
        if key in self._futures:
            self._futures.move_to_end(key)
        return self._futures.get(key)

    def promise(self, kind: str, content_sha256: str) -> "asyncio.Future[Sent]":
        """Register an asset with this content that is about to be sent. The caller sets the result."""
        future: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        self._futures[kind, content_sha256] = future
        while len(self._futures) > self._capacity:
            self._futures.popitem(last=False)
        return future


@dataclass(frozen=True, kw_only=True)
class UnitContext:
    """Resources that the units of one lane share."""

    store: Store
    embed: EmbedConfig
    prepare: PrepareConfig
    reader: Reader
    client: Client
    threads: ThreadPoolExecutor
    """Threads for waiting work: remote files, the catalog."""
    local_threads: ThreadPoolExecutor
    """Threads for CPU-bound work: local files and texts. One per core; more would slow each other down."""
    bytes_in_flight: ByteLimit
    sent: SentContents
    reusable: ReusableVectors
    """Existing vectors with the same embedding config."""
    embedding_config_hash: str
    """The embedding config hash of the vectors."""
    note_progress: Callable[[int, int], None]
    """Called with (finished assets, dead letters among them) whenever assets are finished."""

    def tried_again(self, footer: UnitFooter) -> int:
        """Return the number of dead letters of a finished unit that are retried."""
        return footer.dead if self.embed.retry_dead else footer.transient

    async def in_thread(self, function: Callable[[], _T], *, is_local: bool = False) -> _T:
        threads = self.local_threads if is_local else self.threads
        return await asyncio.get_running_loop().run_in_executor(threads, function)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """An asset that was read and prepared."""

    position: int
    reference: Reference
    item: Item | None
    """None when `reusable` has the vector."""
    reusable: npt.NDArray[np.float32] | None
    content_sha256: str
    text: str | None
    media_type: str
    size_bytes: int
    width: int | None
    height: int | None
    prepared: str | None


@dataclass
class _Work:
    """A unit in progress: the state of each reference, by position."""

    references: Sequence[Reference]
    vectors: npt.NDArray[np.float32]
    rows: dict[int, _Prepared] = field(default_factory=dict)
    dead: dict[int, DeadLetter] = field(default_factory=dict)
    deduplicated: int = 0
    reused_rows: int = 0


async def embed_unit(unit: Unit, references: Sequence[Reference], context: UnitContext) -> UnitRecord:
    """Embed a unit, or reuse it if it is finished.

    Of a finished unit, only references with a transient failure are retried; its existing vectors are kept.

    Raises:
        ApiError: When the API is not available.
    """
    footer = await context.in_thread(lambda: read_unit_footer(context.store, unit.name))
    if footer is not None and not context.tried_again(footer):
        context.note_progress(unit.references, footer.dead)
        return _record(unit, footer, reused=True)
    if context.client.is_spent:
        return _left(unit, footer, context)
    old: pa.Table | None = None
    todo = list(range(len(references)))
    resolved: list[DeadLetter] = []
    if footer is not None:
        old = await context.in_thread(lambda: read_unit(context.store, unit.name))
        letters = await context.in_thread(lambda: read_unit_dead_letters(context.store, unit.name))
        again = {letter.asset_id for letter in letters if context.embed.retry_dead or letter.reason.is_transient}
        resolved = [letter for letter in letters if letter.asset_id not in again]
        todo = [i for i in todo if references[i].asset_id in again]
        context.note_progress(unit.references - len(todo), len(resolved))
    work = _Work(references=references, vectors=np.empty((len(references), context.embed.dimension), np.float32))
    try:
        async with asyncio.TaskGroup() as group:
            for batch in cut_batches(todo, references, context.embed, context.prepare):
                group.create_task(_embed_batch(batch, work, context))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    dead = [*resolved, *(work.dead[i] for i in sorted(work.dead))]
    not_sent = sum(letter.reason is Reason.NOT_SENT for letter in work.dead.values())
    if not_sent == len(todo):
        return _left(unit, footer, context)
    before = footer or UnitFooter(rows=0)
    deduplicated, reused_rows = work.deduplicated + before.deduplicated, work.reused_rows + before.reused_rows
    rows = await context.in_thread(lambda: _write(unit, work, old, dead, deduplicated, reused_rows, context))
    counts = UnitFooter(rows=rows, dead=len(dead) - not_sent, deduplicated=deduplicated, reused_rows=reused_rows)
    return _record(unit, counts, reused=False, not_sent=not_sent)


def _left(unit: Unit, footer: UnitFooter | None, context: UnitContext) -> UnitRecord:
    """Return the record of a unit that stays unchanged because the run reached its spending limit."""
    if footer is None:
        return _record(unit, UnitFooter(rows=0), reused=True, not_sent=unit.references)
    left = context.tried_again(footer)
    return _record(unit, replace(footer, dead=footer.dead - left), reused=True, not_sent=left)


def _record(unit: Unit, counts: UnitFooter, *, reused: bool, not_sent: int = 0) -> UnitRecord:
    return UnitRecord(
        unit=unit.name,
        kind=unit.kind,
        row_group=unit.row_group,
        rows=counts.rows,
        dead=counts.dead,
        deduplicated=counts.deduplicated,
        reused_rows=counts.reused_rows,
        not_sent=not_sent,
        reused=reused,
    )


def cut_batches(
    todo: Sequence[int], references: Sequence[Reference], embed: EmbedConfig, prepare: PrepareConfig
) -> list[list[int]]:
    """Group references into batches that fill about one request each, estimated from their listed sizes."""
    batches: list[list[int]] = []
    room = 0
    for i in todo:
        size = _sent_bytes(references[i], prepare)
        if not batches or len(batches[-1]) >= embed.items_per_request or size > room:
            batches.append([])
            room = embed.batch_bytes
        batches[-1].append(i)
        room -= size
    return batches


def _sent_bytes(reference: Reference, prepare: PrepareConfig) -> int:
    """Estimate the bytes of a reference in a request body."""
    size = reference.size_bytes if reference.size_bytes is not None else _UNKNOWN_SIZE
    if reference.kind == "text":
        return size + 16
    return min(size, prepare.max_image_bytes) * 4 // 3 + 64


async def _embed_batch(batch: Sequence[int], work: _Work, context: UnitContext) -> None:
    held = await context.bytes_in_flight.acquire(
        _COPIES * sum(_sent_bytes(work.references[i], context.prepare) for i in batch)
    )
    try:
        if context.client.is_spent:
            for i in batch:
                work.dead[i] = _not_sent(work.references[i])
            return
        prepared = await _prepare_all(batch, work, context)
        leaders: list[tuple[_Prepared, asyncio.Future[Sent]]] = []
        followers: list[tuple[_Prepared, asyncio.Future[Sent]]] = []
        for asset in prepared:
            if asset.reusable is not None:
                _resolve(asset, asset.reusable, work, context)
                work.reused_rows += 1
                continue
            kind = asset.reference.kind
            promised = context.sent.find(kind, asset.content_sha256)
            if promised is not None:
                followers.append((asset, promised))
            else:
                leaders.append((asset, context.sent.promise(kind, asset.content_sha256)))
        await _send(leaders, work, context)
    finally:
        context.bytes_in_flight.release(held)
    # Await other batches only after sending our own items, or two batches that need each other's content deadlock.
    for asset, promised in followers:
        sent = await promised
        _resolve(replace(asset, prepared=sent.prepared), sent.result, work, context)
        work.deduplicated += asset.position in work.rows


async def _prepare_all(batch: Sequence[int], work: _Work, context: UnitContext) -> list[_Prepared]:
    """Read and prepare a batch in threads: one remote file per task, because it waits, and several local files."""
    references = work.references

    def prepare(chunk: Sequence[int]) -> list[_Prepared | DeadLetter]:
        return [_prepare(i, references[i], context) for i in chunk]

    uris = [references[i].uri for i in batch]
    is_local = all(uri is None or local_path(uri) is not None for uri in uris)
    step = _LOCAL_FILES_A_THREAD if is_local else 1
    if all(uri is None for uri in uris):
        step = len(batch)
    chunks = [batch[start : start + step] for start in range(0, len(batch), step)]
    outcomes = await asyncio.gather(
        *(context.in_thread(functools.partial(prepare, chunk), is_local=is_local) for chunk in chunks)
    )
    good = []
    for i, outcome in zip(batch, itertools.chain.from_iterable(outcomes), strict=True):
        if isinstance(outcome, DeadLetter):
            work.dead[i] = outcome
            context.note_progress(1, 1)
        else:
            good.append(outcome)
    return good


def _prepare(position: int, reference: Reference, context: UnitContext) -> _Prepared | DeadLetter:
    stage = "read"
    try:
        if reference.uri is not None:
            data = context.reader.read(reference)
        else:
            data = (reference.text or "").encode("utf-8", "surrogatepass")
        stage = "prepare"
        sha256 = hashlib.sha256(data).hexdigest()
        text = prepare_text(data, context.prepare) if reference.kind == "text" else None
        facts: dict[str, Any] = {"width": None, "height": None, "prepared": None, "media_type": "text/plain"}
        reusable: ReusableVector | PreparedImage | None
        if text is not None:
            reusable = context.reusable.find("text", sha256)
        else:
            reusable = reuse_or_prepare(data, context.reusable.find_all("image", sha256), context.prepare)
        item = None
        if reusable is not None:
            facts = {name: getattr(reusable, name) for name in facts}
        if isinstance(reusable, PreparedImage):
            item = context.client.encode("image", reusable.content)
        elif reusable is None:
            item = context.client.encode("text", (text or "").encode())
        return _Prepared(
            position=position,
            reference=reference,
            item=item,
            reusable=reusable.vector if isinstance(reusable, ReusableVector) else None,
            content_sha256=sha256,
            text=text,
            size_bytes=len(data),
            **facts,
        )
    except Unpreparable as failure:
        return _dead(reference, stage, failure.reason, failure.detail, 0)


async def _send(
    leaders: Sequence[tuple[_Prepared, asyncio.Future[Sent]]],
    work: _Work,
    context: UnitContext,
) -> None:
    if not leaders:
        return
    results = await context.client.embed([asset.item for asset, _ in leaders if asset.item is not None])
    for (asset, promise), result in zip(leaders, results, strict=True):
        sent, final = asset, result
        if isinstance(result, Refusal) and result.reason is RefusalReason.TOO_LARGE and asset.text is None:
            sent, final = await _send_smaller(asset, result, context)
        # A copy: the vector is a view of a row, which would keep the whole answer in memory.
        promise.set_result(Sent(final if isinstance(final, Refusal) else final.copy(), sent.prepared))
        _resolve(sent, final, work, context)


async def _send_smaller(
    asset: _Prepared, refusal: Refusal, context: UnitContext
) -> tuple[_Prepared, npt.NDArray[np.float32] | Refusal]:
    """Downscale an image that the API refused as too large, and send it once more."""

    def shrink() -> tuple[_Prepared, Item]:
        data = context.reader.read(asset.reference)
        image = prepare_image(data, context.prepare, smaller=True)
        return replace(asset, prepared=image.prepared), context.client.encode("image", image.content)

    try:
        smaller, item = await context.in_thread(shrink)
    except Unpreparable:
        return asset, refusal
    return smaller, (await context.client.embed([item]))[0]


def _resolve(asset: _Prepared, result: npt.NDArray[np.float32] | Refusal, work: _Work, context: UnitContext) -> None:
    """Store the result of an asset."""
    i = asset.position
    if isinstance(result, Refusal):
        if result.reason is RefusalReason.NOT_SENT:
            work.dead[i] = _not_sent(asset.reference)
            return
        work.dead[i] = _dead(asset.reference, "embed", Reason(result.reason.value), result.detail, result.attempts)
        context.note_progress(1, 1)
        return
    work.vectors[i] = result
    work.rows[i] = replace(asset, item=None, reusable=None)  # frees the megabytes of the item
    context.note_progress(1, 0)


def _not_sent(reference: Reference) -> DeadLetter:
    return _dead(reference, "embed", Reason.NOT_SENT, "the run reached its spending limit", 0)


def _dead(reference: Reference, stage: str, reason: Reason, detail: str, attempts: int) -> DeadLetter:
    return DeadLetter(
        asset_id=reference.asset_id,
        kind=reference.kind,
        uri=reference.uri,
        stage=stage,
        reason=reason,
        detail=detail,
        attempts=attempts,
        fingerprint=reference.fingerprint,
    )


def _write(
    unit: Unit,
    work: _Work,
    old: pa.Table | None,
    dead: Sequence[DeadLetter],
    deduplicated: int,
    reused_rows: int,
    context: UnitContext,
) -> int:
    """Write the unit's file, with rows in the order of its references, and return the number of rows."""
    schema = pa.schema(asset_fields())
    positions = sorted(work.rows)
    assets = pa.Table.from_pylist([_row(work.rows[i]) for i in positions], schema=schema)
    vectors = work.vectors if len(positions) == len(work.vectors) else work.vectors[positions]
    if old is not None:
        order = {reference.asset_id: i for i, reference in enumerate(work.references)}
        dimension = vectors.shape[1]
        kept = np.asarray(old.column("embedding").combine_chunks().flatten(), np.float32).reshape(-1, dimension)
        assets = pa.concat_tables([old.select(schema.names).cast(schema), assets])
        sequence = np.argsort([order[name] for name in assets.column("asset_id").to_pylist()], kind="stable")
        assets, vectors = assets.take(sequence), np.concatenate([kept, vectors])[sequence]
    write_unit(
        context.store,
        unit.name,
        assets,
        vectors,
        dead,
        deduplicated=deduplicated,
        reused_rows=reused_rows,
        embedding_config_hash=context.embedding_config_hash,
    )
    return len(vectors)


def _row(asset: _Prepared) -> dict[str, object]:
    return {
        "asset_id": asset.reference.asset_id,
        "kind": asset.reference.kind,
        "uri": asset.reference.uri,
        "text": asset.text,
        "content_sha256": asset.content_sha256,
        "fingerprint": asset.reference.fingerprint,
        "media_type": asset.media_type,
        "size_bytes": asset.size_bytes,
        "width": asset.width,
        "height": asset.height,
        "prepared": asset.prepared,
    }
