"""The index and the assets table of one kind: search by inner product, ties in the order of asset ids."""

import bisect
import contextlib
import functools
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...configs.errors import ArgumentError, CatalogError
from ..storage.forks import ForkedLock
from ..vectors.assets_file import map_assets
from ..versions.manifest import IndexEntry, IndexFile, Manifest, OperatingPoint
from .stored_header import check_codes, check_vectors_header, mapped
from .tune import probed_cells
from .wrong_where import wrong_where

_WIDEN = 8  # a scan costs far more than a longer result list: few wide steps are faster than many doublings
_FOUND_AT_ONCE = 4_000_000  # scores and rows, 12 bytes each
_FULL_K = 100
_LONGER_FACTOR = 10.0
_LEAST_FACTOR = 3.0
"""k_factor was measured at recall_k. A longer list uses at least `_LONGER_FACTOR`, decreasing beyond `_FULL_K`."""
_SHARE_GROWTH = 0.7
"""The best thousand rows are in more cells than the best ten: the share of cells grows with k to this power."""
_ROWS_PROBED_FOR_EACH = 40
"""A search scans at least this many rows per result."""
_BLOCK_ROWS = 1024
_FEW_QUERIES = 4
_MASKS_KEPT = 16
_LOOKS_BEFORE_ORDER = 100
"""Sorting the ids takes as long as about a hundred scans of them."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """One vector file and its codes, if any; open and memory-mapped."""

    vectors: Any
    codes: Any
    refined: Any
    cells: int
    first_row: int

    @property
    def rows(self) -> int:
        return int(self.vectors.ntotal)


@dataclass(frozen=True, kw_only=True)
class _Matching:
    """The rows of a kind that match a condition."""

    rows: npt.NDArray[np.int64]
    bits: npt.NDArray[np.uint8]


class IndexPaths(NamedTuple):
    """One file of an index on the local disk."""

    vectors: Path
    codes: Path | None
    rows: int | None
    """The number of rows in the manifest."""

    @classmethod
    def of(cls, file: IndexFile, manifest: Manifest, paths: Mapping[str, Path]) -> Self:
        """Looks up the local paths of an index file in `paths`."""
        codes = None if file.codes is None else paths[file.codes]
        return cls(paths[file.vectors], codes, manifest.file(file.vectors).rows)


class AssetCells(NamedTuple):
    """The cells of an assets table row that a hit shows."""

    asset_id: str
    uri: str | None
    text: str | None
    metadata: dict[str, Any]


class _Mask(NamedTuple):
    """A condition and its matching rows."""

    where: pc.Expression
    matching: _Matching


class KindIndex:
    """A memory-mapped index and the assets of its rows. Thread-safe."""

    def __init__(
        self,
        manifest: Manifest,
        entry: IndexEntry,
        parts: Sequence[IndexPaths],
        assets_path: Path,
        *,
        first_row: int = 0,
    ) -> None:
        """Opens and maps the files and checks them against the manifest, because a search cannot detect a mismatch.

        Args:
            manifest: The manifest of the version.
            entry: The manifest's entry of the kind.
            parts: The index files and their codes. If they are not all files of the kind, only their rows are searched.
            assets_path: The table of all assets of the kind.
            first_row: The first row of the first file.

        Raises:
            CatalogError: When a file is damaged or has another format, metric, dimension, number of rows or columns.
        """
        self.entry = entry
        self._chosen_point = operating_point(entry, None)
        self._files: list[_File] = []
        first = first_row
        for part in parts:
            opened = _open(part, manifest.dimension, first)
            self._files.append(opened)
            first += opened.rows
        self.assets = map_assets(assets_path, manifest.metadata_types, entry.rows)
        self._rows = range(first_row, first)
        is_whole = len(parts) == len(entry.parts)
        if len(self.assets) != entry.rows or (first != entry.rows if is_whole else first > entry.rows):
            raise CatalogError(
                f"{parts[0].vectors if parts else 'the index'} has {first} rows, {assets_path} has "
                f"{len(self.assets)} and the manifest has {entry.rows}. The counts must be equal."
            )
        # Ten hits are forty cells. Looking each up in the table, or its column in a batch, takes a third of the search.
        batches = self.assets.to_batches()
        self._columns = [dict(zip(batch.schema.names, batch.columns, strict=True)) for batch in batches]
        self._metadata = [_fields_of(columns.get("metadata")) for columns in self._columns]
        self._first_rows = [0, *itertools.accumulate(map(len, batches))]
        self._looks = itertools.count()
        self._rows_by_id: npt.NDArray[np.uint32] | None = None
        self._process = os.getpid()
        self._masks: OrderedDict[str, _Mask] = OrderedDict()
        self._lock = ForkedLock()

    def point(self, recall: float | None) -> OperatingPoint:
        """`operating_point` of this index."""
        return self._chosen_point if recall is None else operating_point(self.entry, recall)

    def search(
        self,
        vectors: npt.NDArray[np.float32],
        k: int,
        where: pc.Expression | None,
        point: OperatingPoint | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Returns scores (float32) and rows (int64), both (queries, k), best first; fewer columns if fewer rows match.

        Scores are always inner products with the stored fp16 vectors. Rows with equal scores are in the order of their
        asset ids, and the list is cut at k in that order: copies of one image are common, and the order in which
        FAISS finds them depends on row positions, that is, on the history of the version.
        """
        point = point or self.point(None)
        matching = None if where is None else self._matching(where)
        available = len(self._rows)
        if matching is not None:
            begin, end = np.searchsorted(matching.rows, (self._rows.start, self._rows.stop))
            available = int(end - begin)
        k = min(k, available)
        scores, rows = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
        pending, width = np.arange(len(vectors) if available else 0), min(k + 1, available)
        with _threads_for(len(vectors), is_forked=os.getpid() != self._process):
            while len(pending):
                has_more_ties = np.zeros(len(pending), bool)
                step = max(_FOUND_AT_ONCE // width, 1)
                for first in range(0, len(pending), step):
                    part = pending[first : first + step]
                    found_scores, found_rows = self._best(vectors[part], width, matching, point)
                    if width < available:
                        ties = (found_scores[:, -1] == found_scores[:, k - 1]) & (found_rows[:, -1] >= 0)
                        has_more_ties[first : first + step] = ties
                    self._order_ties(found_scores, found_rows, k)
                    scores[part], rows[part] = found_scores[:, :k], found_rows[:, :k]
                pending, width = pending[has_more_ties], min(width * _WIDEN, available)
        return scores, rows

    def join(
        self, found: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Merges the results of `search` over several parts into the result of one search over all their rows."""
        scores, rows = _joined(found)
        self._order_ties(scores, rows, k)
        return scores[:, :k], rows[:, :k]

    def _best(
        self, vectors: npt.NDArray[np.float32], width: int, matching: _Matching | None, point: OperatingPoint
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The best rows of all files, (queries, width); -1 where an index found fewer."""
        found = [self._ask(file, vectors, width, matching, point) for file in self._files]
        if len(found) == 1:
            return found[0]
        scores, rows = _joined(found)
        return scores[:, :width], rows[:, :width]

    def _ask(
        self,
        file: _File,
        vectors: npt.NDArray[np.float32],
        width: int,
        matching: _Matching | None,
        point: OperatingPoint,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        wide = min(width, file.rows)
        share, factor, chosen = point.cells_share, point.k_factor, None
        if matching is not None:
            begin, end = np.searchsorted(matching.rows, (file.first_row, file.first_row + file.rows))
            chosen = matching.rows[begin:end]
            wide = min(wide, len(chosen))
        if not wide:
            shape = (len(vectors), 0)
            return np.empty(shape, np.float32), np.empty(shape, np.int64)
        if share is None or factor is None or file.codes is None:
            scores, rows = _scan(file, vectors, wide, chosen)
        else:
            if wide > 2 * self.entry.recall_k:
                factor = max(factor, _LONGER_FACTOR)
            if wide > _FULL_K + 1:
                factor = max(_LEAST_FACTOR, factor * (_FULL_K / wide) ** 0.5)
            reached = len(chosen) if chosen is not None else file.rows
            if wide * factor >= reached:  # all would be candidates
                scores, rows = _scan(file, vectors, wide, chosen)
            else:
                # Scan as many matching rows as a search without a condition scans of all rows.
                share = min(1.0, rows_probed(share, wide, self.entry.recall_k, file.rows) / reached)
                scores, rows = _refine(file, vectors, wide, probed_cells(share, file.cells), factor, matching)
                if (rows < 0).any():
                    # The scanned cells hold too few matching rows: scan all cells.
                    scores, rows = _refine(file, vectors, wide, file.cells, factor, matching)
        return scores, np.where(rows >= 0, rows + file.first_row, -1) if file.first_row else rows

    def asset(self, row: int) -> AssetCells:
        """Returns the cells of a row that a hit shows. Raises CatalogError when a text is not valid UTF-8."""
        number = bisect.bisect_right(self._first_rows, row) - 1
        columns, place = self._columns[number], row - self._first_rows[number]
        fields = self._metadata[number]
        has_metadata = bool(fields) and columns["metadata"][place].is_valid
        try:
            asset_id, uri, text = (columns[name][place].as_py() for name in ("asset_id", "uri", "text"))
            metadata = {name: field[place].as_py() for name, field in fields} if has_metadata else {}
        except ValueError as error:
            raise self._unreadable(row, error) from error
        return AssetCells(asset_id, uri, text, metadata)

    def columns(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        """Returns some columns of a row."""
        number = bisect.bisect_right(self._first_rows, row) - 1
        columns, place = self._columns[number], row - self._first_rows[number]
        try:
            return {name: columns[name][place].as_py() for name in names}
        except ValueError as error:
            raise self._unreadable(row, error) from error

    def row_of(self, asset_id: str) -> int | None:
        """Returns the row of an asset id, or None when no asset has it."""
        try:
            wanted = pa.scalar(asset_id, pa.string())
        except (UnicodeEncodeError, pa.ArrowException):  # a lone surrogate or not a string: no asset has such an id
            return None
        name = wanted.as_py()
        if name is None:
            return None
        ids = self.assets.column("asset_id")
        if next(self._looks) == _LOOKS_BEFORE_ORDER:
            self._rows_by_id = pc.sort_indices(ids).to_numpy().astype(np.uint32)
        by_id = self._rows_by_id
        if by_id is None:
            row = pc.index(ids, wanted).as_py()
            return None if row < 0 else int(row)
        # Arrow orders by the bytes of UTF-8, which is Python's order of code points.
        place = bisect.bisect_left(by_id, name, key=lambda row: self._id_of(int(row)))
        found = int(by_id[place]) if place < len(by_id) else -1
        return found if found >= 0 and self._id_of(found) == name else None

    def _id_of(self, row: int) -> str:
        return str(self.columns(row, ("asset_id",))["asset_id"])

    def _unreadable(self, row: int, error: Exception) -> CatalogError:
        """For text that is not UTF-8 or a date out of range, which opening does not check."""
        return CatalogError(
            f"The table of {self.entry.kind} assets is damaged: row {row} cannot be read ({error}). "
            "Run `epithre-beam versions verify CATALOG` for details."
        )

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Returns the stored vectors of some rows: float32, (len(rows), dimension)."""
        found = np.empty((len(rows), self._files[0].vectors.d), np.float32)
        with _threads_for(len(rows), is_forked=os.getpid() != self._process):
            for file in self._files:
                here = np.flatnonzero((rows >= file.first_row) & (rows < file.first_row + file.rows))
                if len(here):
                    found[here] = _decoded(file.vectors, rows[here] - file.first_row)
        return found

    def _order_ties(self, scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], k: int) -> None:
        """Sorts rows with equal scores by asset id, in place, within the first k results."""
        equal = scores[:, 1:] == scores[:, :-1]
        if not equal.any():
            return
        equal &= rows[:, 1:] >= 0
        for q in np.flatnonzero(equal[:, :k].any(axis=1)):
            edges = np.flatnonzero(np.diff(equal[q], prepend=False, append=False)).reshape(-1, 2)
            for first, last in edges[edges[:, 0] < k]:
                run = slice(first, last + 1)
                rows[q, run] = sorted(rows[q, run].tolist(), key=self._id_of)

    def _matching(self, where: pc.Expression) -> _Matching:
        """Returns the matching rows; the results of the last conditions are cached."""
        if not isinstance(where, pc.Expression):
            raise ArgumentError(
                f"where must be a pyarrow expression, got {type(where).__name__}. Use `parse_where(condition, schema)`."
            )
        key = str(where)
        with self._lock:
            kept = self._masks.get(key)
            if kept is not None and kept.where.equals(where):  # str() abbreviates long lists
                self._masks.move_to_end(key)
                return kept.matching
        numbered = self.assets.append_column("__row", pa.array(np.arange(len(self.assets), dtype=np.int64)))
        try:
            rows = np.asarray(numbered.filter(where).column("__row").to_numpy(), np.int64)
        except (pa.ArrowException, TypeError) as error:
            raise ArgumentError(wrong_where(error, where, self.assets.schema)) from None
        is_in = np.zeros(len(self.assets), bool)
        is_in[rows] = True
        matching = _Matching(rows=rows, bits=np.packbits(is_in, bitorder="little"))
        with self._lock:
            self._masks[key] = _Mask(where, matching)
            while len(self._masks) > _MASKS_KEPT:
                self._masks.popitem(last=False)
        return matching


def _fields_of(metadata: "pa.StructArray | None") -> list[tuple[str, pa.Array]]:
    """The metadata columns with their names."""
    if metadata is None:
        return []
    return [(field.name, column) for field, column in zip(metadata.type, metadata.flatten(), strict=True)]


def _joined(
    found: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Merges the result lists of several parts, best first."""
    scores = np.concatenate([scores for scores, _ in found], axis=1)
    rows = np.concatenate([rows for _, rows in found], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)


def operating_point(entry: IndexEntry, recall: float | None) -> OperatingPoint:
    """Returns the manifest's operating point or, given a `recall`, the cheapest one that reached it.

    Raises:
        ArgumentError: When it is no number from 0 to 1, or no operating point reached it.
    """
    if recall is None:
        return OperatingPoint(recall=entry.recall, cost_us=0.0, **entry.search_parameters)
    if isinstance(recall, bool) or not isinstance(recall, (int, float, np.number)) or not 0 <= recall <= 1:
        raise ArgumentError(f"recall must be from 0 to 1, got {recall!r}.")
    points = entry.operating_points or (OperatingPoint(recall=entry.recall, cost_us=0.0),)
    for point in points:
        if min(point.recall.values(), default=1.0) >= recall:
            return point
    best = max(min(point.recall.values(), default=1.0) for point in points)
    raise ArgumentError(
        f"recall must be at most {best:g} for kind {entry.kind!r}, got {recall!r}: no setting reached more."
    )


def rows_probed(share: float, width: int, recall_k: int, rows: int) -> float:
    """The rows of a file to scan for `width` results, given the `share` measured for `recall_k` results."""
    grown: float = max(1.0, (width - 1) / recall_k) ** _SHARE_GROWTH
    return max(share * grown * rows, _ROWS_PROBED_FOR_EACH * width)


def _open(part: IndexPaths, dimension: int, first_row: int) -> _File:
    with part.vectors.open("rb") as file:
        rows = check_vectors_header(file, str(part.vectors), dimension, part.rows)
    vectors = _read(part.vectors)
    codes = refined = None
    cells = 1
    if part.codes is not None:
        cells = check_codes(mapped(part.codes), str(part.codes), dimension, rows).cells
        codes = _read(part.codes)
        refined = faiss.IndexRefine(codes, vectors)
    return _File(vectors=vectors, codes=codes, refined=refined, cells=cells, first_row=first_row)


def _read(path: Path) -> Any:
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, MemoryError) as error:
        raise CatalogError(f"{path}: FAISS cannot open the index: {error}") from error


def _refine(
    file: _File, vectors: npt.NDArray[np.float32], k: int, probed: int, factor: float, matching: _Matching | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Selects candidates by their codes and sorts them by their vectors."""
    if matching is None:
        parameters = _asked_of_all(probed, factor)
    else:
        bits = _bits_of(file, matching)
        parameters = _asked(probed, factor, sel=faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)))
    try:
        scores, rows = file.refined.search(vectors, k, params=parameters)
    except RuntimeError as error:  # the codes refer to rows that do not exist
        raise CatalogError(f"An index of codes is damaged ({error}). Open the catalog with verify=True.") from error
    return scores, rows


def _asked(probed: int, factor: float, **more: Any) -> Any:
    """Search parameters; FAISS only reads them, so they can be shared."""
    cells = faiss.IVFSearchParameters(nprobe=probed, **more)  # type: ignore[call-arg]
    inner = faiss.SearchParametersPreTransform(index_params=cells)  # type: ignore[call-arg]
    return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)  # type: ignore[call-arg]


_asked_of_all = functools.lru_cache(maxsize=64)(_asked)  # creating them takes a tenth of a search


def _bits_of(file: _File, matching: _Matching) -> npt.NDArray[np.uint8]:
    """One bit per row of a file."""
    begin, shift = divmod(file.first_row, 8)
    bits = matching.bits[begin : (file.first_row + file.rows + 7) // 8]
    if not shift:
        return bits
    flags = np.unpackbits(bits, bitorder="little")[shift:]
    return np.packbits(flags, bitorder="little")


def _scan(
    file: _File, vectors: npt.NDArray[np.float32], k: int, chosen: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Scans all rows, or the chosen ones, by their vectors; rows are relative to the file's first row."""
    if chosen is None:
        scores, rows = file.vectors.search(vectors, k)
        return scores, rows
    local = np.ascontiguousarray(chosen - file.first_row)
    if len(local) > file.rows // 4:
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorBatch(local))  # type: ignore[call-arg]
        scores, rows = file.vectors.search(vectors, k, params=parameters)
        return scores, rows
    best_scores = np.empty((len(vectors), 0), np.float32)
    best_rows = np.empty((len(vectors), 0), np.int64)
    for first in range(0, len(local), _BLOCK_ROWS):
        part = local[first : first + _BLOCK_ROWS]
        found, places = faiss.knn(
            vectors, _decoded(file.vectors, part), min(k, len(part)), metric=faiss.METRIC_INNER_PRODUCT
        )
        best_scores = np.concatenate([best_scores, found], axis=1)
        # FAISS returns -1 for a vector that is NaN.
        best_rows = np.concatenate([best_rows, np.where(places >= 0, part[places], -1)], axis=1)
        best = np.argsort(-best_scores, axis=1, kind="stable")[:, :k]
        best_scores, best_rows = np.take_along_axis(best_scores, best, 1), np.take_along_axis(best_rows, best, 1)
    return best_scores, best_rows


def _decoded(index: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = index.reconstruct_batch(rows)
    return vectors


@contextlib.contextmanager
def _threads_for(queries: int, *, is_forked: bool) -> Iterator[None]:
    """Sets one OpenMP thread for few queries, for the calling thread only: waking a second takes longer than the work.

    A forked process has no OpenMP threads and would wait for them forever.
    """
    before = faiss.omp_get_max_threads()
    if (queries > _FEW_QUERIES and not is_forked) or before == 1:
        yield
        return
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
