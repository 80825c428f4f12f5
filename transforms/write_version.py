"""The transform that writes a version from reused rows and finished units, and publishes it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import pyarrow as pa

from ..index.ann.build import AddedRows, BuiltIndex, WrittenAssets, add_rows, finish_index, write_assets
from ..index.ann.train import AssetsTask, IndexTask, sample_rules, train_indexes
from ..index.vectors.shards import ShardRecord, ShardTask, plan_shards, write_shard
from ..index.vectors.units import IncomingGroup, ReusedGroup, UnitRecord, read_unit
from ..index.versions.layout import vector_schema
from .embedding.spending import check_all_sent
from .planning.plan import PlanReader
from .versions.as_before import is_as_before
from .versions.imported_rows import write_imported
from .versions.imports import ImportedGroup, ImportTask, plan_imports
from .versions.incoming_rows import IncomingRows
from .versions.last_step import Outcome, Written, complete_version
from .versions.reused_rows import ReusedRows
from .versions.setup import VersionSetup
from .workers.steps import Step, under_one_key


@dataclass(frozen=True, kw_only=True)
class Begin:
    """An element that is always present, so that a version without rows is written too."""


StepFunction = Callable[[Any, VersionSetup], Any]
Surrounding = Callable[[VersionSetup], AbstractContextManager[object]]
Part = Begin | ReusedGroup | UnitRecord | ImportedGroup | IncomingGroup


@dataclass(eq=False, kw_only=True)
class WriteVersion(beam.PTransform):  # type: ignore[misc]
    """Write a version from reused rows and finished units, and publish it unless a gate holds it.

    Input: PCollection[Part] with exactly one `Begin`. Output: PCollection[Outcome] with one element.
    """

    setup: VersionSetup | beam.pvalue.AsSingleton
    """The settings; a side input if the pipeline finds them."""
    within: Surrounding | None = None
    """What surrounds each step in the worker. None: the failure of a step is reported to the launcher."""

    def __post_init__(self) -> None:
        super().__init__()

    def _step(self, transform: Callable[..., Any], function: StepFunction) -> Any:
        if self.within is None:
            return transform(Step(function, self.setup))
        return transform(_call_within, self.setup, function, self.within)

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        shards = (
            parts
            | "AllParts" >> beam.Map(under_one_key)
            | "GroupParts" >> beam.GroupByKey()
            | "PlanShards" >> self._step(beam.FlatMap, plan_all_shards)
            | "SpreadShards" >> beam.Reshuffle()
            | "WriteShards" >> self._step(beam.FlatMap, write_shards)
        )
        indexes = (
            shards
            | "AllShards" >> beam.Map(under_one_key)
            | "GroupShards" >> beam.GroupByKey()
            | "TrainIndexes" >> self._step(beam.FlatMap, train)
            | "SpreadIndexes" >> beam.Reshuffle()
            | "AddRows" >> self._step(beam.Map, build_part)
            | "GroupByKind" >> beam.GroupByKey()
            | "FinishIndex" >> self._step(beam.Map, finish_kind)
        )
        return (
            (
                parts | "KeepParts" >> beam.Map(under_one_key),
                shards | "KeepShards" >> beam.Map(under_one_key),
                indexes | "KeepIndexes" >> beam.Map(under_one_key),
            )
            | "Join" >> beam.Flatten()
            | "GroupAll" >> beam.GroupByKey()
            | "Publish" >> self._step(beam.Map, complete)
        )


def _call_within(element: Any, setup: VersionSetup, function: StepFunction, within: Surrounding) -> Any:
    with within(setup):
        return function(element, setup)


def plan_all_shards(element: tuple[int, Iterable[Part]], setup: VersionSetup) -> list[ShardTask | ImportTask]:
    parts = [part for part in element[1] if not isinstance(part, Begin)]
    records = [part for part in parts if isinstance(part, UnitRecord)]
    check_all_sent(records, setup.embed, setup.run, setup.requests_spent)
    if is_as_before(records, setup):
        return []
    rows = {kind: sum(part.rows for part in parts if part.kind == kind) for kind in {part.kind for part in parts}}
    rules = sample_rules(rows, setup.embed.dimension, setup.index)
    imported = [part for part in parts if isinstance(part, ImportedGroup)]
    others = [part for part in parts if not isinstance(part, ImportedGroup)]
    size = setup.index.rows_per_file
    return [*plan_shards(others, size, rules), *plan_imports(imported, size, rules)]


def write_shards(task: ShardTask | ImportTask, setup: VersionSetup) -> list[ShardRecord]:
    """Stream reused rows and units into one Parquet file, with the current metadata of their assets.

    Imported vectors fill as many files as they need.
    """
    store, version = setup.run.store(), setup.run.version
    types = setup.metadata_types
    schema = vector_schema(setup.embed.dimension, types, setup.index.vector_type)
    if isinstance(task, ImportTask):
        assert setup.folder is not None
        return write_imported(store, version, task, setup.folder, schema)

    def tables() -> Iterator[pa.Table]:
        with contextlib.ExitStack() as stack:
            old = stack.enter_context(ReusedRows(store, version))
            incoming = stack.enter_context(IncomingRows(store, version))
            plan: PlanReader | None = None
            for part in task.parts:
                if isinstance(part, ReusedGroup):
                    yield old.read(part)
                    continue
                if isinstance(part, IncomingGroup):
                    yield incoming.read(part)
                    continue
                table = read_unit(store, part.unit)
                if types:
                    plan = plan or stack.enter_context(PlanReader(store, setup.plan.name))
                    references = plan.read(part.row_group, ["asset_id", "metadata"])
                    order = {name: i for i, name in enumerate(references.column("asset_id").to_pylist())}
                    rows = pa.array([order[name] for name in table.column("asset_id").to_pylist()], pa.int64())
                    table = table.append_column("metadata", references.column("metadata").take(rows))
                yield table

    return [write_shard(store, version, task, tables(), schema)]


def train(element: tuple[int, Iterable[ShardRecord]], setup: VersionSetup) -> list[IndexTask | AssetsTask]:
    """Fit what all indexes share. Return one task for each index file and one for each table of assets."""
    shards = [shard for shard in element[1] if shard.rows]
    return train_indexes(setup.run.store(), setup.run.version, shards, setup.embed.dimension, setup.index)


def build_part(task: IndexTask | AssetsTask, setup: VersionSetup) -> tuple[str, AddedRows | WrittenAssets]:
    store, version = setup.run.store(), setup.run.version
    if isinstance(task, AssetsTask):
        return task.kind, write_assets(store, version, task)
    return task.kind, add_rows(store, version, task, setup.embed.dimension, setup.index)


def finish_kind(element: tuple[str, Iterable[AddedRows | WrittenAssets]], setup: VersionSetup) -> BuiltIndex:
    parts = list(element[1])
    assets = next(part for part in parts if isinstance(part, WrittenAssets))
    added = [part for part in parts if isinstance(part, AddedRows)]
    return finish_index(setup.run.version, added, assets, setup.index)


def complete(element: tuple[int, Iterable[Part | ShardRecord | BuiltIndex]], setup: VersionSetup) -> Outcome:
    return complete_version(Written.of(element[1]), setup)
