"""JSON lines keep their own types, and no row is too far down to be read or named."""

import io
from pathlib import Path

import pyarrow as pa
import pytest

from epithre_beam.configs.errors import SourceError
from epithre_beam.transforms.sources import jsonl_table
from epithre_beam.transforms.sources.jsonl_table import JsonLinesTable

from .listing import json_lines, table


def test_json_has_types_of_its_own(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "m.jsonl", {"id": 7, "t": "x", "b": False, "f": 2, "i": 3.0, "s": 4})
    row = table(path, metadata={"b": "bool", "f": "double", "i": "int", "s": "string"})[0]
    assert (row["asset_id"], row["metadata"]) == ("7", {"b": False, "f": 2.0, "i": 3, "s": "4"})


def test_a_cell_far_down_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"id": str(i), "t": "x", "p": "twelve" if i == 20_123 else 12.5} for i in range(25_000)]
    with pytest.raises(SourceError, match="line 20124: 'twelve' is not valid as double"):
        table(json_lines(tmp_path / "t.jsonl", *rows), metadata={"p": "double"})


def test_a_column_that_only_a_late_row_has_is_there(tmp_path: Path) -> None:
    rows = [{"id": str(i), "t": "x"} for i in range(9000)] + [{"id": "last", "t": "x", "p": 1.5}]
    found = table(json_lines(tmp_path / "t.jsonl", *rows), metadata={"p": "double"})
    assert [row["metadata"]["p"] for row in found] == [None] * 9000 + [1.5]


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_lines_are_whole_however_little_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(jsonl_table, "_BLOCK_BYTES", block)
    data = b'\xef\xbb\xbf{"id": "a",\r "t": 1}\r\n\n  \n{"id": "\xc3\xa9", "t": 2}'
    found = JsonLinesTable("t.jsonl", 1000, lambda *_: pa.nulls(0))
    assert [b.to_pylist() for b in found.batches(io.BytesIO(data), ["id", "t"])] == [
        [{"id": "a", "t": 1}, {"id": "é", "t": 2}]
    ]


def test_a_line_is_capped_before_it_is_read_whole() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return b'{"id": 1}\n' + b"x" * (size - 10) if self.given == size else b"x" * size

    file = Endless()
    with pytest.raises(SourceError, match=r"line 2 has more than 3000000 bytes\. .*`max_row_bytes`"):
        list(JsonLinesTable("t.jsonl", 3_000_000, lambda *_: pa.nulls(0)).batches(file, ["id"]))
    assert file.given < 6_000_000
