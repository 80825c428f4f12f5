"""Unit files: the vectors of one unit of work, written once and complete if they exist.

A unit's vectors are paid for. Its file's name is a hash of all that decides them, so that a run which finds the
file need not ask the API again, whether it is a retried bundle, the run after a kill, or tomorrow's.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from .layout import DEAD_LETTER_SCHEMA, DeadLetter, Reason, unit_dead_letters_name, unit_name, unit_schema
from .store import HashingWriter, Store, StoreError

_FOOTER = b"epithre_beam.unit"


class DamagedFileError(StoreError):
    """A file of vectors cannot be trusted: what it held must come from elsewhere. `name` is its name in the store."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.facts = {"file": name}

    def __str__(self) -> str:
        return str(self.args[1])


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """What a finished unit amounts to; small, for it crosses the runner's shuffle."""

    unit: str
    kind: str
    row_group: int
    """Where the unit's references stand in the run's plan."""
    rows: int
    dead: int
    deduplicated: int
    """Rows whose content another row of the unit has, and which were therefore not sent."""
    carried: int = 0
    """Rows whose content was paid for earlier, and which were therefore not sent."""
    not_sent: int = 0
    """References that a spending limit kept from being sent. What else the unit has is kept."""
    reused: bool
    """Whether the unit was found finished, so that this run paid nothing for it."""


@dataclass(frozen=True, kw_only=True)
class CarriedGroup:
    """Rows of one row group of the version before that are taken over as they are."""

    kind: str
    file: str
    """Of vectors, as named in the store."""
    group: int
    """The row group in it."""
    row_group: int
    """The row group of the run's file of carried rows that says which rows, and what their metadata is now."""
    rows: int


def parquet_writer(file: HashingWriter, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer for tables with vectors: nothing is gained by compressing or indexing 4000 random floats a row.

    Measured at 4000 dimensions: zstd saves 8 % of the bytes and costs most of the speed; dictionaries and
    statistics on the vector column cost time and memory only.
    """
    columns = [f.name for f in schema if f.name not in {"embedding", "metadata"}]
    columns += [f"metadata.{f.name}" for f in schema.field("metadata").type] if "metadata" in schema.names else []
    return pq.ParquetWriter(
        pa.PythonFile(file, mode="w"),
        schema,
        compression=dict.fromkeys(columns, "zstd"),
        use_dictionary=[c for c in columns if c in {"kind", "media_type", "prepared"}],
        write_statistics=[c for c in columns if c in {"asset_id", "size_bytes"}],
        store_schema=True,
        write_page_checksum=True,
    )


def write_unit(
    store: Store,
    unit: str,
    assets: pa.Table,
    vectors: npt.NDArray[np.float32],
    dead_letters: Sequence[DeadLetter],
    *,
    deduplicated: int,
    carried: int = 0,
    recipe: str = "",
) -> None:
    """Writes a unit's dead letters, then its vectors, whose file marks the unit as done.

    Args:
        store: The catalog.
        unit: The unit's name.
        assets: The rows in the columns of `layout.asset_fields()`.
        vectors: float32, (rows, dimension), unit norm.
        dead_letters: The references that have no row.
        deduplicated: How many rows were not sent because another had their content.
        carried: How many were not sent because their content was paid for earlier.
        recipe: What the vectors were made with, so that other runs know whether they may take them over.
    """
    rows, dimension = vectors.shape
    footer: dict[str, Any] = {"dead": len(dead_letters), "deduplicated": deduplicated, "carried": carried}
    footer["transient"] = sum(letter.reason.is_transient for letter in dead_letters)
    footer["recipe"] = recipe
    if dead_letters:
        with store.open_write(unit_dead_letters_name(unit)) as file:
            pq.write_table(dead_letter_table(dead_letters), pa.PythonFile(file, mode="w"))
    schema = unit_schema(dimension).with_metadata({_FOOTER: orjson.dumps(footer)})
    values = pa.array(np.ascontiguousarray(vectors, "<f4").reshape(-1), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type)
    table = pa.Table.from_arrays([*assets.columns, pa.chunked_array([column])], schema=schema)
    with store.open_write(unit_name(unit)) as file, parquet_writer(file, schema) as writer:
        writer.write_table(table, row_group_size=max(rows, 1))
    # Arrow's allocator keeps what threads free; at 8 MB a unit that would add up over a run.
    pa.default_memory_pool().release_unused()


def read_unit_footer(store: Store, unit: str) -> dict[str, Any] | None:
    """A finished unit's counts (rows, dead, deduplicated, carried, transient) and recipe; None when it is not finished.

    A file that is no unit's, cut off by a disk that lied, say, counts as not finished: it is done anew.
    """
    if store.size(unit_name(unit)) is None:
        return None
    try:
        with store.open_read(unit_name(unit)) as file:
            metadata = pq.read_metadata(file)
        counts: dict[str, Any] = orjson.loads((metadata.metadata or {})[_FOOTER])
    except (pa.ArrowInvalid, KeyError, orjson.JSONDecodeError):
        return None
    return {"rows": metadata.num_rows, **counts}


def read_unit(store: Store, unit: str) -> pa.Table:
    """A finished unit's rows, every page checked.

    Raises:
        DamagedFileError: When the file is damaged. It is removed, so that the unit is done anew.
    """
    try:
        with store.open_read(unit_name(unit)) as file:
            return pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        store.delete(unit_name(unit))
        message = f"{store.url}/{unit_name(unit)} is damaged and was removed: run again, its assets are embedded anew."
        raise DamagedFileError(unit_name(unit), message) from error


def read_unit_dead_letters(store: Store, unit: str) -> list[DeadLetter]:
    with store.open_read(unit_dead_letters_name(unit)) as file:
        rows = pq.ParquetFile(file).read(use_threads=False).to_pylist()
    return [DeadLetter(**{**row, "reason": Reason(row["reason"])}) for row in rows]


def dead_letter_table(letters: Sequence[DeadLetter]) -> pa.Table:
    return pa.Table.from_pylist([asdict(letter) for letter in letters], schema=DEAD_LETTER_SCHEMA)
