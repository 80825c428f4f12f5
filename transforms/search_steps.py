"""The Beam side of a bulk search: finished units and blocks in, a result out."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.metrics import Metrics

from ..index.layout import DeadLetter
from ..index.store import Store
from ..index.units import UnitRecord, read_unit_dead_letters
from ..index.version import judge
from .embed import Step, under_one_key
from .search_blocks import (
    BlockRecord,
    Found,
    SearchSetup,
    block_dead_name,
    find_done,
    hits_name,
    hits_schema,
    merge_block,
    result_folder,
    search_block,
    search_parts,
    write_dead_letters,
)
from .search_queries import Block, embedded
from .spending import check_all_sent

REPORT = "report.json"


@dataclass(eq=False, kw_only=True)
class SearchAll(beam.PTransform):  # type: ignore[misc]
    """Searches every block once all queries have their vectors, and writes what that amounts to.

    Input: PCollection[Block | UnitRecord]. Output: PCollection[str] with one element, the result's folder. Hits are in
    files; neither they nor vectors cross a shuffle. Where a worker opens a group of the index files only, each group is
    searched in one place, and scores and rows of a block, packed, cross a shuffle to be merged.
    """

    setup: SearchSetup

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, parts: beam.PCollection) -> beam.PCollection:
        planned = (
            parts
            | "AllQueries" >> beam.Map(under_one_key)
            | "GroupQueries" >> beam.GroupByKey()
            | "PlanBlocks" >> beam.FlatMap(Step(plan_blocks, self.setup))
        )
        if self.setup.groups:
            found = (
                planned
                | "ToParts" >> beam.FlatMap(Step(to_parts, self.setup))
                | "GroupByPart" >> beam.GroupByKey()
                | "SearchParts" >> beam.FlatMap(Step(search_group, self.setup))
            )
            blocks = (
                (planned | "ByNumber" >> beam.Map(by_number), found)
                | "JoinParts" >> beam.Flatten()
                | "GroupByBlock" >> beam.GroupByKey()
                | "MergeBlocks" >> beam.Map(Step(merge, self.setup))
            )
        else:
            spread = planned | "SpreadBlocks" >> beam.Reshuffle()
            blocks = spread | "SearchBlocks" >> beam.Map(Step(search, self.setup))
        return (
            (blocks | "KeepBlocks" >> beam.Map(under_one_key), parts | "KeepParts" >> beam.Map(under_one_key))
            | "Join" >> beam.Flatten()
            | "GroupAll" >> beam.GroupByKey()
            | "Finish" >> beam.Map(Step(finish, self.setup))
        )


def plan_blocks(element: tuple[int, Iterable[Block | UnitRecord]], setup: SearchSetup) -> Iterator[Block]:
    """The blocks that have vectors to search with."""
    parts = list(element[1])
    records = {part.unit: part for part in parts if isinstance(part, UnitRecord)}
    check_all_sent(list(records.values()), setup.config, setup.version, setup.requests_spent)
    for part in parts:
        if isinstance(part, Block) and (block := embedded(part, records)) is not None:
            yield block


def search(block: Block, setup: SearchSetup) -> BlockRecord:
    return _counted(search_block(block, setup))


def to_parts(block: Block, setup: SearchSetup) -> list[tuple[int, Block]]:
    """The block for each group of index files, unless it is done."""
    return [] if find_done(block, setup) else [(number, block) for number in range(len(setup.groups))]


def by_number(block: Block) -> tuple[int, Block]:
    return block.number, block


def search_group(element: tuple[int, Iterable[Block]], setup: SearchSetup) -> Iterator[tuple[int, Found]]:
    yield from search_parts(element[0], element[1], setup)


def merge(element: tuple[int, Iterable[Block | Found]], setup: SearchSetup) -> BlockRecord:
    items = list(element[1])
    (block,) = [item for item in items if isinstance(item, Block)]
    return _counted(merge_block(block, [item for item in items if isinstance(item, Found)], setup))


def _counted(record: BlockRecord) -> BlockRecord:
    Metrics.counter("epithre_beam", "queries_searched").inc(record.queries)
    Metrics.counter("epithre_beam", "hits").inc(record.hits)
    return record


def finish(element: tuple[int, Iterable[Block | UnitRecord | BlockRecord]], setup: SearchSetup) -> str:
    """Counts, judges, and writes the report, the last file of the result."""
    parts = list(element[1])
    units = [part for part in parts if isinstance(part, UnitRecord)]
    blocks = sorted((part for part in parts if isinstance(part, BlockRecord)), key=lambda part: part.number)
    kinds = {part.number: part.kind for part in parts if isinstance(part, Block)}
    output = Store(setup.job.output)
    dead: Counter[str] = Counter()
    letters: list[DeadLetter] = []
    for unit in sorted(units, key=lambda record: record.unit):
        if unit.dead:
            dead[unit.kind] += unit.dead
            letters += read_unit_dead_letters(output, unit.unit)
    if letters:
        write_dead_letters(output, block_dead_name(setup.result, "units"), letters)
    else:  # those of an earlier run, which have vectors now
        output.delete(block_dead_name(setup.result, "units"))
    for block in blocks:
        dead[kinds[block.number]] += block.dead
    planned: Counter[str] = Counter()
    for part in parts:
        if isinstance(part, Block):
            planned[part.kind] += part.rows
    for kind, count in setup.asked.items():  # those that were not found when the job was planned
        dead[kind] += count - planned[kind]
    reasons = [
        reason.replace("assets", "queries").replace("asset", "query")
        for reason in judge(setup.asked, dead, (), setup.job.guards, 0.0)
    ]
    searched = sum(block.queries for block in blocks)
    assert searched + sum(dead.values()) == sum(setup.asked.values()), (searched, dead, setup.asked)
    report = {
        "result": result_folder(setup.result),
        "catalog": setup.job.catalog,
        "version": setup.searched,
        "search": setup.job.search.model_dump(mode="json"),
        "queries": {kind: count for kind, count in setup.asked.items() if count},
        "searched": searched,
        "hits": sum(block.hits for block in blocks),
        "dead": sum(dead.values()),
        "embedded": sum(record.rows - record.carried for record in units if not record.reused),
        "files": len(blocks),
        "bytes": sum(block.size_bytes for block in blocks),
        "held_back": reasons,
    }
    if setup.job.search.min_score is not None:
        report["cut_off"] = sum(block.full for block in blocks)
    if not blocks:  # so that what reads the folder finds columns
        with output.open_write(hits_name(setup.result, 0, 1)) as file:
            pq.write_table(hits_schema(setup.job, setup.metadata_types).empty_table(), pa.PythonFile(file, mode="w"))
    output.write(f"{result_folder(setup.result)}/{REPORT}", orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    return result_folder(setup.result)
