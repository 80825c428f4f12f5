"""The transform that embeds queries, searches blocks of them, and merges what groups of index files gave."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import orjson
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsSingleton
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from ..index.search.catalog import Catalog
from ..index.storage.store import Store
from ..index.vectors.units import as_float32
from ..index.versions.layout import DeadLetter, Reason
from ..index.versions.manifest import Manifest, read_manifest
from .catalog_elements import DeadQuery, Query, SearchHit, asset_of
from .elements import metadata_json
from .embed_assets import reference_of
from .embedding.engine import AssetBundle, Engine, acquire_engine, release_engine
from .query.many_queries import (
    Found,
    FoundAsset,
    Searched,
    SearchOptions,
    acquire_catalog,
    check_options,
    hits_of,
    merge_groups,
    release_catalog,
    search_all,
    search_group,
)
from .query.query_engine import query_engine_setup

_NAMESPACE = "epithre_beam"
_BLOCK = 512
"""Queries that are searched together."""

Vector = npt.NDArray[np.float32]


def is_hit(element: Any) -> bool:
    return hasattr(element, "rank")


def is_dead(element: Any) -> bool:
    return hasattr(element, "reason")


def _is_block(element: Any) -> bool:
    return isinstance(element, QueryBlock)


def has_vector(query: Query) -> bool:
    return query.vector is not None


def has_no_vector(query: Query) -> bool:
    return query.vector is None


@dataclass(frozen=True, kw_only=True)
class QueriesSetup:
    """The arguments for workers. Part of the pipeline graph, so it contains no secrets."""

    options: SearchOptions
    embed: str
    """The stated settings of the API, as JSON."""
    scope: str
    within: tuple[str, ...] | None
    storage_options: str


@dataclass(frozen=True, kw_only=True)
class QueryBlock:
    """Queries of one kind with their vectors, as bytes because many small elements slow a runner down."""

    kind: str | None
    ids: tuple[str, ...]
    vectors: bytes
    """float32, (queries, dimension)."""

    @property
    def key(self) -> str:
        return hashlib.sha256(repr((self.kind, self.ids)).encode() + self.vectors).hexdigest()[:24]

    def array(self) -> Vector:
        return np.frombuffer(self.vectors, np.float32).reshape(len(self.ids), -1)


@dataclass(eq=False, kw_only=True)
class SearchBlocks(beam.PTransform):  # type: ignore[misc]
    """Search queries in blocks: in a process that opens the catalog, or in several that each open some of its files.

    Input: PCollection[Query]. Output: PCollection[SearchHit | DeadQuery].
    """

    setup: QueriesSetup
    searched: AsSingleton | None
    """The version; None: the catalog is followed."""

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, queries: beam.PCollection) -> beam.PCollection:
        if self.searched is not None and self.setup.options.worker_index_mb is not None:
            return self._in_groups(queries)
        search = beam.ParDo(_SearchQueries(self.setup), self.searched)
        return queries | "SearchQueries" >> search.with_output_types(SearchHit | DeadQuery)

    def _in_groups(self, queries: beam.PCollection) -> beam.PCollection:
        searched, options = self.searched, self.setup.options
        packed = (
            queries
            | "GlobalWindow" >> beam.WindowInto(GlobalWindows())
            | "Pack" >> beam.ParDo(_PackQueries(self.setup), searched).with_output_types(beam.typehints.Any)
        )
        blocks = packed | "Blocks" >> beam.Filter(_is_block)
        found = (
            blocks
            | "ToGroups" >> beam.FlatMap(_to_groups, searched).with_output_types(tuple[int, QueryBlock])
            | "ByGroup" >> beam.GroupByKey()
            | "SearchGroup" >> beam.FlatMap(_find_in_group, searched, options)
        )
        hits = (
            (blocks | "ByBlock" >> beam.Map(_by_block), found)
            | "JoinFound" >> beam.Flatten()
            | "GroupByBlock" >> beam.GroupByKey()
            | "Merge" >> beam.FlatMap(_merge_found, searched, options).with_output_types(SearchHit | DeadQuery)
        )
        dead = packed | "DeadOfPacking" >> beam.Filter(is_dead).with_output_types(SearchHit | DeadQuery)
        return (hits, dead) | "JoinAll" >> beam.Flatten()


@dataclass
class _Waiting:
    """Queries of one kind that wait for their search, with what comes out with their hits."""

    queries: list[tuple[Query, Any, Any]] = field(default_factory=list)
    vectors: list[Vector] = field(default_factory=list)


class _Queries(beam.DoFn):  # type: ignore[misc]
    """Embed the queries of a bundle that have no vector, and release blocks of those that have one.

    Metrics are updated on the bundle's thread only: Beam loses updates from other threads.
    """

    _engine: Engine | None = None
    _manifest: Manifest | None = None

    def __init__(self, setup: QueriesSetup) -> None:
        self._setup = setup

    def start_bundle(self) -> None:
        self._bundle: AssetBundle[tuple[Query, Any, Any]] | None = None
        self._waiting: dict[str | None, _Waiting] = {}

    def process(
        self,
        query: Query,
        searched: Searched | None,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[Any]:
        if self._manifest is None:
            self._manifest = self.open(searched)
        tag = query, timestamp, window
        if query.vector is not None:
            yield from self._add(tag, as_float32(query.vector))
            return
        if self._bundle is None:
            self._bundle = AssetBundle(self._engine_of(self._manifest))
        reference = reference_of(asset_of(query), self._bundle.engine)
        for its, result in self._bundle.add(reference, tag):
            yield from self._take(its, result)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._bundle is not None:
            for its, result in self._bundle.finish():
                yield from self._take(its, result)
            self._bundle = None
        for kind in list(self._waiting):
            yield from self._release(kind)
        if self._engine is not None:
            for name, count in self._engine.counts().items():
                if count:
                    Metrics.counter(_NAMESPACE, name).inc(count)

    def teardown(self) -> None:
        if self._engine is not None:
            release_engine(self._engine)
            self._engine = None

    def open(self, searched: Searched | None) -> Manifest:
        """Open what is searched, at the first query. Return the manifest of the version."""
        raise NotImplementedError

    def release(self, kind: str | None, waiting: _Waiting) -> Iterator[WindowedValue]:
        """Give out what becomes of a block."""
        raise NotImplementedError

    def _engine_of(self, manifest: Manifest) -> Engine:
        if self._engine is None:
            setup = self._setup
            self._engine = acquire_engine(
                query_engine_setup(
                    manifest,
                    setup.options.url,
                    orjson.loads(setup.embed),
                    scope=setup.scope,
                    within=setup.within,
                    storage_options=setup.storage_options,
                )
            )
        return self._engine

    def _take(self, tag: tuple[Query, Any, Any], result: Any) -> Iterator[WindowedValue]:
        if not isinstance(result, DeadLetter):
            yield from self._add(tag, result.vector)
            return
        yield self._dead(tag, result.stage, result.reason.value, result.detail, result.attempts)

    def _add(self, tag: tuple[Query, Any, Any], vector: Vector) -> Iterator[WindowedValue]:
        query, dimension = tag[0], self._manifest.dimension if self._manifest else 0
        if vector.shape != (dimension,):
            why = f"the vector must have {dimension} dimensions, got {vector.size}"
            yield self._dead(tag, "search", Reason.BROKEN_VECTOR.value, why)
        elif not np.isfinite(vector).all():
            yield self._dead(tag, "search", Reason.BROKEN_VECTOR.value, "the vector must be finite")
        elif self._setup.options.merge == "standardised" and query.kind is None:
            yield self._dead(tag, "search", "unsupported", "merge='standardised' needs the kind of a vector")
        else:
            waiting = self._waiting.setdefault(query.kind, _Waiting())
            waiting.queries.append(tag)
            waiting.vectors.append(vector)
            if len(waiting.queries) >= _BLOCK:
                yield from self._release(query.kind)

    def _release(self, kind: str | None) -> Iterator[WindowedValue]:
        yield from self.release(kind, self._waiting.pop(kind))

    def _dead(self, tag: tuple[Query, Any, Any], stage: str, reason: str, detail: str, attempts: int = 0) -> Any:
        query, timestamp, window = tag
        Metrics.counter(_NAMESPACE, "dead_queries").inc()
        found = DeadQuery(id=query.id, kind=query.kind, stage=stage, reason=reason, detail=detail, attempts=attempts)
        return WindowedValue(found, timestamp, (window,))


class _SearchQueries(_Queries):
    """Search in the catalog that the process has open."""

    _catalog: Catalog | None = None

    def open(self, searched: Searched | None) -> Manifest:
        options = self._setup.options
        if self._catalog is None:
            self._catalog = acquire_catalog(options, None if searched is None else searched.version)
            check_options(options, self._catalog.manifest)
        return self._catalog.manifest

    def release(self, kind: str | None, waiting: _Waiting) -> Iterator[WindowedValue]:
        assert self._catalog is not None
        options = self._setup.options
        answers = search_all(self._catalog, np.stack(waiting.vectors), options.k, kind, options)
        for (query, timestamp, window), hits in zip(waiting.queries, hits_of(answers), strict=True):
            for hit in _search_hits(query.id, hits):
                yield WindowedValue(hit, timestamp, (window,))

    def teardown(self) -> None:
        super().teardown()
        if self._catalog is not None:
            release_catalog(self._catalog)
            self._catalog = None
            self._manifest = None


class _PackQueries(_Queries):
    """Pack queries into blocks, for workers that open some of the index files."""

    def open(self, searched: Searched | None) -> Manifest:
        assert searched is not None
        return read_manifest(Store(self._setup.options.url), searched.version)

    def release(self, kind: str | None, waiting: _Waiting) -> Iterator[WindowedValue]:
        ids = tuple(query.id for query, _, _ in waiting.queries)
        block = QueryBlock(kind=kind, ids=ids, vectors=np.stack(waiting.vectors).tobytes())
        yield GlobalWindows.windowed_value_at_end_of_window(block)


def _to_groups(block: QueryBlock, searched: Searched) -> Iterator[tuple[int, QueryBlock]]:
    for number in range(len(searched.groups)):
        yield number, block


def _by_block(block: QueryBlock) -> tuple[str, QueryBlock]:
    return block.key, QueryBlock(kind=block.kind, ids=block.ids, vectors=b"")


def _find_in_group(
    element: tuple[int, Iterable[QueryBlock]], searched: Searched, options: SearchOptions
) -> Iterator[tuple[str, Found]]:
    """Search blocks in one group of index files."""
    number, blocks = element
    for block in blocks:
        yield block.key, search_group(number, searched, block.array(), options.k, options)


def _merge_found(
    element: tuple[str, Iterable[QueryBlock | Found]], searched: Searched, options: SearchOptions
) -> Iterator[SearchHit]:
    """Merge what a block found in all groups. Blocks with the same queries have the same hits."""
    items = list(element[1])
    blocks = [item for item in items if isinstance(item, QueryBlock)]
    queries = len(blocks[0].ids)
    found = {item.group: item for item in items if isinstance(item, Found)}
    merged = hits_of(merge_groups(queries, found.values(), searched, options.k, blocks[0].kind, options))
    for block in blocks:
        for name, hits in zip(block.ids, merged, strict=True):
            yield from _search_hits(name, hits)


def _search_hits(query_id: str, hits: Sequence[FoundAsset]) -> Iterator[SearchHit]:
    Metrics.counter(_NAMESPACE, "queries_searched").inc()
    Metrics.counter(_NAMESPACE, "hits").inc(len(hits))
    for hit in hits:
        metadata = None if hit.metadata is None else _json(hit.metadata, hit.asset_id)
        yield SearchHit(query_id, *hit[:-1], metadata)


def _json(metadata: Mapping[str, Any], asset_id: str) -> str:
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metadata.items()
    }
    return metadata_json(values, f"Asset {asset_id!r:.80}")
