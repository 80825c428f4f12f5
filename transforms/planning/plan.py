"""The plan of a run: the references to read, cut into units (units of work), in one Parquet file.

Each unit is one row group of the file. The pipeline passes only (unit, row group); a worker reads the references of
its unit from the plan.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...configs import SourceConfig
from ...index.storage.store import Store
from ...index.vectors.units import ReusedGroup
from ...index.versions.layout import DEAD_LETTER_SCHEMA, run_folder
from ..sources.files import PassedOver
from ..sources.list_sources import list_references
from .compare import DELETED_SCHEMA, Changes, Comparison, plan_schema, reused_schema

_LARGEST_UNIT = 4
"""A unit may grow to this multiple of its size, to keep references together that may have the same content."""
_CUT_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit of a plan. Small, because the runner shuffles units."""

    name: str
    kind: str
    row_group: int
    references: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a run."""

    name: str
    """Name of the Parquet file in the catalog."""
    units: tuple[Unit, ...]
    """The units to read."""
    reused_groups: tuple[ReusedGroup, ...]
    """The row groups that are reused without reading their assets."""
    changes: Changes
    base: str | None
    """The version whose rows are reused."""


def plan_name(version: str) -> str:
    return f"{run_folder(version)}/plan.parquet"


def reused_name(version: str) -> str:
    return f"{run_folder(version)}/carried.parquet"


def reused_dead_name(version: str) -> str:
    return f"{run_folder(version)}/dead.parquet"


def deleted_name(version: str) -> str:
    return f"{run_folder(version)}/deleted.parquet"


def iterate_references(
    sources: Sequence[SourceConfig],
    metadata: Mapping[str, str],
    label: str = "sources",
    passed_over: PassedOver | None = None,
) -> Iterator[pa.Table]:
    """List the references of all sources, as tables in `reference_schema`.

    Args:
        sources: The sources of the job.
        metadata: The metadata columns of all sources, with their types.
        label: The name of the sources in messages.
        passed_over: Collects the skipped files of folders.

    Raises:
        ConfigError: When no file matches a source, or a column is missing.
        SourceError: When a source cannot be listed or read.
    """
    for position, source in enumerate(sources):
        yield from list_references(source, position, metadata, label, passed_over)


def cut_units(table: pa.Table, size: int) -> list[tuple[int, int]]:
    """Cut sorted references into (start, end) slices of one kind and about `size` rows.

    References that may have identical content (texts with the same hash, files of the same size) stay together, up to
    four times `size`, so that identical content is sent once.
    """
    kinds = table.column("kind").to_numpy(zero_copy_only=False)
    sizes = table.column("size_bytes").fill_null(-1).to_numpy(zero_copy_only=False)
    prints = table.column("fingerprint").to_numpy(zero_copy_only=False)
    # A fingerprint that is a hash of the content is more precise than the size.
    is_hash = pc.starts_with(table.column("fingerprint"), "sha256:").to_numpy(zero_copy_only=False)
    known = sizes >= 0
    same_kind = kinds[1:] == kinds[:-1]
    same = same_kind & (sizes[1:] == sizes[:-1]) & known[1:] & (~is_hash[1:] | (prints[1:] == prints[:-1]))
    cuts, start = [], 0
    for end in [*(np.flatnonzero(~same_kind) + 1).tolist(), len(table)]:
        while start < end:
            stop = min(start + size, end)
            limit = min(start + size * _LARGEST_UNIT, end)
            while stop < limit and same[stop - 1]:
                stop += 1
            cuts.append((start, stop))
            start = stop
    return cuts


def unit_name(references: pa.Table, embedding_config_hash: str) -> str:
    """Return the hash of everything that determines a unit's vectors: embedding config hash and references."""
    digest = hashlib.sha256(bytes.fromhex(embedding_config_hash))
    for name in ("asset_id", "kind", "uri", "fingerprint"):
        for value in references.column(name).to_pylist():
            data = (value or "").encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:40]


def iterate_units(references: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Cut a stream of sorted references into units, with the same result as for a single table."""
    held = None
    for table in references:
        held = table if held is None else pa.concat_tables([held, table]).combine_chunks()
        if len(held) > _CUT_AT_ONCE * size:
            # A cut is final when no later reference can belong to the unit.
            certain = [(start, end) for start, end in cut_units(held, size) if start + size * _LARGEST_UNIT < len(held)]
            for start, end in certain:
                yield held.slice(start, end - start)
            held = held.slice(certain[-1][1])
    if held is not None:
        for start, end in cut_units(held.combine_chunks(), size):
            yield held.slice(start, end - start).combine_chunks()


def write_plan(
    store: Store,
    version: str,
    comparison: Comparison,
    *,
    embedding_config_hash: str,
    unit_references: int,
    base: str | None,
) -> Plan:
    """Write the plan of a run: its units, reused groups, reused dead letters and deleted contents.

    Args:
        store: The catalog.
        version: The new version; the files are written to its run folder.
        comparison: The comparison of the run's references with the version `base`.
        embedding_config_hash: The embedding config hash of the vectors.
        unit_references: Approximate number of references per unit.
        base: The version whose rows are reused, if there is one.
    """
    types = comparison.metadata_types
    changes = comparison.changes()
    name = plan_name(version)
    units = []
    with (
        store.open_write(name) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), plan_schema(types)) as writer,
    ):
        for row_group, part in enumerate(iterate_units(comparison.todo(), unit_references)):
            units.append(
                Unit(
                    name=unit_name(part, embedding_config_hash),
                    kind=part.column("kind")[0].as_py(),
                    row_group=row_group,
                    references=len(part),
                )
            )
            writer.write_table(part, row_group_size=len(part))
    reused_groups = []
    if sum(changes.unchanged.values()):
        with (
            store.open_write(reused_name(version)) as file,
            pq.ParquetWriter(pa.PythonFile(file, mode="w"), reused_schema(types)) as writer,
        ):
            for row_group, kept in enumerate(comparison.kept()):
                writer.write_table(kept.rows, row_group_size=len(kept.rows))
                reused_groups.append(
                    ReusedGroup(
                        kind=kept.kind, file=kept.file, group=kept.group, row_group=row_group, rows=len(kept.rows)
                    )
                )
    if sum(changes.dead.values()):
        _write_tables(store, reused_dead_name(version), comparison.dead_letters(), DEAD_LETTER_SCHEMA)
    if sum(changes.deleted.values()):
        _write_tables(store, deleted_name(version), comparison.deleted_contents(), DELETED_SCHEMA)
    return Plan(name=name, units=tuple(units), reused_groups=tuple(reused_groups), changes=changes, base=base)


def _write_tables(store: Store, name: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    with store.open_write(name) as file, pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema) as writer:
        for table in tables:
            writer.write_table(table)


class PlanReader:
    """Reads units of a plan, with the file kept open."""

    def __init__(self, store: Store, name: str) -> None:
        self._handle = store.open_read(name)
        self._file = pq.ParquetFile(self._handle, pre_buffer=False)

    def read(self, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
        return self._file.read_row_group(
            row_group, columns=None if columns is None else list(columns), use_threads=False
        )

    def close(self) -> None:
        self._handle.close()

    def __enter__(self) -> "PlanReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
