"""The exact index: every vector as fp16, scanned whole by stock FAISS.

FAISS holds an index in memory until it is written. At 8 kB a vector that would make memory grow with the catalog,
so the file is written here, row by row, in FAISS' own format: header and codes come from FAISS (its rounding of
ties to fp16 is not numpy's), and only the two counts are filled in. `check_format` compares on every build.
"""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from .store import HashingWriter, StoreError

FACTORY = "SQfp16"

_COUNT = slice(8, 16)
"""Where `ntotal` stands: after the four-character code and the int32 dimension."""


class ExactIndexWriter:
    """Writes `IndexScalarQuantizer(dimension, QT_fp16, METRIC_INNER_PRODUCT)` of a known number of rows.

    Memory is that of one block of rows, whatever their number.
    """

    def __init__(self, file: HashingWriter, dimension: int, rows: int) -> None:
        self._file = file
        self._dimension = dimension
        self._left = rows
        self._encoder = _empty_index(dimension)
        header = bytearray(faiss.serialize_index(self._encoder).tobytes())
        header[_COUNT] = rows.to_bytes(8, "little")
        header[-8:] = (rows * dimension * 2).to_bytes(8, "little")
        file.write(bytes(header))

    def add(self, vectors: npt.NDArray[np.float32]) -> None:
        """Appends rows: float32, (n, dimension)."""
        if vectors.ndim != 2 or vectors.shape[1] != self._dimension or len(vectors) > self._left:
            raise ValueError(
                f"the index takes {self._left} more rows of {self._dimension}, got an array of {vectors.shape}"
            )
        self._left -= len(vectors)
        if len(vectors):
            self._file.write(self._encoder.sa_encode(np.ascontiguousarray(vectors, np.float32)).reshape(-1).data)

    def finish(self) -> None:
        if self._left:
            raise StoreError(f"the index file lacks {self._left} of its rows")


def check_format(dimension: int) -> None:
    """Raises StoreError when this FAISS would write another file than `ExactIndexWriter` does."""
    vectors = np.random.default_rng(0).standard_normal((3, dimension)).astype(np.float32)
    ours = _Bytes()
    writer = ExactIndexWriter(HashingWriter(ours), dimension, len(vectors))  # type: ignore[arg-type]
    writer.add(vectors)
    writer.finish()
    index = _empty_index(dimension)
    index.add(vectors)
    if bytes(ours.data) != faiss.serialize_index(index).tobytes():
        raise StoreError(
            f"faiss {faiss.__version__} writes fp16 indexes in a format that this release does not know: "
            "install the faiss-cpu of constraints.txt"
        )


def _empty_index(dimension: int) -> Any:
    index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True  # fp16 has nothing to train
    return index


class _Bytes:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)
