"""JSON lines keep their own types, and no row is too far down to be read or named."""

from pathlib import Path

import pytest

from epithre_beam.configs.errors import SourceError

from .listing import json_lines, table


def test_json_has_types_of_its_own(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "m.jsonl", {"id": 7, "t": "x", "b": False, "f": 2, "i": 3.0, "s": 4})
    row = table(path, metadata={"b": "bool", "f": "double", "i": "int", "s": "string"})[0]
    assert (row["asset_id"], row["metadata"]) == ("7", {"b": False, "f": 2.0, "i": 3, "s": "4"})


def test_a_cell_far_down_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"id": str(i), "t": "x", "p": "twelve" if i == 20_123 else 12.5} for i in range(25_000)]
    with pytest.raises(SourceError, match="got 'twelve' in line 20124 of"):
        table(json_lines(tmp_path / "t.jsonl", *rows), metadata={"p": "double"})


def test_a_column_that_only_a_late_row_has_is_there(tmp_path: Path) -> None:
    rows = [{"id": str(i), "t": "x"} for i in range(9000)] + [{"id": "last", "t": "x", "p": 1.5}]
    found = table(json_lines(tmp_path / "t.jsonl", *rows), metadata={"p": "double"})
    assert [row["metadata"]["p"] for row in found] == [None] * 9000 + [1.5]
