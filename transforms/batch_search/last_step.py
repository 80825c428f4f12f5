"""The last step of a bulk search: count, judge, report."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ...index.publish.gates import check_gates
from ...index.vectors.units import UnitRecord, read_unit_dead_letters
from ...index.versions.layout import DeadLetter
from .blocks import (
    BlockRecord,
    SearchSetup,
    block_dead_name,
    hits_name,
    hits_schema,
    result_folder,
    write_dead_letters,
)
from .query_blocks import Block

_REPORT = "report.json"


class SearchReport(TypedDict):
    """What a bulk search amounts to: the content of its `report.json`."""

    result: str
    """The result's folder below the output."""
    catalog: str
    version: str
    """That was searched."""
    search: dict[str, Any]
    """The section of the job."""
    queries: dict[str, int]
    """By kind."""
    searched: int
    hits: int
    dead: int
    embedded: int
    """Queries whose vector this run paid for."""
    files: int
    bytes: int
    held_back: list[str]
    cut_off: NotRequired[int]
    """Queries that may have more hits above `min_score`."""
    requests: NotRequired[int]
    """Added by the launcher, as what follows."""
    seconds: NotRequired[float]


def report_of(result: str) -> str:
    """The name of a result's report."""
    return f"{result_folder(result)}/{_REPORT}"


def complete_search(elements: Iterable[Block | UnitRecord | BlockRecord], setup: SearchSetup) -> str:
    """Counts, judges, and writes the report, the last file of the result. Returns the result's folder."""
    parts = list(elements)
    units = [part for part in parts if isinstance(part, UnitRecord)]
    blocks = sorted((part for part in parts if isinstance(part, BlockRecord)), key=lambda part: part.number)
    kinds = {part.number: part.kind for part in parts if isinstance(part, Block)}
    output = setup.run.store()
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
    reasons = check_gates(setup.asked, dead, (), setup.job.gates, 0.0, noun=("query", "queries"))
    searched = sum(block.queries for block in blocks)
    assert searched + sum(dead.values()) == sum(setup.asked.values()), (searched, dead, setup.asked)
    report: SearchReport = {
        "result": result_folder(setup.result),
        "catalog": setup.job.catalog,
        "version": setup.searched,
        "search": setup.job.search.model_dump(mode="json"),
        "queries": {kind: count for kind, count in setup.asked.items() if count},
        "searched": searched,
        "hits": sum(block.hits for block in blocks),
        "dead": sum(dead.values()),
        "embedded": sum(record.rows - record.reused_rows for record in units if not record.reused),
        "files": len(blocks),
        "bytes": sum(block.size_bytes for block in blocks),
        "held_back": reasons,
    }
    if setup.job.search.min_score is not None:
        report["cut_off"] = sum(block.full for block in blocks)
    if not blocks:  # so that what reads the folder finds columns
        with output.open_write(hits_name(setup.result, 0, 1)) as file:
            pq.write_table(hits_schema(setup.job, setup.metadata_types).empty_table(), pa.PythonFile(file, mode="w"))
    output.write(report_of(setup.result), orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    return result_folder(setup.result)
