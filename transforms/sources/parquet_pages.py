"""Checks the pages of a Parquet file before they are decoded: a few kilobytes may decode to gigabytes.

A page header states the decompressed size and the number of values, and a dictionary-encoded page repeats values of any
size for a few bits each. pyarrow trusts these headers. They are therefore read here first, and pyarrow decodes only as
many rows at a time as a bound on their bytes allows. It gets the same bytes that were checked.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from .references import BATCH_ROWS
from .thrift import ThriftError, read_struct

_PAGE_BYTES = 256 << 20
"""Maximum size of a decompressed page. Most writers make pages of about 1 MB, some of 100 MB."""
_BATCH_BYTES = 64 << 20
"""Approximate maximum size of one column in a batch."""
_TYPES = ("BOOLEAN", "INT32", "INT64", "INT96", "FLOAT", "DOUBLE", "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
_CODECS = ("", "snappy", "gzip", "lzo", "brotli", "lz4", "zstd", "lz4_raw")
_FIXED = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_DICTIONARY_PAGE, _DATA_PAGES = 2, {0: 5, 3: 8}
"""Types of pages; for data pages, the field of the page header that holds the details."""
_DICTIONARY_CODES, _PREFIX_CODES = (2, 8), 7
"""Encodings of data pages in which a few bits represent a whole value of the dictionary, or of the page."""


class UnreadableParquetError(Exception):
    """The file is damaged, or takes more memory than allowed."""


class CheckedParquet:
    """A Parquet file that is read in batches of limited size.

    Args:
        file: A seekable file. It is not closed.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._served = _Served(file)
        self._parquet = pq.ParquetFile(self._served, pre_buffer=False)
        # Parse the footer here too: pyarrow has aborted the process when it read a column of a damaged footer.
        self._groups = _groups(self._served)
        self._served.is_sealed = True
        self.schema: pa.Schema = self._parquet.schema_arrow
        self.group_rows: list[int] = [rows for rows, _ in self._groups]

    def uuids(self) -> set[str]:
        """Return the columns that are declared as UUIDs, whatever type pyarrow reads them as."""
        leaves = [self._parquet.schema.column(i) for i in range(len(self._parquet.schema))]
        return {leaf.path for leaf in leaves if leaf.logical_type.type == "UUID"}

    def batches(self, group: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a row group, at most 8,192 at a time.

        Raises:
            UnreadableParquetError: If a page is damaged or too large.
            pa.ArrowException: If pyarrow cannot read the row group.
        """
        self._served.chunks = {}
        largest = 1
        for column, leaf in zip(self._groups[group][1], self._parquet.schema, strict=False):
            if column.path in columns:
                data = self._served.read_at(column.begin, column.size)
                self._served.chunks[column.begin] = data
                largest = max(largest, bytes_of_a_value(data, column, leaf.length))
        rows = max(1, min(BATCH_ROWS, _BATCH_BYTES // largest))
        yield from self._parquet.iter_batches(rows, row_groups=[group], columns=list(columns), use_threads=False)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a row group, as the file's footer describes it."""

    path: str
    physical_type: str
    codec: str
    values: int
    begin: int
    size: int


def _groups(file: "_Served") -> list[tuple[int, list[Column]]]:
    """Return the number of rows and the columns of each row group."""
    try:
        length = int.from_bytes(file.read_at(file.size - 8, 4), "little")
        end, _ = read_struct(file.read_at(file.size - 8 - length, length), 0)
        return [(group[3], [_column(chunk[3]) for chunk in group[1]]) for group in end[4]]
    except (ThriftError, KeyError, IndexError, AttributeError, TypeError, UnicodeDecodeError) as error:
        raise UnreadableParquetError(f"the footer is damaged ({error})") from None


def _column(facts: dict[int, Any]) -> Column:
    begin = facts[9]
    return Column(
        path=b".".join(facts[3]).decode(),
        physical_type=_TYPES[facts[1]],
        codec=_CODECS[facts[4]],
        values=facts[5],
        begin=facts[11] if 0 < facts.get(11, 0) < begin else begin,
        size=facts[7],
    )


def bytes_of_a_value(chunk: bytes, column: Column, length: int) -> int:
    """Return an upper bound for the bytes of a decoded value. Rows then take at most rows times it, plus one page.

    Args:
        chunk: All pages of a column in a row group.
        column: The column's entry in the footer.
        length: Length of a value of fixed length, in bytes.

    Raises:
        UnreadableParquetError: If a page is damaged or too large.
    """
    at = values = 0
    found = dictionary = 1
    while values < column.values:
        page, at = _page(chunk, at)
        if page.kind == _DICTIONARY_PAGE:
            smallest = {"BYTE_ARRAY": 4, "FIXED_LEN_BYTE_ARRAY": max(1, length)}.get(column.physical_type, 1)
            if page.values * smallest > page.size * (8 if smallest == 1 else 1):
                raise UnreadableParquetError(f"a dictionary of {page.size} bytes claims {page.values} values")
            dictionary = _largest_entry(page, column)
        values += page.values if page.kind in _DATA_PAGES else 0
        if (fixed := _FIXED.get(column.physical_type)) is not None:
            found = max(found, fixed)
        elif page.encoding in _DICTIONARY_CODES and page.kind in _DATA_PAGES:
            found = max(found, dictionary)
        elif page.encoding == _PREFIX_CODES:
            found = max(found, page.size)
        elif page.kind in _DATA_PAGES:
            found = max(found, page.size // max(1, page.values))
    return found


@dataclass(frozen=True, kw_only=True)
class _Page:
    kind: int
    size: int
    """Decompressed size in bytes."""
    values: int
    encoding: int
    data: memoryview


def _page(chunk: bytes, at: int) -> tuple[_Page, int]:
    """Return the page that begins at byte `at` of a chunk, and where the next page begins."""
    try:
        header, body = read_struct(chunk, at)
        kind, size, stored = (header[field] for field in (1, 2, 3))
        rest = header.get(7 if kind == _DICTIONARY_PAGE else _DATA_PAGES.get(kind, 0), {})
        values, encoding = rest.get(1, 0), rest.get(4 if kind == 3 else 2, 0)
        if min(size, stored, values) < 0 or body + stored > len(chunk):
            raise ThriftError("a size is out of range")
    except (ThriftError, KeyError, AttributeError, TypeError) as error:
        raise UnreadableParquetError(f"a page header is damaged ({error})") from None
    if size > _PAGE_BYTES:
        raise UnreadableParquetError(
            f"a page has {size} bytes decompressed, the maximum is {_PAGE_BYTES}; write smaller pages"
        )
    data = memoryview(chunk)[body : body + stored]
    return _Page(kind=kind, size=size, values=values, encoding=encoding, data=data), body + stored


def _largest_entry(page: _Page, column: Column) -> int:
    """Return the bytes of the largest dictionary entry, or of the whole dictionary if entries cannot be read."""
    if column.physical_type != "BYTE_ARRAY":
        return page.size
    data: Any = page.data
    try:
        if column.codec:
            data = memoryview(pa.Codec(column.codec).decompress(data, page.size))
    except (pa.ArrowException, ValueError, OSError):  # the LZ4 framing of Hadoop, or damaged data
        return page.size
    at = largest = 0
    while at + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, at)
        largest = max(largest, size)
        at += 4 + size
    return min(largest, page.size)


class _Served(io.RawIOBase):
    """A file that, once sealed, serves only chunks that were checked."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._at = 0
        self.size = file.seek(0, io.SEEK_END)
        self.is_sealed = False
        self.chunks: dict[int, bytes] = {}
        """Checked chunks by their position in the file."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        size = self.size - self._at if size < 0 else size
        data = self._find(size) if self.is_sealed else self.read_at(self._at, size)
        self._at += len(data)
        return data

    def read_at(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        return self._file.read(max(0, min(size, self.size - place)))

    def _find(self, size: int) -> bytes:
        for begin, data in self.chunks.items():
            if begin <= self._at < begin + len(data):
                return data[self._at - begin : self._at - begin + size]
        raise UnreadableParquetError("a read is outside of the pages that the footer lists")
