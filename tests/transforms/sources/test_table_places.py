"""A row is reported by its line or number in the file, whatever comes before it."""

import csv
import io
import random
from pathlib import Path

import pyarrow.csv
import pytest
from fsspec.implementations.local import LocalFileSystem

from epithre_beam.transforms.sources.table_places import csv_rows, json_lines, place_of_row

BREAKS = ["\n", "\r\n", "\r"]


def make_csv(rng: random.Random, line_end: str) -> tuple[str, list[int]]:
    """Make a table with blank lines and cells of several lines. Return it with the first line of each row."""
    text, starts, line = "id,text" + line_end, [], 2
    for i in range(rng.randint(1, 12)):
        for _ in range(rng.choice([0, 0, 1, 2])):
            text += line_end
            line += 1
        buffer = io.StringIO()
        cell = rng.choice(["plain", f"two{line_end}lines", f'"{line_end}{line_end}', "a,b", ""])
        csv.writer(buffer, lineterminator=line_end).writerow([i, cell])
        starts.append(line)
        text += buffer.getvalue()
        line += 1 + cell.count(line_end)
    return text, starts


@pytest.mark.parametrize("seed", range(60))
def test_a_row_of_a_csv_is_the_line_in_which_it_begins(seed: int, tmp_path: Path) -> None:
    text, starts = make_csv(random.Random(seed), BREAKS[seed % 3])
    path = tmp_path / "t.csv"
    path.write_bytes((b"\xef\xbb\xbf" if seed % 2 else b"") + text.encode())
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    assert pyarrow.csv.read_csv(path, parse_options=parse)["id"].to_pylist() == list(range(len(starts)))
    named = [place_of_row(LocalFileSystem(), str(path), "csv", row) for row in range(len(starts))]
    assert named == [f"line {start}" for start in starts]


def test_a_row_of_json_lines_is_its_line_and_one_of_parquet_its_number(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\n \n{"a": 2}')
    assert [place_of_row(LocalFileSystem(), str(path), "jsonl", row) for row in (0, 1)] == ["line 2", "line 4"]
    assert place_of_row(LocalFileSystem(), "any.parquet", "parquet", 6) == "row 7"
    assert list(json_lines([b"\xef\xbb\xbf{}\n", b"\n", b" [] "])) == [(1, b"{}"), (3, b"[]")]


def test_the_row_number_is_reported_if_lines_cannot_be_counted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,text\n1,x\n")
    assert place_of_row(LocalFileSystem(), str(path), "csv", 5) == "row 6"
    assert place_of_row(LocalFileSystem(), str(tmp_path / "gone.csv"), "csv", 0) == "row 1"
    path.write_text(f'id,text\n1,"{"x" * 200_000}"\n2,y\n')
    assert place_of_row(LocalFileSystem(), str(path), "csv", 1) == "line 3"
    assert [line for line, _ in csv_rows(["a\n", "\n", "b\n"])] == [1, 3]
