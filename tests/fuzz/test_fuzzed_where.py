"""Any condition gives rows or an error. Runs for EPITHRE_BEAM_FUZZ_S seconds."""

import os
import random
import time
from typing import Any

import orjson
import pyarrow as pa
import pytest

from epithre_beam.configs.errors import ArgumentError
from epithre_beam.index.search.where import parse_where
from epithre_beam.index.versions.layout import assets_schema

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]
SECONDS = float(os.environ.get("EPITHRE_BEAM_FUZZ_S", "20"))
SCHEMA = assets_schema({"s": "string", "i": "int", "f": "double", "b": "bool", "d": "date", "t": "timestamp"})
COLUMNS = ["s", "i", "f", "b", "d", "t", "width", "asset_id", "nosuch", "metadata"]
OPERATORS = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$not", "$nosuch"]
VALUES: list[Any] = [None, True, False, 0, -0.0, 1, -1, 1.5, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 1e308, 5e-324, "", "a"]
VALUES += [
    "2026-01-31",
    "2026-01-31T12:00:00+07:00",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
    [],
    {},
    "é",
]
ROWS = [
    {"width": w, "metadata": m}
    for w, m in zip(
        [1, None, 2**31 - 1], [None, {"f": float("nan"), "i": 2**63 - 1}, {"f": -0.0, "b": True}], strict=True
    )
]


def drawn(draw: random.Random, depth: int) -> Any:
    if depth == 0 or draw.random() < 0.1:
        return draw.choice(VALUES)
    match draw.randrange(4):
        case 0:
            return [drawn(draw, depth - 1) for _ in range(draw.randrange(4))]
        case 1:
            return {draw.choice(OPERATORS): drawn(draw, depth - 1) for _ in range(draw.randrange(1, 3))}
        case _:
            names = [*COLUMNS, "$and", "$or", "$not"]
            return {draw.choice(names): drawn(draw, depth - 1) for _ in range(draw.randrange(1, 3))}


def test_condition_and_its_negation_partition_the_rows() -> None:
    draw = random.Random(4)
    table = pa.Table.from_pylist(
        [{**row, "row": i} for i, row in enumerate(ROWS)], SCHEMA.append(pa.field("row", pa.int64()))
    )
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        condition = drawn(draw, draw.randrange(1, 6))
        text = orjson.dumps(condition).decode()
        found: dict[str, set[int]] = {}
        for name, asked in (("plain", text), ("not", f'{{"$not": {text}}}')):
            try:
                found[name] = set(table.filter(parse_where(asked, SCHEMA)).column("row").to_pylist())
            except ArgumentError:
                continue
        if len(found) == 2:
            assert found["plain"] ^ found["not"] == {0, 1, 2}, text
            assert not found["plain"] & found["not"], text
