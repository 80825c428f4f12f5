"""Checks the headers of FAISS files before FAISS reads them.

FAISS trusts the lengths in a file, allocates that much memory, and opens any index type that it knows. A catalog has
two types of files, in which every field except the vector values is known in advance. This module reads both field by
field, without the values. A different index type, metric or shape, a length beyond the end of the file, or an invalid
row id is an error that quotes the value found.

Layouts: `faiss/impl/index_write.cpp` and `invlists/BlockInvertedLists.cpp` of FAISS 1.15.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from ...configs.errors import CatalogError

_METRIC_INNER_PRODUCT = 0
_METRICS = {0: "inner product", 1: "L2"}
_QT_FP16 = 4
_BITS = 4
_CENTROIDS = 1 << _BITS
_BLOCK_ROWS = 32
"""Rows per block of fast-scan codes."""
_MOST_CELLS = 1 << 24
_VECTORS_HEADER_BYTES = 81
_ADVICE = (
    "The file is damaged or was written by another FAISS version. "
    "Rebuild the index with the faiss-cpu version in constraints.txt."
)


Data = bytes | mmap.mmap


@dataclass(frozen=True, kw_only=True)
class CodesShape:
    """The shape of a codes file."""

    rows: int
    dimension: int
    """Dimension of the coded vectors."""
    cells: int


def mapped(path: Path) -> Data:
    """Maps a file on the local disk; it stays mapped as long as the result is referenced."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""


class _Header:
    """Reads a file field by field, never beyond its known length."""

    def __init__(self, data: Data, size_bytes: int, place: str) -> None:
        self.data = data
        self.at = 0
        self._size_bytes = size_bytes
        self._place = place

    def index(self, name: bytes, dimension: int, rows: int | None) -> int:
        """Checks the fields that every stored index begins with. Returns its number of rows."""
        self.expect("index", "<4s", name)
        self.expect("dimension", "<i", dimension)
        found = self.take("<q")
        if found < 0 or rows not in {None, found}:
            self.refuse("rows", "0 or more" if rows is None else rows, found)
        self.skip(16)  # two unused numbers
        self.expect("index is trained", "<?", True)
        metric = self.take("<i")
        if metric != _METRIC_INNER_PRODUCT:
            self.refuse("metric", _METRICS[0], _METRICS.get(metric, metric))
        return int(found)

    def expect(self, what: str, form: str, wanted: Any) -> None:
        found = self.take(form)
        if found != wanted:
            self.refuse(what, wanted, found)

    def take(self, form: str) -> Any:
        begin = self.at
        self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self.data, begin)[0]

    def skip(self, size_bytes: int) -> None:
        if size_bytes > self._size_bytes - self.at:
            raise CatalogError(
                f"{self._place} ends too early: {size_bytes} more bytes expected, got {self._size_bytes - self.at}. "
                f"{_ADVICE}"
            )
        self.at += size_bytes

    def ends_after(self, size_bytes: int) -> None:
        if self._size_bytes - self.at != size_bytes:
            self.refuse("remaining bytes", size_bytes, self._size_bytes - self.at)

    def refuse(self, what: str, wanted: object, found: object) -> NoReturn:
        raise CatalogError(f"{self._place}: {what} must be {_shown(wanted)}, got {_shown(found)}. {_ADVICE}")


def check_vectors_header(file: IO[bytes], place: str, dimension: int, rows: int | None = None) -> int:
    """Verifies that a file is exactly one complete `IndexScalarQuantizer(dimension, QT_fp16, METRIC_INNER_PRODUCT)`.

    Args:
        file: The file, open and seekable. Afterwards its position is at the first row's codes.
        place: The name of the file in errors.
        dimension: The expected dimension of the vectors.
        rows: The number of rows in the manifest; None accepts any number.

    Returns:
        The number of rows.

    Raises:
        CatalogError: With the place, the expected value and the value found.
    """
    size_bytes = file.seek(0, 2)
    file.seek(0)
    header = _Header(file.read(_VECTORS_HEADER_BYTES), size_bytes, place)
    found = header.index(b"IxSQ", dimension, rows)
    header.expect("quantizer", "<i", _QT_FP16)
    header.expect("range statistic", "<i", 0)
    header.expect("range statistic's argument", "<f", 0.0)
    header.expect("quantizer's dimension", "<q", dimension)
    header.expect("bytes per row", "<q", 2 * dimension)
    header.expect("trained values", "<q", 0)
    header.expect("bytes of all rows", "<q", 2 * dimension * found)
    header.ends_after(2 * dimension * found)
    return found


def check_codes(data: Data, place: str, dimension: int, rows: int | None = None) -> CodesShape:
    """Verifies that a file is one from `codes.build_codes`: a linear transform, then an IVF of fast-scan 4-bit codes.

    The ids are row positions and each must occur exactly once, because FAISS uses them without a check.

    Args:
        data: The whole file, as bytes or mapped.
        place: The name of the file in errors.
        dimension: The dimension of the vectors.
        rows: The number of rows of the vector file; None accepts any number.

    Raises:
        CatalogError: With the place, the expected value and the value found.
    """
    header = _Header(data, len(data), place)
    found = header.index(b"IxPT", dimension, rows)
    header.expect("transforms", "<i", 1)
    header.expect("transform", "<4s", b"LTra")
    header.expect("transform's bias", "<?", False)
    numbers = header.take("<q")
    coded, rest = divmod(numbers, dimension)
    if rest or not 1 <= coded <= dimension:
        header.refuse("values of the transform", f"at most {dimension} rows of {dimension}", numbers)
    header.skip(4 * numbers)
    header.expect("values of the bias", "<q", 0)
    header.expect("transform's input", "<i", dimension)
    header.expect("transform's output", "<i", coded)
    header.expect("transform is trained", "<?", True)
    header.index(b"IwPf", coded, found)
    cells = header.take("<q")
    if not 1 <= cells <= min(_MOST_CELLS, found):
        header.refuse("cells", f"1 to {min(_MOST_CELLS, found)}", cells)
    header.expect("cells scanned", "<q", 1)
    header.index(b"IxFI", coded, cells)
    header.expect("values of the centres", "<q", coded * cells)
    header.skip(4 * coded * cells)
    header.expect("type of the direct map", "<B", 0)
    header.expect("entries of the direct map", "<q", 0)
    header.expect("codes of residuals", "<?", False)
    header.expect("bytes per row", "<q", (coded + 1) // 2)
    header.expect("rows per block", "<i", _BLOCK_ROWS)
    header.expect("codes per row, rounded up to even", "<q", coded + coded % 2)
    header.expect("implementation", "<i", 0)
    header.expect("queries per block", "<q", 0)
    for what, wanted in (("quantizer's dimension", coded), ("codes per row", coded), ("bits per code", _BITS)):
        header.expect(what, "<q", wanted)
    header.expect("centroid values", "<q", coded * _CENTROIDS)
    header.skip(4 * coded * _CENTROIDS)
    header.expect("lists", "<4s", b"ilbl")
    header.expect("lists of the cells", "<q", cells)
    header.expect("bytes per code of a list", "<Q", 2**64 - 1)
    header.expect("rows per block of a list", "<q", _BLOCK_ROWS)
    block_bytes = _BLOCK_ROWS * (coded + coded % 2) // 2
    header.expect("bytes per block of a list", "<q", block_bytes)
    _check_lists(header, cells, found, block_bytes)
    header.ends_after(0)
    return CodesShape(rows=found, dimension=dimension, cells=cells)


def _check_lists(header: _Header, cells: int, rows: int, block_bytes: int) -> None:
    """Checks each list: the number of rows, the ids, the size of the codes, and the codes in blocks of whole words."""
    count_words = (len(header.data) - header.at) // 8
    words = np.frombuffer(header.data, "<i8", count_words, header.at)
    # A memoryview, because it is faster than numpy for single numbers of thousands of cells.
    numbers = memoryview(header.data)[header.at : header.at + 8 * count_words].cast("q")
    starts, counts = np.empty(cells, np.int64), np.empty(cells, np.int64)
    left, at = rows, 0
    for cell in range(cells):
        count = numbers[at] if at < count_words else -1
        size_bytes = -(-count // _BLOCK_ROWS) * block_bytes
        following = at + 2 + count + size_bytes // 8
        if not 0 <= count <= left or following > count_words:
            header.refuse("rows of a cell", f"at most {left}, the remaining rows", count)
        if numbers[at + 1 + count] != size_bytes:
            header.refuse("bytes of a cell's codes", size_bytes, numbers[at + 1 + count])
        starts[cell], counts[cell] = at + 1, count
        at, left = following, left - count
    header.at += 8 * at
    if left:
        header.refuse("rows of all cells", rows, rows - left)
    ids = words[np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(rows)]
    is_there = np.zeros(rows, bool)
    is_there[ids[(ids >= 0) & (ids < rows)]] = True
    if not is_there.all():
        header.refuse("row ids", "complete and unique", f"no id {int(np.argmin(is_there))}")


def _shown(value: object) -> str:
    return repr(value.decode("latin-1")) if isinstance(value, bytes) else str(value)
