"""The last step of a bulk search: count, check the gates, write the report."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NotRequired, TypedDict

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ...index.publish.gates import check_gates
from ...index.vectors.units import UnitRecord, read_unit_dead_letters
from ...index.versions.layout import DeadLetter
from ...index.versions.stored_names import GATE_FAILURES
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
    """The content of a bulk search's `report.json`."""

    result: str
    """The result's folder, relative to the output."""
    catalog: str
    version: str
    """The version that was searched."""
    search: dict[str, Any]
    """The job's `search` section."""
    queries: dict[str, int]
    """Number of queries by kind."""
    searched: int
    hits: int
    dead: int
    embedded: int
    """Queries that this run embedded."""
    files: int
    bytes: int
    held_back: list[str]
    cut_off: NotRequired[int]
    """Queries that may have more hits above `min_score`."""
    requests: NotRequired[int]
    """The launcher adds this field and the next one."""
    seconds: NotRequired[float]


def report_of(result: str) -> str:
    """Return the name of a result's report."""
    return f"{result_folder(result)}/{_REPORT}"


def complete_search(elements: Iterable[Block | UnitRecord | BlockRecord], setup: SearchSetup) -> str:
    """Count, check the gates and write the report, the last file of the result. Return the result's folder."""
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
    else:  # delete the dead letters of an earlier run: these queries have vectors now
        output.delete(block_dead_name(setup.result, "units"))
    for block in blocks:
        dead[kinds[block.number]] += block.dead
    planned: Counter[str] = Counter()
    for part in parts:
        if isinstance(part, Block):
            planned[part.kind] += part.rows
    for kind, count in setup.asked.items():  # queries that planning did not find
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
        GATE_FAILURES: reasons,
    }
    if setup.job.search.min_score is not None:
        report["cut_off"] = sum(block.full for block in blocks)
    if not blocks:  # an empty file, so that readers of the folder find the schema
        with output.open_write(hits_name(setup.result, 0, 1)) as file:
            pq.write_table(hits_schema(setup.job, setup.metadata_types).empty_table(), pa.PythonFile(file, mode="w"))
    output.write(report_of(setup.result), orjson.dumps(report, option=orjson.OPT_INDENT_2) + b"\n")
    return result_folder(setup.result)
