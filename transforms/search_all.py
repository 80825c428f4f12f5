"""The transform that searches blocks of queries and writes the result of a bulk search."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics

from ..index.vectors.units import UnitRecord
from .batch_search.blocks import BlockRecord, SearchSetup, find_done, merge_block, search_block, search_parts
from .batch_search.last_step import complete_search
from .batch_search.query_blocks import Block, embedded
from .embedding.spending import check_all_sent
from .query.many_queries import Found
from .workers.steps import Step, under_one_key


@dataclass(eq=False, kw_only=True)
class SearchAll(beam.PTransform):  # type: ignore[misc]
    """Search every block once all queries have vectors, and write the result.

    Input: PCollection[Block | UnitRecord]. Output: PCollection[str] with one element, the folder of the result.
    Hits are in files; neither hits nor vectors cross a shuffle. If each worker opens only a group of the index files,
    one worker searches each group, and the packed scores and rows of a block cross a shuffle to be merged.
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
            | "Finish" >> beam.Map(Step(complete, self.setup))
        )


def plan_blocks(element: tuple[int, Iterable[Block | UnitRecord]], setup: SearchSetup) -> Iterator[Block]:
    """Yield the blocks that have vectors to search with."""
    parts = list(element[1])
    records = {part.unit: part for part in parts if isinstance(part, UnitRecord)}
    check_all_sent(
        list(records.values()), setup.embed, setup.run, setup.requests_spent, consequence="there is no result"
    )
    for part in parts:
        if isinstance(part, Block) and (block := embedded(part, records)) is not None:
            yield block


def search(block: Block, setup: SearchSetup) -> BlockRecord:
    return _counted(search_block(block, setup))


def to_parts(block: Block, setup: SearchSetup) -> list[tuple[int, Block]]:
    """Pair the block with each group of index files, unless the block is done."""
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


def complete(element: tuple[int, Iterable[Block | UnitRecord | BlockRecord]], setup: SearchSetup) -> str:
    return complete_search(element[1], setup)
