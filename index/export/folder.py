"""The folder that an export is written into, and the mark on it: whose it is, what is in it, whether it is whole."""

import contextlib
import errno
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from ...configs.errors import ArgumentError, StoreError, SwapConflictError
from ..storage.store import HashingWriter, Store
from ..versions.manifest import FileEntry

MARK = "export.json"
_FORMAT = 1
_LOCK = f".{MARK}.lock"
_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]{12}\.partial")


class ExportFolder:
    """Takes the files of one export. Before each file the mark names it, so that whoever starts anew knows what is his.

    Args:
        store: The folder.
        about: What the export is, for the mark.
    """

    def __init__(self, store: Store, about: Mapping[str, Any]) -> None:
        self._store = store
        self._about = dict(about)
        self._nonce = secrets.token_hex(8)
        self._mark: bytes | None = None
        self._begun: list[str] = []
        self._files: list[FileEntry] = []

    def begin(self, *, overwrite: bool = False) -> None:
        """Makes the folder this export's own. What a killed export left in it is removed.

        Args:
            overwrite: Whether a finished export in it may be replaced.

        Raises:
            ArgumentError: When the folder has anything that is not an export's.
            StoreError: When another export began in it at this moment.
        """
        url = self._store.url
        if self._store.size("") is not None:
            raise ArgumentError(f"{url} must be a new or an empty folder, and it is a file: name another.")
        before = _read(self._store)
        old = None if before is None else _parsed(before)
        if before is None:
            others = [file.name for file in self._store.listing() if file.name != _LOCK]
            if others:
                raise ArgumentError(f"{url} must be a new or an empty folder, and {others[0]} is in it: name another.")
        elif old is None:
            raise ArgumentError(f"{url}/{MARK} is no mark of an export, so nothing there is replaced: name another.")
        elif old["complete"] and not overwrite:
            raise ArgumentError(
                f"{url} has a finished export, of version {old.get('version')}: --overwrite replaces it."
            )
        self._mark = before
        self._write_mark(complete=False, files=[] if old is None else old["files"])
        if old is not None:
            self._remove({str(file["name"]) for file in old["files"]})
            self._write_mark(complete=False)

    @contextlib.contextmanager
    def file(self, name: str, rows: int | None = None) -> Iterator[HashingWriter]:
        """A file of the export, which exists whole after the block or not at all.

        Raises:
            StoreError: When there is no room for it, or another export has taken the folder.
        """
        self._begun.append(name)
        self._write_mark(complete=False)
        with self._reporting_full_disk(name), self._store.open_write(name) as file:
            yield file
        self._files.append(FileEntry(name=name, size_bytes=file.size_bytes, sha256=file.sha256, rows=rows))

    def write(self, name: str, text: str) -> None:
        with self.file(name) as file:
            file.write(text.encode())

    def finish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Marks the export as whole, and returns what the mark says."""
        self._about |= facts
        return self._write_mark(complete=True, files=[file.model_dump() for file in self._files])

    def _write_mark(self, *, complete: bool, files: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """A file that is only begun is in the mark by its name alone."""
        if files is None:
            files = [{"name": name} for name in self._begun]
        mark = {"epithre_beam_export": _FORMAT, "complete": complete, "nonce": self._nonce, **self._about}
        mark["files"] = files
        data = orjson.dumps(mark, option=orjson.OPT_INDENT_2) + b"\n"
        if data == self._mark:
            return mark
        try:
            with self._reporting_full_disk(MARK):
                self._store.swap(MARK, self._mark, data)
        except SwapConflictError as error:
            raise StoreError(f"{self._store.url} was taken by another export since this one began.") from error
        self._mark = data
        return mark

    @contextlib.contextmanager
    def _reporting_full_disk(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            place = f"{self._store.url}/{name}"
            raise StoreError(
                f"{place} cannot be written ({error.strerror}): make room, then do the same again."
            ) from error

    def _remove(self, names: set[str]) -> None:
        """Deletes an older export's files, and what it had begun of them. The names only choose among what is there."""
        for file in self._store.listing():
            folder, _, base = file.name.rpartition("/")
            begun = _PARTIAL.fullmatch(base)
            meant = base if begun is None else begun[1]
            name = f"{folder}/{meant}" if folder else meant
            if name in names or (begun is not None and name == MARK):
                self._store.delete(file.name)


def _read(store: Store) -> bytes | None:
    try:
        return store.read(MARK)
    except FileNotFoundError:
        return None


def _parsed(data: bytes) -> dict[str, Any] | None:
    """None when it is not what `ExportFolder` writes."""
    try:
        mark = orjson.loads(data)
        known = mark["epithre_beam_export"] == _FORMAT and isinstance(mark["complete"], bool)
        return mark if known and all(isinstance(file["name"], str) for file in mark["files"]) else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
