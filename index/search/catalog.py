"""A version of a catalog, open for searching: numpy in, hits out, nothing of Beam."""

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...configs import AssetKind
from ...configs.errors import ArgumentError
from ..ann.kind_index import KindIndex
from ..storage.store import Store
from ..versions.manifest import Manifest
from ..versions.readers import VersionHold
from .hits import Asset, Hit
from .merge import Merge, check_merge, merge_kinds

MAX_K = 10_000


class OpenVersion:
    """A version's mapped files. Whoever has it can go on searching, whatever is closed or swapped meanwhile.

    Its memory and its hold are let go of when nobody has it any more: the last search that began with it, perhaps.
    """

    def __init__(self, manifest: Manifest, indexes: Mapping[str, KindIndex], hold: VersionHold | None = None) -> None:
        self.manifest = manifest
        self.indexes = dict(indexes)
        self.is_held = hold is not None
        self._let_go = None if hold is None else weakref.finalize(self, hold.release)  # also when the process ends

    def let_go(self) -> None:
        """Ends the hold, if there is one. Again, it does nothing."""
        if self._let_go is not None:
            self._let_go()

    def chosen(self, kinds: Sequence[AssetKind] | AssetKind | None) -> dict[str, KindIndex]:
        """Raises ArgumentError for a kind that there is none of, and for no kind."""
        if kinds is None:
            self._check_open()
            return self.indexes
        named = list(kinds) if isinstance(kinds, Iterable) and not isinstance(kinds, str) else [kinds]
        chosen: dict[str, KindIndex] = {kind: self.one(kind, "kinds") for kind in named}
        if not chosen:
            raise ArgumentError(f"kinds must be some of {tuple(self.indexes)}, got {kinds!r}: leave it out for all.")
        return chosen

    def one(self, kind: AssetKind, argument: str = "kind") -> KindIndex:
        """Raises ArgumentError for a kind that there is none of."""
        self._check_open()
        if not isinstance(kind, str) or kind not in self.indexes:
            raise ArgumentError(f"{argument} must be among {tuple(self.indexes)}, got {kind!r}.")
        return self.indexes[kind]

    def _check_open(self) -> None:
        if not self.indexes:
            raise ArgumentError("This catalog is closed, or has no assets.")


class Catalog:
    """A version of a catalog, open for searching. Thread-safe; use `with`, or `close()` when done.

    A process that was forked off may go on with what its parent opened.
    """

    def __init__(self, store: Store, opened: OpenVersion) -> None:
        self._store = store
        # Every method reads it once: what a search began with, it ends with.
        self._opened = opened

    def __repr__(self) -> str:
        manifest = self.manifest
        name = type(self).__name__
        return f"{name}({self._store.url!r}, version={manifest.version!r}, assets={manifest.counts.per_kind})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the mapped files, and of the hold. A search after it raises ArgumentError; one under way ends."""
        opened, self._opened = self._opened, OpenVersion(self._opened.manifest, {})
        opened.let_go()

    @contextlib.contextmanager
    def pinned(self) -> Iterator["Catalog"]:
        """One version for several calls, also of a catalog that follows what is published."""
        yield self

    @property
    def manifest(self) -> Manifest:
        return self._now().manifest

    @property
    def url(self) -> str:
        """The path or URL of the catalog, with all its versions."""
        return self._store.url

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def dimension(self) -> int:
        return self.manifest.dimension

    @property
    def metadata_types(self) -> Mapping[str, str]:
        """The declared metadata columns and their types, as a job spells them; the same for all kinds."""
        return self.manifest.metadata_types

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._now().indexes)

    def __len__(self) -> int:
        return sum(len(index.assets) for index in self._now().indexes.values())

    def assets(self, kind: AssetKind) -> pa.Table:
        """The assets of a kind in the order of their rows: id, uri, text, metadata and so on, without vectors."""
        return self._now().one(kind).assets

    def find_asset(self, kind: AssetKind, asset_id: str) -> int | None:
        """The row of an asset; None when this version has no such asset.

        All ids are read, in milliseconds a million. At the hundredth time they are put in order, at 4 bytes a row, and
        from then on the answer takes microseconds.

        Raises:
            ArgumentError: When the catalog has no such kind.
        """
        return self._now().one(kind).row_of(asset_id)

    def asset(self, kind: AssetKind, row: int) -> Asset:
        """What the catalog says of the asset of a row.

        Raises:
            ArgumentError: When there is no such kind or row.
        """
        index = self._now().one(kind)
        (row,) = _check_rows([row], index).tolist()
        asset_id, uri, text, metadata = index.asset(row)
        return Asset(
            asset_id=asset_id,
            kind=kind,
            row=row,
            uri=uri,
            text=text,
            metadata=metadata,
            **index.columns(row, ("content_sha256", "media_type", "size_bytes", "width", "height")),
        )

    def vectors(self, kind: AssetKind, rows: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The stored vectors of some rows, float32 (len(rows), dimension), unit norm up to the rounding to fp16.

        Raises:
            ArgumentError: When there is no such kind or row.
        """
        index = self._now().one(kind)
        return index.vectors(_check_rows(rows, index))

    def search(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        *,
        kinds: Sequence[AssetKind] | AssetKind | None = None,
        where: pc.Expression | None = None,
        merge: Merge = "score",
        query_kind: AssetKind | None = None,
        recall: float | None = None,
    ) -> list[list[Hit]]:
        """Finds the assets with the greatest inner product.

        Args:
            vectors: Queries, float32-like, (n, dimension) or (dimension,), of unit norm if scores are to be cosines.
            k: Hits for each query, 1 to 10,000; fewer come back where fewer assets match.
            kinds: Which kinds to look in; absent: all the catalog has.
            where: A condition on the columns of `assets(kind)`, such as `pc.field("metadata", "lang") == "id"`.
            merge: How hits of several kinds are put in one order. `score`: by inner product as it is, which favours
                the query's own kind; `quota`: the kinds take turns; `standardised`: by the score in standard
                deviations above the mean of its direction, as measured when the catalog was built.
            query_kind: What the queries are; `standardised` needs it.
            recall: The least that the search shall have reached when the catalog was built, in every direction: the
                cheapest of the operating points in the manifest is used. Absent: `index.target_recall` of the job.

        Returns:
            A list of hits for each query, best first; equal scores by kind, then by asset id. Versions that hold the
            same assets so give the same hits (but for `row`), however they came about.

        Raises:
            ArgumentError: With the argument, the rule and the value.
        """
        opened = self._now()
        queries = _check_queries(vectors, opened.manifest.dimension)
        k = _check_k(k)
        indexes = dict(sorted(opened.chosen(kinds).items()))
        figures = check_merge(merge, {kind: index.entry for kind, index in indexes.items()}, query_kind)
        found = [index.search(queries, k, where, index.point(recall)) for index in indexes.values()]
        merged = merge_kinds(found, k, merge, [figures[kind] for kind in indexes])
        names = list(indexes)
        lists = zip(merged.scores.tolist(), merged.kinds.tolist(), merged.rows.tolist(), strict=True)
        return [
            [_hit(indexes[names[n]], names[n], row, score) for score, n, row in zip(*one, strict=True) if row >= 0]
            for one in lists
        ]

    def find_rows(
        self,
        vectors: npt.ArrayLike,
        k: int = 10,
        *,
        kind: AssetKind,
        where: pc.Expression | None = None,
        recall: float | None = None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """`search` in one kind, for many queries or long lists: rows of `assets(kind)` instead of hits.

        Returns:
            Scores float32 and rows int64, both (n, k), best first, or narrower where fewer assets match; -1 for a row
            that is not there.

        Raises:
            ArgumentError: With the argument, the rule and the value.
        """
        opened = self._now()
        index = opened.one(kind)
        queries = _check_queries(vectors, opened.manifest.dimension)
        return index.search(queries, _check_k(k), where, index.point(recall))

    @property
    def _indexes(self) -> Mapping[str, KindIndex]:
        return self._now().indexes

    def _now(self) -> OpenVersion:
        """The version in force."""
        return self._opened


def _check_queries(vectors: npt.ArrayLike, dimension: int) -> npt.NDArray[np.float32]:
    try:
        numbers = np.asarray(vectors)
        if np.iscomplexobj(numbers):  # numpy would drop the imaginary parts
            raise TypeError("got complex ones")
        with np.errstate(over="ignore"):  # what is too great becomes infinite, and is refused below
            queries = np.ascontiguousarray(numbers, np.float32)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"vectors must be numbers of shape (n, {dimension}): {error}.") from None
    if queries.ndim == 1:
        queries = queries[None]
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ArgumentError(f"vectors must have the shape (n, {dimension}), got {np.shape(vectors)}.")
    if not np.isfinite(queries).all():
        row, at = np.argwhere(~np.isfinite(queries))[0].tolist()
        raise ArgumentError(
            f"vectors must be finite, got NaN or infinity: number {at + 1} of vector {row + 1} is {queries[row, at]}."
        )
    return queries


def _check_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MAX_K:
        raise ArgumentError(f"k must be a whole number from 1 to {MAX_K}, got {k!r}.")
    return int(k)


def _check_rows(rows: npt.ArrayLike, index: KindIndex) -> npt.NDArray[np.int64]:
    try:
        numbers = np.asarray(rows)
    except ValueError:  # lists of several lengths
        raise ArgumentError(f"rows must be whole numbers in one dimension, got {rows!r:.80}.") from None
    if numbers.ndim != 1 or (numbers.size and not np.issubdtype(numbers.dtype, np.integer)):
        raise ArgumentError(f"rows must be whole numbers in one dimension, got {rows!r:.80}.")
    available = len(index.assets)
    if wrong := [row for row in numbers.tolist() if not 0 <= row < available]:
        raise ArgumentError(f"rows must be from 0 to {available - 1}, got {wrong[0]}.")
    return numbers.astype(np.int64)


def _hit(index: KindIndex, kind: str, row: int, score: float) -> Hit:
    asset_id, uri, text, metadata = index.asset(row)
    return Hit(asset_id=asset_id, kind=kind, uri=uri, text=text, score=score, row=row, metadata=metadata)
