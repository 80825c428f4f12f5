"""The transform that searches a catalog with the elements of any pipeline, bounded or not."""

import hashlib
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import orjson
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsSingleton
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from ..configs import AssetKind, EmbedConfig
from ..configs.errors import ArgumentError, ConfigError
from ..configs.load import anchored
from ..index.search.catalog import MAX_K, Catalog
from ..index.search.merge import check_merge
from ..index.storage.store import Store
from ..index.versions.layout import KINDS, DeadLetter, Reason
from ..index.versions.manifest import Manifest, read_manifest
from .batch_search.blocks import Found
from .elements import Asset, check_elements, metadata_json
from .embed_assets import reference_of
from .embedding.arguments import config_of
from .embedding.engine import AssetBundle, Engine, acquire_engine, release_engine
from .fill_requests import FillRequests
from .query.many_queries import (
    FoundAsset,
    Searched,
    SearchOptions,
    acquire_catalog,
    check_options,
    choose_version,
    merge_groups,
    release_catalog,
    search_block,
    search_group,
)
from .query.query_engine import query_engine_setup
from .search_elements import DeadQuery, Query, SearchHit, SearchResult, asset_of, query_of, to_query

_NAMESPACE = "epithre_beam"
_BLOCK = 512
"""Queries that are searched together."""

Vector = npt.NDArray[np.float32]


class SearchCatalog(beam.PTransform):  # type: ignore[misc]
    """Search a catalog with vectors, texts and images.

    Input: PCollection of `Query`, or of `beam.Row` with its fields, bounded or not. Output: `SearchResult(hits, dead)`,
    PCollections of `SearchHit` (one element for each hit) and `DeadQuery`, with the timestamps and windows of the
    queries.

    A process opens the catalog once, for all steps and bundles; index files are mapped, and those of a remote catalog
    are kept in the local cache. Bounded input is searched in one version, the current one when the pipeline starts.
    With unbounded input, a newly published version is searched within `follow_every_s`.

    Texts and images are embedded like the catalog, through the same engine and rate limiter as by `EmbedAssets` with
    the same address, key and limits. A query that cannot be embedded, or has a wrong vector, is dead alone. A refused
    key, a spent quota or an outage fails the bundle.

    Args:
        catalog: A path or fsspec URL. A relative path starts at the working folder of the program that builds the
            pipeline.
        k: Hits for a query, 1 to 10,000.
        kinds: The kinds to search; None: all.
        where: A condition on assets, as a mapping or its JSON, such as `{"price": {"$lt": 10}}`.
        merge: How hits of several kinds are ordered: by `score`, alternately (`quota`), or `standardised`.
        recall: The recall at build time that the search must have; None: that of the catalog.
        worker_index_mb: Size of the index files that a worker opens at most. In a larger catalog each worker searches
            some of the files: vectors of queries cross a shuffle then, once for each group of files, and hits are in
            the global window. For bounded input. None: each worker opens all files.
        embed: Settings of the API that differ from those in the catalog, such as `requests_per_minute`, `base_url` or
            `api_key_env`; not those that determine a vector.
        within: The folders that a query's `uri` may point into; None: everywhere.
        storage_options: Options for fsspec, for the `uri` of queries.
        max_buffering_s: Seconds that a text or image of unbounded input waits at most for others to share its request.
        follow_every_s: Seconds between two looks for a new version, with unbounded input.

    Raises:
        ConfigError: When an argument is wrong.
        ArgumentError: When the input has other elements, or the runner cannot run it. While the pipeline runs: when
            the catalog lacks a kind, or a column of the condition.
        CatalogError: While the pipeline runs, when the catalog cannot be opened, or another model made its vectors.
        UntrustedCatalogError: While the pipeline runs, when only the catalog says where the key is to be sent.

    >>> import tempfile
    >>> import apache_beam as beam
    >>> from epithre_beam import transforms as epithre
    >>> folder = tempfile.mkdtemp()
    >>> with beam.Pipeline(runner="FnApiRunner") as p:
    ...     rows = p | beam.Create([beam.Row(id="p1", kind="text", text="mug", embedding=[0.25] * 16)])
    ...     _ = rows | epithre.WriteCatalog(folder)
    >>> with beam.Pipeline(runner="FnApiRunner") as p:
    ...     queries = p | beam.Create([epithre.Query.of_vector("q1", [0.25] * 16)])
    ...     result = queries | epithre.SearchCatalog(folder)
    ...     _ = result.hits | beam.Map(lambda hit: print(hit.query_id, hit.rank, hit.asset_id, hit.score))
    q1 1 p1 1.0
    """

    def __init__(
        self,
        catalog: str | os.PathLike[str],
        *,
        k: int = 10,
        kinds: Sequence[AssetKind] | AssetKind | None = None,
        where: str | Mapping[str, Any] | None = None,
        merge: Literal["score", "quota", "standardised"] = "score",
        recall: float | None = None,
        worker_index_mb: float | None = None,
        embed: EmbedConfig | Mapping[str, Any] | None = None,
        within: Sequence[str] | None = None,
        storage_options: Mapping[str, Any] | None = None,
        max_buffering_s: float = 5.0,
        follow_every_s: float = 30.0,
    ) -> None:
        super().__init__()
        try:
            url = os.fspath(catalog)
        except TypeError:
            raise ConfigError(f"SearchCatalog: catalog must be a path or URL, got {type(catalog).__name__}.") from None
        if not url:
            raise ConfigError("SearchCatalog: catalog must be a path or URL, got ''.")
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
            raise ConfigError(f"SearchCatalog: k must be a whole number from 1 to {MAX_K}, got {k!r:.80}.")
        for name, value in (
            ("worker_index_mb", worker_index_mb),
            ("max_buffering_s", max_buffering_s),
            ("follow_every_s", follow_every_s),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"SearchCatalog: {name} must be greater than 0, got {value!r:.80}.")
        if recall is not None and not 0 <= recall <= 1:
            raise ConfigError(f"SearchCatalog: recall must be from 0 to 1, got {recall!r:.80}.")
        self._options = SearchOptions(
            url=anchored(url, Path.cwd()),
            k=k,
            kinds=_kinds(kinds),
            where=_where(where),
            merge=_merge(merge),
            recall=recall,
            worker_index_mb=worker_index_mb,
            follow_every_s=None,
        )
        self._embed = _stated(embed)
        self._within = None if within is None else tuple(within)
        self._storage_options = orjson.dumps(dict(storage_options or {}), option=orjson.OPT_SORT_KEYS).decode()
        self._max_buffering_s = max_buffering_s
        self._follow_every_s = follow_every_s

    def expand(self, queries: beam.PCollection) -> Any:
        self._check(queries)
        pipeline = queries.pipeline
        asked = queries | "ToQueries" >> beam.Map(to_query).with_output_types(Query)
        setup = QueriesSetup(
            options=self._options,
            embed=orjson.dumps(self._embed).decode(),
            scope=secrets.token_hex(6),
            within=self._within,
            storage_options=self._storage_options,
        )
        if not asked.is_bounded:
            options = SearchOptions(**{**vars(self._options), "follow_every_s": self._follow_every_s})
            setup = QueriesSetup(**{**vars(setup), "options": options})
            found = self._filled(asked) | "Search" >> beam.ParDo(_SearchQueries(setup), None).with_output_types(
                SearchHit | DeadQuery
            )
        else:
            start = pipeline | "Start" >> beam.Create([self._options])
            searched = AsSingleton(start | "ChooseVersion" >> beam.Map(choose_version))
            if self._options.worker_index_mb is None:
                search = beam.ParDo(_SearchQueries(setup), searched)
                found = asked | "Search" >> search.with_output_types(SearchHit | DeadQuery)
            else:
                found = self._in_groups(asked, setup, searched)
        # Filters, not tags, as in `EmbedAssets`.
        return SearchResult(
            hits=found | "Hits" >> beam.Filter(_is_hit).with_output_types(SearchHit),
            dead=found | "Dead" >> beam.Filter(_is_dead).with_output_types(DeadQuery),
        )

    def _check(self, queries: Any) -> None:
        create = " Map its elements with Query.of_vector, Query.of_text or Query.of_image first."
        check_elements(queries, Query, self.label, needed={"id"}, create=create)
        if type(queries.pipeline.runner).__name__ == "DaskRunner":
            raise ArgumentError(f"{self.label} does not run on Dask, which loses what a bundle returns at its end.")
        if not queries.is_bounded and self._options.worker_index_mb is not None:
            raise ArgumentError(
                f"{self.label}: worker_index_mb needs bounded input, got an unbounded one. Omit it, and give each "
                "worker the disk for all index files."
            )

    def _filled(self, queries: beam.PCollection) -> beam.PCollection:
        """Let texts and images of several bundles share requests; vectors do not wait."""
        embed = EmbedConfig.model_validate(self._embed)
        filled = (
            queries
            | "WithoutVectors" >> beam.Filter(_has_no_vector).with_output_types(Query)
            | "ToAssets" >> beam.Map(asset_of).with_output_types(Asset)
            | FillRequests(
                items=embed.items_per_request, size_bytes=embed.batch_bytes, max_buffering_s=self._max_buffering_s
            )
            | "FromAssets" >> beam.Map(query_of).with_output_types(Query)
        )
        vectors = queries | "WithVectors" >> beam.Filter(_has_vector).with_output_types(Query)
        return (filled, vectors) | "JoinQueries" >> beam.Flatten()

    def _in_groups(self, queries: beam.PCollection, setup: "QueriesSetup", searched: AsSingleton) -> beam.PCollection:
        packed = (
            queries
            | "GlobalWindow" >> beam.WindowInto(GlobalWindows())
            | "Pack" >> beam.ParDo(_PackQueries(setup), searched).with_output_types(beam.typehints.Any)
        )
        blocks = packed | "Blocks" >> beam.Filter(_is_block)
        found = (
            blocks
            | "ToGroups" >> beam.FlatMap(to_groups, searched).with_output_types(tuple[int, QueryBlock])
            | "ByGroup" >> beam.GroupByKey()
            | "SearchGroup" >> beam.FlatMap(find_in_group, searched, self._options)
        )
        hits = (
            (blocks | "ByBlock" >> beam.Map(by_block), found)
            | "JoinFound" >> beam.Flatten()
            | "GroupByBlock" >> beam.GroupByKey()
            | "Merge" >> beam.FlatMap(merge_found, searched, self._options).with_output_types(SearchHit | DeadQuery)
        )
        dead = packed | "DeadOfPacking" >> beam.Filter(_is_dead).with_output_types(SearchHit | DeadQuery)
        return (hits, dead) | "JoinAll" >> beam.Flatten()

    def display_data(self) -> dict[str, Any]:
        options = self._options
        shown = {
            "catalog": options.url,
            "k": options.k,
            "kinds": ", ".join(options.kinds) if options.kinds else None,
            "where": options.where,
            "merge": options.merge,
            "recall": options.recall,
            "worker_index_mb": options.worker_index_mb,
        }
        return {name: value for name, value in shown.items() if value is not None}


def _kinds(kinds: Sequence[AssetKind] | AssetKind | None) -> tuple[AssetKind, ...] | None:
    if kinds is None:
        return None
    named: tuple[Any, ...] = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not named or any(kind not in KINDS for kind in named):
        raise ConfigError(f"SearchCatalog: kinds must be image, text or both, got {kinds!r:.80}.")
    return named


def _where(where: str | Mapping[str, Any] | None) -> str | None:
    if where is None or isinstance(where, str):
        return where
    try:
        return orjson.dumps(dict(where)).decode()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"SearchCatalog: where must be a condition as JSON ({error}).") from None


def _merge(merge: Any) -> Any:
    try:
        check_merge(merge, {}, "text")
    except ArgumentError as error:
        raise ConfigError(f"SearchCatalog: {error}") from None
    return merge


def _stated(embed: EmbedConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    config = config_of(EmbedConfig, embed, "SearchCatalog: embed")
    stated = {name: value for name, value in config.model_dump(mode="json").items() if name in config.model_fields_set}
    if fixed := [name for name in ("dialect", "model", "dimension", "input_type") if name in stated]:
        raise ConfigError(f"SearchCatalog: embed must not have {fixed[0]}, which the catalog determines.")
    return stated


def _is_hit(element: Any) -> bool:
    return hasattr(element, "rank")


def _is_dead(element: Any) -> bool:
    return hasattr(element, "reason")


def _is_block(element: Any) -> bool:
    return isinstance(element, QueryBlock)


def _has_vector(query: Query) -> bool:
    return query.vector is not None


def _has_no_vector(query: Query) -> bool:
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
            yield from self._add(tag, np.asarray(query.vector, np.float32))
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
        found = search_block(self._catalog, np.stack(waiting.vectors), kind, self._setup.options)
        for (query, timestamp, window), hits in zip(waiting.queries, found, strict=True):
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


def to_groups(block: QueryBlock, searched: Searched) -> Iterator[tuple[int, QueryBlock]]:
    for number in range(len(searched.groups)):
        yield number, block


def by_block(block: QueryBlock) -> tuple[str, QueryBlock]:
    return block.key, QueryBlock(kind=block.kind, ids=block.ids, vectors=b"")


def find_in_group(
    element: tuple[int, Iterable[QueryBlock]], searched: Searched, options: SearchOptions
) -> Iterator[tuple[str, Found]]:
    """Search blocks in one group of index files."""
    number, blocks = element
    for block in blocks:
        scores, rows = search_group(searched.groups[number], searched.version, block.array(), options)
        yield block.key, Found(group=number, scores=scores.tobytes(), rows=rows.tobytes(), width=scores.shape[1])


def merge_found(
    element: tuple[str, Iterable[QueryBlock | Found]], searched: Searched, options: SearchOptions
) -> Iterator[SearchHit]:
    """Merge what a block found in all groups. Blocks with the same queries have the same hits."""
    items = list(element[1])
    blocks = [item for item in items if isinstance(item, QueryBlock)]
    queries = len(blocks[0].ids)
    found = {item.group: item for item in items if isinstance(item, Found)}
    arrays = [
        (
            item.group,
            (
                np.frombuffer(item.scores, np.float32).reshape(queries, item.width),
                np.frombuffer(item.rows, np.int64).reshape(queries, item.width),
            ),
        )
        for item in found.values()
    ]
    merged = merge_groups(queries, arrays, searched, blocks[0].kind, options)
    for block in blocks:
        for name, hits in zip(block.ids, merged, strict=True):
            yield from _search_hits(name, hits)


def _search_hits(query_id: str, hits: Sequence[FoundAsset]) -> Iterator[SearchHit]:
    Metrics.counter(_NAMESPACE, "queries_searched").inc()
    Metrics.counter(_NAMESPACE, "hits").inc(len(hits))
    for hit in hits:
        yield SearchHit(
            query_id=query_id,
            rank=hit.rank,
            score=hit.score,
            kind=hit.kind,
            asset_id=hit.asset_id,
            uri=hit.uri,
            text=hit.text,
            metadata=None if hit.metadata is None else _json(hit.metadata, hit.asset_id),
        )


def _json(metadata: Mapping[str, Any], asset_id: str) -> str:
    values = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metadata.items()
    }
    return metadata_json(values, f"Asset {asset_id!r:.80}")
