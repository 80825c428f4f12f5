"""Reads a table of JSON lines."""

from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import orjson
import pyarrow as pa

from ...configs.errors import SourceError
from .references import BATCH_ROWS
from .table_places import json_lines

_BLOCK_BYTES = 1 << 20
_BATCH_BYTES = 64 << 20


class Cell(NamedTuple):
    """A value of a column, and the number of its row from 0."""

    row: int
    value: Any


class JsonLinesTable:
    """JSON lines: an object a line, blank lines left out.

    Args:
        place: The table's, for errors.
        max_row_bytes: A longer line is refused before more of it is read.
        column: Makes a column of its name and cells that are not all of one type, or not of one that Arrow has.
    """

    def __init__(self, place: str, max_row_bytes: int, column: Callable[[str, list[Cell]], pa.Array]) -> None:
        self._place = place
        self._max_row_bytes = max_row_bytes
        self._column = column

    def names(self, file: IO[bytes], wanted: set[str]) -> list[str] | None:
        """The names met until all `wanted` are; None when there are no rows at all."""
        names: dict[str, None] = {}
        for row, _ in self._rows(file):
            names |= dict.fromkeys(row)
            if wanted <= names.keys():
                break
        return list(names) or None

    def batches(self, file: IO[bytes], columns: list[str]) -> Iterator[pa.RecordBatch]:
        first = size = 0
        part: list[list[Any]] = []
        for row, length in self._rows(file):
            part.append([row.get(name) for name in columns])
            size += length
            if len(part) == BATCH_ROWS or size >= _BATCH_BYTES:
                yield self._batch(first, part, columns)
                first, size, part = first + len(part), 0, []
        if part:
            yield self._batch(first, part, columns)

    def _batch(self, first: int, part: list[list[Any]], columns: list[str]) -> pa.RecordBatch:
        arrays = []
        for name, values in zip(columns, zip(*part, strict=True), strict=True):
            array = None
            # What holds others is no cell of any type, and may be nested as deep as anybody likes.
            if not any(isinstance(value, (dict, list)) for value in values):
                try:
                    array = pa.array(values)
                except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                    array = None
            if array is None:
                array = self._column(name, [Cell(first + i, value) for i, value in enumerate(values)])
            arrays.append(array)
        return pa.RecordBatch.from_arrays(arrays, names=columns)

    def _rows(self, file: IO[bytes]) -> Iterator[tuple[dict[str, Any], int]]:
        """Each row, and the bytes of its line."""
        for number, text in json_lines(self._lines(file)):
            try:
                value = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise SourceError(
                    f"{self._place} line {number}, column {error.colno}: this is not valid JSON: {error.msg}. "
                    "Write one object in each line."
                ) from None
            if not isinstance(value, dict):
                raise SourceError(
                    f"{self._place} line {number}: this is no JSON object "
                    f"({text[:60].decode('utf-8', 'replace')!r}). Write one object in each line."
                )
            yield value, len(text)

    def _lines(self, file: IO[bytes]) -> Iterator[bytes]:
        number, size = 1, 0
        begun: list[bytes] = []
        while block := file.read(_BLOCK_BYTES):
            *lines, rest = block.split(b"\n")
            for line in lines:
                self._check_length(size + len(line), number)
                yield b"".join((*begun, line))
                number, begun, size = number + 1, [], 0
            begun.append(rest)
            size += len(rest)
            self._check_length(size, number)
        if size:
            yield b"".join(begun)

    def _check_length(self, size: int, number: int) -> None:
        if size > self._max_row_bytes:
            raise SourceError(
                f"{self._place} line {number} has more than {self._max_row_bytes} bytes. If the line is right, raise "
                "`max_row_bytes` of the source."
            )
