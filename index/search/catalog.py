"""An open catalog version that takes NumPy queries and returns hits. Does not import Beam."""

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
    """The mapped files of one version. A search that uses it can finish after the catalog is closed or swapped.

    Its memory and its hold are released with the last reference, for example when the last running search ends.
    """

    def __init__(
        self,
        manifest: Manifest,
        indexes: Mapping[str, KindIndex],
        hold: VersionHold | None = None,
        *,
        is_closed: bool = False,
    ) -> None:
        self.manifest = manifest
        self.is_closed = is_closed
        self.indexes = dict(indexes)
        self.is_held = hold is not None
        self._let_go = None if hold is None else weakref.finalize(self, hold.release)  # also when the process ends

    def let_go(self) -> None:
        """Release the hold, if there is one. Repeated calls do nothing."""
        if self._let_go is not None:
            self._let_go()

    def chosen(self, kinds: Sequence[AssetKind] | AssetKind | None) -> dict[str, KindIndex]:
        """Return the indexes of `kinds` (None: all). Raises ArgumentError for an unknown kind or an empty list."""
        if kinds is None:
            self._check_open()
            return self.indexes
        named = list(kinds) if isinstance(kinds, Iterable) and not isinstance(kinds, str) else [kinds]
        chosen: dict[str, KindIndex] = {kind: self.one(kind, "kinds") for kind in named}
        if not chosen:
            raise ArgumentError(f"kinds must be some of {tuple(self.indexes)}, got {kinds!r}. Omit it for all kinds.")
        return chosen

    def one(self, kind: AssetKind, argument: str = "kind") -> KindIndex:
        """Return the index of a kind. Raises ArgumentError for an unknown kind."""
        self._check_open()
        if not isinstance(kind, str) or kind not in self.indexes:
            raise ArgumentError(f"{argument} must be among {tuple(self.indexes)}, got {kind!r}.")
        return self.indexes[kind]

    def opened(self) -> dict[str, KindIndex]:
        """Return the indexes of all kinds, which may be none. Raises ArgumentError when the catalog is closed."""
        if self.is_closed:
            raise ArgumentError("The catalog is closed. Open it again.")
        return self.indexes

    def _check_open(self) -> None:
        if not self.opened():
            raise ArgumentError(f"Version {self.manifest.version} of the catalog has no assets.")


class Catalog:
    """An open catalog version for searching. Thread-safe. Use it with `with`, or call `close()`.

    A forked process can use the catalog that its parent opened.
    """

    def __init__(self, store: Store, opened: OpenVersion) -> None:
        self._store = store
        # Every method reads it once, so that a search uses one version from start to end.
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
        """Release the mapped files and the hold. Running searches finish; later ones raise ArgumentError."""
        opened, self._opened = self._opened, OpenVersion(self._opened.manifest, {}, is_closed=True)
        opened.let_go()

    @contextlib.contextmanager
    def pinned(self) -> Iterator["Catalog"]:
        """Use one version for several calls, also in a catalog that follows new versions."""
        yield self

    @property
    def manifest(self) -> Manifest:
        """The manifest of the open version."""
        return self._now().manifest

    @property
    def url(self) -> str:
        """The path or URL of the catalog folder."""
        return self._store.url

    @property
    def version(self) -> str:
        """The name of the open version."""
        return self.manifest.version

    @property
    def dimension(self) -> int:
        """The length of the vectors."""
        return self.manifest.dimension

    @property
    def metadata_types(self) -> Mapping[str, str]:
        """The declared metadata columns and their types, as spelt in a job. All kinds share them."""
        return self.manifest.metadata_types

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that have an index.

        Raises:
            ArgumentError: If the catalog is closed.
        """
        return tuple(self._now().opened())

    def __len__(self) -> int:
        """Return the number of assets. Raises ArgumentError if the catalog is closed."""
        return sum(len(index.assets) for index in self._now().opened().values())

    def assets(self, kind: AssetKind) -> pa.Table:
        """Return the assets of a kind in row order, with id, uri, text, metadata and so on, but no vectors."""
        return self._now().one(kind).assets

    def find_asset(self, kind: AssetKind, asset_id: str) -> int | None:
        """Return the row of an asset, or None if this version does not have the asset.

        The first 99 calls scan all ids, which takes milliseconds per million rows. The hundredth call sorts them (4
        bytes per row of memory); later calls take microseconds.

        Raises:
            ArgumentError: If the catalog has no such kind.
        """
        return self._now().one(kind).row_of(asset_id)

    def asset(self, kind: AssetKind, row: int) -> Asset:
        """Return the asset in a row.

        Raises:
            ArgumentError: If there is no such kind or row.
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
        """Return the stored vectors of rows: float32, (len(rows), dimension), unit norm up to fp16 rounding.

        Raises:
            ArgumentError: If there is no such kind or row.
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
        """Find the assets with the greatest inner product.

        Args:
            vectors: Queries, float32-like, (n, dimension) or (dimension,). With unit norm, scores are cosines.
            k: Hits per query, 1 to 10,000. Fewer are returned if fewer assets match.
            kinds: Kinds to search. Default: all kinds of the catalog.
            where: Filter on the columns of `assets(kind)`, such as `pc.field("metadata", "lang") == "id"`.
            merge: How to order hits of several kinds. `score`: by inner product, which favours the query's own kind;
                `quota`: alternately from each kind; `standardised`: by the number of standard deviations above the
                mean score of the direction, as measured when the catalog was built.
            query_kind: Kind of the queries, `image` or `text`. Required by `standardised`.
            recall: Minimum recall measured at build time in every direction. The cheapest operating point in the
                manifest that reaches it is used. Default: `index.target_recall` of the job.

        Returns:
            A list of hits per query, best first. Equal scores are ordered by kind, then by asset id. Versions with
            the same assets therefore return the same hits, except for `row`.

        Raises:
            ArgumentError: If an argument is invalid. The message names the argument, the rule and the value.
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
        """Search one kind and return rows of `assets(kind)` instead of hits. Use it for many queries or large k.

        The arguments are those of `search`.

        Returns:
            Scores (float32) and rows (int64), both (n, k), best first. The arrays are narrower if fewer assets match;
            missing hits have row -1.

        Raises:
            ArgumentError: If an argument is invalid. The message names the argument, the rule and the value.
        """
        opened = self._now()
        index = opened.one(kind)
        queries = _check_queries(vectors, opened.manifest.dimension)
        return index.search(queries, _check_k(k), where, index.point(recall))

    @property
    def _indexes(self) -> Mapping[str, KindIndex]:
        return self._now().indexes

    def _now(self) -> OpenVersion:
        """Return the current version."""
        return self._opened


def _check_queries(vectors: npt.ArrayLike, dimension: int) -> npt.NDArray[np.float32]:
    try:
        numbers = np.asarray(vectors)
        if np.iscomplexobj(numbers):  # NumPy would drop the imaginary parts
            raise TypeError("got complex numbers")
        with np.errstate(over="ignore"):  # overflow becomes infinity, which is refused below
            queries = np.ascontiguousarray(numbers, np.float32)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"vectors must be numbers with the shape (n, {dimension}): {error}.") from None
    if queries.ndim == 1:
        queries = queries[None]
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise ArgumentError(f"vectors must have the shape (n, {dimension}), got {np.shape(vectors)}.")
    if not np.isfinite(queries).all():
        row, at = np.argwhere(~np.isfinite(queries))[0].tolist()
        raise ArgumentError(f"vectors must be finite, got {queries[row, at]} as number {at + 1} of vector {row + 1}.")
    return queries


def _check_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MAX_K:
        raise ArgumentError(f"k must be a whole number from 1 to {MAX_K}, got {k!r}.")
    return int(k)


def _check_rows(rows: npt.ArrayLike, index: KindIndex) -> npt.NDArray[np.int64]:
    try:
        numbers = np.asarray(rows)
    except ValueError:  # nested lists of different lengths
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
