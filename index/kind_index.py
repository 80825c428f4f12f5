"""One kind's index and its table of assets: rows are found by inner product, equal scores by asset id."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .manifest import CatalogError, IndexEntry

_WIDEN = 8  # a scan costs far more than a longer list of its best: few wide ones beat many that double
_FOUND_AT_ONCE = 4_000_000  # scores and rows, 12 bytes each


class KindIndex:
    """An index and the assets of its rows, both memory-mapped. Any thread may search it."""

    def __init__(self, entry: IndexEntry, index_path: Path, assets_path: Path) -> None:
        self.entry = entry
        try:
            self.index: Any = faiss.read_index(str(index_path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise CatalogError(f"{index_path} cannot be opened as an index: {error}") from error
        try:
            self._source = pa.memory_map(str(assets_path))
            self.assets = pa.ipc.open_file(self._source).read_all()
        except (OSError, pa.ArrowException) as error:
            raise CatalogError(f"{assets_path} cannot be opened as a table of assets: {error}") from error
        if self.index.ntotal != len(self.assets) or self.index.ntotal != entry.rows:
            raise CatalogError(
                f"{index_path} has {self.index.ntotal} rows, {assets_path} {len(self.assets)} and the manifest "
                f"{entry.rows}; they must agree."
            )

    def search(
        self, vectors: npt.NDArray[np.float32], k: int, where: pc.Expression | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Scores float32 and rows int64, both (queries, k), best first; fewer columns where fewer rows match.

        Equal scores stand in the order of their asset ids, and are cut at k in that order. Copies of one picture are
        common, and which of them FAISS finds first is a matter of rows, which say nothing but how the version came
        about.
        """
        parameters: Any = None
        available = len(self.assets)
        if where is not None:
            matching = self._matching(where)
            available = len(matching)
            selector = faiss.IDSelectorBatch(matching)
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore[call-arg]
        k = min(k, available)
        scores, rows = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
        pending, width = np.arange(len(vectors) if available else 0), min(k + 1, available)
        while len(pending):
            goes_on = np.zeros(len(pending), bool)
            step = max(_FOUND_AT_ONCE // width, 1)
            for first in range(0, len(pending), step):
                part = pending[first : first + step]
                found_scores, found_rows = self.index.search(vectors[part], width, params=parameters)
                if width < available:
                    ties = (found_scores[:, -1] == found_scores[:, k - 1]) & (found_rows[:, -1] >= 0)
                    goes_on[first : first + step] = ties
                self._order_ties(found_scores, found_rows, k)
                scores[part], rows[part] = found_scores[:, :k], found_rows[:, :k]
            pending, width = pending[goes_on], min(width * _WIDEN, available)
        return scores, rows

    def _order_ties(self, scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], k: int) -> None:
        """Puts rows of equal scores in the order of their asset ids, in place, as far as the first k go."""
        ids = self.assets.column("asset_id")
        equal = (scores[:, 1:] == scores[:, :-1]) & (rows[:, 1:] >= 0)
        for q in np.flatnonzero(equal[:, :k].any(axis=1)):
            edges = np.flatnonzero(np.diff(equal[q], prepend=False, append=False)).reshape(-1, 2)
            for first, last in edges[edges[:, 0] < k]:
                run = slice(first, last + 1)
                rows[q, run] = sorted(rows[q, run].tolist(), key=lambda row: ids[row].as_py())

    def _matching(self, where: pc.Expression) -> npt.NDArray[np.int64]:
        numbered = self.assets.append_column("__row", pa.array(np.arange(len(self.assets), dtype=np.int64)))
        try:
            return np.asarray(numbered.filter(where).column("__row").to_numpy(), np.int64)
        except (pa.ArrowException, TypeError) as error:
            columns = self.assets.schema.names
            raise ValueError(f"`where` must be a condition on the columns {columns}: {error}") from None
