"""Finds the place of a row in a table file, as an editor shows it: its line, or its number from 1."""

import contextlib
import csv
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

_BOM = b"\xef\xbb\xbf"
_LARGEST_CELL = 2**31 - 1
"""Limit of `csv` for the whole process (131,072 characters by default). Callers limit what they read themselves."""


def place_of_row(fs: Any, path: str, form: str, row: int) -> str:
    """Return `line 7` for csv and JSON lines; `row 6` for Parquet, or if the lines cannot be counted.

    This reads the file up to the row, so use it only for errors.

    Args:
        fs: The fsspec file system of the table.
        path: Path of the table.
        form: csv, jsonl or parquet.
        row: Number of the row from 0, without the header of a csv and without blank lines.
    """
    # A failure here must not hide the error that is being reported.
    with contextlib.suppress(Exception), fs.open(path, "rb") as file:
        match form:
            case "csv":
                rows: Iterator[tuple[int, Any]] = csv_rows(_text(file))
                return f"line {next(itertools.islice(rows, row + 1, None))[0]}"
            case "jsonl":
                return f"line {next(itertools.islice(json_lines(file), row, None))[0]}"
    return f"row {row + 1}"


def csv_reader(lines: Iterable[str], *, strict: bool) -> Iterator[list[str]]:
    """Return Python's csv reader without a limit for the length of a cell."""
    csv.field_size_limit(_LARGEST_CELL)
    return csv.reader(lines, strict=strict)


def csv_rows(file: Iterable[str], *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, counted from 1; cells) for each row of a csv that is not blank, including the header."""
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(file, strict=strict)
    line = 1
    for cells in reader:
        if cells:
            yield line, cells
        line = reader.line_num + 1  # a quoted cell may span lines


def json_lines(file: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, content) for each line that is not blank."""
    for number, line in enumerate(file, 1):
        if text := (line.removeprefix(_BOM) if number == 1 else line).strip():
            yield number, text


def _text(file: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, "utf-8-sig", "replace", newline="")
