"""Exact search over the stored vectors of a version: the reference for an index."""

import shlex
from collections.abc import Iterator

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...configs.errors import CatalogError, StoreError
from ..storage.store import Store
from ..vectors.units import open_vectors, vectors_of
from ..versions.layout import version_folder
from ..versions.manifest import Manifest
from .truth import TIE_CANDIDATES

_EQUAL = 5e-7
"""The scores of equal vectors differ by up to this, depending on their position in a matrix product."""


def stored_vectors(store: Store, manifest: Manifest, kind: str) -> Iterator[npt.NDArray[np.float32]]:
    """Reads the vectors of a kind as the API returned them, in the order of the rows, one row group at a time.

    Yields:
        float32, (rows of the group, dimension).

    Raises:
        CatalogError: When a file is missing or damaged.
    """
    prefix = version_folder(manifest.version)
    for name in sorted(entry.name for entry in manifest.files if entry.name.startswith(f"vectors/{kind}-")):
        try:
            with store.open_read(f"{prefix}/{name}") as handle:
                file = open_vectors(handle, manifest, manifest.file(name))
                for group in range(file.num_row_groups):
                    yield vectors_of(file.read_row_group(group, columns=["embedding"], use_threads=False))
        except (pa.ArrowException, OSError, StoreError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CatalogError(f"{store.url}/{prefix}/{name}: the vectors cannot be read: {reason}.") from error


def nearest_stored(
    store: Store, manifest: Manifest, kind: str, asset_ids: pa.ChunkedArray, queries: npt.NDArray[np.float32], k: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Finds the best rows of a kind by all its stored vectors; memory is one row group and the answers.

    Args:
        store: The store of the catalog.
        manifest: The manifest of the version.
        kind: The kind to search.
        asset_ids: The ids of its rows. Equal scores are in their order, as in `Catalog.search`.
        queries: float32, (queries, dimension).
        k: Number of rows per query.

    Returns:
        Scores float32 and rows int64, both (queries, k) or narrower when there are fewer rows, best first.

    Raises:
        CatalogError: When a file is missing or damaged, or the number of rows differs from the table of assets.
    """
    keep = k + TIE_CANDIDATES
    scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    first = 0
    for vectors in stored_vectors(store, manifest, kind):
        found, places = faiss.knn(queries, vectors, min(keep, len(vectors)), metric=faiss.METRIC_INNER_PRODUCT)
        scores = np.concatenate([scores, found], axis=1)
        rows = np.concatenate([rows, places + first], axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
        scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        first += len(vectors)
    if first != len(asset_ids):
        raise CatalogError(
            f"{store.url} version {manifest.version} has {len(asset_ids)} {kind} assets but {first} vectors. "
            f"Run `epithre-beam versions verify {shlex.quote(store.url)} {manifest.version}` to find the damaged file."
        )
    _order_equal(scores, rows, asset_ids, k)
    return scores[:, :k], rows[:, :k]


def _order_equal(
    scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], asset_ids: pa.ChunkedArray, k: int
) -> None:
    """Sorts rows with equal scores by asset id, in place, within the first k results."""
    equal = scores[:, :-1] - scores[:, 1:] <= _EQUAL
    for q in np.flatnonzero(equal[:, :k].any(axis=1)):
        edges = np.flatnonzero(np.diff(equal[q], prepend=False, append=False)).reshape(-1, 2)
        for begin, end in edges[edges[:, 0] < k]:
            run = slice(begin, end + 1)
            rows[q, run] = sorted(rows[q, run].tolist(), key=lambda row: str(asset_ids[row].as_py()))
