"""Turns the rows of table files of any format into references."""

import difflib
import posixpath
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from ...configs import SourceConfig
from ...configs.errors import ConfigError, EpithreBeamError, SourceError, UnreadableSourceError
from ...index.storage.remote import as_os_error
from ...index.versions.layout import metadata_type
from .casts import cast_cells
from .csv_table import CsvTable
from .files import FoundFile
from .jsonl_table import Cell, JsonLinesTable
from .parquet_table import ParquetTable
from .references import BATCH_ROWS, UNKNOWN, file_fingerprint, local_uri, reference_schema, text_fingerprint
from .table_places import place_of_row
from .uri_files import uri_info
from .uri_safety import allowed_prefixes, is_within, joined
from .wrong_values import WrongValues

_TABLE_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_STAT_THREADS = 32
_HEAD_BYTES = 8
_NO_TEXT = {
    b"\x1f\x8b": "compressed with gzip. Decompress it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Decompress it first",
    b"BZh": "compressed with bzip2. Decompress it first",
    b"\xfd7zXZ\x00": "compressed with xz. Decompress it first",
    b"PK\x03\x04": "a zip archive, or a workbook of Excel. Save the table as csv",
    b"\xd0\xcf\x11\xe0": "a workbook of Excel. Save the table as csv",
    b"PAR1": "a Parquet file. Say `format: parquet`",
    b"\xff\xfe": "UTF-16. Save the table as UTF-8",
    b"\xfe\xff": "UTF-16. Save the table as UTF-8",
}
"""First bytes of files that are not UTF-8 text."""
_NAMED = 30
"""Maximum number of columns in a message."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_LONG_BITS = 64
"""Bits of a whole number, with its sign, from which Arrow may have no type for it."""
_UNFIT = (pa.ArrowException, OverflowError, ValueError)
"""Errors that casts raise."""


class Table(Protocol):
    """A reader of one format."""

    def names(self, file: IO[bytes], wanted: set[str]) -> list[str] | None:
        """Return the columns, with all `wanted` ones that exist; None if there are no rows."""

    def batches(self, file: IO[bytes], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows with these columns."""


class Rows(NamedTuple):
    """A batch of rows of a table. `first` is the number of its first row, from 0."""

    first: int
    batch: pa.RecordBatch


@dataclass(frozen=True, kw_only=True)
class TableReader:
    """Reads one table file in batches and turns its rows into references."""

    source: SourceConfig
    place: str
    """Place of the source in the job, for errors."""
    table_key: str = "table"
    """The job's key of the table, for errors."""
    fs: Any
    file: FoundFile

    @cached_property
    def wrong(self) -> WrongValues:
        """The invalid values in the rows that were turned into references."""
        return WrongValues(
            place=self.place, url=self.url, metadata=self.source.metadata, place_of_row=self.place_of_row
        )

    @cached_property
    def url(self) -> str:
        is_local = isinstance(self.fs, LocalFileSystem)
        return local_uri(self.file.path) if is_local else str(self.fs.unstrip_protocol(self.file.path))

    @cached_property
    def format(self) -> str:
        suffix = posixpath.splitext(self.file.path)[1].lower()
        found = self.source.format or _TABLE_SUFFIXES.get(suffix)
        if found is None:
            raise ConfigError(
                f"{self.place}.{self.table_key}: the suffix of {self.url!r} is not a known format. "
                "Set `format` to csv, jsonl or parquet."
            )
        return found

    def place_of_row(self, row: int) -> str:
        """Return where to find a row (counted from 0) in the file, for errors."""
        return place_of_row(self.fs, self.file.path, self.format, row)

    def rows(self) -> Iterator[Rows]:
        """Yield all rows with the columns that the source names, without the column of bytes.

        Raises:
            ConfigError: If the table is empty, lacks a column or has it twice, or its format is unknown.
            SourceError: If the table cannot be read or exceeds a limit of the source.
        """
        source = self.source
        wanted = {"id": source.id, "text": source.text, "uri": source.uri, "bytes": source.bytes}
        wanted |= {f"metadata.{name}": name for name in source.metadata}
        row = 0
        try:
            table = self._table()
            with self.fs.open(self.file.path, "rb") as file:
                if self.format != "parquet":
                    self._check_text(file.read(_HEAD_BYTES))
                    file.seek(0)
                names = table.names(file, {n for n in wanted.values() if n is not None})
            if names is None:
                return
            self._check_names(names, wanted)
            columns = list(dict.fromkeys(n for k, n in wanted.items() if n is not None and k != "bytes"))
            with self.fs.open(self.file.path, "rb") as file:
                for batch in table.batches(file, columns):
                    batch.validate(full=True)
                    if row + len(batch) > source.max_rows:
                        raise SourceError(
                            f"{self._here} has more than {source.max_rows} rows. If the table is right, raise "
                            "`max_rows` of the source."
                        )
                    # A block of a csv is limited in bytes and may hold 100,000 rows.
                    for start in range(0, len(batch), BATCH_ROWS):
                        yield Rows(row + start, batch.slice(start, BATCH_ROWS))
                    row += len(batch)
        except (EpithreBeamError, ImportError):
            raise
        except Exception as error:  # readers and their libraries raise errors of any type
            if as_os_error(error, self.url) is not error:
                raise  # an error of a store; `list_references` reports it
            if self.file.info.get("size") == 0:
                raise ConfigError(f"{self.place}.{self.table_key}: {self.url!r} is empty.") from error
            words = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
            behind = f", from {self.place_of_row(row)} on" if row else ""
            reason = (words or type(error).__name__)[:200].rstrip(".")
            # Arrow also raises OSError for damaged content, but without a number of the system.
            is_of_system = isinstance(error, OSError) and error.errno is not None
            kind = UnreadableSourceError if is_of_system else SourceError
            raise kind(f"{self._here} cannot be read as {self.format}{behind}: {reason}.") from error

    @property
    def _here(self) -> str:
        return f"{self.place}.{self.table_key}: {self.url}"

    def _check_text(self, head: bytes) -> None:
        """Raise SourceError if the first bytes show that the file is not UTF-8 text."""
        for begin, what in _NO_TEXT.items():
            if head.startswith(begin):
                raise SourceError(f"{self._here} cannot be read as {self.format}: it is {what}.")

    def _table(self) -> Table:
        most = self.source.max_row_bytes
        match self.format:
            case "csv":
                return CsvTable(self._here, most)
            case "parquet":
                return ParquetTable(
                    self.place,
                    self._here,
                    self.source.bytes,
                    max_row_bytes=most,
                    max_expansion=self.source.max_expansion,
                )
            case _:
                return JsonLinesTable(self._here, most, self._mixed_column)

    def _check_names(self, names: list[str], wanted: Mapping[str, str | None]) -> None:
        absent = {key: name for key, name in wanted.items() if name is not None and name not in names}
        if absent:
            if other := self._other_separator(names):
                raise ConfigError(
                    f"{self._here}: the header is separated by {other}: {names[0][:200]}. Save the table with commas "
                    "and decimal points."
                )
            raise ConfigError("\n".join(self._no_column(key, name, names) for key, name in absent.items()))
        for name in filter(None, wanted.values()):
            if names.count(name) > 1:
                raise ConfigError(
                    f"{self.place}.{self.table_key}: {self.url} has the column {name!r} twice. Rename one of them."
                )

    def _no_column(self, key: str, name: str, names: list[str]) -> str:
        close = difflib.get_close_matches(name, names, n=1)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        hint = f" Did you mean {close[0]!r}?" if close else ""
        known = ", ".join(names[:_NAMED])
        return f"{self.place}.{key}: {self.url} has no column {name!r}.{hint} Its columns: {known}{more}."

    def _other_separator(self, names: list[str]) -> str | None:
        if self.format != "csv" or len(names) > 1:
            return None
        return next((word for sign, word in _SEPARATORS.items() if sign in names[0]), None)

    def _mixed_column(self, name: str, cells: list[Cell]) -> pa.Array:
        """Cast a column with cells of several types to its declared type."""
        key = next((k for k in ("id", "text", "uri") if getattr(self.source, k) == name), f"metadata.{name}")
        struct = metadata_type(self.source.metadata)
        kind = struct.field(name).type if struct is not None and key.startswith("metadata.") else pa.string()
        return pa.concat_arrays([self._cast(self._one(cell, kind, key), kind, key, cell.row) for cell in cells])

    def _one(self, cell: Cell, kind: pa.DataType, key: str) -> pa.Array:
        if isinstance(cell.value, (dict, list)):
            self._note(key, cell.value, cell.row)
            return pa.nulls(1, kind)
        if not isinstance(cell.value, int) or cell.value.bit_length() < _LONG_BITS:
            return pa.array([cell.value])
        if kind != pa.string():
            self._note(key, cell.value, cell.row)
            return pa.nulls(1, kind)
        return pa.array([str(cell.value)])

    def references(self, rows: Rows, position: int, metadata: Mapping[str, str]) -> pa.Table:
        """Turn rows into references, with the columns of `reference_schema(metadata)`. Collect invalid values.

        Args:
            rows: Rows of this table.
            position: Position of the source in the job, from 0.
            metadata: Names and types of the metadata columns of all sources. Columns that this source lacks are null.

        Raises:
            ConfigError: If the source names a column of bytes, and the table is not Parquet.
            SourceError: If a column cannot be read, or very many values are invalid.
        """
        first, batch = rows
        source = self.source
        count = len(batch)
        ids = self._cast(batch.column(source.id), pa.string(), "id", first)
        no_ids = pc.fill_null(pc.equal(pc.utf8_length(ids), 0), True)
        if pc.any(no_ids).as_py():
            for row in pc.indices_nonzero(no_ids).to_pylist():
                if not self.wrong.has("id", first + row):
                    self._note("id", None, first + row)
            ids = pc.fill_null(ids, "")
        columns: dict[str, Any] = {
            "asset_id": ids,
            "kind": pa.array([source.kind] * count),
            "source": pa.array([position] * count, pa.int32()),
            "uri": pa.nulls(count, pa.string()),
            "text": pa.nulls(count, pa.string()),
        }
        if source.text is not None:
            # An empty cell is an asset too: it becomes a dead letter when it is prepared.
            texts = pc.fill_null(self._cast(batch.column(source.text), pa.string(), "text", first), "").to_pylist()
            columns["text"] = pa.array(texts, pa.string())
            columns["fingerprint"] = pa.array([text_fingerprint(t) for t in texts])
            columns["size_bytes"] = pa.array([len(t.encode()) for t in texts], pa.int64())
        elif source.uri is not None:
            columns |= self._stat(self._cast(batch.column(source.uri), pa.string(), "uri", first).to_pylist())
        else:
            columns |= self._cells(first, count)
        struct = metadata_type(metadata)
        if struct is not None:
            arrays = []
            for field in struct:
                if field.name in source.metadata:
                    arrays.append(self._cast(batch.column(field.name), field.type, f"metadata.{field.name}", first))
                else:
                    arrays.append(pa.nulls(count, field.type))
            columns["metadata"] = pa.StructArray.from_arrays(arrays, fields=list(struct))
        schema = reference_schema(metadata)
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def _stat(self, uris: list[str | None]) -> dict[str, pa.Array]:
        """Look up size and fingerprint of each image, many at a time. A missing file is reported when it is read."""
        base = self.url.rsplit("/", 1)[0]
        full = [joined(base, uri) if uri else "" for uri in uris]

        def look_up(uri: str) -> tuple[str, int | None]:
            try:
                info = uri_info(uri, self.source)
            except Exception:
                return UNKNOWN, None
            return (file_fingerprint(info), info.get("size")) if info.get("type") == "file" else (UNKNOWN, None)

        allowed = () if self.wrong else allowed_prefixes(self.source)  # the run fails, so no lookup is needed
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            facts = list(pool.map(lambda u: look_up(u) if is_within(u, allowed) else (UNKNOWN, None), full))
        return {
            "uri": pa.array(full, pa.string()),
            "fingerprint": pa.array([f for f, _ in facts]),
            "size_bytes": pa.array([s for _, s in facts], pa.int64()),
        }

    def _cells(self, first: int, count: int) -> dict[str, pa.Array]:
        """Return the uri of each cell of a Parquet column of bytes. Sizes are known only when cells are read."""
        if self.format != "parquet":
            raise ConfigError(
                f"{self.place}.bytes: only a parquet table has columns of bytes, {self.url!r} is {self.format}."
            )
        fingerprint = file_fingerprint(self.file.info)
        column = urllib.parse.quote(self.source.bytes or "", safe="")
        uris = [f"{self.url}#row={row}&column={column}" for row in range(first, first + count)]
        return {
            "uri": pa.array(uris),
            # Zero-padded, so that neighbouring rows are sorted together and read together.
            "fingerprint": pa.array([f"{fingerprint}#{row:012d}" for row in range(first, first + count)]),
            "size_bytes": pa.nulls(count, pa.int64()),
        }

    def _cast(self, column: pa.Array, kind: pa.DataType, key: str, first: int) -> pa.Array:
        try:
            return _cast(column, kind, key)
        except _UNFIT as error:
            unfit = list(_unfit_rows(column, kind, key, 0, len(column)))
            if not unfit:
                raise SourceError(
                    f"{self.place}.{key}: {self.url} cannot be read from {self.place_of_row(first)} on: {error}."
                ) from error
            for row in unfit:
                self._note(key, column[row], first + row)
            return pa.nulls(len(column), kind)

    def _note(self, key: str, value: Any, row: int) -> None:
        """Record a value that does not have its declared type, or an empty id (None)."""
        self.wrong.add(key, None if value is None else str(value)[:60], row)


def _unfit_rows(column: pa.Array, kind: pa.DataType, key: str, begin: int, end: int) -> Iterator[int]:
    """Find the rows of `column` that cannot be cast, by halving."""
    try:
        _cast(column.slice(begin, end - begin), kind, key)
    except _UNFIT:
        if end - begin == 1:
            yield begin
            return
        middle = (begin + end) // 2
        yield from _unfit_rows(column, kind, key, begin, middle)
        yield from _unfit_rows(column, kind, key, middle, end)


def _cast(column: pa.Array, kind: pa.DataType, key: str) -> pa.Array:
    if key == "id" and pa.types.is_floating(column.type) and column.null_count < len(column):
        raise pa.ArrowInvalid("ids must not be floating-point numbers")  # 1e20 has already lost digits
    return cast_cells(column, kind)
