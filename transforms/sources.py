"""Sources: a config's globs and tables as references. Nothing here reads a picture."""

import fnmatch
import functools
import itertools
import os
import posixpath
import re
import stat
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from ..configs import ConfigError, SourceConfig
from ..index.layout import metadata_type
from ..index.remote import connect, driver_class, has_pages, storage_errors
from .listing import walk_bucket
from .references import UNKNOWN, file_fingerprint, local_path, local_uri, printable, reference_schema, text_fingerprint
from .table_places import json_lines, place_of_row

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TEXT_SUFFIXES = (".txt", ".md")
_TABLE_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_BATCH_ROWS = 8192
_CSV_BLOCK_BYTES = 16 << 20
"""A row of a csv must fit in it."""
_STAT_THREADS = 32


class SourceError(Exception):
    """The data of a source breaks a rule that no single asset can be blamed for; the message names the row."""


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A file that a pattern matched."""

    path: str
    id: str
    info: Mapping[str, Any]


def list_references(source: SourceConfig, position: int, metadata: Mapping[str, str]) -> Iterator[pa.Table]:
    """The references of one source, in tables of `reference_schema(metadata)`.

    Args:
        source: From the config.
        position: Among the config's sources, for errors and for readers.
        metadata: The columns of all sources; those that this one has not are null.

    Raises:
        ConfigError: When the source matches nothing, or a table has not the columns that the config names.
    """
    references = _files if source.files is not None else _table
    with storage_errors(source.files or source.table or ""):
        yield from references(source, position, metadata)


def filesystem(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The fsspec file system of `url` without its listing caches, and the path on it."""
    return connect(url, options)


def _files(source: SourceConfig, position: int, metadata: Mapping[str, str]) -> Iterator[pa.Table]:
    place = f"sources[{position}].files"
    suffixes = IMAGE_SUFFIXES if source.kind == "image" else TEXT_SUFFIXES
    fs, found = _match(source.files or "", source.storage_options, place, suffixes)
    schema = reference_schema(metadata)
    is_local = isinstance(fs, LocalFileSystem)
    rows: list[dict[str, Any]] = []
    for file in found:
        rows.append(
            {
                "asset_id": printable(file.id),
                "kind": source.kind,
                "uri": local_uri(file.path) if is_local else fs.unstrip_protocol(file.path),
                "fingerprint": file_fingerprint(file.info),
                "size_bytes": file.info.get("size"),
                "source": position,
            }
        )
        if len(rows) == _BATCH_ROWS:
            yield pa.Table.from_pylist(rows, schema=schema)
            rows = []
    if rows:
        yield pa.Table.from_pylist(rows, schema=schema)


def _match(
    url: str, options: Mapping[str, Any], place: str, folder_suffixes: tuple[str, ...] | None
) -> tuple[Any, Iterator[_Found]]:
    """Files that `url` stands for: itself, all of a folder with a known suffix, or a glob's matches.

    A prefix is listed once and filtered here, because stores answer `**` in one listing and `d*/e/*` in many.

    Raises:
        ConfigError: When nothing matches.
    """
    fs, path = filesystem(url, options)
    info = _info(fs, path)
    if info is not None and info["type"] == "file":
        return fs, iter([_Found(path=path, id=posixpath.basename(path), info=info)])
    if info is not None and folder_suffixes is not None:
        folder = path.rstrip("/")
        matches = functools.partial(_has_suffix, suffixes=folder_suffixes)
        rule = f"a file below it ends in {', '.join(folder_suffixes)}"
    else:
        folder = _fixed_part(path)
        pattern = re.compile(_glob_regex(path[len(folder) :].lstrip("/")), re.DOTALL)
        matches = functools.partial(_matches, pattern=pattern)
        rule = "a file matches it"
    found = _walk(fs, folder, matches)
    first = next(found, None)
    if first is None:
        why = "" if _info(fs, folder or "/") is not None else f" (there is no folder {folder!r})"
        if info is not None and info["type"] == "directory":
            why = " (it is a folder: name its tables, as in folder/*.csv)"
        raise ConfigError(f"{place} must be such that {rule}, got {url!r}, which matches nothing{why}.")

    def chain() -> Iterator[_Found]:
        yield first
        yield from found

    return fs, chain()


def _walk(fs: Any, folder: str, matches: Any) -> Iterator[_Found]:
    """The files below `folder` whose name below it matches, in order of their names; hidden ones are passed over."""
    if isinstance(fs, LocalFileSystem):
        yield from _walk_local(folder, matches)
        return
    is_paged = has_pages(fs) and folder.strip("/")
    has_begun = False
    try:
        for path, info in walk_bucket(fs, folder) if is_paged else sorted(fs.find(folder, detail=True).items()):
            has_begun = True
            name = path[len(folder) :].lstrip("/")
            if not any(part.startswith(".") for part in name.split("/")) and matches(name):
                yield _Found(path=path, id=name, info=info)
    except FileNotFoundError:
        if has_begun:  # what is not listed would be taken for deleted
            raise


def _walk_local(folder: str, matches: Any) -> Iterator[_Found]:
    """Links to files are followed, links to folders are not: they may lead in circles."""
    open_folders = [_entries(folder, "")]
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
            continue
        below, item = entry
        name = f"{below}{item.name}"
        if item.name.startswith("."):
            continue
        if item.is_dir(follow_symlinks=False):
            open_folders.append(_entries(folder, f"{name}/"))
        elif matches(name):
            try:
                status = item.stat()
            except OSError:  # a link that leads nowhere or in a circle, or a file that is gone since
                continue
            if stat.S_ISREG(status.st_mode):
                yield _Found(path=item.path.replace("//", "/"), id=name, info=_local_info(status))


def _entries(folder: str, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What a folder holds, in order.

    Raises:
        SourceError: When it cannot be listed: its assets would be taken for deleted.
    """
    try:
        entries = sorted(os.scandir(f"{folder}/{below}"), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise SourceError(f"The folder {f'{folder}/{below}'!r} cannot be listed: {error.strerror or error}.") from error
    for entry in entries:
        yield below, entry


def _local_info(status: os.stat_result) -> dict[str, Any]:
    # Nanoseconds as a whole number: a float would round them, and a fingerprint must not.
    return {"size": status.st_size, "mtime": str(status.st_mtime_ns)}


def _has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes)


def _matches(name: str, pattern: re.Pattern[str]) -> bool:
    return pattern.fullmatch(name) is not None


def _fixed_part(path: str) -> str:
    """The folders before the first one with a wildcard."""
    fixed: list[str] = []
    for part in path.split("/")[:-1]:
        if re.search(r"[*?\[{]", part):
            break
        fixed.append(part)
    return "/".join(fixed)


def _glob_regex(pattern: str) -> str:
    """A glob as a regular expression: `**/` any folders, `*` and `?` within a name, `[…]`, `{a,b}`.

    What follows the last dot matches in either case.
    """
    alternatives = re.search(r"\{([^{}]*)\}", pattern)
    if alternatives:
        before, after = pattern[: alternatives.start()], pattern[alternatives.end() :]
        return "|".join(f"(?:{_glob_regex(before + choice + after)})" for choice in alternatives.group(1).split(","))
    *folders, name = pattern.split("/")
    text = "".join("(?:.*/)?" if folder == "**" else f"{_name_regex(_pieces(folder))}/" for folder in folders)
    if name == "**":
        return f"{text}.*"
    pieces = _pieces(name)
    dot = max((i for i, piece in enumerate(pieces) if piece == "."), default=len(pieces))
    return f"{text}{_name_regex(pieces[:dot])}(?i:{_name_regex(pieces[dot:])})"


def _pieces(name: str) -> list[str]:
    return re.findall(r"\[!?\]?[^\]]*\]|\*+|.", name, re.DOTALL)


def _name_regex(pieces: list[str]) -> str:
    parts = []
    for piece in pieces:
        if piece.startswith("*"):
            parts.append("[^/]*")
        elif piece == "?":
            parts.append("[^/]")
        elif len(piece) > 1:
            parts.append("(?!/)" + re.sub(r"^\(\?s:(.*)\)\\[Zz]$", r"\1", fnmatch.translate(piece), flags=re.DOTALL))
        else:
            parts.append(re.escape(piece))
    return "".join(parts)


def _info(fs: Any, path: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if isinstance(fs, LocalFileSystem) and info["type"] == "file":
        info |= _local_info(os.stat(path))  # noqa: PTH116 - a path that may hold undecodable bytes
    return info


def _table(source: SourceConfig, position: int, metadata: Mapping[str, str]) -> Iterator[pa.Table]:
    rows = 0
    for reader in _readers(source, position):
        for batch in reader.batches():
            table = reader.references(batch, position, metadata)
            rows += len(table)
            yield table
    if not rows:
        raise ConfigError(
            f"sources[{position}].table must have at least one row, got {source.table!r}, which has none."
        )


def _readers(source: SourceConfig, position: int) -> Iterator["_TableReader"]:
    place = f"sources[{position}]"
    fs, found = _match(source.table or "", source.storage_options, f"{place}.table", None)
    is_local = isinstance(fs, LocalFileSystem)
    for file in found:
        url = local_uri(file.path) if is_local else fs.unstrip_protocol(file.path)
        yield _TableReader(source=source, place=place, fs=fs, path=file.path, url=url, info=file.info)


def places_of_id(source: SourceConfig, position: int, asset_id: str, most: int) -> list[str]:
    """The first rows of a source's tables that have this id, as `line 7 of TABLE`. Reads them again."""
    places: list[str] = []
    for reader in _readers(source, position):
        for first, batch in reader.batches():
            ids = pc.cast(batch.column(source.id), pa.string())
            rows = pc.indices_nonzero(pc.equal(ids, asset_id)).to_pylist()
            places += [f"{reader.place_of_row(first + row)} of {reader.url}" for row in rows[: most - len(places)]]
            if len(places) == most:
                return places
    return places


@dataclass(frozen=True, kw_only=True)
class _TableReader:
    """Reads one table file in batches and turns its rows into references."""

    source: SourceConfig
    place: str
    fs: Any
    path: str
    url: str
    info: Mapping[str, Any]

    @property
    def format(self) -> str:
        suffix = posixpath.splitext(self.path)[1].lower()
        found = self.source.format or _TABLE_SUFFIXES.get(suffix)
        if found is None:
            raise ConfigError(
                f"{self.place}.format must be csv, jsonl or parquet where the table's suffix does not say it, "
                f"got {self.url!r}."
            )
        return found

    def place_of_row(self, row: int) -> str:
        """For an error: the row, counted from 0, as a person finds it in the file."""
        return place_of_row(self.fs, self.path, self.format, row)

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(number of the batch's first row, batch) with the named columns alone, never the pictures' bytes."""
        source = self.source
        wanted = {"id": source.id, "text": source.text, "uri": source.uri, "bytes": source.bytes}
        wanted |= {f"metadata.{name}": name for name in source.metadata}
        try:
            names = self._names({n for n in wanted.values() if n is not None})
            if names is None:
                return
            for key, name in wanted.items():
                if name is not None and name not in names:
                    raise ConfigError(
                        f"{self.place}.{key} must name a column of {self.url}, got {name!r}; it has {', '.join(names)}."
                    )
            for name in filter(None, wanted.values()):
                if names.count(name) > 1:
                    raise ConfigError(f"{self.place}.table: {self.url} must have each column once, got {name!r} twice.")
            columns = list(dict.fromkeys(n for k, n in wanted.items() if n is not None and k != "bytes"))
            row = 0
            for batch in self._read(columns):
                batch.validate(full=True)
                # A csv's blocks are of bytes and may hold a hundred thousand rows.
                for start in range(0, len(batch), _BATCH_ROWS):
                    yield row + start, batch.slice(start, _BATCH_ROWS)
                row += len(batch)
        except (pa.ArrowInvalid, OSError) as error:
            if self.info.get("size") == 0 or "Empty CSV file" in str(error):
                raise ConfigError(
                    f"{self.place}.table must have at least one row, got {self.url!r}, which is empty."
                ) from error
            words = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
            reason = re.sub(r"^CSV parse error: Row #(\d+)", self._place_of_csv_row, words)[:200]
            raise SourceError(f"{self.place}.table: {self.url} cannot be read as {self.format}: {reason}.") from error

    def _place_of_csv_row(self, match: re.Match[str]) -> str:
        """Arrow counts from 1, the header too."""
        return self.place_of_row(int(match[1]) - 2)

    def _names(self, wanted: set[str]) -> list[str] | None:
        """The table's columns; of JSON lines, those met until all `wanted` are. None when it has no rows at all."""
        with self.fs.open(self.path, "rb") as file:
            match self.format:
                case "parquet":
                    schema = pq.read_schema(file)
                    self._check_bytes(schema)
                    return list(schema.names)
                case "csv":
                    return list(_open_csv(file).schema.names)
                case _:
                    names: dict[str, None] = {}
                    for row in self._json_rows(file):
                        names |= dict.fromkeys(row)
                        if wanted <= names.keys():
                            break
                    return list(names) or None

    def _check_bytes(self, schema: pa.Schema) -> None:
        name = self.source.bytes
        if name is None or name not in schema.names:
            return
        found = schema.field(name).type
        if not (pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_string(found)):
            raise ConfigError(f"{self.place}.bytes must name a column of bytes in {self.url}, got {name!r} of {found}.")

    def _read(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with self.fs.open(self.path, "rb") as file:
            match self.format:
                case "parquet":
                    yield from pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
                case "csv":
                    # Everything as text first: "007" is an id, and the config's types decide the rest.
                    options = pyarrow.csv.ConvertOptions(
                        include_columns=columns,
                        column_types=dict.fromkeys(columns, pa.string()),
                        strings_can_be_null=False,
                    )
                    yield from _open_csv(file, options)
                    self._check_quotes(file)
                case _:
                    rows = enumerate(self._json_rows(file))
                    while part := list(itertools.islice(rows, _BATCH_ROWS)):
                        arrays = [
                            self._json_column(name, [(row, object_.get(name)) for row, object_ in part])
                            for name in columns
                        ]
                        yield pa.RecordBatch.from_arrays(arrays, names=columns)

    def _check_quotes(self, file: Any) -> None:
        """An unclosed quote swallows all the rows behind it into one cell, and the reader says nothing."""
        file.seek(0)
        quotes = 0
        while block := file.read(_CSV_BLOCK_BYTES):
            quotes += block.count(b'"')
        if quotes % 2:
            raise SourceError(
                f"{self.place}.table: {self.url} must close every quote, got an odd number of them ({quotes}): "
                "the rows behind the open one would be lost."
            )

    def _json_rows(self, file: Any) -> Iterator[dict[str, Any]]:
        """The object of each line that is not blank."""
        for number, text in json_lines(file):
            try:
                value = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise SourceError(
                    f"{self.place}.table: {self.url} cannot be read as jsonl: line {number} is no JSON: {error.msg}, "
                    f"at its character {error.colno}."
                ) from None
            if not isinstance(value, dict):
                raise SourceError(
                    f"{self.place}.table: {self.url} cannot be read as jsonl, an object a line: "
                    f"line {number} is {str(value)[:60]!r}."
                )
            yield value

    def _json_column(self, name: str, cells: list[tuple[int, Any]]) -> pa.Array:
        """A column as JSON has it; one whose cells are of several types is brought to the type that is asked."""
        key = next((k for k in ("id", "text", "uri") if getattr(self.source, k) == name), f"metadata.{name}")
        struct = metadata_type(self.source.metadata)
        kind = struct.field(name).type if struct is not None and key.startswith("metadata.") else pa.string()
        try:
            return pa.array([value for _, value in cells])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return pa.concat_arrays([self._cast(pa.array([value]), kind, key, row) for row, value in cells])

    def references(self, numbered: tuple[int, pa.RecordBatch], position: int, metadata: Mapping[str, str]) -> pa.Table:
        first, batch = numbered
        source = self.source
        count = len(batch)
        ids = self._cast(batch.column(source.id), pa.string(), "id", first)
        if ids.null_count or pc.any(pc.equal(pc.utf8_length(ids), 0)).as_py():
            empty = pc.index(pc.fill_null(pc.equal(pc.utf8_length(ids), 0), True), True).as_py()
            where = f"{self.place_of_row(first + empty)} of {self.url}"
            raise SourceError(f"{self.place}.id must not be empty, got an empty one in {where}.")
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
        full = [_joined(base, uri) if uri else "" for uri in uris]

        def ask(uri: str) -> tuple[str, int | None]:
            try:
                path = local_path(uri)
                fs, path = filesystem(uri, self.source.storage_options) if path is None else (LocalFileSystem(), path)
                info = _info(fs, path) or {}
            except Exception:
                return UNKNOWN, None
            return (file_fingerprint(info), info.get("size")) if info.get("type") == "file" else (UNKNOWN, None)

        allowed = allowed_prefixes(self.source)
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
            raise ConfigError(f"{self.place}.bytes must be a column of a parquet table, got {self.url!r}.")
        print_ = file_fingerprint(self.info)
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
            if key == "id" and pa.types.is_floating(column.type) and column.null_count < len(column):
                raise pa.ArrowInvalid("no id is a number with a fraction")  # 1e20 has already lost digits
            return cast_cells(column, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            for row in range(len(column)):
                cell = column.slice(row, 1)
                try:
                    if key != "id" or not pa.types.is_floating(column.type):
                        cast_cells(cell, kind)
                        continue
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    pass
                raise SourceError(
                    f"{self.place}.{key} must be {kind}, got {str(cell[0])[:60]!r} in "
                    f"{self.place_of_row(first + row)} of {self.url}."
                ) from None
            raise


def cast_cells(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cells of a table as a declared type.

    Raises:
        pa.ArrowInvalid: When one cannot be.
        pa.ArrowNotImplementedError: When none of their type can be.
    """
    if pa.types.is_string(column.type) and kind != pa.string():
        column = pc.if_else(pc.equal(column, ""), None, column)  # an empty cell is no value
        if pa.types.is_timestamp(kind):  # a time without a zone is taken as UTC, as a naive one in Parquet is
            column = pc.replace_substring_regex(column, r"^(\d{4}-\d{2}-\d{2})$", r"\1T00:00:00")
            column = pc.replace_substring_regex(column, r"^([^T ]+[T ][0-9:.]+)$", r"\1Z")
    # Nanoseconds are cut to the microseconds that are kept.
    cut = pa.types.is_timestamp(kind) and pa.types.is_timestamp(column.type)
    return pc.cast(column, options=pc.CastOptions(kind, allow_time_truncate=cut))


def _open_csv(file: Any, convert: Any = None) -> Any:
    return pyarrow.csv.open_csv(
        file,
        # Without threads: one that still reads when an error ends the process has aborted it.
        read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=convert,
    )


def _joined(base: str, uri: str) -> str:
    """A table's uri as a whole one: a relative one starts at `base`."""
    if "://" in uri or uri.startswith("/"):
        return uri
    if "://" not in base:
        return f"{base}/{uri}"
    # Stores take `..` for a name; what is left of it after joining is refused when it is read.
    protocol, _, folder = base.partition("://")
    return f"{protocol}://{posixpath.normpath(f'{folder}/{uri}')}"


def allowed_prefixes(source: SourceConfig) -> tuple[str, ...]:
    """The folders that a table's URIs may point into."""
    if source.within:
        return source.within
    folder = _fixed_part(source.table or "") or posixpath.dirname(source.table or "")
    return (f"{folder}/" if folder.endswith(":/") else folder,)


def is_within(uri: str, prefixes: tuple[str, ...]) -> bool:
    """Whether `uri` stays below one of `prefixes`, with `..` and links in local paths resolved.

    A table's uri is hostile: nothing is connected to before it is known to be within.
    """
    try:
        path = local_path(uri)
        if path is not None:
            place: _Place = ("file", "", os.path.realpath(path))
        else:
            if "::" in uri or ".." in re.split(r"[/\\]", urllib.parse.unquote(uri)):
                return False
            place = _place(uri)
    except (ValueError, ImportError, OSError):
        return False
    return any(place[:2] == top[:2] and place[2].startswith(top[2]) for top in map(_top, prefixes))


_Place = tuple[str, str, str]
"""(protocol, host and what else makes the connection, path) of a URL."""


def _place(url: str) -> _Place:
    protocol = fsspec.core.split_protocol(url)[0] or "file"
    kind = driver_class(protocol)
    path = str(kind._strip_protocol(url))  # noqa: SLF001 - as a file system does it, without connecting to one
    if issubclass(kind, LocalFileSystem):
        return "file", "", os.path.realpath(path)
    return kind.__name__, repr(kind._get_kwargs_from_urls(url)), path  # noqa: SLF001


@functools.lru_cache(maxsize=64)
def _top(prefix: str) -> _Place:
    protocol, host, path = _place(prefix)
    return protocol, host, path.rstrip("/") + "/"
