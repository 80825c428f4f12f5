"""The target folder of an export and its mark file, which records the owner, the files and whether it is complete."""

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
    """Writes the files of one export. The mark lists each file before it is written, so that a restart can remove it.

    Args:
        store: The folder.
        about: The description of the export, for the mark.
    """

    def __init__(self, store: Store, about: Mapping[str, Any]) -> None:
        self._store = store
        self._about = dict(about)
        self._nonce = secrets.token_hex(8)
        self._mark: bytes | None = None
        self._begun: list[str] = []
        self._files: list[FileEntry] = []

    def begin(self, *, overwrite: bool = False) -> None:
        """Claims the folder for this export and removes the files of a killed export.

        Args:
            overwrite: Whether to replace a finished export in the folder.

        Raises:
            ArgumentError: When the folder contains files that do not belong to an export.
            StoreError: When another export started in the folder at the same time.
        """
        url = self._store.url
        if self._store.size("") is not None:
            raise ArgumentError(f"{url} is a file. Choose a new or empty folder.")
        before = _read(self._store)
        old = None if before is None else _parsed(before)
        if before is None:
            others = [file.name for file in self._store.listing() if file.name != _LOCK]
            if others:
                raise ArgumentError(f"{url} is not empty (it contains {others[0]}). Choose a new or empty folder.")
        elif old is None:
            raise ArgumentError(f"{url}/{MARK} was not written by an export. Choose a new or empty folder.")
        elif old["complete"] and not overwrite:
            raise ArgumentError(
                f"{url} contains a finished export of version {old.get('version')}. Use --overwrite to replace it."
            )
        self._mark = before
        self._write_mark(complete=False, files=[] if old is None else old["files"])
        if old is not None:
            self._remove({str(file["name"]) for file in old["files"]})
            self._write_mark(complete=False)

    @contextlib.contextmanager
    def file(self, name: str, rows: int | None = None) -> Iterator[HashingWriter]:
        """Opens a file of the export for writing; after the block it exists completely or not at all.

        Raises:
            StoreError: When the disk is full, or another export has taken the folder.
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
        """Marks the export as complete and returns the content of the mark."""
        self._about |= facts
        return self._write_mark(complete=True, files=[file.model_dump() for file in self._files])

    def _write_mark(self, *, complete: bool, files: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Writes the mark; a file that is not finished is listed with its name only."""
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
            raise StoreError(
                f"{self._store.url}: another export has started in this folder. Use one folder per export."
            ) from error
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
                f"{place} cannot be written ({error.strerror}). Free disk space, then run the export again."
            ) from error

    def _remove(self, names: set[str]) -> None:
        """Deletes the files of an older export, also partial ones. Only files found in the folder are deleted."""
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
    """The content of the mark; None when `ExportFolder` did not write it."""
    try:
        mark = orjson.loads(data)
        known = mark["epithre_beam_export"] == _FORMAT and isinstance(mark["complete"], bool)
        return mark if known and all(isinstance(file["name"], str) for file in mark["files"]) else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
