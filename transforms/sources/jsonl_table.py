"""Reads a table of JSON lines."""

import itertools
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import orjson
import pyarrow as pa

from ...configs.errors import SourceError
from .references import BATCH_ROWS
from .table_places import json_lines


class Cell(NamedTuple):
    """A value of a column, and the number of its row from 0."""

    row: int
    value: Any


class JsonLinesTable:
    """JSON lines: an object a line, blank lines left out.

    Args:
        place: The table's, for errors.
        column: Makes a column of its name and cells that are not all of one type.
    """

    def __init__(self, place: str, column: Callable[[str, list[Cell]], pa.Array]) -> None:
        self._place = place
        self._column = column

    def names(self, file: IO[bytes], wanted: set[str]) -> list[str] | None:
        """The names met until all `wanted` are; None when there are no rows at all."""
        names: dict[str, None] = {}
        for row in self._rows(file):
            names |= dict.fromkeys(row)
            if wanted <= names.keys():
                break
        return list(names) or None

    def batches(self, file: IO[bytes], columns: list[str]) -> Iterator[pa.RecordBatch]:
        rows = enumerate(self._rows(file))
        while part := list(itertools.islice(rows, BATCH_ROWS)):
            arrays = []
            for name in columns:
                cells = [Cell(row, object_.get(name)) for row, object_ in part]
                try:
                    arrays.append(pa.array([cell.value for cell in cells]))
                except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
                    arrays.append(self._column(name, cells))
            yield pa.RecordBatch.from_arrays(arrays, names=columns)

    def _rows(self, file: IO[bytes]) -> Iterator[dict[str, Any]]:
        for number, text in json_lines(file):
            try:
                value = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise SourceError(
                    f"{self._place} cannot be read as jsonl: line {number} is no JSON: {error.msg}, "
                    f"at its character {error.colno}."
                ) from None
            if not isinstance(value, dict):
                raise SourceError(
                    f"{self._place} cannot be read as jsonl, an object a line: line {number} is {str(value)[:60]!r}."
                )
            yield value
