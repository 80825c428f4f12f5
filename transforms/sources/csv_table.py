"""Reads a csv table."""

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv

from ...configs.errors import SourceError

_BLOCK_BYTES = 16 << 20
"""A row must fit in it."""


class CsvTable:
    """A csv: a header, then rows. Everything is text: "007" is an id, and the job's types decide the rest.

    Args:
        place: The table's, for errors.
    """

    def __init__(self, place: str) -> None:
        self._place = place

    def names(self, file: IO[bytes], wanted: set[str]) -> list[str]:  # noqa: ARG002 - the header has all
        return list(_open(file).schema.names)

    def batches(self, file: IO[bytes], columns: list[str]) -> Iterator[pa.RecordBatch]:
        options = pyarrow.csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=False,
        )
        yield from _open(file, options)
        self._check_quotes(file)

    def _check_quotes(self, file: IO[bytes]) -> None:
        """An unclosed quote swallows all the rows behind it into one cell, and the reader says nothing."""
        file.seek(0)
        quotes = 0
        while block := file.read(_BLOCK_BYTES):
            quotes += block.count(b'"')
        if quotes % 2:
            raise SourceError(
                f"{self._place} must close every quote, got an odd number of them ({quotes}): "
                "the rows behind the open one would be lost."
            )


def _open(file: IO[bytes], convert: Any = None) -> Any:
    return pyarrow.csv.open_csv(
        file,
        # Without threads: one that still reads when an error ends the process has aborted it.
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )
