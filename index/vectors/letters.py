"""Reads the dead letters of a version, including those of earlier releases."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..versions.layout import DEAD_LETTER_SCHEMA, KINDS, Reason


def iterate_letters(file: IO[bytes], batch_rows: int = 65_536) -> Iterator[pa.Table]:
    """Reads a file of dead letters in the current columns; earlier releases wrote fewer columns.

    Raises:
        pa.ArrowInvalid: When the columns are not those of dead letters, or a kind or reason is invalid.
    """
    try:
        opened = pq.ParquetFile(file, page_checksum_verification=True)
        for field in DEAD_LETTER_SCHEMA:
            if field.name in opened.schema_arrow.names:
                if opened.schema_arrow.field(field.name).type != field.type:
                    raise pa.ArrowInvalid(f"its column {field.name} must hold {field.type}")
            elif not field.nullable:
                raise pa.ArrowInvalid(f"it lacks the column {field.name}")
        for batch in opened.iter_batches(batch_rows, use_threads=False):
            yield _of_today(pa.Table.from_batches([batch]))
    except (KeyError, UnicodeDecodeError) as error:
        raise pa.ArrowInvalid(f"its footer cannot be read: {error}") from error


def _of_today(table: pa.Table) -> pa.Table:
    for field in DEAD_LETTER_SCHEMA:
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    for name, known in (("kind", KINDS), ("reason", tuple(Reason))):
        if other := set(pc.unique(table.column(name)).to_pylist()) - set(known):
            got = repr(other.pop())
            raise pa.ArrowInvalid(f"its column {name} must be one of {', '.join(known)}, got {got:.80}")
    return table.select(DEAD_LETTER_SCHEMA.names).cast(DEAD_LETTER_SCHEMA)
