"""Unit files: the vectors of one unit of work, written once and complete if they exist.

A unit's vectors are paid for. Its file's name is a hash of all that decides them, so that a run which finds the
file need not ask the API again, whether it is a retried bundle, the run after a kill, or tomorrow's.
"""

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs.errors import DamagedFileError
from ..storage.store import HashingWriter, Store
from ..versions.layout import (
    DEAD_LETTER_SCHEMA,
    DeadLetter,
    Reason,
    asset_fields,
    embedding_field,
    metadata_type,
    unit_dead_letters_name,
    unit_name,
    unit_schema,
)
from ..versions.manifest import FileEntry, Manifest

_FOOTER = b"epithre_beam.unit"
_MOST_GROUP_BYTES = 4_000_000_000
"""Of a row group in memory. Ours have some 512 rows, whose texts and metadata may be long."""


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
    reused_rows: int = 0
    """Rows whose content was paid for earlier, and which were therefore not sent."""
    not_sent: int = 0
    """References that a spending limit kept from being sent. What else the unit has is kept."""
    reused: bool
    """Whether the unit was found finished, so that this run paid nothing for it."""


@dataclass(frozen=True, kw_only=True)
class UnitFooter:
    """What a finished unit says of itself in its file. Earlier releases wrote fewer of these."""

    rows: int
    dead: int = 0
    deduplicated: int = 0
    reused_rows: int = 0
    transient: int = 0
    """Of the dead ones: those that the next run tries again by itself."""
    embedding_config_hash: str = ""


@dataclass(frozen=True, kw_only=True)
class ReusedGroup:
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
    reused_rows: int = 0,
    embedding_config_hash: str = "",
) -> None:
    """Writes a unit's dead letters, then its vectors, whose file marks the unit as done.

    Args:
        store: The catalog.
        unit: The unit's name.
        assets: The rows in the columns of `layout.asset_fields()`.
        vectors: float32, (rows, dimension), unit norm.
        dead_letters: The references that have no row.
        deduplicated: How many rows were not sent because another had their content.
        reused_rows: How many were not sent because their content was paid for earlier.
        embedding_config_hash: What the vectors were made with, so that other runs know whether they may take them over.
    """
    rows, dimension = vectors.shape
    footer = UnitFooter(
        rows=rows,
        dead=len(dead_letters),
        deduplicated=deduplicated,
        reused_rows=reused_rows,
        transient=sum(letter.reason.is_transient for letter in dead_letters),
        embedding_config_hash=embedding_config_hash,
    )
    counts = asdict(footer)
    noted = orjson.dumps({**counts, "check": zlib.crc32(orjson.dumps(counts))})
    if dead_letters:
        with store.open_write(unit_dead_letters_name(unit)) as file:
            letters = dead_letter_table(dead_letters)
            pq.write_table(letters, pa.PythonFile(file, mode="w"), write_page_checksum=True)
    schema = unit_schema(dimension).with_metadata({_FOOTER: noted})
    values = pa.array(np.ascontiguousarray(vectors, "<f4").reshape(-1), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type)
    table = pa.Table.from_arrays([*assets.columns, pa.chunked_array([column])], schema=schema)
    with store.open_write(unit_name(unit)) as file, parquet_writer(file, schema) as writer:
        writer.write_table(table, row_group_size=max(rows, 1))
    # Arrow's allocator keeps what threads free; at 8 MB a unit that would add up over a run.
    pa.default_memory_pool().release_unused()


def open_vectors(file: IO[bytes], manifest: Manifest | None = None, entry: FileEntry | None = None) -> Any:
    """A Parquet file of vectors, of a unit or a version, whose pages are checked as they are read.

    Its footer has no checksum, and a byte that changes there can make truth values of floats: so the columns must be
    those that are written.

    Args:
        file: Open and seekable.
        manifest: Of the version whose file it is: its dimension and its metadata are compared.
        entry: Of the file in it: its rows are compared.

    Raises:
        pa.ArrowInvalid: When it is damaged, or not the file that the manifest means.
    """
    try:
        opened = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
        found = pa.schema([field for field in opened.schema_arrow if field.name != "metadata"])
        vector = found.field("embedding").type
        written = [pa.schema([*asset_fields(), embedding_field(vector.list_size, t)]) for t in ("float32", "float16")]
    except (KeyError, AttributeError, UnicodeDecodeError) as error:
        raise pa.ArrowInvalid(f"its footer cannot be read: {error}") from error
    if found not in written:
        raise pa.ArrowInvalid("its columns are not those of a file of vectors")
    _check_sizes(opened.metadata)
    if manifest is not None:
        if vector.list_size != manifest.dimension:
            raise pa.ArrowInvalid(f"its vectors must have {manifest.dimension} dimensions, got {vector.list_size}")
        wanted = metadata_type(manifest.metadata_types)
        if (opened.schema_arrow.field("metadata").type if "metadata" in opened.schema_arrow.names else None) != wanted:
            raise pa.ArrowInvalid("its metadata columns are not those of the manifest")
    if entry is not None and entry.rows not in {None, opened.metadata.num_rows}:
        raise pa.ArrowInvalid(f"it must have {entry.rows} rows, got {opened.metadata.num_rows}")
    return opened


def _check_sizes(metadata: pq.FileMetaData) -> None:
    """Raises pa.ArrowInvalid when the row groups are not those of so many rows, or would take a great deal of memory.

    A page states its own length once more, which Arrow believes: up to 2 GB each.
    """
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        if group.num_rows < 0 or not 0 <= group.total_byte_size <= _MOST_GROUP_BYTES:
            raise pa.ArrowInvalid(f"its row group {number} is said to take {group.total_byte_size} bytes in memory")
    if rows != metadata.num_rows:
        raise pa.ArrowInvalid(f"its row groups have {rows} rows, and the file {metadata.num_rows}")


def read_unit_footer(store: Store, unit: str) -> UnitFooter | None:
    """What a finished unit amounts to; None when it is not finished.

    A file that is no unit's, or is damaged, cut off by a disk that lied, say, counts as not finished: it is done anew.
    """
    if store.size(unit_name(unit)) is None:
        return None
    try:
        with store.open_read(unit_name(unit)) as file:
            metadata = pq.read_metadata(file)
        found: dict[str, Any] = dict(orjson.loads((metadata.metadata or {})[_FOOTER]))
    except (pa.ArrowException, KeyError, ValueError, TypeError):  # of text that is none, too
        return None
    except OSError as error:
        if _is_of_the_storage(error):
            raise
        return None
    check = found.pop("check", None)  # units of earlier releases have neither this nor `rows`
    if check not in {None, zlib.crc32(orjson.dumps(found))} or found.get("rows") not in {None, metadata.num_rows}:
        return None
    try:
        return UnitFooter(**{"rows": metadata.num_rows, **found})
    except TypeError:
        return None


def _is_of_the_storage(error: OSError) -> bool:
    """Arrow, too, raises OSError, for a footer that it cannot read; the system's have a number."""
    return error.errno is not None


def read_unit(store: Store, unit: str) -> pa.Table:
    """A finished unit's rows, every page checked.

    Raises:
        DamagedFileError: When the file is damaged. It is removed, so that the unit is done anew.
    """
    try:
        with store.open_read(unit_name(unit)) as file:
            return open_vectors(file).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        _discard(store, unit, unit_name(unit), error)


def read_unit_dead_letters(store: Store, unit: str) -> list[DeadLetter]:
    rows = read_dead_letter_table(store, unit).to_pylist()
    return [DeadLetter(**{**row, "reason": Reason(row["reason"])}) for row in rows]


def read_dead_letter_table(store: Store, unit: str) -> pa.Table:
    """A finished unit's dead letters, every page checked.

    Raises:
        DamagedFileError: When the file is damaged. The unit is removed, so that it is done anew.
    """
    try:
        with store.open_read(unit_dead_letters_name(unit)) as file:
            letters = pq.ParquetFile(file, page_checksum_verification=True).read(use_threads=False)
        if letters.schema != DEAD_LETTER_SCHEMA:
            raise pa.ArrowInvalid("its columns are not those of dead letters")
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        _discard(store, unit, unit_dead_letters_name(unit), error)
    return letters


def _discard(store: Store, unit: str, name: str, error: Exception) -> NoReturn:
    """Removes a unit one of whose files is damaged: without its vectors it is not finished."""
    if isinstance(error, OSError) and _is_of_the_storage(error):
        raise error
    store.delete(unit_name(unit))
    message = f"{store.url}/{name} is damaged, its unit was removed: run again, its assets are embedded anew."
    raise DamagedFileError(message, file=name) from error


def dead_letter_table(letters: Sequence[DeadLetter]) -> pa.Table:
    return pa.Table.from_pylist([asdict(letter) for letter in letters], schema=DEAD_LETTER_SCHEMA)


def vectors_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """The embedding column as float32, (rows, dimension), C-contiguous; a view where Arrow allows."""
    column = table.column("embedding").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    dimension = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, dimension)
