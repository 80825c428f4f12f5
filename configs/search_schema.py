"""The schema of a bulk search: queries from wherever a run can read them, and what is wanted of the hits."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .schema import AssetKind, GateConfig, Location, Positive, PositiveInt, Section, SourceConfig

SAME = "same"
"""The `assets.catalog` that stands for the catalog that is searched."""

AssetColumn = Literal["uri", "text", "media_type", "size_bytes", "width", "height", "content_sha256", "fingerprint"]


class VectorQueries(Section):
    """Queries whose vectors are there already."""

    files: Location = Field(
        description="Parquet files with `id`, `kind` and vectors: a folder of them, or one; any fsspec URL."
    )
    embedding: str | None = Field(None, description="The column of vectors; absent: `embedding` or `vector`.")


class AssetQueries(Section):
    """Assets of a catalog as queries, by the vectors that they have there."""

    catalog: Location = Field(
        SAME, description="A catalog's path or URL; `same`: the one that is searched, which finds near-duplicates."
    )
    kind: AssetKind | None = Field(None, description="Absent: both.")
    ids: Location | None = Field(
        None, description="A csv, jsonl or parquet table with the ids of the assets; absent: every asset of the kind."
    )
    id: str = Field("id", description="The column of `ids` that has them.")

    @model_validator(mode="after")
    def _check(self) -> "AssetQueries":
        if self.ids is not None and self.kind is None:
            raise ValueError("has `ids` and must name their `kind`: an id is unique within its kind only")
        return self


class HitsConfig(Section):
    """What is looked for, and what is told of what was found."""

    k: Annotated[int, Field(ge=1, le=10_000)] = Field(10, description="Hits for each query at most.")
    kinds: Annotated[tuple[AssetKind, ...], Field(min_length=1)] | None = Field(
        None, description="Look only among these; absent: all that the catalog has."
    )
    where: dict[str, Any] | None = Field(
        None, description='A condition on the assets, such as {"lang": "id", "price": {"$lt": 10}}.'
    )
    merge: Literal["score", "quota", "standardised"] = Field(
        "score", description="How hits of both kinds are put in one order: see docs/searching.md."
    )
    recall: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="The cheapest way to search that has reached this recall; absent: as the catalog was tuned."
    )
    min_score: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        None, description="Hits with a lower inner product are left out."
    )
    columns: tuple[AssetColumn, ...] = Field(("uri",), description="Columns of the assets that hits have.")
    metadata: tuple[str, ...] = Field((), description="Metadata columns that hits have.")
    exclude_self: bool = Field(
        True, description="An asset of the catalog that is searched is not among its own hits, if it is the query."
    )
    pairs_once: bool = Field(
        False, description="Of a pair of assets that find each other, keep the hit of the one with the smaller id."
    )


class SearchJob(Section):
    """One bulk search: queries in, Parquet of hits out."""

    catalog: Location = Field(description="What is searched: a path or an fsspec URL.")
    version: str | None = Field(None, description="Absent: the version in force.")
    output: Location = Field(description="A folder for the hits, of this job alone: a path or an fsspec URL.")
    queries: tuple[SourceConfig, ...] = Field(
        (), description="Texts and pictures, as `sources` of a run; embedded with the catalog's model."
    )
    vectors: tuple[VectorQueries, ...] = Field((), description="Queries whose vectors are there already.")
    assets: tuple[AssetQueries, ...] = Field((), description="Assets of this or another catalog.")
    search: HitsConfig = HitsConfig()
    embed: dict[str, Any] = Field(
        default_factory=dict,
        description="How the API is asked, as in a run (base_url, api_key_env, requests_per_minute, budget, …). What "
        "decides a vector is the catalog's: dialect, model, dimension.",
    )
    gates: GateConfig = Field(
        GateConfig(), description="`max_dead_share`: of the queries, as in a run; beyond it the result is held back."
    )
    block_queries: PositiveInt = Field(
        2048, description="Queries that are searched together, and finished or done again together."
    )
    worker_index_mb: Positive = Field(
        50_000,
        description="Index files that a worker opens at most, on its local disk. Of a larger catalog each worker "
        "searches its share of the files, and what they found is merged.",
    )
    keep_results: PositiveInt = Field(2, description="Results that stay in `output`, the newest.")
    runner: str = Field("FnApiRunner", description="A Beam runner. Its own options follow `--` on the command line.")

    @model_validator(mode="after")
    def _check(self) -> "SearchJob":
        if not (self.queries or self.vectors or self.assets):
            raise ValueError("must have queries: at least one entry in `queries`, `vectors` or `assets`")
        for i, source in enumerate(self.queries):
            if source.metadata:
                raise ValueError(f"has queries[{i}].metadata, which hits do not carry: join it by query_id afterwards")
        if self.search.pairs_once and not (self.assets and not self.queries and not self.vectors):
            raise ValueError("has search.pairs_once, which goes with `assets` alone")
        if self.search.pairs_once and any(entry.catalog != SAME for entry in self.assets):
            raise ValueError("has search.pairs_once, which goes with assets of the `same` catalog")
        return self
