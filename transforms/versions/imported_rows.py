"""Import rows with vectors into a version: read them in small pieces and check them like answers of the API."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...configs.errors import SourceError
from ...index.storage.store import Store
from ...index.vectors.shards import ROWS_PER_GROUP, ShardRecord, write_shard
from ...index.vectors.units import dead_letter_table
from ...index.versions.layout import (
    DeadLetter,
    Reason,
    asset_fields,
    embedding_field,
    metadata_type,
    run_folder,
    vectors_name,
)
from ..epithre.vectors import normalise
from ..sources.casts import cast_cells
from .imports import ImportedGroup, ImportTask, VectorFolder, plain_strings


def imported_dead_name(version: str, shard: ShardRecord) -> str:
    return f"{run_folder(version)}/dead/{shard.kind}-{shard.shard:05d}.parquet"


def write_imported(
    store: Store, version: str, task: ImportTask, folder: VectorFolder, schema: pa.Schema
) -> list[ShardRecord]:
    """Stream the rows of a task into its files; each vector is read once.

    A row with an invalid vector becomes a dead letter. A vector whose norm is not 1 is normalised and counted. A file
    without valid rows is not written.

    Raises:
        SourceError: When the folder cannot be read, or has changed since the scan.
    """
    rows = _Rows(_read(folder, task.groups))
    records = []
    for i, shard in enumerate(task.shards):
        wanted = task.rows * (i + 1) // len(task.shards) - task.rows * i // len(task.shards)
        checked = _Checked(folder)
        record = write_shard(store, version, shard, map(checked.table, rows.take(wanted)), schema)
        record = record.with_import(dead=len(checked.dead), normalised=checked.normalised)
        if checked.dead:
            with store.open_write(imported_dead_name(version, record)) as file:
                pq.write_table(dead_letter_table(checked.dead), pa.PythonFile(file, mode="w"))
        if not record.rows:
            store.delete(vectors_name(version, shard.kind, shard.shard, shard.shards))
        records.append(record)
    return records


def read_imported(folder: VectorFolder, groups: Sequence[ImportedGroup]) -> Iterator[tuple[pa.Table, list[DeadLetter]]]:
    """Read row groups: the valid rows, in the columns of a version's Parquet files, and the dead letters of the others.

    Raises:
        SourceError: When the folder cannot be read, or has changed since the scan.
    """
    for piece in _read(folder, groups):
        checked = _Checked(folder)
        table = checked.table(piece)
        yield table, checked.dead


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Some rows of one kind, as they are in a file."""

    batch: pa.RecordBatch
    place: str
    numbers: npt.NDArray[np.int64]
    """Number of each row in the file, from 0."""

    def slice(self, start: int, count: int) -> "_Piece":
        numbers = self.numbers[start : start + count]
        return _Piece(batch=self.batch.slice(start, count), place=self.place, numbers=numbers)


def _read(folder: VectorFolder, groups: Sequence[ImportedGroup]) -> Iterator[_Piece]:
    for number, of_file in itertools.groupby(groups, lambda group: group.file):
        with folder.open(number) as file:
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            for group in of_file:
                yield from _read_group(folder, file, group, sum(sizes[: group.group]))


def _read_group(folder: VectorFolder, file: pq.ParquetFile, group: ImportedGroup, row: int) -> Iterator[_Piece]:
    """Read the rows of a group's kind; `row` is the number of the first row of the row group in the file."""
    place, found = folder.place(group.file), 0
    for batch in file.iter_batches(
        ROWS_PER_GROUP, row_groups=[group.group], columns=list(folder.columns), use_threads=False
    ):
        here = pc.equal(plain_strings(batch.column("kind")), group.kind)
        inside = np.flatnonzero(here.to_numpy(zero_copy_only=False))
        if len(inside):
            kept = batch if len(inside) == len(batch) else batch.filter(here)
            yield _Piece(batch=kept, place=place, numbers=inside + row)
        found += len(inside)
        row += len(batch)
    if found != group.rows:
        raise SourceError(f"{place}: the file changed during the run. Run again.")


class _Rows:
    """Pieces from which a given number of rows can be taken."""

    def __init__(self, pieces: Iterator[_Piece]) -> None:
        self._pieces = pieces
        self._left: _Piece | None = None

    def take(self, count: int) -> Iterator[_Piece]:
        while count:
            piece = self._left if self._left is not None else next(self._pieces, None)
            if piece is None:
                return
            taken = min(count, len(piece.numbers))
            rest = len(piece.numbers) - taken
            self._left = piece.slice(taken, rest) if rest else None
            count -= taken
            yield piece.slice(0, taken) if rest else piece


class _Checked:
    """Converts pieces to rows of a version, and collects dead letters and the number of normalised vectors."""

    def __init__(self, folder: VectorFolder) -> None:
        self._folder = folder
        self.dead: list[DeadLetter] = []
        self.normalised = 0

    def table(self, piece: _Piece) -> pa.Table:
        """Return the valid rows of a piece, in the columns of a version's Parquet files.

        `content_sha256` is the hash of the text, or of the vector's bytes if there is no text, because no other content
        is available. The fingerprint has the same hash.
        """
        batch, dimension = piece.batch, self._folder.dimension
        lists = batch.column(self._folder.embedding)
        faults: dict[int, str] = {}
        lengths = pc.list_value_length(lists)
        if pa.types.is_fixed_size_list(lists.type):
            lengths = pc.if_else(pc.is_valid(lists), dimension, None)
        fits = pc.fill_null(pc.equal(lengths, dimension), False).to_numpy(zero_copy_only=False)
        for i in np.flatnonzero(~fits).tolist():
            length = lengths[i].as_py()
            faults[i] = (
                "the vector is missing"
                if length is None
                else f"the vector must have {dimension} dimensions, got {length}"
            )
        vectors = _matrix(lists if fits.all() else lists.filter(pa.array(fits)), dimension)
        norms_are, is_zero, count = normalise(vectors)
        self.normalised += count
        for i, place in enumerate(np.flatnonzero(fits).tolist()):
            if not norms_are[i]:
                faults[place] = f"the vector must be finite, got {_not_finite(lists[place])}"
            elif is_zero[i]:
                faults[place] = "the vector must not be zero"
        if faults:
            vectors = vectors[norms_are & ~is_zero]
            self._note(piece, faults)
            good = np.ones(len(batch), bool)
            good[list(faults)] = False
            piece = _Piece(batch=batch.filter(pa.array(good)), place=piece.place, numbers=piece.numbers[good])
        return self._rows(piece, vectors)

    def _note(self, piece: _Piece, faults: Mapping[int, str]) -> None:
        names, kinds = (plain_strings(piece.batch.column(name)) for name in ("id", "kind"))
        for i, fault in sorted(faults.items()):
            self.dead.append(
                DeadLetter(
                    asset_id=names[i].as_py(),
                    kind=kinds[i].as_py(),
                    uri=f"{piece.place}#row={piece.numbers[i]}",
                    stage="import",
                    reason=Reason.BROKEN_VECTOR,
                    detail=f"{piece.place.rpartition('/')[2]} row {piece.numbers[i] + 1}: {fault}",
                )
            )

    def _rows(self, piece: _Piece, vectors: npt.NDArray[np.float32]) -> pa.Table:
        batch, rows = piece.batch, len(vectors)
        columns: dict[str, Any] = {
            "asset_id": plain_strings(batch.column("id")),
            "kind": plain_strings(batch.column("kind")),
        }
        for name in ("uri", "text"):
            there = name in self._folder.columns
            columns[name] = plain_strings(batch.column(name)) if there else pa.nulls(rows, pa.string())
        texts = columns["text"].to_pylist() if rows and columns["kind"][0].as_py() == "text" else [None] * rows
        data = [v.tobytes() if t is None else t.encode() for t, v in zip(texts, vectors, strict=True)]
        hashes = [hashlib.sha256(d).hexdigest() for d in data]
        columns["content_sha256"] = pa.array(hashes, pa.string())
        columns["fingerprint"] = pa.array([f"sha256:{h}" for h in hashes], pa.string())
        columns["media_type"] = pa.array([None if t is None else "text/plain" for t in texts], pa.string())
        columns["size_bytes"] = pa.array(
            [None if t is None else len(d) for t, d in zip(texts, data, strict=True)], pa.int64()
        )
        arrays = [columns.get(f.name, pa.nulls(rows, f.type)) for f in asset_fields()]
        fields = asset_fields()
        if struct := metadata_type(self._folder.metadata):
            cells = [self._cast(piece, f) for f in struct]
            arrays.append(pa.StructArray.from_arrays(cells, fields=list(struct)))
            fields.append(pa.field("metadata", struct))
        vector = embedding_field(self._folder.dimension)
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=vector.type))
        return pa.Table.from_arrays(arrays, schema=pa.schema([*fields, vector]))

    def _cast(self, piece: _Piece, field: pa.Field) -> pa.Array:
        column = piece.batch.column(field.name)
        try:
            return cast_cells(column, field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            for i in range(len(column)):
                try:
                    cast_cells(column.slice(i, 1), field.type)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    raise SourceError(
                        f"{piece.place} row {piece.numbers[i] + 1}: {field.name} must be of type {field.type}, got "
                        f"{str(column[i])[:60]!r}. Fix it and run again."
                    ) from None
            raise


def _not_finite(vector: pa.Scalar) -> str:
    """Return the first element of a vector that is not finite in float32, and its position."""
    numbers = vector.as_py()
    with np.errstate(over="ignore"):
        finite = [number is not None and np.isfinite(np.float32(number)) for number in numbers]
    at = finite.index(False)
    return f"{numbers[at]} as number {at + 1} of {len(numbers)}"


def _matrix(lists: pa.Array, dimension: int) -> npt.NDArray[np.float32]:
    """Convert lists of equal length to float32, (rows, dimension). A null element is NaN. Always a writable copy."""
    values = lists.flatten()
    if values.null_count:
        values = pc.cast(values, pa.float64())  # float64 converts null to NaN
    with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, and its row a dead letter
        return np.array(values.to_numpy(zero_copy_only=False), np.float32).reshape(-1, dimension)
