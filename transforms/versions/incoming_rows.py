"""Rows that a pipeline brings with their vectors: written where the elements are, read in the order of a version.

The rows of a bundle become a part: a Parquet file of the assets, and a file of the vectors alone, as float32 one after
the other, from which single vectors can be read. A part is only used if its bundle succeeds.
"""

import contextlib
import hashlib
import uuid
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs.errors import ArgumentError, LeaseLostError
from ...index.storage.store import HashingWriter, Store
from ...index.vectors.units import IncomingGroup, as_float32
from ...index.vectors.vector_files import filled_names, metadata_columns
from ...index.versions.layout import (
    KINDS,
    DeadLetter,
    Reason,
    asset_fields,
    embedding_field,
    metadata_type,
    run_folder,
)
from ...index.versions.values import is_sha256
from ..epithre.vectors import normalise
from ..planning.plan import PlanReader
from ..sources.references import UNKNOWN

_GROUP_BYTES = 8_000_000
"""Bytes of rows that a writer holds, about."""
_ROW_BYTES = 512
"""Estimated bytes of a row besides its vector and text."""
_OPEN_FILES = 64
_READ_BYTES = 8_000_000
_CHECKSUM = pa.field("checksum", pa.uint32(), nullable=False)
"""CRC-32 of the vector's bytes."""
_PLACE = (pa.field("part", pa.int32(), nullable=False), pa.field("row", pa.int64(), nullable=False))

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class IncomingPart:
    """The rows of a bundle; small, because it passes through the runner's shuffle."""

    name: str
    """Name of its two files in the store, without their suffixes."""
    rows: Mapping[str, int]
    """By kind."""
    dimension: int
    normalised: int
    """Vectors whose norm was not 1."""
    filled: frozenset[str]
    """Names of metadata that at least one row has."""


def incoming_folder(version: str) -> str:
    return f"{run_folder(version)}/incoming"


def incoming_name(version: str) -> str:
    """Return the name of the file with the rows in the order of the version; each row group is a group of them."""
    return f"{run_folder(version)}/incoming.parquet"


def parts_name(version: str) -> str:
    """Return the name of the file that lists the parts."""
    return f"{run_folder(version)}/parts.json"


def part_schema(metadata: Mapping[str, str]) -> pa.Schema:
    struct = metadata_type(metadata)
    return pa.schema([*asset_fields(), *([] if struct is None else [pa.field("metadata", struct)]), _CHECKSUM])


def incoming_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """Return the columns of a row in the order of the version: the asset, and the place of its vector."""
    return pa.schema([*part_schema(metadata), *_PLACE])


class IncomingWriter:
    """Writes the rows of a bundle into a part. It holds a few megabytes; a thread writes some while others come in."""

    def __init__(self, store: Store, version: str, metadata: Mapping[str, str], dimension: int | None) -> None:
        """Create a writer; nothing is written yet.

        Args:
            store: The catalog.
            version: The version that the pipeline writes.
            metadata: Names and types of the metadata values to keep.
            dimension: Of the vectors. None: that of the first one.
        """
        self._store = store
        self._folder = incoming_folder(version)
        self._types = metadata
        self._is_given = dimension is not None
        self._dimension = dimension or 0
        self._rows: list[Mapping[str, Any]] = []
        self._vectors: Vectors = np.empty((0, 0), np.float32)
        self._other_vectors: Vectors = self._vectors
        self._held_bytes = 0
        self._thread: ThreadPoolExecutor | None = None
        self._writing: Future[list[DeadLetter]] | None = None
        self._counts: Counter[str] = Counter()
        self._normalised = 0
        self._filled: set[str] = set()
        self._name = ""
        self._file: HashingWriter | None = None
        self._writer: pq.ParquetWriter | None = None
        self._open = contextlib.ExitStack()

    def add(self, row: Mapping[str, Any], vector: Sequence[float] | None) -> list[DeadLetter]:
        """Add a row. Return dead letters of this row and earlier ones whose vectors are invalid.

        Args:
            row: The fields of an `EmbeddedAsset`. All but `id` and `kind` may be absent.
            vector: The numbers, as float32.

        Raises:
            ArgumentError: If the id, the kind or the hash is nonsense, the vector is not of numbers, or it has not the
                dimension of the others and none is given.
            SourceError: If a value of the metadata does not have its type.
        """
        place = f"Asset {row.get('id')!r:.80}"
        if not isinstance(row.get("id"), str) or not row["id"] or row.get("kind") not in KINDS:
            kind = row.get("kind")
            raise ArgumentError(f"{place}: id must be a str that is not empty, and kind image or text, got {kind!r}.")
        digest = row.get("content_sha256")
        if digest is not None and not is_sha256(digest):
            raise ArgumentError(f"{place}: content_sha256 must be 64 hexadecimal digits, got {digest!r:.80}.")
        if vector is None:
            return [_broken(row, "the vector is missing")]
        try:
            numbers = as_float32(vector)
        except (TypeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"{place}: embedding must be numbers ({error}).") from error
        self._dimension = self._dimension or numbers.size
        if numbers.shape != (self._dimension,):
            if not self._is_given:
                raise other_dimension(self._dimension, numbers.size)
            return [_broken(row, f"the vector must have {self._dimension} dimensions, got {numbers.size}")]
        if not self._vectors.size:
            shape = max(1, _GROUP_BYTES // numbers.nbytes), self._dimension
            self._vectors, self._other_vectors = np.empty(shape, np.float32), np.empty(shape, np.float32)
        self._vectors[len(self._rows)] = numbers
        self._rows.append(row)
        self._held_bytes += numbers.nbytes + len(row.get("text") or "") + len(row.get("metadata") or "") + _ROW_BYTES
        is_full = self._held_bytes >= _GROUP_BYTES or len(self._rows) == len(self._vectors)
        return self._begin_writing() if is_full else []

    def finish(self) -> tuple[IncomingPart | None, list[DeadLetter]]:
        """Complete the part. Return it, None if it has no rows, and the dead letters of the last rows."""
        dead = [*self._begin_writing(), *self._end_writing()]
        if self._thread is not None:
            self._thread.shutdown()
        if self._file is None:
            return None, dead
        self._open.close()
        part = IncomingPart(
            name=self._name,
            rows=dict(self._counts),
            dimension=self._dimension,
            normalised=self._normalised,
            filled=frozenset(self._filled),
        )
        return part, dead

    def abandon(self) -> None:
        """Drop the part: its files do not appear. The writer cannot be used after this."""
        if self._thread is not None:
            self._thread.shutdown()
        with contextlib.suppress(InterruptedError), self._open:
            raise InterruptedError

    def _begin_writing(self) -> list[DeadLetter]:
        """Let the thread write the rows that are held. Return the dead letters of those before."""
        if not self._rows:
            return []
        dead = self._end_writing()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="incoming")
        self._writing = self._thread.submit(self._write_group, self._rows, self._vectors[: len(self._rows)])
        self._vectors, self._other_vectors = self._other_vectors, self._vectors
        self._rows, self._held_bytes = [], 0
        return dead

    def _end_writing(self) -> list[DeadLetter]:
        writing, self._writing = self._writing, None
        return [] if writing is None else writing.result()

    def _write_group(self, rows: Sequence[Mapping[str, Any]], vectors: Vectors) -> list[DeadLetter]:
        are_finite, are_zero, normalised = normalise(vectors)
        are_good = are_finite & ~are_zero
        dead = [
            _broken(rows[i], "the vector must not be zero" if are_finite[i] else "the vector must be finite")
            for i in np.flatnonzero(~are_good).tolist()
        ]
        if dead:
            vectors = vectors[are_good]
            rows = [row for row, is_good in zip(rows, are_good.tolist(), strict=True) if is_good]
        if rows:
            self._write(rows, vectors)
            self._normalised += normalised
        return dead

    def _write(self, rows: Sequence[Mapping[str, Any]], vectors: Vectors) -> None:
        schema = part_schema(self._types)
        if self._file is None:
            self._name = f"{self._folder}/{uuid.uuid4().hex}"
            # Not hashed, because each vector has a checksum, and the next step reads it in another order.
            self._file = self._open.enter_context(self._store.open_write(f"{self._name}.vectors", is_temporary=True))
            assets = self._open.enter_context(self._store.open_write(f"{self._name}.parquet", is_temporary=True))
            self._writer = self._open.enter_context(parquet_writer(assets, schema))
        assert self._writer is not None
        data = np.ascontiguousarray(vectors, "<f4")
        stated = [_stated(row, its) for row, its in zip(rows, data, strict=True)]
        columns = [_column(stated, field) for field in asset_fields()]
        if struct := metadata_type(self._types):
            is_null = pa.array([row.get("metadata") is None for row in rows])
            values = metadata_columns(rows, self._types)
            self._filled |= filled_names(values, self._types)
            columns.append(pa.StructArray.from_arrays(values, fields=list(struct), mask=is_null))
        columns.append(pa.array([zlib.crc32(its) for its in data], pa.uint32()))
        self._writer.write_table(pa.table(columns, schema=schema))
        self._file.write(data.data.cast("B"))
        self._counts.update(row["kind"] for row in rows)


def parquet_writer(file: HashingWriter, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file that is read once: what makes one small costs more than it saves."""
    return pq.ParquetWriter(
        pa.PythonFile(file, mode="w"), schema, compression="none", use_dictionary=False, write_statistics=False
    )


def other_dimension(one: int, other: int) -> ArgumentError:
    return ArgumentError(f"All vectors of a catalog must have the same dimension, got {one} and {other}.")


def _broken(row: Mapping[str, Any], why: str) -> DeadLetter:
    return DeadLetter(
        asset_id=row["id"],
        kind=row["kind"],
        uri=row.get("uri"),
        stage="import",
        reason=Reason.BROKEN_VECTOR,
        detail=why,
        fingerprint=row.get("fingerprint"),
    )


def _stated(row: Mapping[str, Any], vector: npt.NDArray[Any]) -> dict[str, Any]:
    """Return the fields of a row, with what can be derived for those that are absent.

    The content of an image that is not known is represented by its vector.
    """
    text = row.get("text")
    content = None if text is None else text.encode()
    digest = row.get("content_sha256")
    fingerprint = row.get("fingerprint")
    if digest is None or (fingerprint is None and content is not None):
        found = hashlib.sha256(vector.data if content is None else content).hexdigest()
        digest, fingerprint = digest or found, fingerprint or f"sha256:{found}"
    size = row.get("size_bytes")
    return {
        **row,
        "asset_id": row["id"],
        "content_sha256": digest,
        "fingerprint": fingerprint or UNKNOWN,
        "media_type": row.get("media_type") or (None if content is None else "text/plain"),
        "size_bytes": len(content) if size is None and content is not None else size,
    }


def _column(rows: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    try:
        return pa.array([row.get(field.name) for row in rows], field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(f"WriteCatalog: {field.name} must be of type {field.type} ({reason}).") from error


class IncomingRows:
    """Reads the groups of incoming rows of one version. Use it in a `with` block: it keeps files open."""

    def __init__(self, store: Store, version: str) -> None:
        self._store = store
        self._version = version
        self._stack = contextlib.ExitStack()
        self._plan: PlanReader | None = None
        self._vectors: _PartVectors | None = None

    def __enter__(self) -> "IncomingRows":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(self, group: IncomingGroup) -> pa.Table:
        """Read the rows of a group, with all columns of a version's Parquet files.

        Raises:
            LeaseLostError: When the files are gone or changed, because another run took over the catalog.
        """
        try:
            return self._read(group)
        except FileNotFoundError as error:
            raise _taken_over(self._store) from error

    def _read(self, group: IncomingGroup) -> pa.Table:
        if self._plan is None or self._vectors is None:
            self._plan = self._stack.enter_context(PlanReader(self._store, incoming_name(self._version)))
            listed = orjson.loads(self._store.read(parts_name(self._version)))
            self._vectors = _PartVectors(self._store, listed["parts"], listed["dimension"])
            self._stack.callback(self._vectors.close)
        rows = self._plan.read(group.row_group)
        vectors = self._vectors.take(*(rows.column(name).to_numpy() for name in ("part", "row", "checksum")))
        field = embedding_field(vectors.shape[1])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=field.type)
        return rows.drop_columns(["part", "row", "checksum"]).append_column(field, column)


class _PartVectors:
    """Reads single vectors of parts."""

    def __init__(self, store: Store, names: Sequence[str], dimension: int) -> None:
        self._store = store
        self._names = names
        self._dimension = dimension
        self._files: OrderedDict[int, IO[bytes]] = OrderedDict()

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def take(self, parts: npt.NDArray[np.int32], rows: npt.NDArray[np.int64], checksums: npt.NDArray[Any]) -> Vectors:
        """Return the vectors in the order of the arguments: float32, (rows, dimension)."""
        order = np.lexsort((rows, parts))
        vectors = np.empty((len(rows), self._dimension), "<f4")
        first = 0
        runs = list(_runs(parts[order], rows[order], max(1, _READ_BYTES // (4 * self._dimension))))
        for piece in self._pieces(runs):
            if len(piece) % (4 * self._dimension):
                raise _taken_over(self._store)
            found = np.frombuffer(piece, "<f4").reshape(-1, self._dimension)
            vectors[order[first : first + len(found)]] = found
            first += len(found)
        sums = np.array([zlib.crc32(vector.data) for vector in vectors], np.uint32)
        if first != len(rows) or not np.array_equal(sums, checksums):
            raise _taken_over(self._store)
        return vectors.astype(np.float32, copy=False)

    def _pieces(self, runs: Sequence[tuple[int, int, int]]) -> Iterator[bytes]:
        size = 4 * self._dimension
        if not self._store.is_local:  # many requests at a time
            paths = [self._store.path(f"{self._names[part]}.vectors") for part, _, _ in runs]
            starts = [first * size for _, first, _ in runs]
            ends = [(first + count) * size for _, first, count in runs]
            yield from self._store.fs.cat_ranges(paths, starts, ends, on_error="raise")
            return
        for part, first, count in runs:
            file = self._opened(part)
            file.seek(first * size)
            yield file.read(count * size)

    def _opened(self, part: int) -> IO[bytes]:
        if part not in self._files:
            while len(self._files) >= _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[part] = self._store.open_read(f"{self._names[part]}.vectors")
        self._files.move_to_end(part)
        return self._files[part]


def _runs(parts: npt.NDArray[np.int32], rows: npt.NDArray[np.int64], longest: int) -> Iterator[tuple[int, int, int]]:
    """Yield (part, first row, rows) of adjacent rows."""
    cuts = np.flatnonzero((parts[1:] != parts[:-1]) | (rows[1:] != rows[:-1] + 1)) + 1
    for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(rows)], strict=True):
        for at in range(start, end, longest):
            yield int(parts[at]), int(rows[at]), min(longest, end - at)


def _taken_over(store: Store) -> LeaseLostError:
    return LeaseLostError(
        f"{store.url}: the pipeline's files are gone or changed. Another run took over the catalog, because the lease "
        "could not be renewed. Nothing was published. Run again."
    )
