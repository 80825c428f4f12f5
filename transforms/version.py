"""The Beam side of a version: old rows and unit records in; shards, indexes, a verdict, a published version out."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import apache_beam as beam
import orjson
import pyarrow as pa

from ..index.build import AddedRows, BuiltIndex, WrittenAssets, add_rows, finish_index, write_assets
from ..index.layout import report_name, report_page_name, run_folder, vector_schema
from ..index.manifest import Counts, how_it_ended, publish, read_manifest
from ..index.shards import ShardRecord, ShardTask, plan_shards, write_shard
from ..index.store import Store
from ..index.train import AssetsTask, IndexTask, sample_rules, train_indexes
from ..index.units import CarriedGroup, UnitRecord, read_unit
from ..index.version import check_conservation, judge, write_dead_letters, write_manifest
from .carry import CarriedRows
from .changes import count_changes
from .embed import Step, under_one_key
from .imported_rows import imported_dead_name, write_imported
from .imports import ImportedGroup, ImportTask, plan_imports
from .lane import read_progress
from .plan import PlanReader, carried_dead_name
from .report import make_report, render_report
from .setup import VersionSetup
from .spending import check_all_sent


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: the version, and why a guard holds it back, if one does."""

    version: str
    held_back: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Begin:
    """An element that is always there, so that a version is written even where no row is left."""


Part = Begin | CarriedGroup | UnitRecord | ImportedGroup


@dataclass(eq=False, kw_only=True)
class WriteVersion(beam.PTransform):  # type: ignore[misc]
    """Writes the version that old rows and finished units amount to, and publishes it if no guard objects.

    Input: PCollection[Part], one `Begin` among them. Output: PCollection[Outcome] with one element.
    """

    setup: VersionSetup

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        shards = (
            parts
            | "AllParts" >> beam.Map(under_one_key)
            | "GroupParts" >> beam.GroupByKey()
            | "PlanShards" >> beam.FlatMap(Step(plan_all_shards, self.setup))
            | "SpreadShards" >> beam.Reshuffle()
            | "WriteShards" >> beam.FlatMap(Step(write_shards, self.setup))
        )
        indexes = (
            shards
            | "AllShards" >> beam.Map(under_one_key)
            | "GroupShards" >> beam.GroupByKey()
            | "TrainIndexes" >> beam.FlatMap(Step(train, self.setup))
            | "SpreadIndexes" >> beam.Reshuffle()
            | "AddRows" >> beam.Map(Step(build_part, self.setup))
            | "GroupByKind" >> beam.GroupByKey()
            | "FinishIndex" >> beam.Map(Step(finish_kind, self.setup))
        )
        return (
            (
                parts | "KeepParts" >> beam.Map(under_one_key),
                shards | "KeepShards" >> beam.Map(under_one_key),
                indexes | "KeepIndexes" >> beam.Map(under_one_key),
            )
            | "Join" >> beam.Flatten()
            | "GroupAll" >> beam.GroupByKey()
            | "Publish" >> beam.Map(Step(finish, self.setup))
        )


def plan_all_shards(element: tuple[int, Iterable[Part]], setup: VersionSetup) -> list[ShardTask | ImportTask]:
    parts = [part for part in element[1] if not isinstance(part, Begin)]
    config = setup.config
    records = [part for part in parts if isinstance(part, UnitRecord)]
    check_all_sent(records, config, setup.version, setup.requests_spent)
    rows = {kind: sum(part.rows for part in parts if part.kind == kind) for kind in {part.kind for part in parts}}
    rules = sample_rules(rows, config.embed.dimension, config.index)
    imported = [part for part in parts if isinstance(part, ImportedGroup)]
    others = [part for part in parts if not isinstance(part, ImportedGroup)]
    size = config.index.rows_per_file
    return [*plan_shards(others, size, rules), *plan_imports(imported, size, rules)]


def write_shards(task: ShardTask | ImportTask, setup: VersionSetup) -> list[ShardRecord]:
    """Streams old rows and units into one Parquet file, with the metadata that their assets have today.

    Vectors from elsewhere are streamed into as many files as they fill.
    """
    config = setup.config
    store = Store(config.catalog)
    types = setup.metadata_types
    schema = vector_schema(config.embed.dimension, types, config.index.vector_type)
    if isinstance(task, ImportTask):
        assert setup.folder is not None
        return write_imported(store, setup.version, task, setup.folder, schema)

    def tables() -> Iterator[pa.Table]:
        with contextlib.ExitStack() as stack:
            old = stack.enter_context(CarriedRows(store, setup.version))
            plan: PlanReader | None = None
            for part in task.parts:
                if isinstance(part, CarriedGroup):
                    yield old.read(part)
                    continue
                table = read_unit(store, part.unit)
                if types:
                    plan = plan or stack.enter_context(PlanReader(store, setup.plan.name))
                    references = plan.read(part.row_group, ["asset_id", "metadata"])
                    order = {name: i for i, name in enumerate(references.column("asset_id").to_pylist())}
                    rows = pa.array([order[name] for name in table.column("asset_id").to_pylist()], pa.int64())
                    table = table.append_column("metadata", references.column("metadata").take(rows))
                yield table

    return [write_shard(store, setup.version, task, tables(), schema)]


def train(element: tuple[int, Iterable[ShardRecord]], setup: VersionSetup) -> list[IndexTask | AssetsTask]:
    """Fits what all indexes share, and says what is to be built: a task an index file, and one a table of assets."""
    config = setup.config
    store = Store(config.catalog)
    shards = [shard for shard in element[1] if shard.rows]
    return train_indexes(store, setup.version, shards, config.embed.dimension, config.index)


def build_part(task: IndexTask | AssetsTask, setup: VersionSetup) -> tuple[str, AddedRows | WrittenAssets]:
    config, version = setup.config, setup.version
    store = Store(config.catalog)
    if isinstance(task, AssetsTask):
        return task.kind, write_assets(store, version, task)
    return task.kind, add_rows(store, version, task, config.embed.dimension, config.index)


def finish_kind(element: tuple[str, Iterable[AddedRows | WrittenAssets]], setup: VersionSetup) -> BuiltIndex:
    parts = list(element[1])
    assets = next(part for part in parts if isinstance(part, WrittenAssets))
    added = [part for part in parts if isinstance(part, AddedRows)]
    return finish_index(setup.version, added, assets, setup.config.index)


def finish(element: tuple[int, Iterable[Part | ShardRecord | BuiltIndex]], setup: VersionSetup) -> Outcome:
    """Checks, judges, writes the manifest and the report, and publishes: the last writes of a run, in this order."""
    everything = list(element[1])
    records = [e for e in everything if isinstance(e, UnitRecord)]
    carried = [e for e in everything if isinstance(e, CarriedGroup)]
    imported = [e for e in everything if isinstance(e, ImportedGroup)]
    shards = [e for e in everything if isinstance(e, ShardRecord)]
    indexes = sorted((e for e in everything if isinstance(e, BuiltIndex)), key=lambda b: b.entry.kind)
    config, version = setup.config, setup.version
    store = Store(config.catalog)
    if how_it_ended(store, version, setup.latest) == "published":
        return Outcome(version=version)  # a runner may run this step again after it has succeeded
    changes = setup.plan.changes
    rows_imported = {kind: sum(g.rows for g in imported if g.kind == kind) for kind in changes.assets}
    check_conservation(changes.assets, records, shards, carried, changes.dead, rows_imported)
    rejected = sorted((s for s in shards if s.dead), key=lambda s: (s.kind, s.shard))
    others = [carried_dead_name(version)] if sum(changes.dead.values()) else []
    others += [imported_dead_name(version, shard) for shard in rejected]
    dead_file, dead = write_dead_letters(store, version, records, others)
    dead_per_kind = {
        kind: sum(r.dead for r in records if r.kind == kind)
        + sum(s.dead for s in rejected if s.kind == kind)
        + changes.dead.get(kind, 0)
        for kind in changes.assets
    }
    entries = [built.entry for built in indexes]
    held_back = judge(
        changes.assets, dead_per_kind, entries, config.guards, config.index.target_recall, setup.rows_before
    )
    base = None if setup.plan.base is None else read_manifest(store, setup.plan.base)
    unchanged = sum(changes.unchanged.values())
    compared = count_changes(store, version, records, base, has_deleted=bool(sum(changes.deleted.values())))
    taken_in = sum(rows_imported.values()) - sum(s.dead for s in rejected)
    compared["new"] += taken_in
    counts = Counts(
        assets=sum(changes.assets.values()),
        per_kind={kind: changes.assets[kind] - dead_per_kind[kind] for kind in changes.assets},
        embedded=sum(r.rows - r.carried for r in records if not r.reused),
        reused=unchanged + taken_in + sum(r.rows if r.reused else r.carried for r in records),
        deduplicated=sum(r.deduplicated for r in records if not r.reused),
        dead=sum(dead_per_kind.values()),
        unchanged=unchanged,
        other_metadata=changes.other_metadata,
        deleted=sum(changes.deleted.values()),
        **compared,
    )
    lanes = read_progress(store, version)
    timings = {
        "embed": max((lane["elapsed_s"] for lane in lanes), default=0.0),
        **{f"vectors_{kind}": sum(s.seconds for s in shards if s.kind == kind) for kind in {s.kind for s in shards}},
        **{f"index_{built.entry.kind}": built.seconds for built in indexes},
        "total": max(0.0, time.time() - setup.started_at_s),  # a clock may have been put back
    }
    files = [s.file for s in shards if s.rows] + [f for built in indexes for f in built.files]
    manifest = write_manifest(
        store,
        version,
        previous=setup.previous,
        software=setup.software,
        model=config.embed.model,
        model_fingerprint=setup.model_fingerprint,
        dimension=config.embed.dimension,
        metadata_types=setup.metadata_types,
        counts=counts,
        files=[*files, *([] if dead_file is None else [dead_file])],
        indexes=entries,
        held_back=held_back,
        config=dict(setup.settings),
        timings_s=timings,
    )
    report = make_report(manifest, dead, lanes, config.embed)
    if setup.folder is not None:
        report["imported"] = {
            "from": setup.folder.url,
            "rows": taken_in,
            "normalised": sum(s.normalised for s in shards),
        }
    store.write(report_page_name(version), render_report(report, manifest).encode())
    store.write(report_name(version), orjson.dumps(report, option=orjson.OPT_INDENT_2))
    if not held_back:
        publish(store, manifest, setup.latest)
        store.delete(run_folder(version))
    return Outcome(version=version, held_back=tuple(held_back))
