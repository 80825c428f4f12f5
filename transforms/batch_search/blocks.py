"""Search one block of queries and write its hits as one Parquet file.

This module does not use Beam. Each process opens the catalog once and maps each of its files once, for any number of
blocks. If the catalog is too large for one worker, each worker opens one group of index files, and the hits of all
groups are merged block by block.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...configs import AssetKind, EmbedConfig
from ...configs.search_schema import SearchJob
from ...index.ann.parts import IndexPart
from ...index.search.catalog import MAX_K
from ...index.search.merge import Merged
from ...index.storage.store import Store
from ...index.vectors.units import dead_letter_table
from ...index.versions.layout import DeadLetter, metadata_type
from ..query.many_queries import (
    Answers,
    Found,
    Searched,
    SearchOptions,
    acquire_catalog,
    merge_groups,
    release_catalog,
    search_all,
    search_group,
)
from ..versions.imports import VectorFolder
from ..workers.run_folder import RunFolder
from .query_blocks import QUERY_SCHEMA, Block, Queries, read_queries

RESULTS = "results"
_FOOTER = b"epithre_beam.hits"
_ASSET_TYPES = {"size_bytes": pa.int64(), "width": pa.int32(), "height": pa.int32()}


@dataclass(frozen=True, kw_only=True)
class SearchSetup:
    """Settings for the workers of a bulk search. Part of the pipeline graph, so it contains no secrets."""

    run: RunFolder
    """The run folder in the job's output."""
    embed: EmbedConfig
    """Settings for embedding the queries."""
    job: SearchJob
    searched: str
    """The catalog version that is searched."""
    result: str
    """The name of the result: a hash of all its inputs."""
    blocks: int
    plan: str | None
    """The file with the queries to embed, if there are any."""
    folders: tuple[VectorFolder, ...]
    """The folders of the job's `vectors`."""
    asked: Mapping[str, int]
    """Number of queries by kind, including those without a vector."""
    requests_spent: int
    """Requests that the launcher sent."""
    metadata_types: Mapping[str, str]
    """Types of the metadata columns in the hits."""
    groups: tuple[tuple[IndexPart, ...], ...] = ()
    """The groups of index files, one group per worker; empty: each worker opens all files."""


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """The counts of a finished block."""

    number: int
    queries: int
    """Queries that were searched."""
    hits: int
    dead: int
    full: int
    """Queries with `k` hits above `min_score`, which may have more; 0 without `min_score`."""
    size_bytes: int


def result_folder(result: str) -> str:
    return f"{RESULTS}/{result}"


def hits_name(result: str, number: int, blocks: int) -> str:
    return f"{result_folder(result)}/hits/part-{number:05d}-of-{blocks:05d}.parquet"


def block_dead_name(result: str, number: int | str) -> str:
    number = number if isinstance(number, str) else f"{number:05d}"
    return f"{result_folder(result)}/dead_letters/dead-{number}.parquet"


def hits_schema(job: SearchJob, metadata_types: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a result: columns of the query, of the asset, and the chosen columns of the job."""
    fields = [
        *QUERY_SCHEMA,
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("asset_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        *(pa.field(name, _ASSET_TYPES.get(name, pa.string())) for name in job.search.columns),
    ]
    struct = metadata_type(metadata_types)
    return pa.schema([*fields, *([] if struct is None else [pa.field("metadata", struct)])])


def search_block(block: Block, setup: SearchSetup) -> BlockRecord:
    """Search a block and write its hits. If its hits exist already, return their record.

    Raises:
        CatalogError: When the catalog cannot be opened.
        DamagedFileError: When a file of vectors is damaged.
    """
    job, output = setup.job, Store(setup.job.output)
    if (done := find_done(block, setup)) is not None:
        return done
    queries = read_queries(block, output, setup.plan, setup.folders)
    options = options_of(job)
    catalog = acquire_catalog(options, setup.searched)
    try:
        answers = search_all(catalog, queries.vectors, _width(queries, job), block.kind, options)
        return _write(block, setup, queries, answers)
    finally:
        release_catalog(catalog)


def search_parts(number: int, blocks: Iterable[Block], setup: SearchSetup) -> Iterator[tuple[int, Found]]:
    """Search blocks in one group of index files and yield (block number, hits).

    Raises:
        CatalogError: When a file cannot be opened.
        DamagedFileError: When a file of vectors is damaged.
    """
    job, output = setup.job, Store(setup.job.output)
    options = options_of(job)
    for block in sorted(blocks, key=lambda block: block.number):
        queries = read_queries(block, output, setup.plan, setup.folders)
        yield block.number, search_group(number, _searched(setup), queries.vectors, _width(queries, job), options)


def merge_block(block: Block, parts: Iterable[Found], setup: SearchSetup) -> BlockRecord:
    """Merge the hits of a block from all groups and write them. If its hits exist already, return their record."""
    job, output = setup.job, Store(setup.job.output)
    if (done := find_done(block, setup)) is not None:
        return done
    queries = read_queries(block, output, setup.plan, setup.folders)
    k, options = _width(queries, job), options_of(job)
    answers = merge_groups(len(queries.vectors), parts, _searched(setup), k, block.kind, options)
    return _write(block, setup, queries, answers)


def find_done(block: Block, setup: SearchSetup) -> BlockRecord | None:
    """Return the record of a finished block; None if there is no valid file or if more of its queries have vectors."""
    output, name = Store(setup.job.output), hits_name(setup.result, block.number, setup.blocks)
    size = output.size(name)
    if size is None:
        return None
    try:
        with output.open_read(name) as file:
            reported = orjson.loads((pq.read_metadata(file).metadata or {})[_FOOTER])
    except (pa.ArrowException, KeyError, ValueError):
        return None
    if reported.pop("asked") != block.rows:
        return None
    return BlockRecord(**{**reported, "size_bytes": size})


def _write(block: Block, setup: SearchSetup, queries: Queries, answers: Answers) -> BlockRecord:
    output, name = Store(setup.job.output), hits_name(setup.result, block.number, setup.blocks)
    if queries.dead:
        write_dead_letters(output, block_dead_name(setup.result, block.number), queries.dead)
    table, full = _table(queries, answers.merged, answers.assets, setup)
    record = BlockRecord(
        number=block.number,
        queries=len(queries.vectors),
        hits=len(table),
        dead=len(queries.dead),
        full=full,
        size_bytes=0,
    )
    footer = orjson.dumps({"asked": block.rows, **asdict(record)})
    with output.open_write(name) as file:
        table = table.replace_schema_metadata({_FOOTER: footer})
        pq.write_table(table, pa.PythonFile(file, mode="w"), compression="zstd", write_page_checksum=True)
    pa.default_memory_pool().release_unused()
    return BlockRecord(**{**asdict(record), "size_bytes": output.size(name) or 0})


def write_dead_letters(output: Store, name: str, letters: Iterable[DeadLetter]) -> None:
    with output.open_write(name) as file:
        pq.write_table(dead_letter_table(list(letters)), pa.PythonFile(file, mode="w"), write_page_checksum=True)


def options_of(job: SearchJob) -> SearchOptions:
    """Return what a job searches, as `SearchCatalog` states it."""
    wanted = job.search
    return SearchOptions(
        url=job.catalog,
        k=wanted.k,
        kinds=None if wanted.kinds is None else tuple(wanted.kinds),
        where=wanted.where,
        merge=wanted.merge,
        recall=wanted.recall,
        worker_index_mb=None,  # the launcher has chosen the groups
        follow_every_s=None,
    )


def _searched(setup: SearchSetup) -> Searched:
    return Searched(version=setup.searched, groups=setup.groups)


def _width(queries: Queries, job: SearchJob) -> int:
    """Return the number of hits to search for: one more if a query can find itself."""
    spare = job.search.exclude_self and bool(queries.is_same.any())
    return min(job.search.k + spare, MAX_K)


def _table(
    queries: Queries, merged: Merged, tables: Mapping[AssetKind, pa.Table], setup: SearchSetup
) -> tuple[pa.Table, int]:
    """Return the hits as rows, and the number of queries that may have more hits above `min_score`."""
    wanted = setup.job.search
    schema = hits_schema(setup.job, setup.metadata_types)
    keep = merged.rows >= 0
    if wanted.min_score is not None:
        keep &= merged.scores >= wanted.min_score
    query_of, column = np.nonzero(keep)
    assets = _take(tables, merged, query_of, column, schema)
    asked = queries.table.take(pa.array(query_of))
    if wanted.exclude_self and queries.is_same.any():
        is_self = pc.and_(
            pc.equal(asked.column("query_id"), assets.column("asset_id")),
            pc.equal(asked.column("query_kind"), assets.column("kind")),
        ).to_numpy(zero_copy_only=False)
        keep_rows = ~(is_self & queries.is_same[query_of])
    else:
        keep_rows = np.ones(len(query_of), bool)
    ranks = _ranks(query_of, keep_rows)
    keep_rows &= ranks <= wanted.k
    full = 0
    if wanted.min_score is not None:
        full = int((np.bincount(query_of[keep_rows], minlength=len(queries.vectors)) == wanted.k).sum())
    if wanted.pairs_once:
        keep_rows &= _is_first_of_pair(asked, assets)
    chosen = pa.array(keep_rows)
    columns = dict(zip(asked.column_names, asked.columns, strict=True))
    columns |= dict(zip(assets.column_names, assets.columns, strict=True))
    columns["rank"] = pa.array(ranks, pa.int32())
    columns["score"] = pa.array(merged.scores[query_of, column])
    return pa.table([columns[field.name] for field in schema], schema=schema).filter(chosen), full


def _ranks(query_of: npt.NDArray[np.int64], keep: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the rank of each kept hit among the hits of its query, from 1. `query_of` must be sorted."""
    kept_before: npt.NDArray[np.int64] = np.cumsum(keep) - keep
    starts = np.searchsorted(query_of, query_of, side="left")
    base: npt.NDArray[np.int64] = kept_before[starts] if len(starts) else kept_before
    return kept_before - base + 1


def _is_first_of_pair(asked: pa.Table, assets: pa.Table) -> npt.NDArray[np.bool_]:
    """Return whether (kind, id) of the query sorts before (kind, id) of the asset."""
    ids = pc.less(asked.column("query_id"), assets.column("asset_id"))
    same = pc.equal(asked.column("query_kind"), assets.column("kind"))
    kinds = pc.less(asked.column("query_kind"), assets.column("kind"))
    first: npt.NDArray[np.bool_] = pc.or_(kinds, pc.and_(same, ids)).to_numpy(zero_copy_only=False)
    return first


def _take(
    assets_of: Mapping[AssetKind, pa.Table],
    merged: Merged,
    query_of: npt.NDArray[np.int64],
    column: npt.NDArray[np.int64],
    schema: pa.Schema,
) -> pa.Table:
    """Return the assets of the hits, in the order of the hits, with the columns in `schema`."""
    of_kind, rows = merged.kinds[query_of, column], merged.rows[query_of, column]
    tables, places = [], []
    for number, assets in enumerate(assets_of.values()):
        here = np.flatnonzero(of_kind == number)
        wanted = [name for name in schema.names if name in assets.column_names]
        taken = assets.select(wanted).take(pa.array(rows[here]))
        if "metadata" in wanted:
            struct = schema.field("metadata").type
            whole = pa.concat_arrays(taken.column("metadata").chunks) if len(taken) else pa.array([], struct)
            cells = [pc.struct_field(whole, field.name) for field in struct]
            chosen = pa.StructArray.from_arrays(cells, fields=list(struct))
            taken = taken.set_column(taken.column_names.index("metadata"), "metadata", chosen)
        tables.append(taken)
        places.append(here)
    if len(tables) == 1:
        return tables[0]
    return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places), kind="stable")))
