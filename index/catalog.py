"""Opens a catalog and searches it: numpy in, hits out, nothing of Beam."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..configs import AssetKind
from .kind_index import KindIndex
from .layout import READERS
from .local_files import local_files
from .manifest import CatalogError, IndexEntry, Manifest, read_latest, read_manifest
from .readers import VersionHold
from .store import Store, StoreError

Merge = Literal["score", "quota", "standardised"]
MAX_K = 10_000

_OPENING_TRIES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An asset that was found."""

    asset_id: str
    kind: str
    uri: str | None
    text: str | None
    score: float
    """Inner product with the query: the cosine, since both have unit norm. With the merge `standardised` still
    the inner product; only the order is by the standardised score."""
    row: int
    """Position among the rows of its kind."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Catalog:
    """A version of a catalog, open for searching. Thread-safe; use `with`, or `close()` when done."""

    def __init__(
        self, store: Store, manifest: Manifest, indexes: Mapping[str, KindIndex], hold: VersionHold | None = None
    ) -> None:
        self._store = store
        self.manifest = manifest
        self._indexes = dict(indexes)
        self._lock = threading.Lock()
        # A catalog that is dropped, or still open when the process ends, lets go as well.
        self._let_go = None if hold is None else weakref.finalize(self, hold.release)

    def __repr__(self) -> str:
        return f"Catalog({self._store.url!r}, version={self.version!r}, assets={self.manifest.counts.per_kind})"

    def __enter__(self) -> "Catalog":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the mapped files, and of the hold. A search after it raises ValueError."""
        with self._lock:
            self._indexes = {}
        if self._let_go is not None:
            self._let_go()

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def dimension(self) -> int:
        return self.manifest.dimension

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._indexes)

    def __len__(self) -> int:
        return sum(len(index.assets) for index in self._indexes.values())

    def assets(self, kind: AssetKind) -> pa.Table:
        """The assets of a kind in the order of their rows: id, uri, text, metadata and so on, without vectors."""
        return self._chosen(kind)[kind].assets

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
            ValueError: With the argument, the rule and the value.
        """
        queries = self._check_queries(vectors)
        k = _check_k(k)
        indexes = self._chosen(kinds)
        if merge not in {"score", "quota", "standardised"}:
            raise ValueError(f"merge must be 'score', 'quota' or 'standardised', got {merge!r}.")
        if merge == "standardised" and query_kind is None:
            raise ValueError("merge='standardised' needs query_kind='image' or 'text': the gap depends on it.")
        hits: list[list[tuple[float, int, str]]] = [[] for _ in range(len(queries))]
        ranks: dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]] = {}
        for kind, index in indexes.items():
            ranks[kind] = index.search(queries, k, where, index.point(recall))
        for q in range(len(queries)):
            hits[q] = self._merge(q, ranks, indexes, k, merge, query_kind)
        return [[_hit(indexes[kind], kind, row, score) for score, row, kind in found] for found in hits]

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
            ValueError: With the argument, the rule and the value.
        """
        index = self._chosen(kind)[kind]
        return index.search(self._check_queries(vectors), _check_k(k), where, index.point(recall))

    def _merge(
        self,
        q: int,
        ranks: Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]],
        indexes: Mapping[str, KindIndex],
        k: int,
        merge: Merge,
        query_kind: str | None,
    ) -> list[tuple[float, int, str]]:
        entries = []
        for kind, (scores, rows) in ranks.items():
            offset, scale = 0.0, 1.0
            if merge == "standardised":
                figures = indexes[kind].entry.scores.get(f"{query_kind}->{kind}")
                if figures is None:
                    raise ValueError(
                        f"merge='standardised' needs the figures of {query_kind}->{kind}, which this catalog lacks: "
                        f"it has no {query_kind} assets."
                    )
                offset, scale = figures.mean, figures.std or 1.0
            for rank, (score, row) in enumerate(zip(scores[q].tolist(), rows[q].tolist(), strict=True)):
                if row >= 0:
                    key = rank if merge == "quota" else -(score - offset) / scale
                    entries.append((key, -score, kind, rank, row))
        entries.sort()
        return [(-negative, row, kind) for _, negative, kind, _, row in entries[:k]]

    def _check_queries(self, vectors: npt.ArrayLike) -> npt.NDArray[np.float32]:
        try:
            numbers = np.asarray(vectors)
            if np.iscomplexobj(numbers):  # numpy would drop the imaginary parts
                raise TypeError("got complex ones")
            with np.errstate(over="ignore"):  # what is too great becomes infinite, and is refused below
                queries = np.ascontiguousarray(numbers, np.float32)
        except (ValueError, TypeError) as error:
            raise ValueError(f"vectors must be numbers of shape (n, {self.dimension}): {error}.") from None
        if queries.ndim == 1:
            queries = queries[None]
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"vectors must have the shape (n, {self.dimension}), got {np.shape(vectors)}.")
        if not np.isfinite(queries).all():
            raise ValueError("vectors must be finite, got NaN or infinity.")
        return queries

    def _chosen(self, kinds: Sequence[AssetKind] | AssetKind | None) -> dict[str, KindIndex]:
        with self._lock:
            indexes = dict(self._indexes)
        if not indexes:
            raise ValueError("This catalog is closed, or has no assets.")
        if kinds is None:
            return indexes
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        for kind in kinds:
            if kind not in indexes:
                raise ValueError(f"kinds must be among {tuple(indexes)}, got {kind!r}.")
        return {kind: indexes[kind] for kind in dict.fromkeys(kinds)}


def _check_k(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= MAX_K:
        raise ValueError(f"k must be a whole number from 1 to {MAX_K}, got {k!r}.")
    return int(k)


def _hit(index: KindIndex, kind: str, row: int, score: float) -> Hit:
    asset_id, uri, text, metadata = index.asset(row)
    return Hit(asset_id=asset_id, kind=kind, uri=uri, text=text, score=score, row=row, metadata=metadata)


def open_catalog(
    url: str | Path,
    *,
    version: str | None = None,
    verify: bool = True,
    storage_options: dict[str, Any] | None = None,
    hold_s: float | None = None,
    cache_folder: str | Path | None = None,
) -> Catalog:
    """Opens a catalog's published version, or a named one, for searching.

    Args:
        url: The catalog's path or fsspec URL. What a search needs of a remote one is brought into a cache on a local
            disk, which all processes of this user share; the vectors as Parquet are not.
        version: Absent: the one that LATEST.json names.
        verify: Compare every file that is opened with its sha256 in the manifest. It is remembered, so that a file
            is read for it once and not again before it changes. Without it a damaged file may give wrong results in
            silence.
        storage_options: For fsspec.
        hold_s: Keep the version from being pruned while it is open: a file in `readers/` says so, which is renewed,
            removed by `close()`, and void this long after the process has died. Absent: nothing is written. What is
            mapped already stays readable on a local disk either way; what is opened later, such as vectors, does not.
        cache_folder: For what is remembered and for files of remote catalogs. Absent: what EPITHRE_BEAM_CACHE names,
            or the system's place for this user's caches. EPITHRE_BEAM_CACHE_MB bounds it; 64 GB if it is not set.

    Raises:
        CatalogError: When there is nothing published, or a file is missing, damaged or of a newer format.
        ValueError: When `hold_s` is not positive.
    """
    if hold_s is not None and not 0 < hold_s < float("inf"):
        raise ValueError(f"hold_s must be a positive number of seconds, got {hold_s!r}.")
    store = Store(str(url), storage_options)
    asked: dict[str, Any] = {"verify": verify, "hold_s": hold_s}
    asked["cache_folder"] = None if cache_folder is None else Path(cache_folder)
    try:
        return _open(store, version, asked)
    except (CatalogError, StoreError):
        raise
    except Exception as error:  # whatever a store's driver raises
        if store.is_local:
            raise
        raise CatalogError(f"{store.url} cannot be read ({type(error).__name__}: {error}).") from error


def _open(store: Store, version: str | None, asked: Mapping[str, Any]) -> Catalog:
    if version is not None:
        return _open_version(store, version, None, **asked)
    for tries_left in reversed(range(_OPENING_TRIES)):
        named, sha256 = _published(store)
        try:
            return _open_version(store, named, sha256, **asked)
        except CatalogError:
            # Another version was published, and this one pruned, since LATEST.json was read?
            if not tries_left or _published(store)[0] == named:
                raise
    raise AssertionError("the last try returns or raises")


def _published(store: Store) -> tuple[str, str]:
    latest = read_latest(store)
    if latest is None:
        raise CatalogError(
            f"{store.url} has no published version: {store.url}/LATEST.json is missing "
            "(`epithre-beam versions list` shows what a guard holds back)."
        )
    return latest[1], latest[2]


def _open_version(
    store: Store,
    version: str,
    sha256: str | None,
    *,
    verify: bool,
    hold_s: float | None,
    cache_folder: Path | None,
) -> Catalog:
    manifest = read_manifest(store, version, sha256)
    hold = None
    try:
        if hold_s is not None:
            hold = _hold(store, version, hold_s)
            read_manifest(store, version, sha256)  # what was whole when the hold stood, stays so
        entries = [manifest.file(name) for index in manifest.indexes for name in index.names]
        with local_files(store, version, entries, verify=verify, cache_folder=cache_folder) as paths:
            indexes = {entry.kind: _open_index(entry, paths) for entry in manifest.indexes}
    except BaseException:
        if hold is not None:
            hold.release()
        raise
    return Catalog(store, manifest, indexes, hold)


def _hold(store: Store, version: str, hold_s: float) -> VersionHold:
    try:
        return VersionHold(store, version, hold_s)
    except (OSError, StoreError) as error:
        raise CatalogError(
            f"{store.url}/{READERS} cannot be written ({error}): allow it, or open the catalog without hold_s."
        ) from error


def _open_index(entry: IndexEntry, paths: Mapping[str, Path]) -> KindIndex:
    parts = [(paths[vectors], None if codes is None else paths[codes]) for vectors, codes in entry.parts]
    return KindIndex(entry, parts, paths[entry.assets])
