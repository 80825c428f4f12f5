"""Reads the bytes of references: files on any fsspec file system, and cells of Parquet tables."""

import contextlib
import stat
import threading
import urllib.parse
from collections import deque
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ...configs import PrepareConfig, SourceConfig
from ...index.storage.remote import connect
from ...index.versions.layout import Reason
from .parquet_pages import CheckedParquet
from .references import Reference, local_path
from .unpreparable import Unpreparable
from .uri_files import OutsideError, check_opened, read_remote
from .uri_safety import allowed_prefixes, is_within

_OPEN_TABLES = 4
"""Tables with rows in memory. Rows are read table after table, so more would not help."""
_HELD_BATCHES = 4
"""Batches of a table in memory, at most 64 MB each: threads read neighbouring rows slightly out of order."""


class Reader:
    """Reads references from many threads. Use one for each process: it shares connections and opens them lazily."""

    def __init__(self, sources: Sequence[SourceConfig], settings: PrepareConfig) -> None:
        self._sources = sources
        self._settings = settings
        self._tables: dict[tuple[str, str | None], _CellTable] = {}
        self._lock = threading.Lock()

    def read(self, reference: Reference) -> bytes:
        """Return the bytes of a reference.

        Raises:
            Unpreparable: If the file is missing, unreadable, not allowed, or larger than `max_file_bytes`.
        """
        uri = reference.uri or ""
        source = self._sources[reference.source]
        if not uri:
            raise Unpreparable(Reason.MISSING, "the row has no uri")
        if source.bytes is not None:
            return self._capped(self._cell(uri, source))
        if source.uri is not None and not is_within(uri, allowed_prefixes(source)):
            raise Unpreparable(Reason.URI_NOT_ALLOWED, "the uri points outside the folders that `within` allows")
        if reference.size_bytes is not None:
            self._check_size(reference.size_bytes)
        try:
            path = local_path(uri)
            if path is not None:
                # Opening a pipe would block for ever. Opening a folder raises an error by itself.
                found = Path(path).stat()
                if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
                    raise Unpreparable(Reason.UNREADABLE, "the file cannot be read: it is not a regular file")
                with Path(path).open("rb") as file:
                    if source.uri is not None:
                        check_opened(file, path, source)
                    return self._capped(self._read_file(file, found.st_size))
            return self._capped(read_remote(uri, source, self._settings.max_file_bytes))
        except FileNotFoundError:
            raise Unpreparable(Reason.MISSING, "the file does not exist") from None
        except OutsideError as error:
            raise Unpreparable(Reason.URI_NOT_ALLOWED, f"{error}, which `within` does not allow") from None
        except Unpreparable:
            raise
        except Exception as error:  # drivers raise errors of any type, and none may stop the run
            raise Unpreparable(Reason.UNREADABLE, f"the file cannot be read: {_words(error)}") from None

    def close(self) -> None:
        with self._lock:
            for table in self._tables.values():
                table.close()
            self._tables = {}

    def _read_file(self, file: BinaryIO, size: int) -> bytes:
        """Read a file of about `size` bytes: at most one byte more than allowed, to notice a larger one."""
        most = self._settings.max_file_bytes + 1
        data = file.read(min(size + 1, most))  # not `most` at once: its memory would be allocated for each file
        return data if len(data) <= size else data + file.read(most - len(data))  # it has grown

    def _capped(self, data: bytes) -> bytes:
        self._check_size(len(data))
        return data

    def _check_size(self, size: int) -> None:
        if size > self._settings.max_file_bytes:
            raise Unpreparable(
                Reason.FILE_TOO_LARGE,
                f"prepare.max_file_bytes allows {self._settings.max_file_bytes} bytes, got {size}",
            )

    def _cell(self, uri: str, source: SourceConfig) -> bytes:
        url, _, place = uri.rpartition("#")
        row = int(urllib.parse.parse_qs(place)["row"][0])
        try:
            value = self._table(url, source).read(row)
        except FileNotFoundError:
            raise Unpreparable(Reason.MISSING, "the table no longer exists") from None
        except Exception as error:  # drivers raise errors of any type, and none may stop the run
            raise Unpreparable(Reason.UNREADABLE, f"the table cannot be read: {type(error).__name__}") from None
        if value is None:
            raise Unpreparable(Reason.MISSING, "the table has no bytes in this row")
        return value

    def _table(self, url: str, source: SourceConfig) -> "_CellTable":
        with self._lock:
            key = (url, source.bytes)  # two sources may read two columns of one table
            table = self._tables.pop(key, None) or _CellTable(url, source)
            self._tables[key] = table
            while len(self._tables) > _OPEN_TABLES:
                # Not closed here: another thread may still read from it. It is closed when the last reference goes.
                del self._tables[next(iter(self._tables))]
            return table


def _words(error: Exception) -> str:
    """Return the store's message, or the status of an HTTP response."""
    status = next((s for name in ("status", "status_code") if isinstance(s := getattr(error, name, None), int)), None)
    if status is not None:
        with contextlib.suppress(ValueError):
            return f"the server answered {status} {HTTPStatus(status).phrase}"
        return f"the server answered {status}"
    return getattr(error, "strerror", None) or type(error).__name__


class _CellTable:
    """One column of a Parquet file with a few batches in memory, because neighbouring rows are read together."""

    def __init__(self, url: str, source: SourceConfig) -> None:
        local = local_path(url)
        if local is not None:
            self._handle: Any = Path(local).open("rb")  # noqa: SIM115 - closed by `close`
        else:
            fs, path = connect(url, source.storage_options)
            self._handle = fs.open(path, "rb")
        self._file = CheckedParquet(self._handle)
        self._column = source.bytes or ""
        self._starts = np.cumsum([0, *self._file.group_rows])
        self._lock = threading.Lock()
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._held: deque[tuple[int, pa.Array]] = deque(maxlen=_HELD_BATCHES)

    def read(self, row: int) -> bytes | None:
        with self._lock:
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            at = row - int(self._starts[group])
            if group != self._group or (self._held and at < self._held[0][0]):
                self._held.clear()
                self._batches = self._file.batches(group, [self._column])
                self._group = group
            while not self._held or at >= self._held[-1][0] + len(self._held[-1][1]):
                behind = self._held[-1][0] + len(self._held[-1][1]) if self._held else 0
                self._held.append((behind, next(self._batches).column(0)))
            first, cells = next(part for part in reversed(self._held) if part[0] <= at)
            value = cells[at - first].as_py()
        return value.encode() if isinstance(value, str) else value

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._handle.close()
