"""Tables: each row a reference, whatever the format of the file."""

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
from ...configs.errors import ConfigError, EpithreBeamError, SourceError
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
"""How files begin that are no text in UTF-8."""
_NAMED = 30
"""Columns in a message."""
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_LONG_BITS = 64
"""Of a whole number that Arrow has no type for, its sign included."""
_UNFIT = (pa.ArrowException, OverflowError, ValueError)
"""What casts raise."""


class Table(Protocol):
    """How one format is read."""

    def names(self, file: IO[bytes], wanted: set[str]) -> list[str] | None:
        """The columns, those that are `wanted` among them if they are there; None when there are no rows at all."""

    def batches(self, file: IO[bytes], columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows, with these columns."""


class Rows(NamedTuple):
    """Some rows of a table, and the number of the first from 0."""

    first: int
    batch: pa.RecordBatch


@dataclass(frozen=True, kw_only=True)
class TableReader:
    """Reads one table file in batches and turns its rows into references."""

    source: SourceConfig
    place: str
    """The source's, for errors."""
    table_key: str = "table"
    """The job's key of the table, for errors."""
    fs: Any
    file: FoundFile

    @cached_property
    def wrong(self) -> WrongValues:
        """What was found wrong in the rows that were made references."""
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
                f"{self.place}.{self.table_key}: the format of {self.url!r} is not known by its suffix. "
                "Set `format` to csv, jsonl or parquet."
            )
        return found

    def place_of_row(self, row: int) -> str:
        """For an error: the row, counted from 0, as a person finds it in the file."""
        return place_of_row(self.fs, self.file.path, self.format, row)

    def rows(self) -> Iterator[Rows]:
        """All rows with the named columns alone, never the pictures' bytes."""
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
                    # A csv's blocks are of bytes and may hold a hundred thousand rows.
                    for start in range(0, len(batch), BATCH_ROWS):
                        yield Rows(row + start, batch.slice(start, BATCH_ROWS))
                    row += len(batch)
        except (EpithreBeamError, ImportError):
            raise
        except Exception as error:  # readers, and the libraries below them, have errors of many types
            if as_os_error(error, self.url) is not error:
                raise  # of a store, which is told where the listing is
            if self.file.info.get("size") == 0:
                raise ConfigError(f"{self.place}.{self.table_key}: {self.url!r} is empty.") from error
            words = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
            behind = f", from {self.place_of_row(row)} on" if row else ""
            reason = (words or type(error).__name__)[:200].rstrip(".")
            raise SourceError(f"{self._here} cannot be read as {self.format}{behind}: {reason}.") from error

    @property
    def _here(self) -> str:
        return f"{self.place}.{self.table_key}: {self.url}"

    def _check_text(self, head: bytes) -> None:
        """Raises SourceError for what begins as no text does."""
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
            hint = self._separator_hint(names)
            raise ConfigError("\n".join(self._no_column(key, name, names, hint) for key, name in absent.items()))
        for name in filter(None, wanted.values()):
            if names.count(name) > 1:
                raise ConfigError(
                    f"{self.place}.{self.table_key}: {self.url} has the column {name!r} twice. Rename one of them."
                )

    def _no_column(self, key: str, name: str, names: list[str], hint: str) -> str:
        close = difflib.get_close_matches(name, names, n=1)
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        hint = hint or (f" Did you mean {close[0]!r}?" if close else "")
        known = ", ".join(names[:_NAMED])
        return f"{self.place}.{key}: {self.url} has no column {name!r}.{hint} Its columns: {known}{more}."

    def _separator_hint(self, names: list[str]) -> str:
        if self.format != "csv" or len(names) > 1:
            return ""
        found = next((word for sign, word in _SEPARATORS.items() if sign in names[0]), None)
        return f" Its header is separated by {found}. Save the table with commas." if found else ""

    def _mixed_column(self, name: str, cells: list[Cell]) -> pa.Array:
        """A column whose cells are of several types, brought to the type that is asked."""
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
        """The references of some rows, in the columns of `reference_schema(metadata)`.

        Args:
            rows: Of this table.
            position: Of the source among those of the job.
            metadata: The columns of all sources; those that this one has not are null.
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
            # An empty cell is an asset like the others: it gets its dead letter when it is prepared.
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
        """Asks each picture's size and fingerprint, many at once; one that is not there is found out when read."""
        base = self.url.rsplit("/", 1)[0]
        full = [joined(base, uri) if uri else "" for uri in uris]

        def ask(uri: str) -> tuple[str, int | None]:
            try:
                info = uri_info(uri, self.source)
            except Exception:
                return UNKNOWN, None
            return (file_fingerprint(info), info.get("size")) if info.get("type") == "file" else (UNKNOWN, None)

        allowed = () if self.wrong else allowed_prefixes(self.source)  # none is wanted any more
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            facts = list(pool.map(lambda u: ask(u) if is_within(u, allowed) else (UNKNOWN, None), full))
        return {
            "uri": pa.array(full, pa.string()),
            "fingerprint": pa.array([f for f, _ in facts]),
            "size_bytes": pa.array([s for _, s in facts], pa.int64()),
        }

    def _cells(self, first: int, count: int) -> dict[str, pa.Array]:
        """Bytes in a Parquet column: each row's place; its size is not known before it is read."""
        if self.format != "parquet":
            raise ConfigError(f"{self.place}.bytes: only a parquet table has columns of bytes, {self.url!r} is none.")
        print_ = file_fingerprint(self.file.info)
        column = urllib.parse.quote(self.source.bytes or "", safe="")
        uris = [f"{self.url}#row={row}&column={column}" for row in range(first, first + count)]
        return {
            "uri": pa.array(uris),
            # Zero-padded, so that rows that stand together in the file are sorted together and read at once.
            "fingerprint": pa.array([f"{print_}#{row:012d}" for row in range(first, first + count)]),
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
        """Notes a value that is not what the job says, or an id that is empty (None)."""
        self.wrong.add(key, None if value is None else str(value)[:60], row)


def _unfit_rows(column: pa.Array, kind: pa.DataType, key: str, begin: int, end: int) -> Iterator[int]:
    """The rows of `column` that cannot be cast, found by halves."""
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
        raise pa.ArrowInvalid("no id is a number with a fraction")  # 1e20 has already lost digits
    return cast_cells(column, kind)
