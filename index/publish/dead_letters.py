"""The dead letters of a version: collected from its units into one file, and counted by reason."""

from collections import Counter
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage.store import Store
from ..vectors.units import UnitRecord, read_dead_letter_table
from ..versions.layout import DEAD_LETTER_SCHEMA, LetterRow, dead_letters_name
from ..versions.manifest import FileEntry

_SAMPLES = 5


class DeadLetterSummary:
    """Dead letters counted by reason, with a few samples of each."""

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self.samples: dict[str, list[LetterRow]] = {}

    def add(self, letter: LetterRow) -> None:
        self.by_reason[letter["reason"]] += 1
        samples = self.samples.setdefault(letter["reason"], [])
        if len(samples) < _SAMPLES:
            samples.append(letter)


def write_dead_letters(
    store: Store, version: str, records: Sequence[UnitRecord], others: Sequence[str] = ()
) -> tuple[FileEntry | None, DeadLetterSummary]:
    """Write all dead letters into the version's file. Return (None, summary) if there are none.

    Args:
        store: The catalog.
        version: The version that the file belongs to.
        records: The units of the run.
        others: Files with further dead letters, such as those reused from the previous version.
    """
    summary = DeadLetterSummary()
    units = [record.unit for record in sorted(records, key=lambda record: record.unit) if record.dead]
    if not units and not others:
        return None, summary

    def tables() -> Iterator[pa.Table]:
        for other in others:
            with store.open_read(other) as file:
                for batch in pq.ParquetFile(file).iter_batches(use_threads=False):
                    yield pa.Table.from_batches([batch])
        for unit in units:
            yield read_dead_letter_table(store, unit)

    name = dead_letters_name(version)
    rows = 0
    with store.open_write(name) as file, pq.ParquetWriter(pa.PythonFile(file, mode="w"), DEAD_LETTER_SCHEMA) as out:
        for table in tables():
            for letter in table.to_pylist():
                summary.add(letter)
            out.write_table(table.cast(DEAD_LETTER_SCHEMA))
            rows += len(table)
    return FileEntry(name=name, size_bytes=file.size_bytes, sha256=file.sha256, rows=rows), summary
