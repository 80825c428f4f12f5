"""Builds a version's indexes from its Parquet files: train, add rows file by file, measure, choose search parameters.

A runner may distribute the three steps over workers. `train_indexes` (train.py) reads a sample and returns the files to
build. `add_rows` streams the rows of one index file once: it keeps the projection and the code of each row in memory
and writes the vectors to disk as fp16. `finish_index` combines the files of a kind and chooses by measured recall.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs import IndexConfig
from ...configs.errors import CatalogError
from ..local.verification_cache import remember
from ..storage.store import HashingWriter, Store
from ..vectors.distribution import Distribution, checked_deviations, norms_distribution
from ..vectors.sample import asset_hashes
from ..vectors.shards import ShardRecord, iterate_tables, read_ahead
from ..vectors.units import vectors_of
from ..versions.layout import assets_name, codes_name, index_name, version_folder
from ..versions.manifest import FileEntry, IndexEntry, OperatingPoint
from .ask_files import ask_codes, ask_exactly, stored_rows
from .codes import LEAST_ROWS, Projected, build_codes, cells_for, write_codes
from .exact import FACTORY, ExactIndexWriter
from .products import product
from .recall import Rated, mean_recall, merge_rated, recall_at
from .train import AssetsTask, IndexTask, Model, code_dimensions, fewest_dimensions, train_indexes
from .truth import TIE_CANDIDATES, Queries, StoredScores, Truth, merged_figures
from .tune import FileShape, operating_points, ties_at

_ASSETS_BATCH_ROWS = 16_384
_BLOCK_ROWS = 2048
_CHEAP_K_FACTOR = 10


@dataclass(frozen=True, kw_only=True)
class Direction:
    """The measured answers of an index file to queries of one kind."""

    query_kind: str
    rated: Rated
    truth: Truth
    """The score distribution only, without rows."""


@dataclass(frozen=True, kw_only=True)
class AddedRows:
    """A built index file."""

    kind: str
    number: int
    shape: FileShape
    vectors: FileEntry
    """Named as in the store."""
    codes: FileEntry | None
    directions: tuple[Direction, ...]
    norms: Distribution
    seconds: float


@dataclass(frozen=True, kw_only=True)
class WrittenAssets:
    """The written assets table of a kind."""

    kind: str
    file: FileEntry


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """The index of a kind and its files."""

    entry: IndexEntry
    files: tuple[FileEntry, ...]
    seconds: float
    """Total build time of its files."""


def add_rows(store: Store, version: str, task: IndexTask, dimension: int, settings: IndexConfig) -> AddedRows:
    """Builds one index file (vectors as fp16 and, if the task asks for them, codes) and measures its recall.

    Raises:
        CatalogError: When a row is not a unit vector of that dimension.
    """
    started = time.monotonic()
    model = Model.read(store, version)
    rows = sum(s.rows for s in task.shards)
    keep = settings.recall_k + TIE_CANDIDATES
    truths = [Truth(queries, keep, is_same_kind=queries.kind == task.kind) for queries in model.queries]
    axes = model.axes if task.with_codes else model.axes[:0]
    projected = np.empty((rows, len(axes)), np.float16)
    hashes = np.empty(rows if task.with_codes else 0, np.uint64)
    norms = norms_distribution()
    # One product for the axes and all queries: a wide product is faster than several narrow ones.
    sides = np.concatenate([axes, *(queries.vectors for queries in model.queries)]).T
    name = index_name(version, task.kind, task.number, task.count)
    with store.open_write(name) as file:
        writer = ExactIndexWriter(file, dimension, rows)
        first = 0
        columns = ["asset_id", "embedding"] if task.with_codes else ["embedding"]
        for asset_ids, vectors in _blocks(read_ahead(iterate_tables(store, task.shards, columns)), dimension):
            rows_here = np.arange(first, first + len(vectors)) + task.first_row
            norms.add(checked_deviations(vectors, rows_here, task.kind, dimension))
            writer.add(vectors)
            products = product(vectors, sides)
            block = slice(first, first + len(vectors))
            projected[block] = products[:, : len(axes)]
            if task.with_codes:
                hashes[block] = asset_hashes(asset_ids, settings.seed)
            begin = len(axes)
            for truth in truths:
                end = begin + len(truth.queries.rows)
                truth.add(np.ascontiguousarray(products[:, begin:end].T), task.first_row + first)
                begin = end
            first = block.stop
        writer.finish()
    pa.default_memory_pool().release_unused()
    stored = _entry(store, name, file, rows)
    stored_codes: FileEntry | None = None
    shape = FileShape(rows=rows, dimension=dimension)
    if task.with_codes and rows >= LEAST_ROWS:
        order = np.argsort(hashes, kind="stable")
        held = Projected(vectors=projected, order=order, axes=axes, seed=settings.seed)
        with stored_rows(store, name, task, dimension) as read:
            scores = [truth.scores_by(read) for truth in truths]
            for truth, of_truth in zip(truths, scores, strict=True):
                truth.compare(of_truth)
            codes, shape = _build_best(held, truths, scores, task, settings)
            name_codes = codes_name(version, task.kind, task.number, task.count)
            with store.open_write(name_codes) as codes_file:
                write_codes(codes, codes_file.write)
            del codes, held, projected
            stored_codes = _entry(store, name_codes, codes_file, rows)
            rated = ask_codes(store, name_codes, truths, scores, task, shape, settings)
    else:
        rated = ask_exactly(store, name, truths, task, settings)
    return AddedRows(
        kind=task.kind,
        number=task.number,
        shape=shape,
        vectors=stored,
        codes=stored_codes,
        directions=tuple(
            Direction(query_kind=t.queries.kind, rated=j, truth=_figures_only(t))
            for t, j in zip(truths, rated, strict=True)
        ),
        norms=norms,
        seconds=time.monotonic() - started,
    )


def _blocks(tables: Iterable[pa.Table], dimension: int) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """Yields asset ids, if present, and vectors (float32, (rows, dimension)) that are valid until the next block.

    Blocks are longer than a row group because the threads of a matrix product wait for each other at its end.
    """
    buffer = np.empty((_BLOCK_ROWS, dimension), np.float32)
    asset_ids: list[str] = []
    held = 0
    for table in tables:
        vectors = vectors_of(table)
        if vectors.shape[1] != dimension:
            raise CatalogError(f"All vectors must have {dimension} dimensions, got {vectors.shape[1]}.")
        names = table.column("asset_id").to_pylist() if "asset_id" in table.schema.names else []
        while len(vectors):
            taken = min(len(vectors), _BLOCK_ROWS - held)
            buffer[held : held + taken] = vectors[:taken]
            asset_ids += names[:taken]
            vectors, names, held = vectors[taken:], names[taken:], held + taken
            if held == _BLOCK_ROWS:
                yield asset_ids, buffer
                asset_ids, held = [], 0
    if held:
        yield asset_ids, buffer[:held]


def _figures_only(truth: Truth) -> Truth:
    empty = Queries(kind=truth.queries.kind, rows=np.empty(0, np.int64), vectors=np.empty((0, 0), np.float32))
    rest = Truth(empty, 0, is_same_kind=truth.is_same_kind)
    rest.total, rest.squares, rest.count, rest.distribution = (
        truth.total,
        truth.squares,
        truth.count,
        truth.distribution,
    )
    return rest


def _build_best(
    held: Projected, truths: Sequence[Truth], stored: Sequence[StoredScores], task: IndexTask, settings: IndexConfig
) -> tuple[Any, FileShape]:
    """Builds the codes with the fewest dimensions that keep the recall, divided into cells if there are many rows."""
    rows, dimension = len(held.vectors), held.axes.shape[1]
    sizes = [size for size in code_dimensions(dimension, settings) if size <= len(held.axes)]
    coded = fewest_dimensions(held, truths, stored, sizes, _CHEAP_K_FACTOR, task.first_row, settings)
    shape = FileShape(rows=rows, dimension=dimension, code_dimension=coded.dimension, cells=cells_for(rows))
    return build_codes(held, coded, shape.cells), shape


def write_assets(store: Store, version: str, task: AssetsTask) -> WrittenAssets:
    """Writes the assets table of a kind: its rows in order, without the vectors."""
    with store.open_read(task.shards[0].file.name) as handle:
        schema = pq.read_schema(handle)
    schema = schema.remove(schema.get_field_index("embedding"))
    name = assets_name(version, task.kind)
    rows, held = 0, []
    with store.open_write(name) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
        for table in iterate_tables(store, task.shards, schema.names):
            held.append(table)
            rows += len(table)
            if sum(map(len, held)) >= _ASSETS_BATCH_ROWS:
                writer.write_table(pa.concat_tables(held).combine_chunks())
                held = []
        if held:
            writer.write_table(pa.concat_tables(held).combine_chunks())
    return WrittenAssets(kind=task.kind, file=_entry(store, name, file, rows))


def finish_index(version: str, added: Sequence[AddedRows], assets: WrittenAssets, settings: IndexConfig) -> BuiltIndex:
    """Combines the files of a kind into one index and chooses its search parameters."""
    added = sorted(added, key=lambda part: part.number)
    kind, k = assets.kind, settings.recall_k
    shapes = [part.shape for part in added]
    by_query_kind = [{d.query_kind: d for d in part.directions} for part in added]
    rated = {
        f"{query_kind}->{kind}": merge_rated([directions[query_kind].rated for directions in by_query_kind])
        for query_kind in by_query_kind[0]
    }
    coded = [shape for shape in shapes if shape.code_dimension]
    points: tuple[OperatingPoint, ...] = ()
    search_parameters: dict[str, float] = {}
    if coded:
        found, chosen = operating_points(rated, shapes, k, settings.target_recall)
        points = tuple(found)
        if chosen.cells_share is not None and chosen.k_factor is not None:
            search_parameters = {"cells_share": chosen.cells_share, "k_factor": chosen.k_factor}
    else:
        recall = {direction: mean_recall(recall_at(found, k, k)[-1]) for direction, found in rated.items()}
        chosen = OperatingPoint(recall=recall, cost_us=0.0)
    norms = norms_distribution()
    for part in added:
        norms.merge(part.norms)
    prefix = version_folder(version) + "/"
    rows = sum(shape.rows for shape in shapes)
    dimension = shapes[0].dimension
    entry = IndexEntry(
        kind=kind,
        files=tuple(part.vectors.name.removeprefix(prefix) for part in added),
        codes=tuple(part.codes and part.codes.name.removeprefix(prefix) for part in added) if coded else (),
        assets=assets.file.name.removeprefix(prefix),
        rows=rows,
        factory=f"{_codes_factory(coded[0])},Refine({FACTORY})" if coded else FACTORY,
        search_parameters=search_parameters,
        operating_points=points,
        resident_bytes=sum(part.codes.size_bytes for part in added if part.codes) if coded else rows * dimension * 2,
        recall_k=k,
        recall=chosen.recall,
        ties=ties_at(rated, k, chosen),
        scores={
            f"{query_kind}->{kind}": merged_figures([directions[query_kind].truth for directions in by_query_kind])
            for query_kind in by_query_kind[0]
        },
        norms=norms.histogram(),
    )
    files = (*(file for part in added for file in (part.vectors, part.codes) if file), assets.file)
    return BuiltIndex(entry=entry, files=files, seconds=sum(part.seconds for part in added))


def _codes_factory(shape: FileShape) -> str:
    """The `faiss.index_factory` string, except that the transform has no bias."""
    return f"LT{shape.code_dimension},IVF{shape.cells},PQ{shape.code_dimension}x4fs"


def build_indexes(
    store: Store, version: str, shards: Sequence[ShardRecord], dimension: int, settings: IndexConfig
) -> list[BuiltIndex]:
    """Runs all three steps in sequence."""
    added, assets = [], {}
    for task in train_indexes(store, version, shards, dimension, settings):
        if isinstance(task, AssetsTask):
            assets[task.kind] = write_assets(store, version, task)
        else:
            added.append(add_rows(store, version, task, dimension, settings))
    return [
        finish_index(version, [part for part in added if part.kind == kind], assets[kind], settings)
        for kind in sorted(assets)
    ]


def _entry(store: Store, name: str, file: HashingWriter, rows: int) -> FileEntry:
    if store.is_local:
        remember(store.local_path(name), file.sha256)  # a reader on this machine does not hash it again
    return FileEntry(name=name, size_bytes=file.size_bytes, sha256=file.sha256, rows=rows)
