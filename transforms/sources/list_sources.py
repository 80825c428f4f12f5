"""Sources: a job's files and tables as references. Nothing here reads a picture."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from ...configs import SourceConfig
from ...configs.errors import ConfigError
from ...index.storage.remote import storage_errors
from .casts import cast_cells
from .files import PassedOver, match_files
from .references import BATCH_ROWS, file_fingerprint, local_uri, printable, reference_schema
from .tables import TableReader
from .uri_safety import check_prefixes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXT_SUFFIXES = (".txt", ".md")


def list_references(
    source: SourceConfig,
    position: int,
    metadata: Mapping[str, str],
    label: str = "sources",
    passed_over: PassedOver | None = None,
) -> Iterator[pa.Table]:
    """The references of one source, in tables of `reference_schema(metadata)`.

    Args:
        source: From the config.
        position: Among the config's sources, for errors and for readers.
        metadata: The columns of all sources; those that this one has not are null.
        label: What the job calls its sources, for errors.
        passed_over: Is told what of a folder is not taken.

    Raises:
        ConfigError: When the source matches nothing, or a table has not the columns that the config names.
    """
    place = f"{label}[{position}]"
    with storage_errors(source.files or source.table or ""):
        if source.files is not None:
            yield from _files(source, position, metadata, place, passed_over)
        else:
            yield from _table(source, position, metadata, place)


def _files(
    source: SourceConfig, position: int, metadata: Mapping[str, str], place: str, passed_over: PassedOver | None
) -> Iterator[pa.Table]:
    suffixes = IMAGE_SUFFIXES if source.kind == "image" else TEXT_SUFFIXES
    fs, found = match_files(source.files or "", source.storage_options, f"{place}.files", suffixes, passed_over)
    schema = reference_schema(metadata)
    is_local = isinstance(fs, LocalFileSystem)
    rows: list[dict[str, Any]] = []
    for file in found:
        rows.append(
            {
                "asset_id": printable(file.id),
                "kind": source.kind,
                "uri": local_uri(file.path) if is_local else _remote_uri(fs, file.path, source.files or ""),
                "fingerprint": file_fingerprint(file.info),
                "size_bytes": file.info.get("size"),
                "source": position,
            }
        )
        if len(rows) == BATCH_ROWS:
            yield pa.Table.from_pylist(rows, schema=schema)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, schema=schema)


def _remote_uri(fs: Any, path: str, pattern: str) -> str:
    """A file's URL, in the chain of the pattern that found it (`zip://*.jpg::s3://bucket/a.zip`)."""
    return _in_chain(path, pattern) if "::" in pattern else str(fs.unstrip_protocol(path))


def _in_chain(path: str, chain: str) -> str:
    """`path` in the place of the first path that a chain has: what stands before it names only a way to read."""
    first, _, rest = chain.partition("::")
    protocol, has_path, _ = first.partition("://")
    if has_path:
        return f"{protocol}://{path}" + (f"::{rest}" if rest else "")
    return f"{first}::{_in_chain(path, rest)}" if rest else path


def _table(source: SourceConfig, position: int, metadata: Mapping[str, str], place: str) -> Iterator[pa.Table]:
    rows = 0
    check_prefixes(source, place)
    for reader in _readers(source, place):
        for part in reader.rows():
            table = reader.references(part, position, metadata)
            rows += len(table)
            if not reader.wrong:  # or it goes on only to tell all that is wrong
                yield table
        reader.wrong.check()
    if not rows:
        raise ConfigError(f"{place}.table: {source.table!r} has no rows.")


def _readers(source: SourceConfig, place: str) -> Iterator[TableReader]:
    fs, found = match_files(source.table or "", source.storage_options, f"{place}.table", None)
    for file in found:
        yield TableReader(source=source, place=place, fs=fs, file=file)


def places_of_id(source: SourceConfig, asset_id: str, most: int) -> list[str]:
    """The first rows of a source's tables that have this id, as `line 7 of TABLE`. Reads them again."""
    places: list[str] = []
    for reader in _readers(source, ""):
        for first, batch in reader.rows():
            ids = cast_cells(batch.column(source.id), pa.string())
            rows = pc.indices_nonzero(pc.equal(ids, asset_id)).to_pylist()
            places += [f"{reader.place_of_row(first + row)} of {reader.url}" for row in rows[: most - len(places)]]
            if len(places) == most:
                return places
    return places


def read_ids(table: str, column: str, place: str, table_key: str) -> list[str]:
    """The ids that stand in a column of a table.

    Args:
        table: One file or a glob of files.
        column: With the ids.
        place: Of the table in the job, for errors.
        table_key: The job's key of the table below `place`.

    Raises:
        ConfigError: When nothing matches, or the column is not there.
        SourceError: When the table cannot be read.
    """
    source = SourceConfig(kind="text", table=table, id=column, text=column)
    with storage_errors(table):
        fs, found = match_files(table, {}, f"{place}.{table_key}", None)
        ids: list[str] = []
        for file in found:
            reader = TableReader(source=source, place=place, table_key=table_key, fs=fs, file=file)
            for rows in reader.rows():
                ids += reader.references(rows, 0, {}).column("asset_id").to_pylist()
            reader.wrong.check()
    if not ids:
        raise ConfigError(f"{place}.{table_key}: {table!r} has no rows.")
    return ids
