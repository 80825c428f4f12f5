"""Scan a folder of Parquet files with vectors, before anything is written.

The scan reads ids and kinds within a fixed memory. The vectors are read once, when the version is written
(`imported_rows.py`).
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...configs.errors import ConfigError, SourceError
from ...configs.words import of_count
from ...index.vectors.folder_mark import MARK
from ...index.vectors.sample import SampleRule
from ...index.vectors.shards import ShardTask
from ...index.versions.layout import KINDS, UNITS
from ..planning.compare import Comparison
from ..sources.files import filesystem
from ..sources.references import reference_schema

EMBEDDINGS = ("embedding", "vector")
"""Default names of the column of vectors."""
_LOOK_ROWS = 1024
_BATCH_ROWS = 16_384
_BUFFER_BYTES = 1 << 20
"""Buffer per column: without it, Arrow reads a whole column of a row group into memory."""
_HIDDEN = re.compile(r"(^|/)[._]")


@dataclass(frozen=True, kw_only=True)
class ImportedGroup:
    """The rows of one kind in one row group of a folder's file."""

    kind: str
    file: int
    group: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class VectorFolder:
    """A folder of Parquet files with vectors, or one such file. Part of the pipeline graph."""

    url: str
    files: tuple[str, ...]
    """Names relative to `url`, sorted; an empty name is `url` itself."""
    embedding: str
    """The column of vectors."""
    dimension: int
    columns: tuple[str, ...]
    """Columns to read: `id`, `kind`, the vectors; `uri` and `text` if they exist; metadata."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    launched_in: str = field(default_factory=os.getcwd)
    """Base of a relative `url`: workers have other working folders than the launcher."""

    def place(self, file: int) -> str:
        return place_of(self.url, self.files[file])

    @contextlib.contextmanager
    def open(self, file: int) -> Iterator[pq.ParquetFile]:
        with open_parquet(self.url, self.files[file], self.launched_in) as opened:
            yield opened


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The result of a scan: the folder and its row groups."""

    folder: VectorFolder
    groups: tuple[ImportedGroup, ...]

    @property
    def assets(self) -> dict[str, int]:
        rows: Counter[str] = Counter()
        for group in self.groups:
            rows[group.kind] += group.rows
        return dict(sorted(rows.items()))


@dataclass(frozen=True, kw_only=True)
class ImportTask:
    """Row groups that are read once, and the files that get their rows in equal parts."""

    groups: tuple[ImportedGroup, ...]
    shards: tuple[ShardTask, ...]

    @property
    def kind(self) -> str:
        return self.groups[0].kind

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


def place_of(url: str, file: str) -> str:
    return f"{url.rstrip('/')}/{file}" if file else url


@contextlib.contextmanager
def open_parquet(url: str, file: str, launched_in: str = "") -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of a folder for reading with little memory.

    Args:
        url: The folder, or the file itself.
        file: Name relative to `url`; empty if `url` is the file.
        launched_in: Base of a relative `url`, if it is not the working folder of this process.

    Raises:
        SourceError: When the file cannot be read, also when a read within the block fails.
    """
    place = place_of(url, file)
    is_remote = "://" in url or "::" in url
    fs, path = filesystem(url if is_remote else str(Path(launched_in, Path(url).expanduser())), {})
    try:
        with fs.open(f"{path.rstrip('/')}/{file}" if file else path, "rb") as handle:
            yield pq.ParquetFile(handle, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SourceError(f"{place}: the file cannot be read as Parquet ({reason}). Fix it and run again.") from error


def scan_folder(
    url: str,
    embedding: str | None = None,
    metadata: Mapping[str, str] | None = None,
    *,
    label: str = "--from",
    ids: Comparison | None = None,
) -> Scan:
    """Find the files and their columns, count the rows by kind, and check that the ids are unique.

    Args:
        url: A folder or one file, as a path or fsspec URL.
        embedding: The column of vectors; absent: `embedding` or `vector`.
        metadata: Columns that are kept with each asset, with their types.
        label: The name of the folder in messages.
        ids: Receives the ids and kinds of the rows; absent: they are only checked for duplicates.

    Raises:
        ConfigError: When there are no files, or columns are missing or have the wrong type.
        SourceError: When the content of a file is invalid.
    """
    types = dict(sorted((metadata or {}).items()))
    files = _list_files(url, label)
    first: pa.Schema | None = None
    groups: list[ImportedGroup] = []
    with contextlib.nullcontext(ids) if ids is not None else Comparison({}) as listed:
        for number, name in enumerate(files):
            with open_parquet(url, name) as file:
                place = place_of(url, name)
                schema = _used_columns(file.schema_arrow, place, embedding, types)
                if first is None:
                    first = schema
                elif schema != first:
                    raise ConfigError(
                        f"{place}: the columns must be those of {place_of(url, files[0])}, but {_other(first, schema)}."
                    )
                groups += _look_through(file, number, place, listed)
        duplicate = listed.duplicate()
    if duplicate is not None:
        where = " and ".join(_row_of(str(uri)) for uri in duplicate.uris)
        raise SourceError(
            f"{url}: an id must be unique within its kind, but {duplicate.kind} {duplicate.asset_id!r} occurs "
            f"{duplicate.times} times, in {where} ({of_count(duplicate.ids, 'duplicate id')}). Fix it and run again."
        )
    if first is None or not groups:
        raise ConfigError(f"{label}: the Parquet files have no rows ({url!r}).")
    column = _embedding_of(first.names, embedding) or ""
    folder = VectorFolder(
        url=url,
        files=tuple(files),
        embedding=column,
        dimension=_find_dimension(url, files, groups, column, first.field(column).type),
        columns=tuple(first.names),
        metadata=types,
    )
    return Scan(folder=folder, groups=tuple(groups))


def plan_imports(
    groups: Sequence[ImportedGroup], rows_per_file: int, rules: Mapping[str, SampleRule]
) -> list[ImportTask]:
    """Distribute row groups, in the order of their files, over output files of about `rows_per_file` rows.

    Each row group is read by one task, even if its rows fill several files.
    """
    tasks = []
    for kind in sorted({group.kind for group in groups}):
        held: list[list[ImportedGroup]] = []
        room = 0
        for group in sorted((g for g in groups if g.kind == kind), key=lambda g: (g.file, g.group)):
            if room <= 0:
                held.append([])
                room = rows_per_file
            held[-1].append(group)
            room -= group.rows
        counts = [max(1, sum(g.rows for g in part) // rows_per_file) for part in held]
        number = 0
        for part, count in zip(held, counts, strict=True):
            shards = tuple(
                ShardTask(kind=kind, shard=shard, shards=sum(counts), parts=(), rule=rules.get(kind, SampleRule()))
                for shard in range(number, number + count)
            )
            tasks.append(ImportTask(groups=tuple(part), shards=shards))
            number += count
    return tasks


def _list_files(url: str, label: str) -> list[str]:
    """Return the names of the files below `url`, sorted. If `url` is a file, its name is empty."""
    try:
        fs, path = filesystem(url, {})
        root = path.rstrip("/")
        if fs.isfile(root):
            return [""]
        names = sorted(str(name)[len(root) :].lstrip("/") for name in fs.find(root))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{label}: {url!r} cannot be listed ({error}).") from error
    found = [name for name in names if name.lower().endswith(".parquet") and not _HIDDEN.search(name)]
    if MARK in names:  # EmbedAssets may have had the folder as its cache while it was written
        found = [name for name in found if not name.startswith(f"{UNITS}/")]
    if not found:
        raise ConfigError(f"{label}: {url!r} has no Parquet files. Name a folder of Parquet files, or one such file.")
    return found


def _embedding_of(names: Sequence[str], embedding: str | None) -> str | None:
    return next((name for name in ([embedding] if embedding else EMBEDDINGS) if name in names), None)


def _used_columns(schema: pa.Schema, place: str, embedding: str | None, metadata: Mapping[str, str]) -> pa.Schema:
    """Return the schema of the columns to read.

    Raises:
        ConfigError: When a column is missing or has an unsupported type.
    """
    names = schema.names
    found = _embedding_of(names, embedding)
    wanted = [("id", "id" in names), ("kind", "kind" in names), (embedding or " or ".join(EMBEDDINGS), found)]
    for name, is_there in (*wanted, *((name, name in names) for name in metadata)):
        if not is_there:
            raise ConfigError(f"{place}: the column {name} is missing (columns: {', '.join(names) or 'none'}).")
    if len(set(names)) < len(names):
        raise ConfigError(f"{place}: column names must be unique, got {', '.join(names)}.")
    optional = [name for name in ("uri", "text") if name in names]
    used = pa.schema([schema.field(name) for name in dict.fromkeys(["id", "kind", *optional, *metadata, str(found)])])
    used = used.remove_metadata()
    for name in ("id", "kind", *optional):
        kind = _plain_type(used.field(name).type)
        is_id = name == "id" and pa.types.is_integer(kind)
        is_empty = name in optional and pa.types.is_null(kind)
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_id or is_empty):
            allowed = "string or integer" if name == "id" else "string"
            raise ConfigError(f"{place}: the column {name} must be of type {allowed}, got {kind}.")
    vectors = used.field(str(found)).type
    is_list = pa.types.is_list(vectors) or pa.types.is_large_list(vectors) or pa.types.is_fixed_size_list(vectors)
    if not is_list or not pa.types.is_floating(vectors.value_type):
        raise ConfigError(f"{place}: the column {found} must be lists of float, double or half, got {vectors}.")
    return used


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _other(first: pa.Schema, schema: pa.Schema) -> str:
    for one in first:
        if one.name not in schema.names:
            return f"{one.name} is missing"
        if (kind := schema.field(one.name).type) != one.type:
            return f"{one.name} is {kind} instead of {one.type}"
    return f"{', '.join(sorted({*schema.names} - {*first.names}))} is only in this file"


def _look_through(file: pq.ParquetFile, number: int, place: str, ids: Comparison) -> Iterator[ImportedGroup]:
    """Count the kinds of each row group, and add the ids to the comparison."""
    row = 0
    for group in range(file.num_row_groups):
        counts: Counter[str] = Counter()
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=["id", "kind"], use_threads=False):
            names, kinds = (plain_strings(batch.column(name)) for name in ("id", "kind"))
            uris = pc.binary_join_element_wise(
                f"{place}#row=", pc.cast(pa.array(range(row, row + len(batch))), pa.string()), ""
            )
            bad = pc.fill_null(pc.equal(names, ""), True)
            if (at := pc.index(bad, True).as_py()) >= 0:
                raise SourceError(
                    f"{_row_of(uris[at].as_py())}: id is empty (got {names[at].as_py()!r}). Fix it and run again."
                )
            known = pc.is_in(kinds, value_set=pa.array(KINDS))
            if (at := pc.index(known, False).as_py()) >= 0:
                got = str(kinds[at].as_py())[:60] if kinds[at].is_valid else None
                raise SourceError(
                    f"{_row_of(uris[at].as_py())}: kind must be image or text, got {got!r}. Fix it and run again."
                )
            counts.update({c["values"]: c["counts"] for c in pc.value_counts(kinds).to_pylist()})
            nothing = pa.nulls(len(batch))
            columns = {
                "asset_id": names,
                "kind": kinds,
                "uri": uris,
                "fingerprint": pc.fill_null(nothing.cast(pa.string()), ""),
            }
            columns |= {"text": nothing, "size_bytes": nothing, "source": np.full(len(batch), number, np.int32)}
            schema = reference_schema({})
            ids.add_references(pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema))
            row += len(batch)
        for kind in sorted(counts):
            yield ImportedGroup(kind=kind, file=number, group=group, rows=counts[kind])


def _row_of(uri: str) -> str:
    """Return `FILE row 7` for a URI whose row number starts at 0."""
    place, _, row = uri.rpartition("#row=")
    return f"{place} row {int(row) + 1}"


def plain_strings(column: pa.Array) -> pa.Array:
    """Convert a column of strings, of integers, or of a dictionary of them to strings."""
    return pc.cast(pc.cast(column, _plain_type(column.type)), pa.string())


def _find_dimension(
    url: str, files: Sequence[str], groups: Sequence[ImportedGroup], column: str, kind: pa.DataType
) -> int:
    """Return the length in the column's type, or the most frequent length of the first rows."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    with open_parquet(url, files[groups[0].file]) as file:
        batches: Any = file.iter_batches(_LOOK_ROWS, row_groups=[groups[0].group], columns=[column], use_threads=False)
        lengths = Counter(pc.list_value_length(next(batches).column(0)).drop_null().to_pylist())
    if not lengths:
        raise SourceError(f"{place_of(url, files[groups[0].file])}: the first rows have no vectors in {column}.")
    return int(max(lengths, key=lambda length: (lengths[length], length)))
