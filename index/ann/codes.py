"""The codes of an index file: vectors projected to a few hundred dimensions, 4 bits per dimension, divided into cells.

The file is a stock FAISS index: a linear transform without bias, then an IVF of fast-scan product codes with one code
per dimension (André et al. 2017, arXiv 1704.07355). Small files have one cell, which is scanned as a whole. The codes
only select candidates; the fp16 vectors give the scores.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from ..storage.store import Store
from .products import one_thread, product
from .projection import rotation
from .stored_header import check_codes, mapped

BITS = 4
LEAST_ROWS = 1024
"""Fewer rows cannot train codes, and an exact scan of them is fast."""
_ROUTED_ROWS = 50_000
_POINTS_PER_CELL = 32
_CELL_ITERATIONS = 6
_TRAINING_ROWS = 12_000
_BLOCK = 8192
_CENTROIDS = 1 << BITS
_CENTROID_ITERATIONS = 12
_START_POINTS = 257


def cells_for(rows: int) -> int:
    """The number of cells of an index file with `rows` rows."""
    return 1 if rows < _ROUTED_ROWS else int(4 * rows**0.5)


def bytes_a_row(dimensions: Sequence[int]) -> int:
    """The maximum memory per row, in bytes, while codes are built."""
    widest = max(dimensions)
    # fp16 projection; codes three times (built, and in the lists of two indexes); id twice, hash, order and cell.
    return 2 * widest + 3 * (widest // 2) + 6 * 8


@dataclass(frozen=True, kw_only=True)
class Projected:
    """The rows of an index file, projected to the catalog's axes."""

    vectors: npt.NDArray[np.float16]
    """(rows, axes), in the order of the file."""
    order: npt.NDArray[np.int64]
    """Row positions sorted by the hash of their ids, so that training and order depend on the assets only."""
    axes: npt.NDArray[np.float32]
    """(axes, dimension)."""
    seed: int

    def turned(self, rows: slice | npt.NDArray[np.int64], dimension: int, turn: npt.NDArray[np.float32]) -> Any:
        """The rotated rows that are coded: float32, (rows, dimension)."""
        return product(self.vectors[rows, :dimension].astype(np.float32), turn.T)


@dataclass(frozen=True, kw_only=True)
class Coded:
    """Rows as codes, one code per dimension."""

    dimension: int
    centroids: npt.NDArray[np.float32]
    """(dimension, 16), ascending: the value that each code stands for."""
    codes: npt.NDArray[np.uint8]
    """(rows, dimension / 2): two codes per byte, the first in the lower half."""


def code_rows(projected: Projected, dimension: int) -> Coded:
    """Applies a random rotation to the first `dimension` axes and codes each dimension with 4 bits."""
    rows = len(projected.vectors)
    turn = rotation(dimension, projected.seed)
    centroids = train_centroids(projected.turned(projected.order[:_TRAINING_ROWS], dimension, turn))
    table = _table(centroids)
    offsets = np.arange(dimension, dtype=np.int32) << 16
    codes = np.empty((rows, (dimension + 1) // 2), np.uint8)
    # In the order of the hashes: the last bit of a product may depend on the place of its row.
    for first in range(0, rows, _BLOCK):
        block = projected.order[first : first + _BLOCK]
        bits = projected.turned(block, dimension, turn).astype(np.float16).view(np.uint16)
        found = table.take(bits + offsets)
        packed = found[:, 0::2].copy()
        packed[:, : dimension // 2] |= found[:, 1::2] << 4
        codes[block] = packed
    return Coded(dimension=dimension, centroids=centroids, codes=codes)


def train_centroids(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Finds the 16 values per dimension with the least squared error, with Lloyd's algorithm in one dimension.

    The training of FAISS starts at random, takes far longer and is no better (`test_codes.py` compares the errors).

    Args:
        vectors: float32, (rows, dimension).

    Returns:
        float32, (dimension, 16), ascending.
    """
    rows, dimension = vectors.shape
    centroids = np.empty((dimension, _CENTROIDS), np.float32)
    places = np.linspace(0, rows - 1, _START_POINTS).astype(np.int64)
    for column in range(dimension):
        values = np.sort(vectors[:, column]).astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(values)])
        # The density of the optimal values is the third root of the data's density (Panter and Dite 1951). A start
        # near the optimum matters: a start with equal shares stops far from the values that the tails need.
        points = values[places]
        lengths = np.concatenate([[0.0], np.cumsum(np.diff(points) ** (2 / 3))])
        middle = np.interp((np.arange(_CENTROIDS) + 0.5) / _CENTROIDS * lengths[-1], lengths, points)
        for _ in range(_CENTROID_ITERATIONS):
            cuts = np.searchsorted(values, (middle[1:] + middle[:-1]) / 2)
            edges = np.concatenate([[0], cuts, [rows]])
            counts = np.diff(edges)
            middle = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), middle)
        centroids[column] = np.sort(middle)
    return centroids


def _table(centroids: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The nearest centroid of every fp16 number, per dimension: one table lookup replaces 16 comparisons."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    numbers = bits.view(np.float16).astype(np.float32)
    ascending = np.argsort(np.nan_to_num(numbers, nan=np.inf), kind="stable")
    ordered = numbers[ascending]
    ordered[np.isnan(ordered)] = np.inf
    table = np.empty((len(centroids), 1 << 16), np.uint8)
    for row, values in zip(table, centroids, strict=True):
        cuts = np.searchsorted(ordered, (values[1:] + values[:-1]) / 2)
        row[ascending] = np.repeat(
            np.arange(_CENTROIDS, dtype=np.uint8), np.diff(np.concatenate([[0], cuts, [len(ordered)]]))
        )
    return table.ravel()


def build_codes(projected: Projected, coded: Coded, cells: int) -> Any:
    """Builds a FAISS index of codes whose ids are row positions.

    Args:
        projected: The rows.
        coded: Their codes.
        cells: The number of cells, at least 1.
    """
    rows, dimension = len(projected.vectors), coded.dimension
    turn = rotation(dimension, projected.seed)
    centres = _train_cells(projected, dimension, turn, cells)
    coarse: Any = faiss.IndexFlatIP(dimension)
    coarse.add(centres)
    cell_of = np.zeros(rows, np.int32)
    if cells > 1:
        for first in range(0, rows, _BLOCK):
            block = projected.order[first : first + _BLOCK]
            cell_of[block] = product(projected.turned(block, dimension, turn), centres.T).argmax(axis=1)
    quantiser = faiss.ProductQuantizer(dimension, dimension, BITS)
    faiss.copy_array_to_vector(coded.centroids.ravel(), quantiser.centroids)
    plain = faiss.IndexIVFPQ(coarse, dimension, cells, dimension, BITS, faiss.METRIC_INNER_PRODUCT)
    plain.by_residual = False
    plain.pq = quantiser
    plain.is_trained = True
    lists: Any = plain.invlists
    by_cell = projected.order[np.argsort(cell_of[projected.order], kind="stable")]
    edges = np.searchsorted(cell_of[by_cell], np.arange(cells + 1))
    for cell in range(cells):
        ids = np.ascontiguousarray(by_cell[edges[cell] : edges[cell + 1]])
        if len(ids):
            part = np.ascontiguousarray(coded.codes[ids])
            lists.add_entries(cell, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(part))
    plain.ntotal = rows
    fast = faiss.IndexIVFPQFastScan(plain)
    coarse.this.disown()
    fast.own_fields = True  # the index owns the centres
    transform = faiss.LinearTransform(projected.axes.shape[1], dimension, False)
    faiss.copy_array_to_vector(product(turn, projected.axes[:dimension]).ravel(), transform.A)
    transform.is_trained = True
    index = faiss.IndexPreTransform(transform, fast)
    index.is_trained, index.ntotal = True, rows
    return index


def _train_cells(
    projected: Projected, dimension: int, turn: npt.NDArray[np.float32], cells: int
) -> npt.NDArray[np.float32]:
    if cells == 1:
        return np.zeros((1, dimension), np.float32)
    sample = projected.turned(projected.order[: cells * _POINTS_PER_CELL], dimension, turn)
    parameters = faiss.ClusteringParameters()
    parameters.spherical = True
    parameters.niter = _CELL_ITERATIONS
    parameters.seed = projected.seed + 1
    parameters.min_points_per_centroid, parameters.max_points_per_centroid = 1, _POINTS_PER_CELL
    clustering = faiss.Clustering(dimension, cells, parameters)
    with one_thread():
        clustering.train(sample, faiss.IndexFlatIP(dimension))
    return np.asarray(faiss.vector_to_array(clustering.centroids).reshape(cells, dimension))


def search_codes(index: Any, queries: npt.NDArray[np.float32], width: int, probed: int) -> npt.NDArray[np.int64]:
    """Returns rows, int64, (queries, width), in the order of their codes' scores; -1 where there are fewer."""
    cells = faiss.IVFSearchParameters(nprobe=probed)  # type: ignore[call-arg]
    parameters = faiss.SearchParametersPreTransform(index_params=cells)  # type: ignore[call-arg]
    _, rows = index.search(queries, width, params=parameters)
    return np.asarray(rows)


def write_codes(index: Any, write: Callable[[bytes], Any]) -> None:
    """Writes the stock FAISS file in pieces."""
    writer = faiss.PyCallbackIOWriter(write)  # type: ignore[attr-defined]
    faiss.write_index(index, writer)


@contextlib.contextmanager
def open_codes(store: Store, name: str, dimension: int, rows: int) -> Iterator[Any]:
    """Opens a stored codes file: mapped from a local disk, otherwise read into memory.

    Args:
        store: The catalog.
        name: Name of the file.
        dimension: Dimension of the coded vectors.
        rows: Number of rows in the vector file.

    Raises:
        CatalogError: When the file is not one that `write_codes` writes, with `rows` rows.
        RuntimeError: When FAISS cannot read it.
    """
    place = f"{store.url}/{name}"
    if store.is_local:
        path = store.local_path(name)
        check_codes(mapped(path), place, dimension, rows)
        yield faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        return
    with store.open_read(name) as file:
        data = file.read()
    check_codes(data, place, dimension, rows)
    yield faiss.read_index(faiss.PyCallbackIOReader(io.BytesIO(data).read))  # type: ignore[attr-defined]
