"""The schema of a bulk search: where the queries come from, and which hits to return."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .schema import AssetKind, GateConfig, Location, Positive, PositiveInt, Section, SourceConfig

SAME = "same"
"""The value of `assets.catalog` that means the searched catalog."""

AssetColumn = Literal["uri", "text", "media_type", "size_bytes", "width", "height", "content_sha256", "fingerprint"]


class VectorQueries(Section):
    """Queries that already have vectors."""

    files: Location = Field(
        description="Parquet files with `id`, `kind` and a column of vectors: a file or a folder, as a path or an "
        "fsspec URL."
    )
    embedding: str | None = Field(None, description="The column of vectors. Absent: `embedding` or `vector`.")


class AssetQueries(Section):
    """Assets of a catalog as queries, with their vectors from the catalog."""

    catalog: Location = Field(
        SAME, description="A catalog's path or URL. `same`: the searched catalog, which finds near-duplicates."
    )
    kind: AssetKind | None = Field(None, description="The kind of the assets. Absent: both kinds.")
    ids: Location | None = Field(
        None,
        description="A CSV, JSON Lines or Parquet table with the ids of the assets. Absent: every asset of the kind.",
    )
    id: str = Field("id", description="The column of the table `ids` that has the ids.")

    @model_validator(mode="after")
    def _check(self) -> "AssetQueries":
        if self.ids is not None and self.kind is None:
            raise ValueError("`ids` needs `kind`, because an id is unique only within its kind. Set `kind`")
        return self


class HitsConfig(Section):
    """Which hits to find, and which of their columns to write."""

    k: Annotated[int, Field(ge=1, le=10_000)] = Field(10, description="Maximum hits per query.")
    kinds: Annotated[tuple[AssetKind, ...], Field(min_length=1)] | None = Field(
        None, description="The kinds to search. Absent: all kinds of the catalog."
    )
    where: dict[str, Any] | None = Field(
        None, description='A filter on metadata, such as {"lang": "id", "price": {"$lt": 10}}.'
    )
    merge: Literal["score", "quota", "standardised"] = Field(
        "score", description="How hits of both kinds are merged into one order: see docs/searching.md."
    )
    recall: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="Use the cheapest index settings that reached this recall. Absent: the catalog's tuned settings.",
    )
    min_score: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        None, description="Minimum inner product of a hit. Hits below it are dropped."
    )
    columns: tuple[AssetColumn, ...] = Field(("uri",), description="Asset columns to add to each hit.")
    metadata: tuple[str, ...] = Field((), description="Metadata columns to add to each hit.")
    exclude_self: bool = Field(True, description="Drop the query asset itself from its hits.")
    pairs_once: bool = Field(
        False, description="Of two assets that find each other, keep only the hit of the asset with the smaller id."
    )


class SearchJob(Section):
    """A bulk search: its queries, and the Parquet files of hits it writes."""

    catalog: Location = Field(description="The catalog to search: a path or an fsspec URL.")
    version: str | None = Field(None, description="The version to search. Absent: the current version.")
    output: Location = Field(description="The folder for the hits, used by this job only: a path or an fsspec URL.")
    queries: tuple[SourceConfig, ...] = Field(
        (), description="Texts and images, as the `sources` of a run. They are embedded with the catalog's model."
    )
    vectors: tuple[VectorQueries, ...] = Field((), description="Queries that already have vectors.")
    assets: tuple[AssetQueries, ...] = Field((), description="Assets of this or another catalog as queries.")
    search: HitsConfig = HitsConfig()
    embed: dict[str, Any] = Field(
        default_factory=dict,
        description="How requests to the API are sent, as in a run (base_url, api_key_env, requests_per_minute, "
        "rate_limiter, …). The catalog sets the keys that determine a vector: dialect, model, dimension.",
    )
    gates: GateConfig = Field(
        GateConfig(),
        description="`max_dead_share`: maximum dead letters as a share of the queries. A result above it is held back "
        "by a gate.",
    )
    block_queries: PositiveInt = Field(
        2048, description="Queries per block, which is searched and finished or repeated as a whole."
    )
    worker_index_mb: Positive = Field(
        50_000,
        description="Maximum size of the index files that a worker opens on its local disk. In a larger catalog each "
        "worker searches a share of the files, and the hits are merged.",
    )
    keep_results: PositiveInt = Field(2, description="How many of the newest results are kept in `output`.")
    runner: str = Field("FnApiRunner", description="The Beam runner. Its options follow `--` on the command line.")

    @model_validator(mode="after")
    def _check(self) -> "SearchJob":
        if not (self.queries or self.vectors or self.assets):
            raise ValueError("there are no queries. Add an entry to `queries`, `vectors` or `assets`")
        for i, source in enumerate(self.queries):
            if source.metadata:
                raise ValueError(
                    f"queries[{i}].metadata is set, but hits have no metadata of their query. Remove it, and join the "
                    f"metadata "
                    "to the hits by query_id"
                )
        if self.search.pairs_once and not (self.assets and not self.queries and not self.vectors):
            raise ValueError("search.pairs_once applies only to `assets`. Remove it, or remove `queries` and `vectors`")
        if self.search.pairs_once and any(entry.catalog != SAME for entry in self.assets):
            raise ValueError(
                "search.pairs_once applies only to assets of the searched catalog. Remove it, or set `catalog: same`"
            )
        return self
