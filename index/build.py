"""From old rows and finished units to a version's files: vectors in shards, one index a kind, recall measured.

Everything streams: a block is a row group, and no step holds more than a few of them, so memory does not grow with
the catalog.
"""

import contextlib
import hashlib
import heapq
import itertools
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .distribution import Distribution, norm_deviations, norms_distribution, scores_distribution
from .exact import FACTORY, ExactIndexWriter, check_format, search_stored
from .layout import assets_name, index_name, version_folder
from .manifest import FileEntry, IndexEntry, ScoreFigures
from .store import HashingWriter, Store
from .units import CarriedGroup, UnitRecord, parquet_writer

ROWS_PER_GROUP = 512
"""Of a version's Parquet files, whatever pieces the rows come from: years of small changes leave no small groups."""
_READ_AHEAD = 2
_TIE_CANDIDATES = 100
_SCORE_TOLERANCE = 2e-4  # of a score from fp16 codes
_ASSETS_BATCH_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One Parquet file to write: which rows, in which order."""

    kind: str
    shard: int
    shards: int
    parts: tuple[CarriedGroup | UnitRecord, ...]


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A Parquet file that was written."""

    kind: str
    shard: int
    file: FileEntry
    seconds: float = 0.0
    """That writing it took."""


def plan_shards(parts: Iterable[CarriedGroup | UnitRecord], rows_per_file: int) -> list[ShardTask]:
    """Lays old rows in their order, then units in that of their names, into files of about `rows_per_file` rows."""
    tasks = []
    ordered = sorted(parts, key=_place)
    for kind in sorted({part.kind for part in ordered}):
        files: list[list[CarriedGroup | UnitRecord]] = []
        room = 0
        for part in ordered:
            if part.kind != kind or not part.rows:
                continue
            if room <= 0:
                files.append([])
                room = rows_per_file
            files[-1].append(part)
            room -= part.rows
        tasks += [ShardTask(kind=kind, shard=i, shards=len(files), parts=tuple(file)) for i, file in enumerate(files)]
    return tasks


def _place(part: CarriedGroup | UnitRecord) -> tuple[int, str, int]:
    if isinstance(part, CarriedGroup):
        return 0, part.file, part.group
    return 1, part.unit, 0


def write_tables(
    store: Store, name: str, tables: Iterable[pa.Table], schema: pa.Schema, rows_per_group: int = ROWS_PER_GROUP
) -> FileEntry:
    """Writes a Parquet file of vectors in row groups of one size; the next rows are read meanwhile."""
    rows = 0
    with store.open_write(name) as file, parquet_writer(file, schema) as writer:
        for table in _in_groups(_read_ahead(tables), schema, rows_per_group):
            writer.write_table(table, row_group_size=len(table))
            rows += len(table)
    pa.default_memory_pool().release_unused()
    return _entry(name, file, rows)


def _in_groups(tables: Iterable[pa.Table], schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size`, the last one smaller."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table.select(schema.names).cast(schema))
        count += len(table)
        while count >= size:
            whole = pa.concat_tables(held)
            yield whole.slice(0, size)
            held, count = [whole.slice(size)], count - size
    if count:
        yield pa.concat_tables(held)


def _read_ahead(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same tables, read by a thread of its own while the ones before are written."""
    ready: queue.Queue[pa.Table | BaseException | None] = queue.Queue(_READ_AHEAD)
    stopped = threading.Event()

    def read() -> None:
        last: BaseException | None = None
        try:
            for table in tables:
                _offer(ready, table, stopped)
                if stopped.is_set():
                    return
        except BaseException as error:  # handed to the caller's thread, which raises it
            last = error
        _offer(ready, last, stopped)

    thread = threading.Thread(target=read, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (table := ready.get()) is not None:
            if isinstance(table, BaseException):
                raise table
            yield table
    finally:
        stopped.set()
        thread.join()


def _offer(ready: queue.Queue[Any], value: Any, stopped: threading.Event) -> None:
    is_taken = False
    while not is_taken and not stopped.is_set():
        with contextlib.suppress(queue.Full):
            ready.put(value, timeout=0.1)
            is_taken = True


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Rows of one kind that are used to measure recall."""

    kind: str
    rows: npt.NDArray[np.int64]
    """Their positions among the rows of their kind, ascending."""
    vectors: npt.NDArray[np.float32]
    """float32, (queries, dimension)."""


def sample_queries(store: Store, kind: str, shards: Sequence[ShardRecord], count: int, seed: int) -> Queries:
    """Draws up to `count` rows of `kind`: those whose ids have the lowest hashes.

    So the same assets are drawn whatever the history of the catalog, in which rows change their places.
    """
    lowest: list[tuple[int, int, str, int, int]] = []
    """(hash, row among its kind's, file, row group, row in it)"""
    first = 0
    for shard in _of_kind(shards, kind):
        with store.open_read(shard.file.name) as handle:
            file = pq.ParquetFile(handle, pre_buffer=False)
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["asset_id"], use_threads=False).column(0).to_pylist()
                drawn = ((_drawn(seed, name), first + i, shard.file.name, group, i) for i, name in enumerate(ids))
                lowest = heapq.nsmallest(count, itertools.chain(lowest, drawn))
                first += len(ids)
    lowest.sort(key=lambda place: place[1])
    vectors = []
    for (name, group), places in itertools.groupby(lowest, key=lambda place: place[2:4]):
        with store.open_read(name) as handle:
            table = pq.ParquetFile(handle).read_row_group(group, columns=["embedding"], use_threads=False)
        vectors.append(vectors_of(table)[[place[4] for place in places]])
    rows = np.array([place[1] for place in lowest], np.int64)
    return Queries(kind=kind, rows=rows, vectors=np.concatenate(vectors))


def _drawn(seed: int, asset_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{asset_id}".encode(), digest_size=8).digest(), "little")


@dataclass
class _Truth:
    """The exact answers of some queries, found block by block as the rows stream past."""

    queries: Queries
    keep: int
    scores: npt.NDArray[np.float32] = field(init=False)
    rows: npt.NDArray[np.int64] = field(init=False)
    total: float = 0.0
    squares: float = 0.0
    count: int = 0
    distribution: Distribution = field(default_factory=scores_distribution)

    def __post_init__(self) -> None:
        queries = len(self.queries.rows)
        self.scores = np.empty((queries, 0), np.float32)
        self.rows = np.empty((queries, 0), np.int64)

    def add(self, block: npt.NDArray[np.float32], first_row: int, *, same_kind: bool) -> None:
        scores = self.queries.vectors @ block.T
        self.total += float(scores.sum(dtype=np.float64))
        self.squares += float(np.square(scores, dtype=np.float64).sum())
        self.count += scores.size
        rows = np.broadcast_to(np.arange(first_row, first_row + len(block)), scores.shape)
        if same_kind:  # a query must not find itself
            own = (self.queries.rows >= first_row) & (self.queries.rows < first_row + len(block))
            scores[np.flatnonzero(own), self.queries.rows[own] - first_row] = -np.inf
        self.distribution.add(scores)
        scores = np.concatenate([self.scores, scores], axis=1)
        rows = np.concatenate([self.rows, rows], axis=1)
        if scores.shape[1] > self.keep:
            best = np.argpartition(-scores, self.keep - 1, axis=1)[:, : self.keep]
            scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        self.scores, self.rows = scores, rows

    def recall(
        self, found: npt.NDArray[np.int64], found_scores: npt.NDArray[np.float32], k: int, *, same_kind: bool
    ) -> float:
        """The share of the exact k best that the index returned, equal scores being equally right.

        Equal scores are common: a catalog may hold a thousand copies of one placeholder picture. A row counts when
        its exact score is not below the k-th. A row that is not among the kept candidates is worse than all of them,
        and wrong; only where they all tie with the k-th may it be as good, and is judged by the index's own score.
        """
        hits = possible = 0
        for q in range(len(self.queries.rows)):
            exact = {int(r): float(s) for r, s in zip(self.rows[q], self.scores[q], strict=True) if np.isfinite(s)}
            ranked = sorted(exact.values(), reverse=True)[:k]
            if not ranked:
                continue
            bar = ranked[-1]
            crowded = len(exact) >= self.keep - 1 and min(exact.values()) >= bar - _SCORE_TOLERANCE
            own = int(self.queries.rows[q]) if same_kind else -1
            returned = [
                (int(r), float(s)) for r, s in zip(found[q], found_scores[q], strict=True) if r not in (-1, own)
            ]
            possible += len(ranked)
            hits += sum(
                exact[r] >= bar - 1e-6 if r in exact else crowded and s >= bar - _SCORE_TOLERANCE
                for r, s in returned[: len(ranked)]
            )
        return hits / possible if possible else 1.0

    @property
    def figures(self) -> ScoreFigures:
        mean = self.total / self.count
        std = max(self.squares / self.count - mean * mean, 0.0) ** 0.5
        # Rounded: the order of the rows, which is history, is seen in the last digits of a sum.
        return ScoreFigures(mean=round(mean, 6), std=round(std, 6), histogram=self.distribution.histogram())


def build_index(
    store: Store,
    version: str,
    kind: str,
    shards: Sequence[ShardRecord],
    *,
    dimension: int,
    recall_k: int,
    recall_queries: int,
    seed: int,
) -> tuple[IndexEntry, list[FileEntry]]:
    """Builds a kind's index and its table of assets in one pass over its vectors, then measures its recall.

    Args:
        store: The catalog.
        version: Where the files go.
        kind: Whose index.
        shards: The Parquet files of the version, of every kind: the other kinds give the cross-modal queries.
        dimension: Of the vectors.
        recall_k: Recall is measured at this k.
        recall_queries: Queries drawn from each kind.
        seed: Of the draw.
    """
    check_format(dimension)
    own = _of_kind(shards, kind)
    rows = sum(s.file.rows or 0 for s in own)
    keep = recall_k + _TIE_CANDIDATES
    truths = [
        _Truth(sample_queries(store, k, shards, recall_queries, seed), keep) for k in sorted({s.kind for s in shards})
    ]
    norms = norms_distribution()
    name, assets = index_name(version, kind), assets_name(version, kind)
    schema = _read_schema(store, own[0])
    schema = schema.remove(schema.get_field_index("embedding"))
    with store.open_write(name) as index_file, store.open_write(assets) as assets_file:
        writer = ExactIndexWriter(index_file, dimension, rows)
        with pa.ipc.new_file(pa.PythonFile(assets_file, mode="w"), schema) as assets_writer:
            row, pending = 0, 0
            held: list[pa.Table] = []
            for table in iterate_tables(store, own):
                vectors = vectors_of(table)
                writer.add(vectors)
                norms.add(norm_deviations(vectors))
                for truth in truths:
                    truth.add(vectors, row, same_kind=truth.queries.kind == kind)
                row += len(table)
                held.append(table.select(schema.names))
                pending += len(table)
                if pending >= _ASSETS_BATCH_ROWS:
                    assets_writer.write_table(pa.concat_tables(held).combine_chunks())
                    held, pending = [], 0
            if held:
                assets_writer.write_table(pa.concat_tables(held).combine_chunks())
        writer.finish()
    files = [_entry(name, index_file, rows), _entry(assets, assets_file, rows)]
    recall = _measure(store, name, truths, kind, recall_k)
    prefix = version_folder(version) + "/"
    return (
        IndexEntry(
            kind=kind,
            file=name.removeprefix(prefix),
            assets=assets.removeprefix(prefix),
            rows=rows,
            factory=FACTORY,
            resident_bytes=rows * dimension * 2,
            recall_k=recall_k,
            recall=recall,
            scores={f"{t.queries.kind}->{kind}": t.figures for t in truths},
            norms=norms.histogram(),
        ),
        files,
    )


def _measure(store: Store, name: str, truths: Sequence[_Truth], kind: str, k: int) -> dict[str, float]:
    """Asks the stored file the sampled queries. A reader maps it whole; here memory must not grow with it."""
    queries = np.concatenate([truth.queries.vectors for truth in truths])
    with store.open_read(name) as file:
        scores, rows = search_stored(file, queries, k + 1)
    recall, first = {}, 0
    for truth in truths:
        part = slice(first, first + len(truth.queries.rows))
        same_kind = truth.queries.kind == kind
        recall[f"{truth.queries.kind}->{kind}"] = truth.recall(rows[part], scores[part], k, same_kind=same_kind)
        first = part.stop
    return recall


def iterate_tables(store: Store, shards: Sequence[ShardRecord]) -> Iterator[pa.Table]:
    """The rows of Parquet files, a row group at a time."""
    for shard in shards:
        with store.open_read(shard.file.name) as handle:
            file = pq.ParquetFile(handle, pre_buffer=False)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, use_threads=False)


def vectors_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """The embedding column as float32, (rows, dimension), C-contiguous; a view where Arrow allows."""
    column = table.column("embedding").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    dimension = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, dimension)


def _of_kind(shards: Sequence[ShardRecord], kind: str) -> list[ShardRecord]:
    return sorted((s for s in shards if s.kind == kind), key=lambda s: s.shard)


def _read_schema(store: Store, shard: ShardRecord) -> pa.Schema:
    with store.open_read(shard.file.name) as file:
        return pq.read_schema(file)


def _entry(name: str, file: HashingWriter, rows: int | None) -> FileEntry:
    return FileEntry(name=name, size_bytes=file.size_bytes, sha256=file.sha256, rows=rows)
