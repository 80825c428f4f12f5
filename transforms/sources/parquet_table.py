"""Reads a Parquet table."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from ...configs.errors import ConfigError
from .references import BATCH_ROWS


class ParquetTable:
    """A Parquet file.

    Args:
        place: The source's, for errors.
        url: The table's, for errors.
        bytes_column: The column with pictures' bytes, if the source names one; it is not read here.
    """

    def __init__(self, place: str, url: str, bytes_column: str | None) -> None:
        self._place = place
        self._url = url
        self._bytes_column = bytes_column

    def names(self, file: IO[bytes], wanted: set[str]) -> list[str]:  # noqa: ARG002 - the schema has all
        schema = pq.read_schema(file)
        self._check_bytes(schema)
        return list(schema.names)

    def batches(self, file: IO[bytes], columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns, use_threads=False)

    def _check_bytes(self, schema: pa.Schema) -> None:
        name = self._bytes_column
        if name is None or name not in schema.names:
            return
        found = schema.field(name).type
        if not (pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_string(found)):
            raise ConfigError(
                f"{self._place}.bytes must name a column of bytes in {self._url}, got {name!r} of {found}."
            )
