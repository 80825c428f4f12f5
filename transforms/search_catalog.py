"""The transform that searches a catalog with the elements of any pipeline, bounded or not."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
import orjson
from apache_beam.pvalue import AsSingleton

from ..configs import AssetKind, EmbedConfig
from ..configs.errors import ArgumentError, ConfigError
from ..configs.load import anchored
from ..index.search.catalog import MAX_K
from ..index.search.merge import check_merge
from ..index.versions.layout import KINDS
from .catalog_elements import DeadQuery, Query, SearchHit, SearchResult, asset_of, query_of, to_query
from .elements import Asset, check_elements
from .embedding.arguments import config_of
from .fill_requests import FillRequests
from .query.many_queries import SearchOptions, choose_version
from .search_blocks import QueriesSetup, SearchBlocks, has_no_vector, has_vector, is_dead, is_hit


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
            asked, searched = self._filled(asked), None
        else:
            start = pipeline | "Start" >> beam.Create([self._options])
            searched = AsSingleton(start | "ChooseVersion" >> beam.Map(choose_version))
        found = asked | "Search" >> SearchBlocks(setup=setup, searched=searched)
        # Filters, not tags, as in `EmbedAssets`.
        return SearchResult(
            hits=found | "Hits" >> beam.Filter(is_hit).with_output_types(SearchHit),
            dead=found | "Dead" >> beam.Filter(is_dead).with_output_types(DeadQuery),
        )

    def _check(self, queries: Any) -> None:
        create = "Map its elements with Query.of_vector, Query.of_text or Query.of_image first."
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
            | "WithoutVectors" >> beam.Filter(has_no_vector).with_output_types(Query)
            | "ToAssets" >> beam.Map(asset_of).with_output_types(Asset)
            | FillRequests(
                items=embed.items_per_request, size_bytes=embed.batch_bytes, max_buffering_s=self._max_buffering_s
            )
            | "FromAssets" >> beam.Map(query_of).with_output_types(Query)
        )
        vectors = queries | "WithVectors" >> beam.Filter(has_vector).with_output_types(Query)
        return (filled, vectors) | "JoinQueries" >> beam.Flatten()

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
    config = config_of("embed", EmbedConfig, embed, "SearchCatalog")
    stated = {name: value for name, value in config.model_dump(mode="json").items() if name in config.model_fields_set}
    if fixed := [name for name in ("dialect", "model", "dimension", "input_type") if name in stated]:
        raise ConfigError(f"SearchCatalog: embed must not have {fixed[0]}, which the catalog determines.")
    return stated
