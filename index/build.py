"""From a version's Parquet files to its indexes: train, add file by file, choose how to ask them, measure.

Three steps that a runner may spread over workers. `train_indexes` looks at a sample and says what is to be built.
`add_rows` streams the rows of one index file past once: what it holds of each is its projection and its code, the
vectors go to disk as fp16. `finish_index` puts the files of a kind together, and chooses by measured recall.
"""

import io
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ..configs import IndexConfig
from .codes import (
    LEAST_ROWS,
    Coded,
    Projected,
    build_codes,
    bytes_a_row,
    cells_for,
    code_rows,
    open_index,
    search_codes,
    write_codes,
)
from .distribution import NORM_TOLERANCE, Distribution, norm_deviations, norms_distribution
from .exact import FACTORY, ExactIndexWriter, check_format, read_rows, search_stored
from .layout import assets_name, codes_name, index_name, model_name, version_folder
from .manifest import CatalogError, FileEntry, IndexEntry, OperatingPoint
from .marks import remember
from .projection import fit_axes
from .queries import read_queries
from .sample import Sample, SampleRule, asset_hashes, read_sample
from .shards import ShardRecord, iterate_tables, read_ahead
from .store import HashingWriter, Store
from .truth import (
    NOT_FOUND,
    SCORE_TOLERANCE,
    TIE_CANDIDATES,
    Judged,
    Queries,
    Truth,
    judge_answers,
    merge_judged,
    merged_figures,
    recall_at,
)
from .tune import K_FACTORS, SHARES, FileShape, operating_points, probed_cells
from .units import vectors_of

_ASSETS_BATCH_ROWS = 16_384
_MB = 1_000_000
_FIXED_MB = 640
"""What a worker takes that builds an index file of no rows: Python with its libraries, and blocks of rows."""
_LEAST_ROWS_PER_FILE = 10_000
_BLOCK_ROWS = 2048
_CHEAP_K_FACTOR = 10
_SAMPLE_K_FACTOR = 5


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """An index file to build: consecutive Parquet files of a kind."""

    kind: str
    number: int
    count: int
    shards: tuple[ShardRecord, ...]
    first_row: int
    """The position of its first row among those of its kind."""
    with_codes: bool


@dataclass(frozen=True, kw_only=True)
class AssetsTask:
    """A kind's table of assets to write."""

    kind: str
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What an index file answered to queries of one kind."""

    query_kind: str
    judged: Judged
    truth: Truth
    """Without its rows: how the scores are distributed."""


@dataclass(frozen=True, kw_only=True)
class AddedRows:
    """An index file that was built."""

    kind: str
    number: int
    shape: FileShape
    files: tuple[FileEntry, ...]
    """As named in the store: the vectors, and the codes if it has any."""
    directions: tuple[Direction, ...]
    norms: Distribution
    seconds: float


@dataclass(frozen=True, kw_only=True)
class WrittenAssets:
    """A kind's table of assets that was written."""

    kind: str
    file: FileEntry


@dataclass(frozen=True, kw_only=True)
class BuiltIndex:
    """A kind's index and the files that it consists of."""

    entry: IndexEntry
    files: tuple[FileEntry, ...]
    seconds: float
    """Spent on its files, together."""


def has_codes(rows: int, dimension: int, settings: IndexConfig) -> bool:
    """Whether a kind of so many rows is not simply scanned."""
    return rows >= LEAST_ROWS and rows * dimension * 2 > settings.exact_up_to_mb * _MB


def sample_rules(rows: Mapping[str, int], dimension: int, settings: IndexConfig) -> dict[str, SampleRule]:
    """Which rows are to be kept aside when the Parquet files are written, by kind."""
    wanted = settings.recall_queries
    if any(has_codes(count, dimension, settings) for count in rows.values()):
        wanted += settings.training_rows  # every kind has a say in the axes
    return {kind: SampleRule.for_rows(count, wanted, settings.seed) for kind, count in rows.items()}


def rows_per_index(dimension: int, settings: IndexConfig) -> int:
    """How many rows an index file may have, by the settings and the memory.

    Raises:
        CatalogError: When `build_memory_mb` is too little to build any.
    """
    widest = _dimensions(dimension, settings)
    # Axes and queries, their products with a row group, and what trains the axes.
    fixed_mb = _FIXED_MB + (4 * dimension * (2 * settings.training_rows + 2 * dimension) + 4 * 512 * dimension) / _MB
    each = bytes_a_row(widest)
    least_mb = math.ceil(fixed_mb + _LEAST_ROWS_PER_FILE * each / _MB)
    if settings.build_memory_mb < least_mb:
        raise CatalogError(
            f"index.build_memory_mb must be at least {least_mb} to build an index of {dimension} dimensions with "
            f"training_rows {settings.training_rows}, got {settings.build_memory_mb}: raise it, or exact_up_to_mb."
        )
    return min(settings.rows_per_index, int((settings.build_memory_mb - fixed_mb) * _MB / each))


def _dimensions(dimension: int, settings: IndexConfig) -> list[int]:
    return sorted({min(size, dimension) for size in settings.dimensions})


def train_indexes(
    store: Store, version: str, shards: Sequence[ShardRecord], dimension: int, settings: IndexConfig
) -> list[IndexTask | AssetsTask]:
    """Fits the axes of the catalog, draws the queries, and says what is to be built.

    The queries are rows that train nothing. What was fitted is left in the run's folder for the next steps.

    Raises:
        CatalogError: When the settings leave too little memory, the file of queries is none, or a row is no unit
            vector of that dimension.
    """
    check_format(dimension)
    rows = {kind: sum(s.rows for s in _of_kind(shards, kind)) for kind in sorted({s.kind for s in shards})}
    coded = [kind for kind in rows if has_codes(rows[kind], dimension, settings)]
    limit = rows_per_index(dimension, settings) if coded else settings.rows_per_index
    given = read_queries(settings.queries, dimension) if settings.queries else {}
    model: dict[str, npt.NDArray[Any]] = {}
    training: dict[str, Sample] = {}
    queries = []
    for kind in sorted({*rows, *given}):
        drawn_rows, vectors = np.empty(0, np.int64), np.empty((0, dimension), np.float32)
        if rows.get(kind):
            wanted = settings.recall_queries + (settings.training_rows if coded else 0)
            files = [(s.sample, s.rows) for s in _of_kind(shards, kind)]
            sample = read_sample(store, kind, files, wanted)
            if len(sample.rows):
                _checked_deviations(sample.vectors, sample.rows, kind, dimension)
            drawn_rows, vectors = sample.rows[: settings.recall_queries], sample.vectors[: settings.recall_queries]
            training[kind] = sample.without(settings.recall_queries) if len(sample.rows) == wanted else sample
        if kind in given:
            drawn_rows = np.concatenate([drawn_rows, np.full(len(given[kind]), -1)])
            vectors = np.concatenate([vectors, given[kind]])
        model[f"rows_{kind}"], model[f"vectors_{kind}"] = drawn_rows, vectors
        queries.append(Queries(kind=kind, rows=drawn_rows, vectors=vectors))
    axes = np.empty((0, dimension), np.float32)
    if coded:
        axes = fit_axes([s.vectors for s in training.values()], _dimensions(dimension, settings)[-1], settings.seed)
        axes = axes[: _axes_needed(axes, {kind: training[kind] for kind in coded}, queries, settings)]
    model["axes"] = axes
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **model)
    store.write(model_name(version), data.getvalue())
    tasks: list[IndexTask | AssetsTask] = []
    for kind in rows:
        groups = list(_grouped(_of_kind(shards, kind), limit))
        first = 0
        for number, group in enumerate(groups):
            tasks.append(
                IndexTask(
                    kind=kind,
                    number=number,
                    count=len(groups),
                    shards=tuple(group),
                    first_row=first,
                    with_codes=kind in coded,
                )
            )
            first += sum(s.rows for s in group)
        tasks.append(AssetsTask(kind=kind, shards=tuple(_of_kind(shards, kind))))
    return tasks


def _checked_deviations(
    vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], kind: str, dimension: int
) -> npt.NDArray[np.float64]:
    """How far norms are from 1; a row that is no unit vector would win every search, or none, or poison the axes.

    Raises:
        CatalogError: With the first such row.
    """
    if vectors.shape[1] != dimension:
        raise CatalogError(
            f"The {kind} vectors must have {dimension} numbers, those of row {rows[0]} ff. have {vectors.shape[1]}: "
            "vectors of another model need a catalog of their own."
        )
    with np.errstate(invalid="ignore"):  # of infinity
        deviations = norm_deviations(vectors)
    bad = np.flatnonzero(~(deviations <= np.log10(NORM_TOLERANCE)))
    if len(bad):
        norm = np.linalg.norm(vectors[bad[0]].astype(np.float64))
        raise CatalogError(
            f"The vector of {kind} row {rows[bad[0]]} must have the norm 1, got {norm:.6g}: what was read is damaged, "
            "or was never checked; `epithre-beam versions verify` names a damaged file."
        )
    return deviations


def _grouped(shards: Sequence[ShardRecord], limit: int) -> Iterator[list[ShardRecord]]:
    """Consecutive files in groups of about the same number of rows, each at most `limit` if its files allow it."""
    total = sum(s.rows for s in shards)
    count = max(1, math.ceil(total / limit))
    group: list[ShardRecord] = []
    rows = 0
    for shard in shards:
        held = sum(s.rows for s in group)
        if group and (held + shard.rows > limit or (rows + shard.rows / 2) * count / total >= 1):
            yield group
            group, rows = [], 0
        group.append(shard)
        rows += shard.rows
    yield group


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What `train_indexes` left for the next steps."""

    axes: npt.NDArray[np.float32]
    queries: tuple[Queries, ...]

    @classmethod
    def read(cls, store: Store, version: str) -> "_Model":
        with np.load(io.BytesIO(store.read(model_name(version))), allow_pickle=False) as model:
            kinds = sorted(name.removeprefix("rows_") for name in model if name.startswith("rows_"))
            queries = (Queries(kind=k, rows=model[f"rows_{k}"], vectors=model[f"vectors_{k}"]) for k in kinds)
            return cls(axes=model["axes"], queries=tuple(q for q in queries if len(q.rows)))


def add_rows(store: Store, version: str, task: IndexTask, dimension: int, settings: IndexConfig) -> AddedRows:
    """Builds one index file: the vectors as fp16 and, where the task says so, their codes; and asks it.

    Raises:
        CatalogError: When a row is no unit vector of that dimension.
    """
    started = time.monotonic()
    model = _Model.read(store, version)
    rows = sum(s.rows for s in task.shards)
    keep = settings.recall_k + TIE_CANDIDATES
    truths = [Truth(queries, keep, is_same_kind=queries.kind == task.kind) for queries in model.queries]
    axes = model.axes if task.with_codes else model.axes[:0]
    projected = np.empty((rows, len(axes)), np.float16)
    hashes = np.empty(rows if task.with_codes else 0, np.uint64)
    norms = norms_distribution()
    # One product for the axes and all queries: the wider it is, the faster.
    sides = np.concatenate([axes, *(queries.vectors for queries in model.queries)]).T
    name = index_name(version, task.kind, task.number, task.count)
    with store.open_write(name) as file:
        writer = ExactIndexWriter(file, dimension, rows)
        first = 0
        columns = ["asset_id", "embedding"] if task.with_codes else ["embedding"]
        for asset_ids, vectors in _blocks(read_ahead(iterate_tables(store, task.shards, columns)), dimension):
            rows_here = np.arange(first, first + len(vectors)) + task.first_row
            norms.add(_checked_deviations(vectors, rows_here, task.kind, dimension))
            writer.add(vectors)
            products = vectors @ sides
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
    files = [_entry(store, name, file, rows)]
    shape = FileShape(rows=rows, dimension=dimension)
    if task.with_codes and rows >= LEAST_ROWS:
        order = np.argsort(hashes, kind="stable")
        held = Projected(vectors=projected, order=order, axes=axes, seed=settings.seed)
        codes, shape = _build_best(held, truths, task, settings)
        name_codes = codes_name(version, task.kind, task.number, task.count)
        with store.open_write(name_codes) as codes_file:
            write_codes(codes, codes_file.write)
        del codes, held, projected
        files.append(_entry(store, name_codes, codes_file, rows))
        judged = _ask_codes(store, files, truths, task, shape, settings)
    else:
        judged = _ask_exactly(store, name, truths, task, settings)
    return AddedRows(
        kind=task.kind,
        number=task.number,
        shape=shape,
        files=tuple(files),
        directions=tuple(
            Direction(query_kind=t.queries.kind, judged=j, truth=_figures_only(t))
            for t, j in zip(truths, judged, strict=True)
        ),
        norms=norms,
        seconds=time.monotonic() - started,
    )


def _blocks(tables: Iterable[pa.Table], dimension: int) -> Iterator[tuple[list[str], npt.NDArray[np.float32]]]:
    """Asset ids, if they are there, and vectors, float32, (rows, dimension), valid until the next ones are taken.

    Longer than a row group: the threads of a matrix product wait for each other at its end.
    """
    buffer = np.empty((_BLOCK_ROWS, dimension), np.float32)
    asset_ids: list[str] = []
    held = 0
    for table in tables:
        vectors = vectors_of(table)
        if vectors.shape[1] != dimension:
            raise CatalogError(f"all vectors must have {dimension} dimensions, got {vectors.shape[1]}.")
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
    held: Projected, truths: Sequence[Truth], task: IndexTask, settings: IndexConfig
) -> tuple[Any, FileShape]:
    """The codes of the fewest dimensions whose candidates keep the recall, in cells if there are many rows."""
    rows, dimension = len(held.vectors), held.axes.shape[1]
    sizes = [size for size in _dimensions(dimension, settings) if size <= len(held.axes)]
    coded = _fewest_dimensions(held, truths, sizes, _CHEAP_K_FACTOR, task.first_row, settings)
    shape = FileShape(rows=rows, dimension=dimension, code_dimension=coded.dimension, cells=cells_for(rows))
    return build_codes(held, coded, shape.cells), shape


def _fewest_dimensions(
    held: Projected,
    truths: Sequence[Truth],
    sizes: Sequence[int],
    k_factor: int,
    first_row: int,
    settings: IndexConfig,
) -> Coded:
    """The codes of the smallest of `sizes` with which the right rows are among k x `k_factor` candidates.

    All codes are scanned for it, and must leave room for what scanning some cells will lose: half of what the target
    allows. Where no size does, the last is taken, and more candidates will have to be scored.
    """
    rows, k = len(held.vectors), settings.recall_k
    width = min(k_factor * k, rows)
    for size in sizes[:-1]:
        coded = code_rows(held, size)
        index = build_codes(held, coded, 1)
        reached = 1.0
        for truth in truths:
            found = search_codes(index, truth.queries.vectors, min(width + 1, rows), 1) + first_row
            judged = judge_answers(truth, [found], k, _no_scores)
            reached = min(reached, float(np.nanmean(recall_at(judged, k, width))))
        if reached >= (1 + settings.target_recall) / 2:
            return coded
    return code_rows(held, sizes[-1])


def _axes_needed(
    axes: npt.NDArray[np.float32],
    samples: Mapping[str, Sample],
    queries: Sequence[Queries],
    settings: IndexConfig,
) -> int:
    """How many of the axes the indexes will use, as far as a sample can tell.

    With fewer candidates than will be scored: among all rows, the best lie closer together than in a sample. Where it
    tells too few, recall is kept by scoring more candidates, as measured then.
    """
    needed = 0
    sizes = _dimensions(axes.shape[1], settings)
    for kind, sample in samples.items():
        truths = []
        for asked in queries:
            # The sample has rows of its own, none of which is a query.
            held_out = Queries(kind=asked.kind, rows=np.full(len(asked.rows), -1), vectors=asked.vectors)
            truth = Truth(held_out, settings.recall_k + TIE_CANDIDATES, is_same_kind=asked.kind == kind)
            truth.add(asked.vectors @ sample.vectors.T, 0)
            truths.append(truth)
        held = Projected(
            vectors=(sample.vectors @ axes.T).astype(np.float16),
            order=np.arange(len(sample.rows)),
            axes=axes,
            seed=settings.seed,
        )
        needed = max(needed, _fewest_dimensions(held, truths, sizes, _SAMPLE_K_FACTOR, 0, settings).dimension)
    return needed


def _no_scores(_query: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    return np.full(len(rows), -np.inf, np.float32)


def _ask_codes(
    store: Store,
    files: Sequence[FileEntry],
    truths: Sequence[Truth],
    task: IndexTask,
    shape: FileShape,
    settings: IndexConfig,
) -> list[Judged]:
    """Asks the stored codes in all ways; the last way is the exact scan, as far as the best rows go."""
    k = settings.recall_k
    width = min(K_FACTORS[-1] * k + 1, shape.rows)
    judged = []
    with store.open_read(files[0].name) as vectors, open_index(store, files[1].name) as index:
        for truth in truths:
            queries = truth.queries.vectors

            def stored(q: int, rows: npt.NDArray[np.int64], queries: npt.NDArray[np.float32] = queries) -> Any:
                return read_rows(vectors, shape.dimension, rows - task.first_row) @ queries[q]

            truth.settle()
            answers: list[npt.NDArray[np.int64]] = []
            for share in SHARES:
                if shape.cells == 1 and answers:
                    answers.append(answers[0])
                    continue
                found = search_codes(index, queries, width, probed_cells(share, shape.cells))
                answers.append(np.where(found >= 0, found + task.first_row, -1))
            scores = np.full(truth.rows.shape, -np.inf, np.float32)
            for q, rows in enumerate(truth.rows):
                scores[q, rows >= 0] = stored(q, rows[rows >= 0])
            # What a scan of the file gives first: the best rows by what is stored of them.
            answers.append(np.take_along_axis(truth.rows, np.argsort(-scores, axis=1, kind="stable"), axis=1))
            found_of = judge_answers(truth, answers, k, stored)
            # A row that is stored otherwise is not found, whatever its code says.
            is_other = (truth.rows >= 0) & ~(np.abs(scores - truth.scores) <= SCORE_TOLERANCE)
            found_of.ranks[:, :, : truth.keep][:, is_other] = NOT_FOUND
            judged.append(found_of)
    return judged


def _ask_exactly(
    store: Store, name: str, truths: Sequence[Truth], task: IndexTask, settings: IndexConfig
) -> list[Judged]:
    """Scans the stored file. A reader maps it whole; here memory must not grow with it."""
    k = settings.recall_k
    queries = np.concatenate([truth.queries.vectors for truth in truths])
    with store.open_read(name) as file:
        scores, rows = search_stored(file, queries, k + 1)
    judged, first = [], 0
    for truth in truths:
        part = slice(first, first + len(truth.queries.rows))
        first = part.stop
        found, of_found = rows[part] + task.first_row, scores[part]

        def stored(q: int, asked: npt.NDArray[np.int64], found: Any = found, of_found: Any = of_found) -> Any:
            return of_found[q][[int(np.flatnonzero(found[q] == row)[0]) for row in asked]]

        judged.append(judge_answers(truth, [found], k, stored))
    return judged


def write_assets(store: Store, version: str, task: AssetsTask) -> WrittenAssets:
    """Writes a kind's table of assets: its rows without their vectors, in their order."""
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
    """Puts the files of a kind together and chooses how they are asked."""
    added = sorted(added, key=lambda part: part.number)
    kind, k = assets.kind, settings.recall_k
    shapes = [part.shape for part in added]
    by_query_kind = [{d.query_kind: d for d in part.directions} for part in added]
    judged = {
        f"{query_kind}->{kind}": merge_judged([directions[query_kind].judged for directions in by_query_kind])
        for query_kind in by_query_kind[0]
    }
    coded = [shape for shape in shapes if shape.code_dimension]
    points: tuple[OperatingPoint, ...] = ()
    search_parameters: dict[str, float] = {}
    if coded:
        found, chosen = operating_points(judged, shapes, k, settings.target_recall)
        points, recall = tuple(found), chosen.recall
        if chosen.cells_share is not None and chosen.k_factor is not None:
            search_parameters = {"cells_share": chosen.cells_share, "k_factor": chosen.k_factor}
    else:
        means = {direction: recall_at(found, k, k)[-1] for direction, found in judged.items()}
        recall = {d: 1.0 if np.isnan(r).all() else float(np.nanmean(r)) for d, r in means.items()}
    norms = norms_distribution()
    for part in added:
        norms.merge(part.norms)
    prefix = version_folder(version) + "/"
    names = [[file.name.removeprefix(prefix) for file in part.files] for part in added]
    rows = sum(shape.rows for shape in shapes)
    dimension = shapes[0].dimension
    entry = IndexEntry(
        kind=kind,
        files=tuple(of_part[0] for of_part in names),
        codes=tuple(of_part[1] if len(of_part) > 1 else None for of_part in names) if coded else (),
        assets=assets.file.name.removeprefix(prefix),
        rows=rows,
        factory=f"{_codes_factory(coded[0])},Refine({FACTORY})" if coded else FACTORY,
        search_parameters=search_parameters,
        operating_points=points,
        resident_bytes=sum(part.files[1].size_bytes for part in added if len(part.files) > 1)
        if coded
        else rows * dimension * 2,
        recall_k=k,
        recall=recall,
        scores={
            f"{query_kind}->{kind}": merged_figures([directions[query_kind].truth for directions in by_query_kind])
            for query_kind in by_query_kind[0]
        },
        norms=norms.histogram(),
    )
    files = (*(file for part in added for file in part.files), assets.file)
    return BuiltIndex(entry=entry, files=files, seconds=sum(part.seconds for part in added))


def _codes_factory(shape: FileShape) -> str:
    """As `faiss.index_factory` would have it, but for the transform, which has no bias."""
    return f"LT{shape.code_dimension},IVF{shape.cells},PQ{shape.code_dimension}x4fs"


def build_indexes(
    store: Store, version: str, shards: Sequence[ShardRecord], dimension: int, settings: IndexConfig
) -> list[BuiltIndex]:
    """All three steps, one after the other."""
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


def _of_kind(shards: Sequence[ShardRecord], kind: str) -> list[ShardRecord]:
    return sorted((s for s in shards if s.kind == kind), key=lambda s: s.shard)


def _entry(store: Store, name: str, file: HashingWriter, rows: int) -> FileEntry:
    if store.is_local:
        remember(store.local_path(name), file.sha256)  # who opens it on this machine need not hash it again
    return FileEntry(name=name, size_bytes=file.size_bytes, sha256=file.sha256, rows=rows)
