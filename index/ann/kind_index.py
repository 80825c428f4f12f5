"""One kind's index and its table of assets: rows are found by inner product, equal scores by asset id."""

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

_WIDEN = 8  # a scan costs far more than a longer list of its best: few wide ones beat many that double
_FOUND_AT_ONCE = 4_000_000  # scores and rows, 12 bytes each
_FULL_K = 100
_LONGER_FACTOR = 10.0
_LEAST_FACTOR = 3.0
"""k_factor was measured at recall_k. A longer list needs it, or `_LONGER_FACTOR`; beyond `_FULL_K` ever less of it."""
_SHARE_GROWTH = 0.7
"""The best thousand do not lie in the cells of the best ten: the share of the cells grows with k to this power."""
_ROWS_PROBED_FOR_EACH = 40
"""And so many times k rows are scanned at least."""
_BLOCK_ROWS = 1024
_FEW_QUERIES = 4
_MASKS_KEPT = 16
_LOOKS_BEFORE_ORDER = 100
"""To put ids in order takes as long as to go through them some hundred times."""


@dataclass(frozen=True, kw_only=True)
class _File:
    """One file of vectors and, if it has any, their codes; open and mapped."""

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
    """The rows that a condition leaves, among those of a kind."""

    rows: npt.NDArray[np.int64]
    bits: npt.NDArray[np.uint8]


class IndexPaths(NamedTuple):
    """One file of an index on the local disk."""

    vectors: Path
    codes: Path | None
    rows: int | None
    """As many as the manifest says."""

    @classmethod
    def of(cls, file: IndexFile, manifest: Manifest, paths: Mapping[str, Path]) -> Self:
        """Where a file of the manifest is, by the paths of all of them."""
        codes = None if file.codes is None else paths[file.codes]
        return cls(paths[file.vectors], codes, manifest.file(file.vectors).rows)


class AssetCells(NamedTuple):
    """What a table of assets says of a row, in the columns that a hit shows."""

    asset_id: str
    uri: str | None
    text: str | None
    metadata: dict[str, Any]


class _Mask(NamedTuple):
    """A condition, and the rows that match it."""

    where: pc.Expression
    matching: _Matching


class KindIndex:
    """An index and the assets of its rows, memory-mapped. Any thread may search it."""

    def __init__(
        self,
        manifest: Manifest,
        entry: IndexEntry,
        parts: Sequence[IndexPaths],
        assets_path: Path,
        *,
        first_row: int = 0,
    ) -> None:
        """Opens and maps the files, which must be what the manifest says: no search could tell.

        Args:
            manifest: Of the version.
            entry: Of the kind, in it.
            parts: The index files and their codes; where they are not all of the kind's, only their rows are searched.
            assets_path: The table of all assets of the kind.
            first_row: The row that the first of the files begins with.

        Raises:
            CatalogError: When a file is damaged, of another format, metric, dimension or number of rows, or has other
                columns.
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
                f"{parts[0].vectors if parts else 'the index'} has {first} rows, {assets_path} {len(self.assets)} "
                f"and the manifest {entry.rows}; they must agree."
            )
        # Ten hits are forty cells: to ask the table for each, or a batch for its column, takes a third of the search.
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
        """Scores float32 and rows int64, both (queries, k), best first; fewer columns where fewer rows match.

        Scores are inner products with the stored vectors as fp16, however the rows were found. Equal scores stand in
        the order of their asset ids, and are cut at k in that order. Copies of one picture are common, and which of
        them FAISS finds first is a matter of rows, which say nothing but how the version came about.
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
                goes_on = np.zeros(len(pending), bool)
                step = max(_FOUND_AT_ONCE // width, 1)
                for first in range(0, len(pending), step):
                    part = pending[first : first + step]
                    found_scores, found_rows = self._best(vectors[part], width, matching, point)
                    if width < available:
                        ties = (found_scores[:, -1] == found_scores[:, k - 1]) & (found_rows[:, -1] >= 0)
                        goes_on[first : first + step] = ties
                    self._order_ties(found_scores, found_rows, k)
                    scores[part], rows[part] = found_scores[:, :k], found_rows[:, :k]
                pending, width = pending[goes_on], min(width * _WIDEN, available)
        return scores, rows

    def join(
        self, found: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]], k: int
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """What `search` would give over all the rows that were searched apart, of what it gave in each part."""
        scores, rows = _joined(found)
        self._order_ties(scores, rows, k)
        return scores[:, :k], rows[:, :k]

    def _best(
        self, vectors: npt.NDArray[np.float32], width: int, matching: _Matching | None, point: OperatingPoint
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The best of all files, (queries, width); -1 where an index found fewer."""
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
                # Of the rows that match, as many shall be scanned as of all rows without a condition.
                share = min(1.0, rows_probed(share, wide, self.entry.recall_k, file.rows) / reached)
                scores, rows = _refine(file, vectors, wide, probed_cells(share, file.cells), factor, matching)
                if (rows < 0).any():
                    # The cells that were scanned hold fewer rows, or fewer that match: now all of them.
                    scores, rows = _refine(file, vectors, wide, file.cells, factor, matching)
        return scores, np.where(rows >= 0, rows + file.first_row, -1) if file.first_row else rows

    def asset(self, row: int) -> AssetCells:
        """What is shown of a row. Raises CatalogError when a text in it is none."""
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
        """Some columns of a row."""
        number = bisect.bisect_right(self._first_rows, row) - 1
        columns, place = self._columns[number], row - self._first_rows[number]
        try:
            return {name: columns[name][place].as_py() for name in names}
        except ValueError as error:
            raise self._unreadable(row, error) from error

    def row_of(self, asset_id: str) -> int | None:
        """The row of an asset id; None when there is none."""
        try:
            wanted = pa.scalar(asset_id, pa.string())
        except (UnicodeEncodeError, pa.ArrowException):  # half of a surrogate pair, or no text: no asset has that
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
        """Of a text that is not UTF-8, or a date beyond all calendars: opening does not look at each of them."""
        return CatalogError(
            f"The table of {self.entry.kind} assets is damaged, row {row} cannot be read ({error}): "
            "`epithre-beam versions verify` says more."
        )

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The vectors of some rows as they are stored, float32 (len(rows), dimension)."""
        found = np.empty((len(rows), self._files[0].vectors.d), np.float32)
        with _threads_for(len(rows), is_forked=os.getpid() != self._process):
            for file in self._files:
                here = np.flatnonzero((rows >= file.first_row) & (rows < file.first_row + file.rows))
                if len(here):
                    found[here] = _decoded(file.vectors, rows[here] - file.first_row)
        return found

    def _order_ties(self, scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], k: int) -> None:
        """Puts rows of equal scores in the order of their asset ids, in place, as far as the first k go."""
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
        """The rows that match; those of the last conditions are remembered."""
        key = str(where)
        with self._lock:
            kept = self._masks.get(key)
            if kept is not None and kept.where.equals(where):  # long lists are cut short in words
                self._masks.move_to_end(key)
                return kept.matching
        numbered = self.assets.append_column("__row", pa.array(np.arange(len(self.assets), dtype=np.int64)))
        try:
            rows = np.asarray(numbered.filter(where).column("__row").to_numpy(), np.int64)
        except (pa.ArrowException, TypeError) as error:
            columns = self.assets.schema.names
            what, *_ = str(error).splitlines()  # Arrow adds its whole schema
            raise ArgumentError(f"where must be a condition on the columns {columns}: {what[:200]}") from None
        is_in = np.zeros(len(self.assets), bool)
        is_in[rows] = True
        matching = _Matching(rows=rows, bits=np.packbits(is_in, bitorder="little"))
        with self._lock:
            self._masks[key] = _Mask(where, matching)
            while len(self._masks) > _MASKS_KEPT:
                self._masks.popitem(last=False)
        return matching


def _fields_of(metadata: "pa.StructArray | None") -> list[tuple[str, pa.Array]]:
    """The columns within the metadata, by their names."""
    if metadata is None:
        return []
    return [(field.name, column) for field, column in zip(metadata.type, metadata.flatten(), strict=True)]


def _joined(
    found: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Lists of several parts as one, best first."""
    scores = np.concatenate([scores for scores, _ in found], axis=1)
    rows = np.concatenate([rows for _, rows in found], axis=1)
    best = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)


def operating_point(entry: IndexEntry, recall: float | None) -> OperatingPoint:
    """How an index is asked: as the manifest chooses or, given a `recall`, by the cheapest way that reached it.

    Raises:
        ArgumentError: When none did.
    """
    if recall is None:
        return OperatingPoint(recall=entry.recall, cost_us=0.0, **entry.search_parameters)
    if isinstance(recall, bool) or not isinstance(recall, (int, float, np.number)) or not recall >= 0:
        raise ArgumentError(f"recall must be a number from 0, got {recall!r}.")
    points = entry.operating_points or (OperatingPoint(recall=entry.recall, cost_us=0.0),)
    for point in points:
        if min(point.recall.values(), default=1.0) >= recall:
            return point
    best = max(min(point.recall.values(), default=1.0) for point in points)
    raise ArgumentError(f"recall must be at most what the {entry.kind} index reached, {best:g}, got {recall!r}.")


def rows_probed(share: float, width: int, recall_k: int, rows: int) -> float:
    """How many rows of a file are scanned for a list of `width`, where `share` was measured for lists of `recall_k`."""
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
        raise CatalogError(f"{path} cannot be opened as an index: {error}") from error


def _refine(
    file: _File, vectors: npt.NDArray[np.float32], k: int, probed: int, factor: float, matching: _Matching | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Candidates by their codes, put in order by their vectors."""
    if matching is None:
        parameters = _asked_of_all(probed, factor)
    else:
        bits = _bits_of(file, matching)
        parameters = _asked(probed, factor, sel=faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits)))
    try:
        scores, rows = file.refined.search(vectors, k, params=parameters)
    except RuntimeError as error:  # rows that there are none of
        raise CatalogError(f"An index of codes is damaged, open the catalog with verify=True: {error}") from error
    return scores, rows


def _asked(probed: int, factor: float, **more: Any) -> Any:
    """Parameters of a search; FAISS only reads them."""
    cells = faiss.IVFSearchParameters(nprobe=probed, **more)  # type: ignore[call-arg]
    inner = faiss.SearchParametersPreTransform(index_params=cells)  # type: ignore[call-arg]
    return faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)  # type: ignore[call-arg]


_asked_of_all = functools.lru_cache(maxsize=64)(_asked)  # to make them takes a tenth of a search


def _bits_of(file: _File, matching: _Matching) -> npt.NDArray[np.uint8]:
    """A bit for each row of a file."""
    begin, shift = divmod(file.first_row, 8)
    bits = matching.bits[begin : (file.first_row + file.rows + 7) // 8]
    if not shift:
        return bits
    flags = np.unpackbits(bits, bitorder="little")[shift:]
    return np.packbits(flags, bitorder="little")


def _scan(
    file: _File, vectors: npt.NDArray[np.float32], k: int, chosen: npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """All rows, or the chosen ones, by their vectors; rows count from the file's first."""
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
        # -1 where there is no number: a vector that is NaN is near to nothing.
        best_rows = np.concatenate([best_rows, np.where(places >= 0, part[places], -1)], axis=1)
        best = np.argsort(-best_scores, axis=1, kind="stable")[:, :k]
        best_scores, best_rows = np.take_along_axis(best_scores, best, 1), np.take_along_axis(best_rows, best, 1)
    return best_scores, best_rows


def _decoded(index: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    vectors: npt.NDArray[np.float32] = index.reconstruct_batch(rows)
    return vectors


@contextlib.contextmanager
def _threads_for(queries: int, *, is_forked: bool) -> Iterator[None]:
    """One thread for few queries, set for the calling thread alone: waking a second takes longer than the work.

    A process that was forked since has none of OpenMP's threads, and would wait for them for ever.
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
