"""Lists the files and tables of a job's sources as references, without reading image files."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from ...configs import SourceConfig
from ...configs.errors import ConfigError
from ...index.storage.remote import storage_errors
from .casts import cast_cells
from .files import FoundFile, PassedOver, filesystem, match_files
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
    """Yield the references of one source, in tables of `reference_schema(metadata)`.

    Args:
        source: The source's config.
        position: Position in the config's sources, from 0, for errors and for readers.
        metadata: Names and types of the metadata columns of all sources. Columns that this source lacks are null.
        label: The job's key of the sources, for errors.
        passed_over: Counts what is skipped in a folder.

    Raises:
        ConfigError: If the source matches no file, or a table lacks a column that the config names.
        SourceError: If a folder or table cannot be read, or a table has invalid values.
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
    """Return the URL of a file, with the chain of its pattern (`zip://*.jpg::s3://bucket/a.zip`)."""
    return _in_chain(path, pattern) if "::" in pattern else str(fs.unstrip_protocol(path))


def _in_chain(path: str, chain: str) -> str:
    """Replace the first path of a chain by `path`. Parts before it name only a protocol."""
    first, _, rest = chain.partition("::")
    protocol, has_path, _ = first.partition("://")
    if has_path:
        return f"{protocol}://{path}" + (f"::{rest}" if rest else "")
    return f"{first}::{_in_chain(path, rest)}" if rest else path


def _table(source: SourceConfig, position: int, metadata: Mapping[str, str], place: str) -> Iterator[pa.Table]:
    rows = 0
    check_prefixes(source, place)
    for reader in _readers(source, place):
        for table in _rows_of(reader, position, metadata):
            rows += len(table)
            yield table
    if not rows:
        raise ConfigError(f"{place}.table: {source.table!r} has no rows.")


def _rows_of(reader: TableReader, position: int, metadata: Mapping[str, str]) -> Iterator[pa.Table]:
    for part in reader.rows():
        table = reader.references(part, position, metadata)
        if not reader.wrong:  # after an invalid value the loop only collects further ones
            yield table
    reader.wrong.check()


def _readers(source: SourceConfig, place: str) -> Iterator[TableReader]:
    fs, found = match_files(source.table or "", source.storage_options, f"{place}.table", None)
    for file in found:
        yield TableReader(source=source, place=place, fs=fs, file=file)


def list_tables(source: SourceConfig, place: str) -> Iterator[FoundFile]:
    """Yield the files of a source's table, without reading them.

    Raises:
        ConfigError: If no file matches.
        SourceError: If the folder cannot be listed.
    """
    with storage_errors(source.table or ""):
        check_prefixes(source, place)
        for reader in _readers(source, place):
            yield reader.file


def table_references(source: SourceConfig, file: FoundFile, position: int, place: str) -> Iterator[pa.Table]:
    """Yield the references of one of the files that `list_tables` found, with the source's own metadata columns.

    Raises:
        ConfigError: If the table lacks a column that the source names.
        SourceError: If the table cannot be read, or has invalid values.
    """
    with storage_errors(source.table or ""):
        fs, _ = filesystem(source.table or "", source.storage_options)
        reader = TableReader(source=source, place=place, fs=fs, file=file)
        yield from _rows_of(reader, position, dict(sorted(source.metadata.items())))


def places_of_id(source: SourceConfig, asset_id: str, most: int) -> list[str]:
    """Return the first `most` rows with this id, as `line 7 of TABLE`. This reads the tables again."""
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
    """Return the ids in a column of a table.

    Args:
        table: One file or a glob of files.
        column: Name of the column.
        place: Place of the table in the job, for errors.
        table_key: The job's key of the table below `place`.

    Raises:
        ConfigError: If no file matches, the column does not exist, or there are no rows.
        SourceError: If the table cannot be read.
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
