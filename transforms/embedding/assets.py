"""Embed assets: read, prepare, drop copies, send. The results leave through a sink.

This module does not use Beam, and it writes nothing. Reading and preparing run in threads, sending runs on the event
loop. Batches run concurrently; the bytes that they hold in memory are limited.
"""

import asyncio
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from ...configs import EmbedConfig, PrepareConfig
from ...index.vectors.reusable import ReusableVector
from ...index.versions.layout import DeadLetter, Reason
from ..epithre.client import Client, Refusal, RefusalReason
from ..epithre.packing import Item
from ..sources.prepare import PreparedImage, prepare_image, prepare_text
from ..sources.references import Reference, local_path
from ..sources.unpreparable import Unpreparable
from .in_flight import ByteLimit, Sent, SentContents
from .reuse import reuse_or_prepare

_T = TypeVar("_T")
_UNKNOWN_SIZE = 300_000
_LOCAL_FILES_A_THREAD = 8
_COPIES = 3
"""An image in flight is in memory about three times: as base64, in the request body, in the send buffer."""

Origin = Literal["sent", "copy", "reused"]
"""Where a vector is from: a request, the request of another asset with the same content, or an earlier run."""

Positioned = tuple[int, Reference]
"""A reference, and the number by which the caller recognises its result."""


@dataclass(frozen=True, kw_only=True)
class InlineReference(Reference):
    """A reference with its content."""

    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of an asset after it was read and prepared."""

    content_sha256: str
    """Of the original bytes."""
    text: str | None
    media_type: str
    size_bytes: int
    width: int | None
    height: int | None
    prepared: str | None


class Sink(Protocol):
    """Receives one result for each reference, on the event loop and in any order."""

    def embedded(self, position: int, facts: Facts, vector: npt.NDArray[np.float32], origin: Origin) -> None:
        """An asset has a vector: float32, (dimension,), unit norm. Copy it: it may be a view of a whole answer."""

    def dead(self, position: int, letter: DeadLetter) -> None:
        """An asset has no vector. The reason `not_sent` means that the spending limit was reached before it."""


class ContentReader(Protocol):
    """Reads the bytes of references, from many threads."""

    def read(self, reference: Reference) -> bytes:
        """Return the bytes at a reference's uri. Raises Unpreparable."""


def read_content(reference: Reference, reader: ContentReader) -> bytes:
    """Return the bytes of a reference: its own, or those at its uri. Raises Unpreparable."""
    if isinstance(reference, InlineReference):
        return reference.content
    if reference.uri is not None and reference.text is None:
        return reader.read(reference)
    if reference.kind == "image":
        raise Unpreparable(Reason.MISSING, "the asset has neither content nor uri")
    return (reference.text or "").encode("utf-8", "surrogatepass")


class Reusable(Protocol):
    """Finds existing vectors by content, from many threads."""

    def find(self, kind: str, content_sha256: str) -> ReusableVector | None:
        """Return the vector of a content, or None."""

    def find_all(self, kind: str, content_sha256: str) -> Iterator[ReusableVector]:
        """Return all vectors of a content, each prepared in its own way."""


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """An asset that was read and prepared."""

    position: int
    reference: Reference
    facts: Facts
    item: Item | None
    """None when `reusable` has the vector."""
    reusable: npt.NDArray[np.float32] | None


class BatchFiller:
    """Cuts a stream of references into batches that fill about one request each, estimated from their sizes."""

    def __init__(self, embed: EmbedConfig, prepare: PrepareConfig) -> None:
        self._most_items = embed.items_per_request
        self._most_bytes = embed.batch_bytes
        self._prepare = prepare
        self._batch: list[Positioned] = []
        self._size = 0

    def add(self, position: int, reference: Reference) -> list[Positioned]:
        """Add a reference; return the batch before it if it does not fit into that one, otherwise nothing."""
        size = sent_bytes(reference, self._prepare)
        is_full = len(self._batch) >= self._most_items or self._size + size > self._most_bytes
        full = self.take() if is_full else []
        self._batch.append((position, reference))
        self._size += size
        return full

    def take(self) -> list[Positioned]:
        """Return what was added since the last batch."""
        batch, self._batch, self._size = self._batch, [], 0
        return batch


def cut_batches(references: Sequence[Positioned], embed: EmbedConfig, prepare: PrepareConfig) -> list[list[Positioned]]:
    """Cut references into batches for `AssetEmbedder.embed_batch`."""
    filler = BatchFiller(embed, prepare)
    batches = [filler.add(position, reference) for position, reference in references]
    return [batch for batch in (*batches, filler.take()) if batch]


def sent_bytes(reference: Reference, prepare: PrepareConfig) -> int:
    """Estimate the bytes of a reference in a request body."""
    size = reference.size_bytes if reference.size_bytes is not None else _UNKNOWN_SIZE
    if reference.kind == "text":
        return size + 16
    return min(size, prepare.max_image_bytes) * 4 // 3 + 64


def bytes_held(batch: Sequence[Positioned], prepare: PrepareConfig) -> int:
    """Estimate the bytes in memory while a batch is in flight."""
    return _COPIES * sum(sent_bytes(reference, prepare) for _, reference in batch)


@dataclass(frozen=True, kw_only=True)
class AssetEmbedder:
    """Embeds batches of references. Its parts are shared by all batches of a lane or a process."""

    embed: EmbedConfig
    prepare: PrepareConfig
    reader: ContentReader
    client: Client
    threads: ThreadPoolExecutor
    """Threads for waiting work: remote files, the catalog."""
    local_threads: ThreadPoolExecutor
    """Threads for CPU-bound work: local files and texts. One per core; more would slow each other down."""
    bytes_in_flight: ByteLimit
    sent: SentContents
    reusable: "Reusable | None"
    """Existing vectors with the same embedding config."""

    async def in_thread(self, function: Callable[[], _T], *, is_local: bool = False) -> _T:
        threads = self.local_threads if is_local else self.threads
        return await asyncio.get_running_loop().run_in_executor(threads, function)

    async def embed_batch(self, batch: Sequence[Positioned], sink: Sink) -> None:
        """Embed a batch and pass one result for each reference to the sink.

        Raises:
            ApiError: When the API is not available, or has never answered. The results so far have been passed on.
        """
        held = await self.bytes_in_flight.acquire(bytes_held(batch, self.prepare))
        leaders: list[tuple[_Prepared, asyncio.Future[Sent]]] = []
        followers: list[tuple[_Prepared, asyncio.Future[Sent]]] = []
        try:
            if self.client.is_spent:
                for position, reference in batch:
                    sink.dead(position, _not_sent(reference))
                return
            for asset in await self._prepare_all(batch, sink):
                kind, sha256 = asset.reference.kind, asset.facts.content_sha256
                if asset.reusable is not None:
                    sink.embedded(asset.position, asset.facts, asset.reusable, "reused")
                elif (promised := self.sent.find(kind, sha256)) is not None:
                    followers.append((asset, promised))
                else:
                    leaders.append((asset, self.sent.promise(kind, sha256)))
            await self._send(leaders, sink)
        except BaseException as error:
            for asset, promise in leaders:
                self.sent.fail(asset.reference.kind, asset.facts.content_sha256, promise, error)
            raise
        finally:
            self.bytes_in_flight.release(held)
        # Await other batches only after sending our own items, or two batches that need each other's content deadlock.
        for asset, promised in followers:
            sent = await asyncio.shield(promised)
            _pass_on(asset, replace(asset.facts, prepared=sent.prepared), sent.result, "copy", sink)

    async def _prepare_all(self, batch: Sequence[Positioned], sink: Sink) -> list[_Prepared]:
        """Read and prepare a batch in threads: one remote file per task, because it waits, and several local files."""

        def prepare(chunk: Sequence[Positioned]) -> list[_Prepared | DeadLetter]:
            return [self._prepare(position, reference) for position, reference in chunk]

        uris = [reference.uri for _, reference in batch]
        is_local = all(uri is None or local_path(uri) is not None for uri in uris)
        step = _LOCAL_FILES_A_THREAD if is_local else 1
        if all(reference.kind == "text" and reference.uri is None for _, reference in batch):
            step = len(batch)
        chunks = [batch[start : start + step] for start in range(0, len(batch), step)]
        outcomes = await asyncio.gather(
            *(self.in_thread(functools.partial(prepare, chunk), is_local=is_local) for chunk in chunks)
        )
        good = []
        for (position, _), outcome in zip(batch, itertools.chain.from_iterable(outcomes), strict=True):
            if isinstance(outcome, DeadLetter):
                sink.dead(position, outcome)
            else:
                good.append(outcome)
        return good

    def _prepare(self, position: int, reference: Reference) -> _Prepared | DeadLetter:
        stage = "read"
        try:
            data = read_content(reference, self.reader)
            stage = "prepare"
            sha256 = hashlib.sha256(data).hexdigest()
            text = prepare_text(data, self.prepare) if reference.kind == "text" else None
            known: dict[str, Any] = {"width": None, "height": None, "prepared": None, "media_type": "text/plain"}
            found: ReusableVector | PreparedImage | None
            if text is not None:
                found = self.reusable.find("text", sha256) if self.reusable else None
            else:
                reusable = self.reusable.find_all("image", sha256) if self.reusable else ()
                found = reuse_or_prepare(data, reusable, self.prepare)
            item = None
            if found is not None:
                known = {name: getattr(found, name) for name in known}
            if isinstance(found, PreparedImage):
                item = self.client.encode("image", found.content)
            elif found is None:
                item = self.client.encode("text", (text or "").encode())
            return _Prepared(
                position=position,
                reference=reference,
                facts=Facts(content_sha256=sha256, text=text, size_bytes=len(data), **known),
                item=item,
                reusable=found.vector if isinstance(found, ReusableVector) else None,
            )
        except Unpreparable as failure:
            return _dead(reference, stage, failure.reason, failure.detail, 0)

    async def _send(self, leaders: Sequence[tuple[_Prepared, asyncio.Future[Sent]]], sink: Sink) -> None:
        if not leaders:
            return
        results = await self.client.embed([asset.item for asset, _ in leaders if asset.item is not None])
        if (error := self.client.unreachable) is not None:
            raise error.with_traceback(None)
        for (asset, promise), result in zip(leaders, results, strict=True):
            facts, final = asset.facts, result
            if isinstance(result, Refusal) and result.reason is RefusalReason.TOO_LARGE and facts.text is None:
                facts, final = await self._send_smaller(asset, result)
            # A copy: the vector is a view of a row, which would keep the whole answer in memory.
            kept = Sent(final if isinstance(final, Refusal) else final.copy(), facts.prepared)
            self.sent.finish(asset.reference.kind, facts.content_sha256, promise, kept)
            _pass_on(asset, facts, kept.result, "sent", sink)

    async def _send_smaller(
        self, asset: _Prepared, refusal: Refusal
    ) -> tuple[Facts, npt.NDArray[np.float32] | Refusal]:
        """Downscale an image that the API refused as too large, and send it once more."""

        def shrink() -> tuple[Facts, Item]:
            image = prepare_image(read_content(asset.reference, self.reader), self.prepare, smaller=True)
            return replace(asset.facts, prepared=image.prepared), self.client.encode("image", image.content)

        try:
            facts, item = await self.in_thread(shrink)
        except Unpreparable:
            return asset.facts, refusal
        return facts, (await self.client.embed([item]))[0]


def _pass_on(
    asset: _Prepared, facts: Facts, result: npt.NDArray[np.float32] | Refusal, origin: Origin, sink: Sink
) -> None:
    """Pass the result of an asset that was sent, or of its copy, to the sink."""
    if not isinstance(result, Refusal):
        sink.embedded(asset.position, facts, result, origin)
    elif result.reason is RefusalReason.NOT_SENT:
        sink.dead(asset.position, _not_sent(asset.reference))
    else:
        reason = Reason(result.reason.value)
        sink.dead(asset.position, _dead(asset.reference, "embed", reason, result.detail, result.attempts))


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


def row_of(reference: Reference, facts: Facts) -> dict[str, object]:
    """Return the columns of an asset, without metadata and vector."""
    return {
        "asset_id": reference.asset_id,
        "kind": reference.kind,
        "uri": reference.uri,
        "text": facts.text,
        "content_sha256": facts.content_sha256,
        "fingerprint": reference.fingerprint,
        "media_type": facts.media_type,
        "size_bytes": facts.size_bytes,
        "width": facts.width,
        "height": facts.height,
        "prepared": facts.prepared,
    }
