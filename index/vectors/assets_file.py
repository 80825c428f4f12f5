"""Reads assets tables, which are Arrow files that may be untrusted, and checks them before Arrow reads them.

Arrow trusts the lengths in a file. A wrong length makes it allocate any amount of memory or read beyond a buffer,
which crashes the process. This module therefore reads the list of batches first: all batches must be inside the file
and uncompressed, all columns must have the same length, and the number of rows must match the manifest. Then the
columns must match the manifest, and the offsets of strings must be inside their data. This check reads each offset but
not the strings.

Layout: Arrow's `format/File.fbs` and `Message.fbs`, in FlatBuffers.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ...configs.errors import CatalogError
from ..versions.layout import assets_schema

_MAGIC = b"ARROW1"
_RECORD_BATCH = 3
_BLOCK_BYTES = 24
_NODE_BYTES = 16
_MOST_METADATA_BYTES = 16_000_000
"""The limit for the footer and for the metadata of a batch."""


def map_assets(path: Path, types: Mapping[str, str], rows: int) -> pa.Table:
    """Maps the whole assets table of a kind.

    Args:
        path: The path of the file.
        types: The metadata columns of the manifest.
        rows: The number of rows in the manifest.

    Raises:
        CatalogError: When the file is not such a table or is damaged.
    """
    try:
        with path.open("rb") as raw:
            _check_rows(_check_layout(raw), rows)
        with pa.memory_map(str(path)) as file:
            # Read from a buffer: Arrow's threads keep a file mapped for a while after it is released.
            table = pa.ipc.open_file(file.read_buffer()).read_all()
        _check_columns(table.schema, types)
        for batch in table.to_batches():
            _check_batch(batch)
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise _unusable(str(path), error) from error
    return table


def iterate_assets(
    file: IO[bytes],
    place: str,
    types: Mapping[str, str],
    rows: int,
    columns: Iterable[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Reads an assets table batch by batch.

    Args:
        file: The file, open and seekable.
        place: The name of the file in errors.
        types: The metadata columns of the manifest.
        rows: The number of rows in the manifest.
        columns: The columns to read, if the table has them. Default: all.

    Raises:
        CatalogError: When the file is not such a table or is damaged.
    """
    try:
        _check_rows(_check_layout(file), rows)
        reader = _open(file)
        _check_columns(reader.schema, types)
        if columns is not None:
            wanted = set(columns)
            reader = _open(file, [i for i, name in enumerate(reader.schema.names) if name in wanted])
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)  # the batch is read completely anyway
            _check_batch(batch)
            yield batch
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a storage error; Arrow's own OSErrors have no errno
        raise _unusable(place, error) from error


def count_assets(file: IO[bytes], place: str) -> int:
    """Returns the number of rows of an assets table, from its list of batches.

    Raises:
        CatalogError: When the file is not such a table or is damaged.
    """
    try:
        return _check_layout(file)
    except ValueError as error:
        raise _unusable(place, error) from error


def _open(file: IO[bytes], fields: Sequence[int] | None = None) -> Any:
    file.seek(0)
    # Arrow's threads may still hold a Python buffer when the interpreter exits, which crashes it.
    return pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False))


def _unusable(place: str, error: Exception) -> CatalogError:
    reason = " ".join(str(error).split())[:200]
    return CatalogError(
        f"{place} cannot be opened as a table of assets: {reason}. The file is damaged or not the catalog's own."
    )


def _check_columns(schema: pa.Schema, types: Mapping[str, str]) -> None:
    wanted = assets_schema(types)
    if not schema.equals(wanted):
        found = next((f for f in schema if f.name not in wanted.names or f not in wanted), "too few columns")
        raise ValueError(f"its columns must be those of the manifest, got {found!s:.100}")


def _check_batch(batch: pa.RecordBatch) -> None:
    """Raises ValueError when reading a row could leave the batch's memory, or a required value is missing."""
    batch.validate()
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if not field.nullable and column.null_count:
            raise ValueError(f"{field.name} must have a value in each row, got {column.null_count} rows without one")
        _check_texts(field.name, column)


def _check_texts(name: str, column: pa.Array) -> None:
    if pa.types.is_struct(column.type):
        for number, field in enumerate(column.type):
            _check_texts(f"{name}.{field.name}", column.field(number))
    elif pa.types.is_string(column.type) and len(column):
        _, places, data = column.buffers()
        ends = np.frombuffer(places, "<i4", len(column) + 1, 4 * column.offset)
        if ends[0] < 0 or ends[-1] > (0 if data is None else data.size) or (ends[1:] < ends[:-1]).any():
            raise ValueError(f"texts of {name} are outside of its bytes")


def _check_rows(found: int, rows: int) -> None:
    if found != rows:
        raise ValueError(f"it must have {rows} rows, got {found}")


def _check_layout(file: IO[bytes]) -> int:
    """Returns the number of rows. Raises ValueError unless it is an Arrow file with all batches inside the file."""
    size = file.seek(0, 2)
    tail = _read(file, size - 10, 10)
    (length,) = struct.unpack_from("<i", tail)
    if tail[4:] != _MAGIC or not 0 < length <= min(size - 18, _MOST_METADATA_BYTES):
        raise ValueError(f"its footer of {length} bytes is invalid")
    footer = _Table.root(_read(file, size - 10 - length, length))
    if footer.vector(2, _BLOCK_BYTES)[1]:
        raise ValueError("it has dictionaries, which are not supported")
    begin, count = footer.vector(3, _BLOCK_BYTES)
    found = 0
    for number in range(count):
        place, metadata, body = struct.unpack_from("<qixxxxq", footer.data, begin + number * _BLOCK_BYTES)
        is_inside = place >= 8 and 8 < metadata <= _MOST_METADATA_BYTES and 0 <= body <= size - metadata - place
        if not is_inside or (place | metadata | body) % 8:
            raise ValueError(f"batch {number} must be inside the file, got {body} bytes at offset {place}")
        found += _check_message(_read(file, place, metadata), body, number)
    return found


def _check_message(data: bytes, body: int, number: int) -> int:
    """Returns the number of rows of a batch."""
    begin, length = struct.unpack_from("<Ii", data)
    if begin != 0xFFFFFFFF or not 0 < length <= len(data) - 8:
        raise ValueError(f"batch {number} has an invalid header")
    message = _Table.root(data[8 : 8 + length])
    if message.number(1, "<B") != _RECORD_BATCH or message.number(3, "<q") != body:
        raise ValueError(f"batch {number} is not a record batch or has a wrong length")
    batch = message.table(2)
    if batch.place(3) is not None:
        raise ValueError(f"batch {number} is compressed")
    rows = int(batch.number(0, "<q"))
    first, nodes = batch.vector(1, _NODE_BYTES)
    for i in range(nodes):
        length, nulls = struct.unpack_from("<qq", batch.data, first + i * _NODE_BYTES)
        if length != rows or not 0 <= nulls <= rows:
            raise ValueError(f"batch {number} must have {rows} rows in each column, got {length}")
    first, buffers = batch.vector(2, _NODE_BYTES)
    for i in range(buffers):
        place, length = struct.unpack_from("<qq", batch.data, first + i * _NODE_BYTES)
        if place < 0 or length < 0 or place % 8 or place + length > body:
            raise ValueError(f"batch {number} has a buffer outside of its bytes")
    return rows


def _read(file: IO[bytes], place: int, size: int) -> bytes:
    if place < 0:
        raise ValueError("it ends too early")
    file.seek(place)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data


class _Table:
    """A FlatBuffers table with fields by number. An offset outside of `data` raises ValueError."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data = data
        self._at = at
        self._fields = at - self._unpack("<i", at)
        self._fields_bytes = self._unpack("<H", self._fields)

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        if len(data) < 8:
            raise ValueError("it ends too early")
        return cls(data, struct.unpack_from("<I", data)[0])

    def place(self, field: int) -> int | None:
        """Returns the offset of a field, or None when the table does not have it."""
        entry = 4 + 2 * field
        offset = self._unpack("<H", self._fields + entry) if entry + 2 <= self._fields_bytes else 0
        return self._at + offset if offset else None

    def number(self, field: int, form: str) -> int:
        place = self.place(field)
        return 0 if place is None else self._unpack(form, place)

    def table(self, field: int) -> "_Table":
        place = self.place(field)
        if place is None:
            raise ValueError("a required field is missing")
        return _Table(self.data, place + self._unpack("<I", place))

    def vector(self, field: int, size: int) -> tuple[int, int]:
        """Returns the offset of a vector of structs of `size` bytes, and its number of structs."""
        place = self.place(field)
        if place is None:
            return 0, 0
        begin = place + self._unpack("<I", place)
        count = self._unpack("<I", begin)
        if begin + 4 + count * size > len(self.data):
            raise ValueError("a list is longer than the data")
        return begin + 4, count

    def _unpack(self, form: str, at: int) -> int:
        if not 0 <= at <= len(self.data) - struct.calcsize(form):
            raise ValueError("an offset is outside of the data")
        return int(struct.unpack_from(form, self.data, at)[0])
