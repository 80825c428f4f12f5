"""Search many queries in catalogs that a process opens once, or in a group of index files. Does not use Beam.

`SearchCatalog` makes elements of the answers, a bulk search writes them as Parquet.
"""

import functools
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...configs import AssetKind
from ...configs.errors import ArgumentError
from ...index.ann.kind_index import KindIndex, operating_point
from ...index.ann.parts import IndexPart, group_parts, index_parts, open_assets, open_parts
from ...index.search.catalog import Catalog
from ...index.search.merge import Merge, Merged, check_merge, merge_kinds
from ...index.search.opening import open_catalog
from ...index.search.where import parse_where
from ...index.storage.store import Store
from ...index.versions.latest import published_manifest
from ...index.versions.layout import assets_schema
from ...index.versions.manifest import IndexEntry, Manifest

_KEPT_OPEN = 4

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Scores and rows, both (queries, width); row -1 for a missing hit."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What is searched, and how. Part of the pipeline graph."""

    url: str
    k: int
    kinds: tuple[AssetKind, ...] | None
    """None: all."""
    where: str | Mapping[str, Any] | None
    """A condition, or its JSON."""
    merge: Merge
    recall: float | None
    worker_index_mb: float | None
    """Size of the index files that a worker opens at most; None: it opens all."""
    follow_every_s: float | None
    """Seconds between two looks for a new version; None: one version is searched."""


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The version that all workers of a bounded pipeline search."""

    version: str
    groups: tuple[tuple[IndexPart, ...], ...]
    """The groups of index files, one for a worker each; empty: each worker opens all files."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What queries found in one group of index files. Bytes, because many small elements slow a runner down."""

    group: int
    scores: bytes
    """float32, (queries, width)."""
    rows: bytes
    """int64, the same shape."""
    width: int

    def arrays(self, queries: int) -> Arrays:
        shape = queries, self.width
        return np.frombuffer(self.scores, np.float32).reshape(shape), np.frombuffer(self.rows, np.int64).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The hits of many queries in all kinds."""

    merged: Merged
    assets: Mapping[AssetKind, pa.Table]
    """The table that the rows of each kind are in."""


class FoundAsset(NamedTuple):
    """A hit of a query."""

    rank: int
    """From 1."""
    score: float
    kind: str
    asset_id: str
    uri: str | None
    text: str | None
    metadata: Mapping[str, Any] | None


def choose_version(options: SearchOptions) -> Searched:
    """Return the current version, after checking that it has what is asked for.

    Raises:
        ArgumentError: When a kind, the condition, the merge or the recall does not fit to the catalog.
        CatalogError: When nothing is published, or the manifest is damaged.
    """
    manifest = published_manifest(Store(options.url))
    check_options(options, manifest)
    if options.worker_index_mb is None:
        return Searched(version=manifest.version, groups=())
    parts = index_parts(manifest, _kinds(options, [entry.kind for entry in manifest.indexes]))
    return Searched(version=manifest.version, groups=tuple(group_parts(parts, int(options.worker_index_mb * 1e6))))


def check_options(options: SearchOptions, manifest: Manifest) -> None:
    """Raise ArgumentError when the options do not fit to a version."""
    there = [entry.kind for entry in manifest.indexes]
    if unknown := [kind for kind in options.kinds or () if kind not in there]:
        raise ArgumentError(f"SearchCatalog: kinds must be among {there}, got {unknown[0]!r}.")
    if options.where is not None:
        parse_where(options.where, assets_schema(manifest.metadata_types))
    for entry in manifest.indexes:
        if entry.kind in _kinds(options, there):
            operating_point(entry, options.recall)


class _Opened:
    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.users = 0


_opened: dict[tuple[str, str | None, float | None], _Opened] = {}
_lock = threading.Lock()


def acquire_catalog(options: SearchOptions, version: str | None) -> Catalog:
    """Return the catalog that this process has open; call `release_catalog` once for each call.

    Args:
        options: Says whether the catalog follows new versions.
        version: The version; None with a catalog that follows.

    Raises:
        CatalogError: When it cannot be opened.
    """
    key = options.url, version, options.follow_every_s
    with _lock:  # while one thread opens it, the others wait
        if key not in _opened:
            if version is None:
                every_s = options.follow_every_s or 30.0
                _opened[key] = _Opened(open_catalog(options.url, follow=True, follow_every_s=every_s))
            else:
                _opened[key] = _Opened(open_catalog(options.url, version=version))
        found = _opened[key] = _opened.pop(key)  # last in the order
        found.users += 1
        return found.catalog


def release_catalog(catalog: Catalog) -> None:
    """Note that a step does not use the catalog any more. The last few stay open for the next bundles."""
    with _lock:
        for opened in _opened.values():
            if opened.catalog is catalog:
                opened.users -= 1
        unused = [key for key, opened in _opened.items() if not opened.users]
        for key in unused[: max(0, len(_opened) - _KEPT_OPEN)]:
            _opened.pop(key).catalog.close()


def search_all(
    catalog: Catalog, vectors: npt.NDArray[np.float32], k: int, query_kind: str | None, options: SearchOptions
) -> Answers:
    """Search queries in one version.

    Args:
        catalog: The catalog; one that follows is searched in the version that is current now.
        vectors: float32, (queries, dimension), finite.
        k: Hits for a query.
        query_kind: `image` or `text`; needed by the merge `standardised`.
        options: What is searched.

    Raises:
        ArgumentError: When the options do not fit to the version.
    """
    with catalog.pinned() as version:
        kinds = _kinds(options, version.kinds)
        assets = {kind: version.assets(kind) for kind in kinds}
        found = [
            version.find_rows(vectors, k, kind=kind, where=_where(options, assets[kind]), recall=options.recall)
            for kind in kinds
        ]
        return _merged(len(vectors), found, assets, version.manifest.indexes, k, query_kind, options)


def search_group(
    number: int, searched: Searched, vectors: npt.NDArray[np.float32], k: int, options: SearchOptions
) -> Found:
    """Search queries in a group of index files, which this process keeps open until it searches another one."""
    index = _open_group(options.url, searched.version, searched.groups[number])
    scores, rows = index.search(vectors, k, _where(options, index.assets), index.point(options.recall))
    return Found(group=number, scores=scores.tobytes(), rows=rows.tobytes(), width=scores.shape[1])


def merge_groups(
    queries: int, found: Iterable[Found], searched: Searched, k: int, query_kind: str | None, options: SearchOptions
) -> Answers:
    """Merge what was found in all groups."""
    indexes = _open_tables(options.url, searched.version)
    kinds = _kinds(options, tuple(indexes))
    by_kind: dict[str, list[Arrays]] = {kind: [] for kind in kinds}
    for part in sorted(found, key=lambda part: part.group):
        by_kind[searched.groups[part.group][0].kind].append(part.arrays(queries))
    joined = [indexes[kind].join(by_kind[kind], k) for kind in kinds]
    assets = {kind: indexes[kind].assets for kind in kinds}
    return _merged(queries, joined, assets, [index.entry for index in indexes.values()], k, query_kind, options)


@functools.lru_cache(maxsize=1)
def _open_group(url: str, version: str, group: tuple[IndexPart, ...]) -> KindIndex:
    return open_parts(url, version, group)


@functools.lru_cache(maxsize=2)
def _open_tables(url: str, version: str) -> dict[str, KindIndex]:
    return open_assets(url, version)


def _kinds(options: SearchOptions, there: Sequence[str]) -> list[AssetKind]:
    asked: tuple[AssetKind, ...] = options.kinds or ("image", "text")
    return [kind for kind in sorted(asked) if kind in there]


def _where(options: SearchOptions, assets: pa.Table) -> pc.Expression | None:
    return None if options.where is None else parse_where(options.where, assets.schema)


def _merged(
    queries: int,
    found: Sequence[Arrays],
    assets: Mapping[AssetKind, pa.Table],
    entries: Iterable[IndexEntry],
    k: int,
    query_kind: str | None,
    options: SearchOptions,
) -> Answers:
    if not assets:
        nothing = np.empty((queries, 0), np.int64)
        return Answers(
            merged=Merged(scores=nothing.astype(np.float32), kinds=nothing.astype(np.int8), rows=nothing), assets={}
        )
    of_kinds: dict[str, IndexEntry] = {entry.kind: entry for entry in entries if entry.kind in assets}
    figures = check_merge(options.merge, of_kinds, query_kind)
    return Answers(merged=merge_kinds(found, k, options.merge, [figures[kind] for kind in assets]), assets=assets)


def hits_of(answers: Answers) -> list[list[FoundAsset]]:
    """Return the hits of each query, best first."""
    merged, kinds = answers.merged, list(answers.assets)
    query_of, column = np.nonzero(merged.rows >= 0)
    if not len(query_of):
        return [[] for _ in merged.rows]
    of_kind, rows = merged.kinds[query_of, column], merged.rows[query_of, column]
    tables, places = [], []
    for number, assets in enumerate(answers.assets.values()):  # all at once: single cells of Arrow are slow
        here = np.flatnonzero(of_kind == number)
        names = [name for name in ("asset_id", "uri", "text", "metadata") if name in assets.column_names]
        tables.append(assets.select(names).take(pa.array(rows[here])))
        places.append(here)
    table = pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places), kind="stable")))
    columns = [its.to_pylist() for its in table.columns]
    if "metadata" not in table.column_names:
        columns.append([None] * len(table))
    ranks, scores = (column + 1).tolist(), merged.scores[query_of, column].tolist()
    names_of_kind = [kinds[number] for number in of_kind.tolist()]
    hits = list(map(FoundAsset._make, zip(ranks, scores, names_of_kind, *columns, strict=True)))
    ends = np.cumsum(np.bincount(query_of, minlength=len(merged.rows))).tolist()
    return [hits[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
