"""Where a row of a table stands, in the words of whoever opens the file: its line, or else its number from 1."""

import contextlib
import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

_BOM = b"\xef\xbb\xbf"
_LARGEST_CELL = 2**31 - 1
"""Of the whole process, and 131,072 characters by default: what is read is bounded where it is read."""


def place_of_row(fs: Any, path: str, form: str, row: int) -> str:
    """`line 7` of a csv or of JSON lines, `row 6` of Parquet, and of a csv whose lines cannot be counted.

    Reads the file up to the row, so it is for errors alone.

    Args:
        fs: The fsspec file system that has it.
        path: Of the table.
        form: csv, jsonl or parquet.
        row: Counted from 0, without a csv's header and without blank lines.
    """
    # Whatever goes wrong here, it is another error that is being told.
    with contextlib.suppress(Exception), fs.open(path, "rb") as file:
        match form:
            case "csv":
                rows: Iterator[tuple[int, Any]] = csv_rows(_text(file))
                return f"line {next(itertools.islice(rows, row + 1, None))[0]}"
            case "jsonl":
                return f"line {next(itertools.islice(json_lines(file), row, None))[0]}"
    return f"row {row + 1}"


def csv_reader(lines: Iterable[str], *, strict: bool) -> Iterator[list[str]]:
    """Python's reader, whose cells may be of any length."""
    csv.field_size_limit(_LARGEST_CELL)
    return csv.reader(lines, strict=strict)


def csv_rows(file: Iterable[str], *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(line that it begins in, from 1; cells) of each row of a csv that is not blank, its header first."""
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(file, strict=strict)
    line = 1
    for cells in reader:
        if cells:
            yield line, cells
        line = reader.line_num + 1  # a quoted cell may span lines


def json_lines(file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """(number from 1, content) of each line that is not blank."""
    for number, line in enumerate(file, 1):
        if text := (line.removeprefix(_BOM) if number == 1 else line).strip():
            yield number, text


def _text(file: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, "utf-8-sig", "replace", newline="")
