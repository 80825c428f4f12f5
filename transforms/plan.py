"""The plan of a run: all references, sorted and cut into units, in one Parquet file with a row group a unit.

The pipeline carries only (unit, row group); a worker reads the references of its unit from the plan.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..configs import EmbedConfig, PrepareConfig, RunConfig
from ..index.layout import run_folder
from ..index.manifest import Manifest
from ..index.store import Store
from .epithre.dialects import DIALECTS
from .references import reference_schema
from .sources import SourceError, list_references

_LARGEST_UNIT = 4
"""A unit may grow to so many times its size, to keep references together that may be the same content."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit of a plan. Small: this is what crosses the runner's shuffle."""

    name: str
    kind: str
    row_group: int
    references: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is going to do."""

    name: str
    """Of the Parquet file in the catalog."""
    units: tuple[Unit, ...]
    assets: Mapping[str, int]
    """By kind."""
    size_bytes: Mapping[str, int]
    """By kind, as listed; what is not known is not counted."""


def list_all(config: RunConfig) -> pa.Table:
    """The references of all sources.

    Raises:
        ConfigError: When a source matches nothing or lacks a column.
        SourceError: When two assets of a kind share an id.
    """
    types = config.metadata_types
    tables = [t for i, source in enumerate(config.sources) for t in list_references(source, i, types)]
    table = pa.concat_tables(tables, promote_options="none").combine_chunks()
    _check_ids(table, config)
    return table


def _check_ids(table: pa.Table, config: RunConfig) -> None:
    counts = table.group_by(["kind", "asset_id"]).aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts.column("count_all"), 1))
    if not len(doubled):
        return
    first = doubled.sort_by([("kind", "ascending"), ("asset_id", "ascending")]).slice(0, 1).to_pylist()[0]
    same = pc.and_(pc.equal(table.column("kind"), first["kind"]), pc.equal(table.column("asset_id"), first["asset_id"]))
    places = table.filter(same).slice(0, 2).to_pylist()
    where = " and ".join(f"sources[{p['source']}] ({p['uri'] or config.sources[p['source']].table})" for p in places)
    raise SourceError(
        f"An id must be unique within its kind, but {first['kind']} {first['asset_id']!r} stands "
        f"{first['count_all']} times, in {where}; {len(doubled)} ids are affected: nothing was sent."
    )


def sort_references(table: pa.Table) -> pa.Table:
    """By kind, size, fingerprint, id: what may be the same content stands together."""
    keys = [("kind", "ascending"), ("size_bytes", "ascending"), ("fingerprint", "ascending"), ("asset_id", "ascending")]
    return table.take(pc.sort_indices(table, sort_keys=keys)).combine_chunks()


def cut_units(table: pa.Table, size: int) -> list[tuple[int, int]]:
    """Cuts sorted references into (start, end) slices of one kind and about `size` rows.

    References that may be byte for byte the same (texts of one hash, files of one size) stay together, up to a
    few times `size`, so that what is the same is sent once.
    """
    kinds = table.column("kind").to_numpy(zero_copy_only=False)
    sizes = table.column("size_bytes").fill_null(-1).to_numpy(zero_copy_only=False)
    prints = table.column("fingerprint").to_numpy(zero_copy_only=False)
    # A fingerprint that is a hash of the content says more than the size does.
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


def unit_name(references: pa.Table, embed: EmbedConfig, prepare: PrepareConfig, fingerprint: str | None) -> str:
    """The hash of all that decides a unit's vectors: model, request, preparation, references.

    Where the server is, how fast it may be asked and what metadata the assets have is not part of it. An emulator's
    fingerprint is, so that its vectors never pass for the API's.
    """
    request = {"dialect": embed.dialect, "model": embed.model, "dimension": embed.dimension, "server": fingerprint}
    if (input_type := DIALECTS[embed.dialect](embed).document_type) is not None:
        request["input_type"] = input_type
    digest = hashlib.sha256(orjson.dumps([request, prepare.model_dump(mode="json")], option=orjson.OPT_SORT_KEYS))
    for name in ("asset_id", "kind", "uri", "fingerprint"):
        for value in references.column(name).to_pylist():
            data = (value or "").encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:40]


def is_reusable(manifest: Manifest, config: RunConfig, fingerprint: str | None) -> bool:
    """Whether a version's vectors were made as this run would make them, so that they may be taken over."""
    then, now = manifest.config.get("embed", {}), config.embed.model_dump(mode="json")
    return (
        manifest.model_fingerprint == fingerprint
        and all(then.get(name) == now[name] for name in ("dialect", "model", "dimension", "input_type"))
        and manifest.config.get("prepare") == config.prepare.model_dump(mode="json")
        and manifest.config.get("index", {}).get("vector_type") == "float32"
    )


def write_plan(store: Store, version: str, config: RunConfig, table: pa.Table, fingerprint: str | None) -> Plan:
    """Sorts, cuts, names and stores the references of a run."""
    table = sort_references(table)
    name = f"{run_folder(version)}/plan.parquet"
    units = []
    with store.open_write(name) as file:
        writer = pq.ParquetWriter(pa.PythonFile(file, mode="w"), reference_schema(config.metadata_types))
        for row_group, (start, end) in enumerate(cut_units(table, config.embed.unit_references)):
            part = table.slice(start, end - start)
            units.append(
                Unit(
                    name=unit_name(part, config.embed, config.prepare, fingerprint),
                    kind=part.column("kind")[0].as_py(),
                    row_group=row_group,
                    references=len(part),
                )
            )
            writer.write_table(part, row_group_size=len(part))
        writer.close()
    return Plan(name=name, units=tuple(units), assets=count_by_kind(table), size_bytes=bytes_by_kind(table))


def count_by_kind(table: pa.Table) -> dict[str, int]:
    counts = table.group_by("kind").aggregate([([], "count_all")])
    return dict(sorted(zip(counts.column("kind").to_pylist(), counts.column("count_all").to_pylist(), strict=True)))


def bytes_by_kind(table: pa.Table) -> dict[str, int]:
    sums = table.group_by("kind").aggregate([("size_bytes", "sum")])
    values = [value or 0 for value in sums.column("size_bytes_sum").to_pylist()]
    return dict(sorted(zip(sums.column("kind").to_pylist(), values, strict=True)))


class PlanReader:
    """Reads units of a plan; keeps the file open between them."""

    def __init__(self, store: Store, name: str) -> None:
        self._handle = store.open_read(name)
        self._file = pq.ParquetFile(self._handle, pre_buffer=False)

    def read(self, row_group: int, columns: Sequence[str] | None = None) -> pa.Table:
        return self._file.read_row_group(row_group, columns=None if columns is None else list(columns))

    def close(self) -> None:
        self._handle.close()

    def __enter__(self) -> "PlanReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def iterate_plan(store: Store, name: str) -> Iterator[pa.Table]:
    """All references of a plan, a unit at a time."""
    with store.open_read(name) as handle:
        file = pq.ParquetFile(handle, pre_buffer=False)
        for row_group in range(file.num_row_groups):
            yield file.read_row_group(row_group)
