"""A folder of Parquet files with vectors, written by many workers, each row once.

Workers write *parts* into a hidden folder. Parts of attempts that failed stay there and are never used. When all parts
are known, they become files: a large part is renamed, small ones are merged. The file `_vectors.json` is written last.
"""

import contextlib
import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...configs.errors import ArgumentError, SourceError
from ..storage.store import HashingWriter, Store
from ..versions.layout import KINDS, embedding_field, metadata_type
from .folder_mark import check_made_by, made_by_of, write_mark
from .hidden_folder import SignOfLife
from .shards import write_tables
from .units import as_float32, parquet_writer

_GROUP_BYTES = 16_000_000
"""Bytes of a row group, about: what a worker holds in memory."""
_ROW_BYTES = 256
"""Estimated bytes of a row besides its vector and text."""
_FIELDS = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("kind", pa.string(), nullable=False),
    pa.field("uri", pa.string()),
    pa.field("text", pa.string()),
    pa.field("content_sha256", pa.string()),
    pa.field("fingerprint", pa.string()),
    pa.field("media_type", pa.string()),
    pa.field("size_bytes", pa.int64()),
    pa.field("width", pa.int64()),
    pa.field("height", pa.int64()),
    pa.field("prepared", pa.string()),
    pa.field("metadata", pa.string()),
)
COLUMNS = tuple(field.name for field in _FIELDS)
"""The columns of a file before those of its metadata and the vector."""
_NOT_KEPT = ("embedding", "made_by")


@dataclass(frozen=True, kw_only=True)
class VectorsSetup:
    """What all workers know."""

    store: Store
    hidden: str
    """Name of the folder of the parts, the same for all workers and attempts of a pipeline."""
    metadata: Mapping[str, str]
    """Names and types of metadata values that get columns of their own."""
    file_bytes: int
    """Size of a file, about."""


@dataclass(frozen=True, kw_only=True)
class VectorPart:
    """A complete Parquet file: a part, or a file of the result."""

    name: str
    rows: int
    size_bytes: int
    sha256: str
    dimension: int
    made_by: tuple[str, ...] = ()
    """What made its vectors, each as in `EmbeddedAsset`, sorted; empty: unknown."""
    filled: frozenset[str] = frozenset()
    """Names of metadata that at least one row has."""


@dataclass(frozen=True, kw_only=True)
class MergeTask:
    """The parts that become one file."""

    name: str
    parts: tuple[VectorPart, ...]


def rows_of_group(dimension: int) -> int:
    """Return how many rows a row group has at most."""
    return max(1, _GROUP_BYTES // (4 * dimension + _ROW_BYTES))


def vectors_schema(dimension: int, metadata: Mapping[str, str]) -> pa.Schema:
    struct = metadata_type(metadata)
    return pa.schema([*_FIELDS, *(struct or ()), embedding_field(dimension)])


class PartWriter:
    """Writes rows into parts of about `file_bytes`. It holds one row group in memory."""

    def __init__(self, setup: VectorsSetup) -> None:
        self._setup = setup
        self._rows: list[Mapping[str, Any]] = []
        self._vectors = np.empty((0, 0), np.float32)
        self._dimension = 0
        self._made_by: set[str] = set()
        self._filled: set[str] = set()
        self._held_bytes = 0
        self._written = 0
        self._name = ""
        self._file: HashingWriter | None = None
        self._writer: pq.ParquetWriter | None = None
        self._open = contextlib.ExitStack()
        self._sign = SignOfLife(setup.store, setup.hidden)

    def add(self, row: Mapping[str, Any], vector: Sequence[float]) -> VectorPart | None:
        """Add a row. Return the part that it completes, if any.

        Args:
            row: Values of `COLUMNS`, and `made_by`; those that are absent are null, others are ignored.
            vector: The numbers, as float32, best with a buffer: lists are converted.

        Raises:
            ArgumentError: If the id or kind is wrong, the vector is not of numbers or does not have the dimension and
                model of the others, or a vector of this or an earlier row has a number that is not finite.
        """
        if not isinstance(row.get("id"), str) or not row["id"] or row.get("kind") not in KINDS:
            raise ArgumentError(
                f"Asset {row.get('id')!r:.80}: id must be a str that is not empty, and kind image or text, "
                f"got {row.get('kind')!r:.80}."
            )
        self._sign.give()
        numbers = _float32(vector, row)
        if self._dimension not in {0, len(numbers)}:
            raise ArgumentError(_other_dimension(self._dimension, len(numbers)))
        if not self._dimension:
            self._dimension = len(numbers)
            self._vectors = np.empty((rows_of_group(self._dimension), self._dimension), np.float32)
        self._made_by.add(made_by_of(row, len(numbers)))
        check_made_by(self._made_by)
        self._vectors[len(self._rows)] = numbers
        self._rows.append({name: value for name, value in row.items() if name not in _NOT_KEPT})
        self._held_bytes += numbers.nbytes + len(row.get("text") or "") + len(row.get("metadata") or "") + _ROW_BYTES
        if self._held_bytes >= _GROUP_BYTES or len(self._rows) == len(self._vectors):
            self._write_group()
            if self._file is not None and self._file.size_bytes >= self._setup.file_bytes:
                return self.finish()
        return None

    def finish(self) -> VectorPart | None:
        """Complete the part, and return it; None if it has no rows.

        Raises:
            ArgumentError: If a vector has a number that is not finite.
        """
        self._write_group()
        if self._file is None:
            return None
        self._open.close()
        part = VectorPart(
            name=self._name,
            rows=self._written,
            size_bytes=self._file.size_bytes,
            sha256=self._file.sha256,
            dimension=self._dimension,
            made_by=tuple(sorted(self._made_by)),
            filled=frozenset(self._filled),
        )
        self._file, self._written = None, 0
        return part

    def abandon(self) -> None:
        """Drop the part that is not complete: its file does not appear. The writer cannot be used after this."""
        with contextlib.suppress(InterruptedError), self._open:
            raise InterruptedError

    def _write_group(self) -> None:
        if not self._rows:
            return
        are_finite = np.isfinite(self._vectors[: len(self._rows)]).all(axis=1)  # of all rows at once: faster
        if not are_finite.all():
            raise _not_finite(self._rows[int(np.argmin(are_finite))])
        table = self._table()
        if self._file is None:
            self._name = f"{self._setup.hidden}/{uuid.uuid4().hex}.parquet"
            self._file = self._open.enter_context(self._setup.store.open_write(self._name))
            self._writer = self._open.enter_context(parquet_writer(self._file, table.schema))
        assert self._writer is not None
        self._writer.write_table(table, row_group_size=len(table))
        self._written += len(table)
        self._rows, self._held_bytes = [], 0

    def _table(self) -> pa.Table:
        schema = vectors_schema(self._dimension, self._setup.metadata)
        columns: list[Any] = [_column(self._rows, field) for field in _FIELDS]
        values = metadata_columns(self._rows, self._setup.metadata)
        self._filled |= filled_names(values, self._setup.metadata)
        columns += values
        numbers = pa.array(self._vectors[: len(self._rows)].reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(numbers, type=schema.field("embedding").type))
        return pa.table(columns, schema=schema)


def _float32(vector: Sequence[float], row: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        numbers = as_float32(vector)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"Asset {row.get('id')!r:.80}: embedding must be numbers ({error}).") from error
    if numbers.ndim != 1 or not len(numbers):
        raise _not_finite(row)
    return numbers


def _not_finite(row: Mapping[str, Any]) -> ArgumentError:
    return ArgumentError(f"Asset {row.get('id')!r:.80}: embedding must be a list of finite numbers.")


def _column(rows: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    try:
        return pa.array([row.get(field.name) for row in rows], field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArgumentError(f"WriteVectors: {field.name} must be of type {field.type} ({reason}).") from error


def metadata_columns(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> list[pa.Array]:
    """Return a typed column for each name of `types`, from the JSON in `metadata`. Absent values are null.

    Raises:
        SourceError: If a value does not have its type.
    """
    if not types:
        return []
    values = [json.loads(row.get("metadata") or "{}") for row in rows]
    return [_typed(field, [value.get(field.name) for value in values], rows) for field in metadata_type(types) or ()]


def filled_names(columns: Sequence[pa.Array], types: Mapping[str, str]) -> set[str]:
    """Return the names of the metadata that at least one row has, from what `metadata_columns` returned."""
    names = [field.name for field in metadata_type(types) or ()]
    return {name for name, column in zip(names, columns, strict=True) if column.null_count < len(column)}


def _typed(field: pa.Field, values: list[Any], rows: Sequence[Mapping[str, Any]]) -> pa.Array:
    try:
        return _cast(values, field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for row, value in zip(rows, values, strict=True):
            try:
                _cast([value], field.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise SourceError(
                    f"Asset {row.get('id')!r:.80}: metadata.{field.name} must be of type {field.type}, "
                    f"got {value!r:.80}."
                ) from error
        raise


def _cast(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):  # ISO 8601 in JSON
        texts = pa.array(values, pa.string())
        if pa.types.is_timestamp(kind):  # a time without a zone is UTC
            texts = pc.replace_substring_regex(texts, r"^(\d{4}-\d{2}-\d{2})$", r"\1T00:00:00")
            texts = pc.replace_substring_regex(texts, r"^([^T ]+[T ][0-9:.]+)$", r"\1Z")
        return pc.cast(texts, kind)
    return pa.array(values, kind)


def plan_files(parts: Iterable[VectorPart], file_bytes: int) -> list[MergeTask]:
    """Distribute parts over files. The same parts always become the same files, with the same names.

    Raises:
        ArgumentError: If parts have vectors of different dimensions or models.
    """
    ordered = sorted(parts, key=lambda part: (part.sha256, part.name))
    dimensions = sorted({part.dimension for part in ordered})
    if len(dimensions) > 1:
        raise ArgumentError(_other_dimension(*dimensions[:2]))
    check_made_by(made_by for part in ordered for made_by in part.made_by)
    groups: list[list[VectorPart]] = []
    room = 0
    for part in ordered:
        if part.size_bytes * 2 >= file_bytes:
            groups.insert(0, [part])
            continue
        if room < part.size_bytes:
            groups.append([])
            room = file_bytes
        groups[-1].append(part)
        room -= part.size_bytes
    tasks, taken = [], Counter[str]()
    for group in groups:
        content = " ".join(part.sha256 for part in group)
        taken[content] += 1  # equal parts are different files
        name = hashlib.sha256(f"{content} {taken[content]}".encode()).hexdigest()[:20]
        tasks.append(MergeTask(name=f"vectors-{name}.parquet", parts=tuple(group)))
    return tasks


def write_file(task: MergeTask, setup: VectorsSetup) -> VectorPart:
    """Turn the parts of a task into one file. It appears completely; repeating this changes nothing."""
    first = task.parts[0]
    rows = sum(part.rows for part in task.parts)
    if len(task.parts) == 1:
        setup.store.move(first.name, task.name)
        size, sha256 = first.size_bytes, first.sha256
    else:
        schema = vectors_schema(first.dimension, setup.metadata)
        tables = _tables(task.parts, setup.store)
        entry = write_tables(setup.store, task.name, tables, schema, rows_of_group(first.dimension))
        if entry.rows != rows:
            raise SourceError(f"{setup.store.url}/{task.name} must have {rows} rows, got {entry.rows}. Run again.")
        size, sha256 = entry.size_bytes, entry.sha256
    return VectorPart(
        name=task.name,
        rows=rows,
        size_bytes=size,
        sha256=sha256,
        dimension=first.dimension,
        made_by=tuple(sorted({made_by for part in task.parts for made_by in part.made_by})),
        filled=frozenset().union(*(part.filled for part in task.parts)),
    )


def _tables(parts: Sequence[VectorPart], store: Store) -> Iterator[pa.Table]:
    for part in parts:
        with store.open_read(part.name) as handle:
            file = pq.ParquetFile(handle, pre_buffer=False)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, use_threads=False)


def finish_folder(files: Iterable[VectorPart], setup: VectorsSetup) -> list[VectorPart]:
    """Write `_vectors.json` and delete what failed attempts left. Return the files, sorted by name."""
    ordered = sorted(files, key=lambda file: file.name)
    listed = [{"name": f.name, "rows": f.rows, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in ordered]
    made_by = {made_by for f in ordered for made_by in f.made_by}
    known = made_by.pop() if len(made_by) == 1 else ""
    write_mark(setup.store, listed, ordered[0].dimension if ordered else None, known or None)
    setup.store.delete(setup.hidden)
    return ordered


def _other_dimension(one: int, other: int) -> str:
    return f"WriteVectors: all vectors of a folder must have the same dimension, got {one} and {other}."
