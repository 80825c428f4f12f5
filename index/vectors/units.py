"""Unit files: the vectors of one work unit, written once; a file that exists is complete.

The file name is a hash of everything that determines the vectors. A run that finds the file does not send the unit to
the API again: this holds for a retried bundle, for a run after a crash, and for later runs.
"""

import zlib
from array import array
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
from ..versions.stored_names import UNIT_FOOTER, from_stored, to_stored

_FOOTER = b"epithre_beam.unit"
_MOST_GROUP_BYTES = 4_000_000_000
"""The limit for a row group in memory. Ours have about 512 rows, whose texts and metadata may be long."""


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """The counts of a finished unit; small, because it passes through the runner's shuffle."""

    unit: str
    kind: str
    row_group: int
    """The row group of the unit's references in the run's plan."""
    rows: int
    dead: int
    deduplicated: int
    """Rows that were not sent because another row of the unit has the same content."""
    reused_rows: int = 0
    """Rows that were not sent because a vector of the same content was reused."""
    not_sent: int = 0
    """References that were not sent because of a spending limit. The other rows of the unit are kept."""
    reused: bool
    """Whether the unit was already finished, so that this run sent nothing for it."""


@dataclass(frozen=True, kw_only=True)
class UnitFooter:
    """The counts in the footer of a finished unit's file. Earlier releases wrote fewer of them."""

    rows: int
    dead: int = 0
    deduplicated: int = 0
    reused_rows: int = 0
    transient: int = 0
    """Dead letters with a transient failure, which the next run retries."""
    embedding_config_hash: str = ""


@dataclass(frozen=True, kw_only=True)
class ReusedGroup:
    """Rows of one row group of the previous version that are reused unchanged."""

    kind: str
    file: str
    """The vector file, named as in the store."""
    group: int
    """The row group in it."""
    row_group: int
    """The row group in the run's file of reused rows that lists the rows and their current metadata."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class IncomingGroup:
    """Rows that a pipeline brought with their vectors, in the order of a unit with the same assets."""

    unit: str
    """The name of that unit, by which the groups of a kind are ordered."""
    kind: str
    row_group: int
    """The row group in the run's file of incoming rows."""
    rows: int


def parquet_writer(file: HashingWriter, schema: pa.Schema) -> pq.ParquetWriter:
    """Opens a Parquet writer for tables with vectors, whose vector column is not compressed or indexed.

    Measured at 4000 dimensions: zstd saves 8 % of the bytes and costs most of the speed; dictionaries and
    statistics on the vector column only cost time and memory.
    """
    columns = [name for field in schema if field.name != "embedding" for name in _leaves(field)]
    return pq.ParquetWriter(
        pa.PythonFile(file, mode="w"),
        schema,
        compression=dict.fromkeys(columns, "zstd"),
        use_dictionary=[c for c in columns if c in {"kind", "media_type", "prepared"}],
        write_statistics=[c for c in columns if c in {"asset_id", "id", "size_bytes"}],
        store_schema=True,
        write_page_checksum=True,
    )


def _leaves(field: pa.Field) -> list[str]:
    return [f"{field.name}.{f.name}" for f in field.type] if pa.types.is_struct(field.type) else [field.name]


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
    """Writes a unit's dead letters, then its vectors; the vector file marks the unit as finished.

    Args:
        store: The catalog.
        unit: The unit's name.
        assets: The rows, with the columns of `layout.asset_fields()`.
        vectors: float32, (rows, dimension), unit norm.
        dead_letters: The references without a row.
        deduplicated: Number of rows not sent because another row has the same content.
        reused_rows: Number of rows not sent because a vector of the same content was reused.
        embedding_config_hash: The hash of the settings that made the vectors; other runs reuse only equal ones.
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
    counts = to_stored(asdict(footer), UNIT_FOOTER)
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
    # Arrow's allocator keeps freed memory; at 8 MB per unit this would accumulate during a run.
    pa.default_memory_pool().release_unused()


def open_vectors(file: IO[bytes], manifest: Manifest | None = None, entry: FileEntry | None = None) -> Any:
    """Opens a Parquet file of vectors, of a unit or a version; page checksums are verified on read.

    The footer has no checksum, and a changed byte there can turn floats into booleans. The columns must therefore be
    exactly those that `write_unit` and `write_tables` write.

    Args:
        file: The file, open and seekable.
        manifest: The manifest of the version that the file belongs to; dimension and metadata columns are compared.
        entry: The entry of the file in the manifest; the number of rows is compared.

    Raises:
        pa.ArrowInvalid: When the file is damaged or does not match the manifest.
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
    check_sizes(opened.metadata)
    if manifest is not None:
        if vector.list_size != manifest.dimension:
            raise pa.ArrowInvalid(f"its vectors must have {manifest.dimension} dimensions, got {vector.list_size}")
        wanted = metadata_type(manifest.metadata_types)
        if (opened.schema_arrow.field("metadata").type if "metadata" in opened.schema_arrow.names else None) != wanted:
            raise pa.ArrowInvalid("its metadata columns are not those of the manifest")
    if entry is not None and entry.rows not in {None, opened.metadata.num_rows}:
        raise pa.ArrowInvalid(f"it must have {entry.rows} rows, got {opened.metadata.num_rows}")
    return opened


def check_sizes(metadata: pq.FileMetaData) -> None:
    """Raises pa.ArrowInvalid when the row groups do not add up to the file's rows or need too much memory.

    Each page also states its own length, up to 2 GB, which Arrow trusts.
    """
    rows = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows += group.num_rows
        if group.num_rows < 0 or not 0 <= group.total_byte_size <= _MOST_GROUP_BYTES:
            raise pa.ArrowInvalid(f"its row group {number} states a size of {group.total_byte_size} bytes in memory")
    if rows != metadata.num_rows:
        raise pa.ArrowInvalid(f"its row groups have {rows} rows, but the file has {metadata.num_rows}")


def read_unit_footer(store: Store, unit: str) -> UnitFooter | None:
    """Reads the counts of a finished unit; None when it is not finished.

    A damaged or truncated file, or one that is not a unit file, counts as not finished: the unit is embedded again.
    """
    if store.size(unit_name(unit)) is None:
        return None
    try:
        with store.open_read(unit_name(unit)) as file:
            metadata = pq.read_metadata(file)
        found: dict[str, Any] = dict(orjson.loads((metadata.metadata or {})[_FOOTER]))
    except (pa.ArrowException, KeyError, ValueError, TypeError):  # ValueError also covers invalid UTF-8
        return None
    except OSError as error:
        if _is_of_the_storage(error):
            raise
        return None
    check = found.pop("check", None)  # units of earlier releases have neither this nor `rows`
    if check not in {None, zlib.crc32(orjson.dumps(found))} or found.get("rows") not in {None, metadata.num_rows}:
        return None
    try:
        return UnitFooter(**{"rows": metadata.num_rows, **from_stored(found, UNIT_FOOTER)})
    except TypeError:
        return None


def _is_of_the_storage(error: OSError) -> bool:
    """Whether the storage raised the error: Arrow also raises OSError for a bad footer, but without an errno."""
    return error.errno is not None


def read_unit(store: Store, unit: str) -> pa.Table:
    """Reads a finished unit's rows and verifies every page.

    Raises:
        DamagedFileError: When the file is damaged. It is removed, so that the next run embeds the unit again.
    """
    try:
        with store.open_read(unit_name(unit)) as file:
            return open_vectors(file).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        _discard(store, unit, unit_name(unit), error)


def read_unit_dead_letters(store: Store, unit: str) -> list[DeadLetter]:
    rows = read_dead_letter_table(store, unit).to_pylist()
    return [DeadLetter(**{**row, "reason": Reason(row["reason"])}) for row in rows]


def ids_to_retry(store: Store, unit: str, *, retry_dead: bool) -> set[str] | None:
    """Return the ids of a finished unit that a run tries again; None if it is not finished, or damaged.

    Unlike `read_unit_dead_letters`, this deletes no damaged unit.

    Args:
        store: The catalog.
        unit: The unit's name.
        retry_dead: Whether permanent failures are tried again, too.
    """
    footer = read_unit_footer(store, unit)
    if footer is None:
        return None
    if not (footer.dead if retry_dead else footer.transient):
        return set()
    try:
        with store.open_read(unit_dead_letters_name(unit)) as file:
            letters = pq.read_table(file, columns=["asset_id", "reason"], use_threads=False).to_pylist()
        return {row["asset_id"] for row in letters if retry_dead or Reason(row["reason"]).is_transient}
    except (pa.ArrowException, OSError, ValueError):
        return None


def read_dead_letter_table(store: Store, unit: str) -> pa.Table:
    """Reads a finished unit's dead letters and verifies every page.

    Raises:
        DamagedFileError: When the file is damaged. The unit is removed, so that the next run embeds it again.
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
    """Removes a unit that has a damaged file: without its vector file it is not finished."""
    if isinstance(error, OSError) and _is_of_the_storage(error):
        raise error
    store.delete(unit_name(unit))
    message = f"{store.url}/{name} is damaged and its unit was removed. Run again to embed its assets again."
    raise DamagedFileError(message, file=name) from error


def dead_letter_table(letters: Sequence[DeadLetter]) -> pa.Table:
    return pa.Table.from_pylist([asdict(letter) for letter in letters], schema=DEAD_LETTER_SCHEMA)


def as_float32(vector: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Return numbers as float32; an array or a sequence over one is not copied if it is float32 already.

    Raises:
        TypeError: When there is something else than numbers, as also with ValueError and OverflowError.
    """
    # `array` converts a list of floats four times as fast as numpy.
    return np.asarray(array("f", vector) if isinstance(vector, list) else vector, np.float32)


def vectors_of(table: pa.Table) -> npt.NDArray[np.float32]:
    """Returns the embedding column as float32, (rows, dimension), C-contiguous; a view where Arrow allows it."""
    column = table.column("embedding").combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    dimension = column.type.list_size
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, dimension)
