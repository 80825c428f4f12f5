"""Plan the version that a pipeline has begun, when all its rows are there."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ... import __version__
from ...configs import CatalogConfig
from ...configs.errors import CatalogError, LeaseLostError, OtherJobError, SourceError
from ...configs.load import parse_settings
from ...index.storage.store import Store
from ...index.vectors.units import IncomingGroup, ReusedGroup, dead_letter_table
from ...index.versions.layout import DEAD_LETTER_SCHEMA, PREPARE_RULES, DeadLetter
from ...index.versions.manifest import JobIdentity, Manifest
from ..planning.changes import UnitChanges
from ..planning.compare import Changes
from ..planning.embedding_config import embedding_config_hash
from ..planning.incoming import DROPPED_SCHEMA, IncomingComparison
from ..planning.job_identity import other_job
from ..planning.payloads import Payloads
from ..planning.plan import Plan, iterate_units, reused_dead_name, unit_name
from ..sources.references import reference_schema
from .begun import Begun, PipelineSetup, current_manifest
from .incoming_rows import (
    IncomingPart,
    incoming_folder,
    incoming_name,
    incoming_schema,
    other_dimension,
    parquet_writer,
    parts_name,
)
from .reused_rows import iterate_dead_letters, write_reused
from .setup import VersionSetup, public_settings

_PIPELINE = "pipeline"
_BLOCK_ROWS = 8192
_BLOCK_BYTES = 32_000_000


@dataclass(frozen=True, kw_only=True)
class IdPart:
    """A file with ids that get no row, or with the dead letters of dead assets."""

    name: str
    is_dead: bool
    rows: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What the next steps of a pipeline do."""

    setup: VersionSetup
    groups: tuple[ReusedGroup | IncomingGroup, ...]


@dataclass(frozen=True, kw_only=True)
class NothingToDo:
    """The current version stays, because a pipeline neither brings nor drops a row."""

    manifest: Manifest


def plan_version(
    begun: Begun, parts: Sequence[IncomingPart | IdPart], seen: Mapping[str, int], setup: PipelineSetup
) -> Planned | NothingToDo:
    """Compare the rows with the current version, and write which rows the new version gets, in which order.

    Args:
        begun: The version.
        parts: What all bundles wrote.
        seen: The number of rows and dead assets by kind, as counted when they came in.
        setup: The arguments of the pipeline.

    Raises:
        SourceError: When an id is not unique within its kind.
        ArgumentError: When vectors have different dimensions.
        OtherJobError: When the catalog belongs to another job.
        CatalogError: When rows were lost or doubled on the way.
        LeaseLostError: When another run took over the catalog.
    """
    store, version = begun.run.store(), begun.run.version
    incoming = sorted((part for part in parts if isinstance(part, IncomingPart)), key=lambda part: part.name)
    ids = sorted((part for part in parts if isinstance(part, IdPart)), key=lambda part: part.name)
    config = _with_dimension(begun, incoming)
    current = None
    if begun.latest is not None:
        current = current_manifest(setup, begun.latest)
    is_upsert = setup.mode == "upsert" and current is not None
    with contextlib.ExitStack() as stack:
        comparison = stack.enter_context(IncomingComparison())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="epithre-beam-")))
        payloads = Payloads(folder / "rows.arrow", incoming_schema(begun.metadata))
        stack.callback(payloads.close)
        try:
            rows = _load_rows(store, incoming, comparison, payloads)
            dead = _load_ids(store, ids, comparison)
        except FileNotFoundError as error:
            raise LeaseLostError(
                f"{store.url}: the pipeline's files are gone. Another run took over the catalog, because the lease "
                "could not be renewed. Nothing was published. Run again."
            ) from error
        _check_seen(rows + dead, seen)
        _check_unique(comparison)
        is_taken_over = False
        if current is not None:
            bad = comparison.set_base(store, current, is_reusable=False)
            if is_upsert and bad:
                raise CatalogError(
                    f"{store.url}/{bad[0]}: the file is damaged, so its rows cannot be kept. Nothing was published. "
                    "Use mode='replace' with all assets, or go back with "
                    f"`epithre-beam versions rollback {shlex.quote(store.url)}`."
                )
            is_taken_over = not is_upsert and _is_taken_over(setup, current, comparison)
        changes = comparison.incoming_changes(keeps_others=is_upsert)
        if is_upsert and current is not None and not rows and not dead and not sum(changes.gone.values()):
            return NothingToDo(manifest=current)
        reused: tuple[ReusedGroup, ...] = ()
        if is_upsert and current is not None:
            reused = write_reused(store, version, current, comparison.kept_places())
        letters = _write_letters(store, version, current if is_upsert else None, ids, comparison)
        groups = tuple(_write_groups(begun, config, comparison, payloads))
    listed = {"dimension": config.embed.dimension, "parts": [part.name for part in incoming]}
    store.write(parts_name(version), orjson.dumps(listed))
    unchanged: Counter[str] = Counter()
    for group in reused:
        unchanged[group.kind] += group.rows
    kinds = sorted({*unchanged, *rows, *letters})
    plan = Plan(
        name="",
        units=(),
        reused_groups=(),
        changes=Changes(
            assets={kind: unchanged[kind] + rows[kind] + letters[kind] for kind in kinds},
            size_bytes={},
            unchanged=dict(unchanged),
            dead=dict(letters),
            new=dict(rows),
            differing={},
            deleted=changes.gone if is_upsert or current is not None else {},
            other_metadata=0,
            gone=changes.gone,
        ),
        base=current.version if is_upsert and current else None,
    )
    counts = Counter(touched=changes.same, changed=changes.replaced, new=changes.new)
    version_setup = VersionSetup(
        run=begun.run,
        embed=config.embed,
        index=config.index,
        gates=config.gates,
        metadata_types=begun.metadata,
        settings=public_settings(config),
        plan=plan,
        compared=UnitChanges(counts=counts, changed=Counter(changes.changed)),
        normalised=sum(part.normalised for part in incoming),
        model_fingerprint=begun.fingerprint,
        prepare_rules=min(PREPARE_RULES, current.prepare_rules) if is_upsert and current else PREPARE_RULES,
        latest=begun.latest,
        rows_before=current.counts.per_kind if current else None,
        job=current.job if is_upsert and current and setup.job is None else _identity(setup),
        is_taken_over=is_taken_over,
        software=f"epithre-beam {__version__}",
        started_at_s=begun.started_at_s,
    )
    return Planned(setup=version_setup, groups=(*reused, *groups))


def _with_dimension(begun: Begun, parts: Sequence[IncomingPart]) -> CatalogConfig:
    found = sorted({part.dimension for part in parts})
    if len(found) > 1:
        raise other_dimension(*found[:2])
    if begun.dimension is not None or not found:
        return begun.config
    raw = begun.config.model_dump(mode="json")
    return parse_settings({**raw, "embed": {**raw["embed"], "dimension": found[0]}})


def _load_rows(
    store: Store, parts: Sequence[IncomingPart], comparison: IncomingComparison, payloads: Payloads
) -> Counter[str]:
    """Load the assets of all parts, and return their number by kind. No vector is read."""
    rows: Counter[str] = Counter()
    schema = reference_schema({})
    for table in _in_blocks(_iterate_parts(store, parts)):
        numbers = payloads.add(table)
        rows.update(table.column("kind").to_pylist())
        columns = {
            "text": pa.nulls(len(table), pa.string()),  # it is in `payloads`
            "source": pa.array(numbers, pa.int32()),
        }
        references = [columns.get(name) for name in schema.names]
        references = [
            table.column(name) if column is None else column
            for name, column in zip(schema.names, references, strict=True)
        ]
        comparison.add_rows(pa.table(references, schema=schema), table.column("content_sha256"))
    return rows


def _iterate_parts(store: Store, parts: Sequence[IncomingPart]) -> Iterator[pa.Table]:
    """Yield the assets of all parts with the places of their vectors, a row group at a time."""
    for number, part in enumerate(parts):
        first = 0
        with store.open_read(f"{part.name}.parquet") as handle:
            file = pq.ParquetFile(handle, pre_buffer=False)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                places = np.arange(first, first + len(table))
                table = table.append_column("part", pa.array(np.full(len(table), number), pa.int32()))
                yield table.append_column("row", pa.array(places, pa.int64()))
                first += len(table)
        if first != sum(part.rows.values()):
            raise CatalogError(
                f"{store.url}/{part.name}.parquet must have {sum(part.rows.values())} rows, got {first}. Run again."
            )


def _in_blocks(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Concatenate tables, because a database takes one table of thousands of rows faster than many small ones."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= _BLOCK_ROWS or sum(its.nbytes for its in held) >= _BLOCK_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _load_ids(store: Store, parts: Sequence[IdPart], comparison: IncomingComparison) -> Counter[str]:
    """Load the ids without rows, and return the number of dead assets by kind."""
    dead: Counter[str] = Counter()
    for part in parts:
        for table in _iterate(store, part.name):
            if part.is_dead:
                dead.update(table.column("kind").to_pylist())
            ids = table.select(["kind", "asset_id"]).append_column("is_dead", pa.array([part.is_dead] * len(table)))
            comparison.add_dropped(ids.cast(DROPPED_SCHEMA))
    return dead


def _iterate(store: Store, name: str) -> Iterator[pa.Table]:
    with store.open_read(name) as handle:
        for batch in pq.ParquetFile(handle, pre_buffer=False).iter_batches(use_threads=False):
            yield pa.Table.from_batches([batch])


def _check_seen(loaded: Mapping[str, int], seen: Mapping[str, int]) -> None:
    """Check that the assets which came in are those that were written."""
    for kind in sorted({*loaded, *seen}):
        if loaded.get(kind, 0) != seen.get(kind, 0):
            raise CatalogError(
                f"{seen.get(kind, 0)} {kind} assets came in, but {loaded.get(kind, 0)} were written: the runner lost "
                "or repeated some. Nothing was published. Please report this bug."
            )


def _check_unique(comparison: IncomingComparison) -> None:
    if (duplicate := comparison.duplicate()) is not None:
        more = "" if duplicate.ids == 1 else f" ({duplicate.ids} ids are not unique)"
        raise SourceError(
            f"WriteCatalog: an id must be unique within its kind, but {duplicate.kind} {duplicate.asset_id!r} came in "
            f"{duplicate.times} times{more}. Nothing was published."
        )
    if (twice := comparison.dead_twice()) is not None:
        raise SourceError(
            f"WriteCatalog: an id must be unique within its kind, but {twice[0]} {twice[1]!r} is dead and came in "
            "once more. Nothing was published."
        )


def _identity(setup: PipelineSetup) -> JobIdentity:
    return JobIdentity(name=setup.job, sources=(_PIPELINE,))


def _is_taken_over(setup: PipelineSetup, current: Manifest, comparison: IncomingComparison) -> bool:
    """Return whether the pipeline adopts the catalog of another job.

    Raises:
        OtherJobError: When it may not.
    """
    sentence = other_job(setup.url, current, _identity(setup), comparison.overlap)
    if sentence is not None and not setup.adopt:
        raise OtherJobError(
            f"{sentence}: nothing was published. Name another catalog, or use this one with adopt=True."
        )
    return sentence is not None


def _write_letters(
    store: Store,
    version: str,
    kept_of: Manifest | None,
    ids: Sequence[IdPart],
    comparison: IncomingComparison,
) -> Counter[str]:
    """Write the dead letters of the version, and return their number by kind."""
    counts: Counter[str] = Counter()

    def tables() -> Iterator[pa.Table]:
        if kept_of is not None and kept_of.counts.dead:
            for letters in iterate_dead_letters(store, kept_of):
                yield comparison.unseen(letters)
        for part in ids:
            if part.is_dead:
                yield from _iterate(store, part.name)

    with (
        store.open_write(reused_dead_name(version)) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), DEAD_LETTER_SCHEMA) as writer,
    ):
        for table in tables():
            counts.update(table.column("kind").to_pylist())
            writer.write_table(table.cast(DEAD_LETTER_SCHEMA))
    return counts


def _write_groups(
    begun: Begun, config: CatalogConfig, comparison: IncomingComparison, payloads: Payloads
) -> Iterator[IncomingGroup]:
    """Write the rows in the order of the units that a job with the same assets has."""
    store = begun.run.store()
    made_with = embedding_config_hash(config.embed, config.prepare, begun.fingerprint)
    schema = incoming_schema(begun.metadata)
    with (
        store.open_write(incoming_name(begun.run.version), is_temporary=True) as file,
        parquet_writer(file, schema) as writer,
    ):
        for number, unit in enumerate(iterate_units(comparison.todo(), config.embed.unit_references)):
            writer.write_table(payloads.take(unit.column("source").to_numpy()), row_group_size=len(unit))
            yield IncomingGroup(
                unit=unit_name(unit, made_with),
                kind=unit.column("kind")[0].as_py(),
                row_group=number,
                rows=len(unit),
            )


def write_dead(store: Store, version: str, name: str, letters: Iterable[DeadLetter]) -> IdPart:
    """Write the dead letters of a bundle."""
    table = dead_letter_table(list(letters))
    return _write_ids(store, version, name, table, is_dead=True)


def write_deleted(store: Store, version: str, name: str, ids: Iterable[tuple[str | None, str]]) -> IdPart:
    """Write the ids to delete that are in a bundle; without a kind, an id is deleted from every kind."""
    pairs = list(ids)
    kinds, names = [kind for kind, _ in pairs], [name for _, name in pairs]
    table = pa.table({"kind": pa.array(kinds, pa.string()), "asset_id": pa.array(names, pa.string())})
    return _write_ids(store, version, name, table, is_dead=False)


def _write_ids(store: Store, version: str, name: str, table: pa.Table, *, is_dead: bool) -> IdPart:
    path = f"{incoming_folder(version)}/{name}.ids.parquet"
    with store.open_write(path) as file:
        pq.write_table(table, pa.PythonFile(file, mode="w"))
    return IdPart(name=path, is_dead=is_dead, rows=len(table))
