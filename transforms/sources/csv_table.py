"""Reads a csv table.

Python's `csv` in strict mode defines the meaning: a comma or the end of the row follows a closing quote, and a quote
inside an unquoted cell is a character. pyarrow is several times as fast but differs in places. It therefore gets only
blocks that both read in the same way: whole rows with quotes where RFC 4180 puts them. `csv` reads all other rows and
reports the line of an error. docs/decisions/020-csv.md has the figures.
"""

import csv
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from ...configs.errors import SourceError
from .csv_text import CsvText
from .table_places import csv_reader

_BLOCK_BYTES = 4 << 20
_SLOW_ROWS = 1000
"""Rows that `csv` reads before pyarrow is tried again: the check takes as long as some hundred rows."""
_QUOTE, _NEWLINE = b'"\n'
_NEXT_TO_QUOTES = np.isin(np.arange(256), tuple(b'",\n\r'))
"""Bytes that may come before a quote that opens a cell, and after a quote that closes one."""


class _Row(NamedTuple):
    """A row, and the line where it begins, counted from 1."""

    line: int
    cells: list[str]


class CsvTable:
    """A csv file: a header, then rows. All cells are text ("007" stays "007"); the job's types are applied later.

    Args:
        place: Place of the table, for errors.
        max_row_bytes: A larger row is refused before more of it is read.
        block_bytes: Bytes that are read at a time. No cell depends on it.
    """

    def __init__(self, place: str, max_row_bytes: int, block_bytes: int = _BLOCK_BYTES) -> None:
        self._place = place
        self._max_row_bytes = max_row_bytes
        self._block_bytes = min(block_bytes, max_row_bytes)

    def names(self, file: IO[bytes], wanted: set[str]) -> list[str] | None:  # noqa: ARG002 - the header has all
        header = self._row(CsvText(file, self._block_bytes))
        return header and header.cells

    def batches(self, file: IO[bytes], columns: list[str]) -> Iterator[pa.RecordBatch]:
        text = CsvText(file, self._block_bytes)
        header = self._row(text)
        names = header.cells if header else []
        while block := text.block():
            size = plain_rows(block, is_last=text.is_last)
            # A block that is larger than the limit for a row is read row by row, so that each row is checked.
            rows = _as_arrow(block[:size], names, columns) if 0 < size <= self._max_row_bytes else None
            if rows is not None:
                text.skip(size)
                yield from rows
            else:
                yield from self._slowly(text, text.place + len(block), names, columns)

    def _slowly(self, text: CsvText, until: int, names: list[str], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows that begin before the byte `until` of the file."""
        places = [names.index(name) for name in columns]
        held: list[list[str]] = []
        while text.place < until and len(held) < _SLOW_ROWS and (row := self._row(text)):
            if len(row.cells) != len(names):
                raise SourceError(
                    f"{self._place} line {row.line}: the row has {len(row.cells)} cells, and the header has "
                    f"{len(names)}. Quote cells that contain a comma or a line break."
                )
            held.append(row.cells)
        if held:
            cells = [pa.array([row[i] for row in held], pa.string()) for i in places]
            yield pa.RecordBatch.from_arrays(cells, names=columns)

    def _row(self, text: CsvText) -> _Row | None:
        """Return the next row that is not blank, or None at the end."""
        text.skip_blank_lines()
        line = text.line
        try:
            for cells in csv_reader(self._lines(text, line), strict=True):
                return _Row(line, cells)
        except csv.Error as error:
            if "unexpected end" in str(error):
                what = f"line {line}: this row opens a quote and does not close it. Close it"
            else:
                begin = "" if text.last_line == line else f" of the row that begins in line {line}"
                what = f"line {text.last_line}: text follows a closing quote{begin}. Close quotes at the end of a cell"
            raise SourceError(f'{self._place} {what}, and double each quote inside a quoted cell ("").') from None
        return None

    def _lines(self, text: CsvText, first: int) -> Iterator[str]:
        """Yield the lines of one row, as many as the caller takes."""
        left = self._max_row_bytes
        while line := text.take_line(left + 1):
            left -= len(line)
            if left < 0:
                raise SourceError(
                    f"{self._place} line {first}: the row has more than {self._max_row_bytes} bytes. Close the quote "
                    "that is open, or raise `max_row_bytes` of the source."
                )
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{self._place} line {text.last_line}: this is not UTF-8 (the byte 0x{line[error.start]:02x}). "
                    "Save the table as UTF-8."
                ) from None


def plain_rows(block: bytes, *, is_last: bool) -> int:
    """Return how many bytes of a block are whole rows that pyarrow reads in the same way as `csv`.

    In such rows each quote opens a cell, closes a cell, is one of a pair in a quoted cell, or is inside an unquoted
    cell.

    Args:
        block: Bytes that begin at the start of a row.
        is_last: Whether the block is the end of the file.
    """
    if block.startswith(b"\xef\xbb\xbf"):  # pyarrow removes it as a byte order mark wherever it starts to read
        return 0
    quotes, bad = _quotes(block, is_last=is_last) if b'"' in block else (np.empty(0, np.int64), len(block))
    if is_last and bad == len(block) and len(quotes) % 2 == 0:
        return len(block)
    while (newline := block.rfind(b"\n", 0, bad)) >= 0:
        count = int(np.searchsorted(quotes, newline))
        if count % 2 == 0:
            return newline + 1
        bad = int(quotes[count - 1])  # the start of the cell that contains the newline
    return 0


def _quotes(block: bytes, *, is_last: bool) -> tuple[npt.NDArray[np.int64], int]:
    """Return the places of the quotes that open and close cells, in turn, and of the first quote that is not plain."""
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data == _QUOTE)
    before = data[quotes - 1]
    before[0] = before[0] if quotes[0] else _NEWLINE
    after = data[np.minimum(quotes + 1, len(block) - 1)]
    if quotes[-1] == len(block) - 1:
        after[-1] = _NEWLINE if is_last else 0
    may_open, may_close = _NEXT_TO_QUOTES[before], _NEXT_TO_QUOTES[after]
    is_outer = may_open | may_close
    inner = quotes[~is_outer]
    if len(inner):
        quotes, may_open, may_close = quotes[is_outer], may_open[is_outer], may_close[is_outer]
    # Quotes open and close in turn; in a pair the first one closes and the second one opens again.
    wrong = (quotes[0::2][~may_open[0::2]], quotes[1::2][~may_close[1::2]])
    wrong_inner = inner[np.searchsorted(quotes, inner) % 2 == 1]  # in a quoted cell
    return quotes, min(int(places[0]) if len(places) else len(block) for places in (*wrong, wrong_inner))


def _as_arrow(rows: bytes, names: list[str], columns: list[str]) -> list[pa.RecordBatch] | None:
    """Read plain rows with pyarrow. Return None if pyarrow refuses them."""
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(rows),
            # One block, so that the result does not depend on block boundaries. No threads: a thread that still reads
            # while an error ends the process has aborted it.
            pyarrow.csv.ReadOptions(column_names=names, block_size=len(rows) + 1, use_threads=False),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    return table.to_batches()  # type: ignore[no-any-return]
