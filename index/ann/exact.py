"""The exact index: all vectors as fp16, scanned by stock FAISS.

FAISS keeps an index in memory until it writes it. At 8 kB per vector, memory would grow with the catalog, so this
module writes the file row by row in the FAISS format: header and codes come from FAISS (it rounds ties to fp16
differently from numpy), and only the two counts are filled in. `check_format` verifies the format on every build.
"""

import io
from collections.abc import Iterable
from typing import IO, Any

import faiss
import numpy as np
import numpy.typing as npt

from ...configs.errors import CatalogError, StoreError
from ..storage.store import HashingWriter
from .stored_header import check_vectors_header

FACTORY = "SQfp16"

_SEARCH_ROWS = 2048
_COUNT = slice(8, 16)
"""The bytes of `ntotal`: after the four-character code and the int32 dimension."""


class ExactIndexWriter:
    """Writes `IndexScalarQuantizer(dimension, QT_fp16, METRIC_INNER_PRODUCT)` with a known number of rows.

    Memory is one block of rows, regardless of their number.
    """

    def __init__(self, file: HashingWriter, dimension: int, rows: int) -> None:
        self._file = file
        self._dimension = dimension
        self._left = rows
        self._encoder = empty_index(dimension)
        file.write(index_header(dimension, rows))

    def add(self, vectors: npt.NDArray[np.float32]) -> None:
        """Appends rows: float32, (n, dimension)."""
        if vectors.ndim != 2 or vectors.shape[1] != self._dimension or len(vectors) > self._left:
            raise ValueError(
                f"vectors must have at most {self._left} rows of {self._dimension}, got shape {vectors.shape}"
            )
        self._left -= len(vectors)
        if len(vectors):
            self._file.write(self._encoder.sa_encode(np.ascontiguousarray(vectors, np.float32)).reshape(-1).data)

    def finish(self) -> None:
        if self._left:
            raise StoreError(f"The index file is incomplete: {self._left} rows are missing.")


def search_stored(
    file: IO[bytes], queries: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Searches a stored index block by block, so that memory is one block of rows.

    FAISS decodes each block from the file, so the search measures the stored vectors. One matrix product for many
    queries is about ten times faster than the scan that a reader does.

    Args:
        file: The index file, open at its start.
        queries: float32, (n, dimension).
        k: Number of neighbours per query.

    Returns:
        Scores float32 and rows int64, both (n, k) or narrower when there are fewer rows, best first.

    Raises:
        StoreError: When the file is not in the format that FAISS writes.
    """
    dimension = queries.shape[1]
    block = empty_index(dimension)
    rows = read_header(file, dimension)
    best_scores = np.empty((len(queries), 0), np.float32)
    best_rows = np.empty((len(queries), 0), np.int64)
    for first in range(0, rows, _SEARCH_ROWS):
        count = min(_SEARCH_ROWS, rows - first)
        codes = np.frombuffer(file.read(count * dimension * 2), np.uint8)
        if len(codes) != count * dimension * 2:
            raise StoreError("The stored index ends before its last row.")
        rows_found = block.sa_decode(codes.reshape(count, dimension * 2))
        scores, found = faiss.knn(queries, rows_found, min(k, count), metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([best_scores, scores], axis=1)
        found = np.concatenate([best_rows, found + first], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best_scores, best_rows = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
    return best_scores, best_rows


def read_header(file: IO[bytes], dimension: int) -> int:
    """Returns the number of rows of a stored index and leaves `file` at its first code.

    Raises:
        StoreError: When the file is not in the format that FAISS writes.
    """
    try:
        return check_vectors_header(file, "the stored index", dimension)
    except CatalogError as error:
        raise StoreError(str(error)) from error


class StoredRows:
    """Reads the stored codes of several index files in sequence."""

    def __init__(self, files: Iterable[IO[bytes]], dimension: int) -> None:
        self._row_bytes = 2 * dimension
        self._files = [(file, read_header(file, dimension)) for file in files]
        self.rows = sum(rows for _, rows in self._files)
        """The total of all files."""
        self._next = iter(self._files)
        self._file, self._left = next(self._next, (io.BytesIO(), 0))

    def read(self, count: int) -> bytes:
        """Returns the next `count` rows, or the remaining ones."""
        pieces: list[bytes] = []
        while count:
            while not self._left:
                following = next(self._next, None)
                if following is None:
                    return b"".join(pieces)
                self._file, self._left = following
            taken = min(count, self._left)
            pieces.append(self._file.read(taken * self._row_bytes))
            count, self._left = count - taken, self._left - taken
        return b"".join(pieces)


def read_rows(file: IO[bytes], dimension: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Reads rows of a stored index, decoded by FAISS: float32, (rows, dimension).

    Raises:
        StoreError: When the file is not in the format that FAISS writes, or ends before a row.
    """
    file.seek(0)
    read_header(file, dimension)
    begin, size = file.tell(), dimension * 2
    codes = np.empty((len(rows), size), np.uint8)
    for place in np.argsort(rows, kind="stable").tolist():  # in the order of the file
        file.seek(begin + int(rows[place]) * size)
        data = file.read(size)
        if len(data) != size:
            raise StoreError("The stored index ends before its last row.")
        codes[place] = np.frombuffer(data, np.uint8)
    vectors: npt.NDArray[np.float32] = empty_index(dimension).sa_decode(codes)
    return vectors


def encode(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Encodes vectors as in an index file: uint8, (rows, 2 x dimension)."""
    codes: npt.NDArray[np.uint8] = empty_index(vectors.shape[1]).sa_encode(np.ascontiguousarray(vectors, np.float32))
    return codes


def as_stored(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns the vectors as an index file would decode them: float32, same shape."""
    found: npt.NDArray[np.float32] = empty_index(vectors.shape[1]).sa_decode(encode(vectors))
    return found


def check_format(dimension: int) -> None:
    """Raises StoreError when the installed FAISS writes a different file than `ExactIndexWriter`."""
    vectors = np.random.default_rng(0).standard_normal((3, dimension)).astype(np.float32)
    ours = _Bytes()
    with HashingWriter(ours) as file:  # type: ignore[arg-type]
        writer = ExactIndexWriter(file, dimension, len(vectors))
        writer.add(vectors)
        writer.finish()
    index = empty_index(dimension)
    index.add(vectors)
    if bytes(ours.data) != faiss.serialize_index(index).tobytes():
        raise StoreError(
            f"faiss {faiss.__version__} writes fp16 indexes in a format that this release does not support. "
            "Install the faiss-cpu version in constraints.txt."
        )


def index_header(dimension: int, rows: int) -> bytes:
    """The header of a stored index with `rows` rows; only the codes follow it, row by row."""
    header = bytearray(faiss.serialize_index(empty_index(dimension)).tobytes())
    header[_COUNT] = rows.to_bytes(8, "little")
    header[-8:] = (rows * dimension * 2).to_bytes(8, "little")
    return bytes(header)


def empty_index(dimension: int) -> Any:
    """`IndexScalarQuantizer(dimension, QT_fp16, METRIC_INNER_PRODUCT)` without rows."""
    index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True  # fp16 needs no training
    return index


class _Bytes:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)
