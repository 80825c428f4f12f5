"""The pgvector export: files for PostgreSQL's `COPY … WITH (FORMAT binary)`, and SQL scripts to load them.

The vectors are the fp16 vectors of the index, which `halfvec` stores exactly. The binary format has no escapes; the
character NUL, which PostgreSQL's `text` cannot store, becomes U+FFFD.
"""

import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...configs.errors import ArgumentError
from ..storage.store import HashingWriter
from .folder import ExportFolder
from .kind_source import KindSource

ROWS_PER_FILE = 500_000
_ROWS_PER_BLOCK = 256
_MOST_DIMENSIONS = 16_000
_MOST_INDEXED_DIMENSIONS = 4_000
_LONGEST_NAME = 63

_BEGIN = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
_NULL = b"\xff\xff\xff\xff"
_DAYS_TO_2000 = 10_957
_US_TO_2000 = _DAYS_TO_2000 * 86_400_000_000

_SYSTEM_COLUMNS = ("tableoid", "xmin", "cmin", "xmax", "cmax", "ctid")
"""System columns of every table; a user column cannot have these names, not even quoted."""
_RESERVED = frozenset({
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization", "binary",
    "both", "case", "cast", "check", "collate", "collation", "column", "concurrently", "constraint", "create",
    "cross", "current_catalog", "current_date", "current_role", "current_schema", "current_time",
    "current_timestamp", "current_user", "default", "deferrable", "desc", "distinct", "do", "else", "end",
    "except", "false", "fetch", "for", "foreign", "freeze", "from", "full", "grant", "group", "having", "ilike",
    "in", "initially", "inner", "intersect", "into", "is", "isnull", "join", "lateral", "leading", "left",
    "like", "limit", "localtime", "localtimestamp", "natural", "not", "notnull", "null", "offset", "on", "only",
    "or", "order", "outer", "overlaps", "placing", "primary", "references", "returning", "right", "select",
    "session_user", "similar", "some", "symmetric", "system_user", "table", "tablesample", "then", "to",
    "trailing", "true", "union", "unique", "user", "using", "variadic", "verbose", "when", "where", "window",
    "with",
})  # fmt: skip
"""The reserved key words of PostgreSQL 18, including those that can be functions or types."""
_ASSET_COLUMNS = ("asset_id", "uri", "text", "content_sha256", "media_type", "size_bytes", "width", "height")


def write_pgvector_kind(folder: ExportFolder, source: KindSource) -> dict[str, Any]:
    """Writes the COPY files of a kind. Returns the facts about them that `write_sql` needs."""
    columns = _columns(source)
    rows, copies, table_name = source.rows(), [], f"{source.kind}_assets"
    count = max(1, -(-source.entry.rows // ROWS_PER_FILE))
    nuls = 0
    for number in range(count):
        left = min(ROWS_PER_FILE, source.entry.rows - number * ROWS_PER_FILE)
        name = f"{table_name}-{number:05d}-of-{count:05d}.copy"
        with folder.file(name, left) as file:
            file.write(_BEGIN)
            while left:
                table, vectors = rows.take(min(left, _ROWS_PER_BLOCK))
                nuls += _write_rows(file, table, columns, vectors)
                left -= len(table)
            file.write(_END)
        copies.append(name)
    types = {name: _TYPES[kind] for name, _, kind in columns}
    return {"table": table_name, "copies": copies, "columns": types, "replaced_nuls": nuls}


def write_sql(folder: ExportFolder, kinds: dict[str, dict[str, Any]], dimension: int) -> None:
    """Writes `schema.sql`, `load.sql` and `indexes.sql`."""
    schema = ["CREATE EXTENSION IF NOT EXISTS vector;"]
    load = ["\\set ON_ERROR_STOP on", "BEGIN;", "\\ir schema.sql"]
    indexes = []
    for facts in kinds.values():
        columns = [f"  {_quoted(name)} {kind}" for name, kind in facts["columns"].items()]
        columns[0] += " PRIMARY KEY"
        columns.append(f"  embedding halfvec({dimension}) NOT NULL")
        table = _quoted(facts["table"])
        schema.append(f"CREATE TABLE {table} (\n" + ",\n".join(columns) + "\n);")
        load += [f"\\copy {table} FROM {_literal(name)} WITH (FORMAT binary)" for name in facts["copies"]]
        if dimension <= _MOST_INDEXED_DIMENSIONS:
            indexes.append(f"CREATE INDEX ON {table} USING hnsw (embedding halfvec_ip_ops);")
        else:
            indexes.append(f"-- No index: pgvector indexes halfvec with at most {_MOST_INDEXED_DIMENSIONS} dimensions.")
        indexes.append(f"ANALYZE {table};")
    folder.write("schema.sql", "\n".join(schema) + "\n")
    folder.write("load.sql", "\n".join([*load, "COMMIT;", "\\ir indexes.sql"]) + "\n")
    folder.write("indexes.sql", "\n".join(indexes) + "\n")


def check_for_pgvector(source_dimension: int, metadata_types: dict[str, str]) -> None:
    """Raises ArgumentError when PostgreSQL cannot store the vectors or the metadata columns."""
    if source_dimension > _MOST_DIMENSIONS:
        raise ArgumentError(
            f"pgvector stores vectors of at most {_MOST_DIMENSIONS} dimensions, got {source_dimension}."
        )
    for name, column in _renamed(metadata_types).items():
        if not name or "\0" in name or len(column.encode()) > _LONGEST_NAME:
            raise ArgumentError(
                f"metadata column {name[:80]!r}: PostgreSQL column names must have 1 to {_LONGEST_NAME} bytes and no "
                "NUL. Rename the column in the job."
            )


_Column = tuple[str, tuple[str, ...], pa.DataType]
"""The name in PostgreSQL, and the path and type in the table of assets. The first column is the primary key."""


def _columns(source: KindSource) -> list[_Column]:
    schema = source.schema()
    columns: list[_Column] = [(name, (name,), schema.field(name).type) for name in _ASSET_COLUMNS]
    if "metadata" in schema.names:
        fields = list(schema.field("metadata").type)
        names = _renamed([field.name for field in fields])
        columns += [(names[field.name], ("metadata", field.name), field.type) for field in fields]
    return columns


def _renamed(names: Iterable[str]) -> dict[str, str]:
    """The PostgreSQL names of the metadata columns, by their names in the catalog.

    A metadata column may have the name of one of our columns, of a system column, or of a reserved word: `SELECT user`,
    for example, returns the name of the database user.
    """
    taken = {*_ASSET_COLUMNS, "embedding", *_SYSTEM_COLUMNS, *_RESERVED}
    renamed = {}
    for name in names:
        column = name
        while column in taken:
            column = f"metadata_{column}"
        taken.add(column)
        renamed[name] = column
    return renamed


def _write_rows(file: HashingWriter, table: pa.Table, columns: list[_Column], vectors: npt.NDArray[np.float16]) -> int:
    """Writes rows: a field count, then the length and bytes of each field. Returns the number of replaced NULs."""
    nuls = 0
    fields = []
    for _, path, kind in columns:
        column = table.column(path[0]).combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if len(path) > 1:
            column = pc.struct_field(column, path[1:])
        if pa.types.is_string(kind):
            texts = column.to_pylist()
            nuls += sum(text.count("\0") for text in texts if text and "\0" in text)
            fields.append([_NULL if text is None else _text(text) for text in texts])
        else:
            encode = _ENCODERS[kind]
            stored = column.cast(_AS_NUMBER.get(kind, kind)).to_pylist()
            fields.append([_NULL if value is None else encode(value) for value in stored])
    count, dimension = vectors.shape
    begin, lead = struct.pack(">h", len(columns) + 1), struct.pack(">ihh", 4 + 2 * dimension, dimension, 0)
    swapped = vectors.astype(">f2")
    rows = zip(*fields, strict=True)
    file.write(b"".join(b"".join((begin, *row, lead, swapped[i].tobytes())) for i, row in enumerate(rows)))
    assert count == len(table)
    return nuls


def _text(text: str) -> bytes:
    data = text.replace("\0", "\ufffd").encode()
    return struct.pack(">i", len(data)) + data


def _encoder(form: str, offset: int = 0) -> Callable[[Any], bytes]:
    packed = struct.Struct(">i" + form)
    size = packed.size - 4
    if not offset:
        return lambda value: packed.pack(size, value)
    return lambda value: packed.pack(size, value - offset)


_TIMESTAMP = pa.timestamp("us", tz="UTC")
_AS_NUMBER = {pa.date32(): pa.int32(), _TIMESTAMP: pa.int64()}
_ENCODERS = {
    pa.int32(): _encoder("i"),
    pa.int64(): _encoder("q"),
    pa.float64(): _encoder("d"),
    pa.bool_(): _encoder("?"),
    pa.date32(): _encoder("i", _DAYS_TO_2000),
    _TIMESTAMP: _encoder("q", _US_TO_2000),
}
_TYPES = {
    pa.string(): "text",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float64(): "double precision",
    pa.bool_(): "boolean",
    pa.date32(): "date",
    _TIMESTAMP: "timestamp with time zone",
}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
