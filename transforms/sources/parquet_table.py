"""Reads a Parquet table."""

import io
import uuid
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from ...configs.errors import ConfigError, SourceError
from .parquet_pages import CheckedParquet
from .references import BATCH_ROWS

_BATCH_BYTES = 64 << 20
_ALWAYS_BYTES = 256_000_000
"""What columns may always take in all, however small their file is."""


class ParquetTable:
    """A Parquet file.

    Args:
        place: The source's, for errors.
        here: The table's, for errors.
        bytes_column: The column with pictures' bytes, if the source names one; it is not read here.
        max_row_bytes: A larger cell is refused.
        max_expansion: How many times as large as the file its columns may be.
    """

    def __init__(
        self, place: str, here: str, bytes_column: str | None, *, max_row_bytes: int, max_expansion: int
    ) -> None:
        self._place = place
        self._here = here
        self._bytes_column = bytes_column
        self._max_row_bytes = max_row_bytes
        self._max_expansion = max_expansion

    def names(self, file: IO[bytes], wanted: set[str]) -> list[str]:  # noqa: ARG002 - the schema has all
        schema = CheckedParquet(file).schema
        self._check_bytes(schema)
        return list(schema.names)

    def batches(self, file: IO[bytes], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Rows, at most 8192 and about 64 MB at a time."""
        parquet = CheckedParquet(file)
        for name in columns:
            if pa.types.is_nested(found := parquet.schema.field(name).type):
                raise SourceError(f"{self._here}: the column {name!r} must have one value in each row, got {found}.")
        uuids = parquet.uuids()
        most = max(_ALWAYS_BYTES, self._max_expansion * file.seek(0, io.SEEK_END))
        row = total = 0
        held: list[pa.RecordBatch] = []
        held_rows = held_bytes = 0
        for group in range(len(parquet.group_rows)):
            for batch in parquet.batches(group, columns):
                arrays = [_plain(array, name in uuids) for name, array in zip(columns, batch.columns, strict=True)]
                self._check_sizes(arrays, columns, row)
                total += sum(array.nbytes for array in arrays)
                if total > most:
                    raise SourceError(
                        f"{self._here} has more than {most} bytes in the columns that are read, "
                        f"which is more than a file of its size should (row {row + 1}). If the table is right, raise "
                        "`max_expansion` of the source."
                    )
                row += len(batch)
                held.append(pa.RecordBatch.from_arrays(arrays, names=columns))
                held_rows += len(batch)
                held_bytes += sum(array.nbytes for array in arrays)
                if held_rows >= BATCH_ROWS or held_bytes >= _BATCH_BYTES:
                    yield _together(held)
                    held, held_rows, held_bytes = [], 0, 0
        if held:
            yield _together(held)

    def _check_sizes(self, arrays: list[pa.Array], columns: list[str], first: int) -> None:
        for name, array in zip(columns, arrays, strict=True):
            cells = array.storage if isinstance(array, pa.ExtensionArray) else array
            try:
                sizes = pc.binary_length(cells)
            except pa.ArrowNotImplementedError:  # of a type whose values are all small
                continue
            if (pc.max(sizes).as_py() or 0) > self._max_row_bytes:
                row = first + pc.index(pc.greater(sizes, self._max_row_bytes), True).as_py()
                raise SourceError(
                    f"{self._here} row {row + 1}: {name} has more than {self._max_row_bytes} "
                    "bytes. If the cell is right, raise `max_row_bytes` of the source."
                )

    def _check_bytes(self, schema: pa.Schema) -> None:
        name = self._bytes_column
        if name is None or name not in schema.names:
            return
        found = schema.field(name).type
        if not (pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_string(found)):
            raise ConfigError(f"{self._place}.bytes: the column {name!r} has {found} instead of bytes ({self._here}).")


def _together(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _plain(array: pa.Array, is_uuid: bool) -> pa.Array:
    """Cells that take the memory that is counted: decoded, and UUIDs, which pyarrow may read as bytes, as texts."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    cells = array.storage if isinstance(array, pa.ExtensionArray) else array
    if not is_uuid or not pa.types.is_fixed_size_binary(cells.type):
        return array
    return pa.array([None if cell is None else str(uuid.UUID(bytes=cell)) for cell in cells.to_pylist()], pa.string())
