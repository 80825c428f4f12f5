"""The Parquet files of a version: planning, writing and reading.

Everything is streamed: a block is a row group, and no step holds more than a few of them, so memory does not grow with
the catalog.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage.store import Store
from ..versions.layout import sample_name, vectors_name
from ..versions.manifest import FileEntry
from .sample import SampleRule, keep_sample
from .units import IncomingGroup, ReusedGroup, UnitRecord, parquet_writer

ROWS_PER_GROUP = 512
"""The row group size of a version's Parquet files. It is independent of the input pieces, so that small changes do not
accumulate small row groups."""
_READ_AHEAD = 2

ShardPart = ReusedGroup | UnitRecord | IncomingGroup
"""Rows of one kind that a file takes."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One Parquet file to write, with its rows in order."""

    kind: str
    shard: int
    shards: int
    parts: tuple[ShardPart, ...]
    rule: SampleRule = field(default_factory=SampleRule)
    """The rule for the sample of its rows."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """A written Parquet file."""

    kind: str
    shard: int
    file: FileEntry
    sample: str
    """The name of the sample file in the store."""
    seconds: float = 0.0
    """The time it took to write."""
    dead: int = 0
    """Imported rows that were left out because they are invalid."""
    normalised: int = 0
    """Imported rows whose vectors were normalised."""

    def with_import(self, *, dead: int, normalised: int) -> "ShardRecord":
        return replace(self, dead=dead, normalised=normalised)

    @property
    def rows(self) -> int:
        return self.file.rows or 0


def plan_shards(
    parts: Iterable[ShardPart], rows_per_file: int, rules: Mapping[str, SampleRule] | None = None
) -> list[ShardTask]:
    """Distributes reused rows in their order, then the others by unit, over files of about `rows_per_file` rows."""
    tasks = []
    ordered = sorted(parts, key=_place)
    for kind in sorted({part.kind for part in ordered}):
        files: list[list[ShardPart]] = []
        room = 0
        for part in ordered:
            if part.kind != kind or not part.rows:
                continue
            if room <= 0:
                files.append([])
                room = rows_per_file
            files[-1].append(part)
            room -= part.rows
        rule = (rules or {}).get(kind, SampleRule())
        tasks += [
            ShardTask(kind=kind, shard=i, shards=len(files), parts=tuple(file), rule=rule)
            for i, file in enumerate(files)
        ]
    return tasks


def _place(part: ShardPart) -> tuple[int, str, int]:
    if isinstance(part, ReusedGroup):
        return 0, part.file, part.group
    return 1, part.unit, 0


def write_tables(
    store: Store, name: str, tables: Iterable[pa.Table], schema: pa.Schema, rows_per_group: int = ROWS_PER_GROUP
) -> FileEntry:
    """Writes a Parquet file of vectors in row groups of equal size while a thread reads the next rows."""
    rows = 0
    with store.open_write(name) as file, parquet_writer(file, schema) as writer:
        for table in _in_groups(read_ahead(tables), schema, rows_per_group):
            writer.write_table(table, row_group_size=len(table))
            rows += len(table)
    pa.default_memory_pool().release_unused()
    return FileEntry(name=name, size_bytes=file.size_bytes, sha256=file.sha256, rows=rows)


def write_shard(
    store: Store,
    version: str,
    task: ShardTask,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    rows_per_group: int = ROWS_PER_GROUP,
) -> ShardRecord:
    """Writes the rows of a task and a sample of them."""
    started = time.monotonic()
    name = vectors_name(version, task.kind, task.shard, task.shards)
    sample = sample_name(version, task.kind, task.shard)
    with keep_sample(store, sample, tables, schema.field("embedding"), task.rule) as passing:
        file = write_tables(store, name, passing, schema, rows_per_group)
    return ShardRecord(kind=task.kind, shard=task.shard, file=file, sample=sample, seconds=time.monotonic() - started)


def _in_groups(tables: Iterable[pa.Table], schema: pa.Schema, size: int) -> Iterator[pa.Table]:
    """Regroups the rows into tables of `size` rows; the last one may be smaller."""
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


def read_ahead(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same tables, read ahead by a separate thread."""
    ready: queue.Queue[pa.Table | BaseException | None] = queue.Queue(_READ_AHEAD)
    stopped = threading.Event()

    def read() -> None:
        last: BaseException | None = None
        try:
            for table in tables:
                _offer(ready, table, stopped)
                if stopped.is_set():
                    return
        except BaseException as error:  # raised in the caller's thread
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


def iterate_tables(
    store: Store, shards: Sequence[ShardRecord], columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Reads the rows of Parquet files, or some of their columns, one row group at a time."""
    for shard in shards:
        with store.open_read(shard.file.name) as handle:
            file = pq.ParquetFile(handle, pre_buffer=False)
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)
