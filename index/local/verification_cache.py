"""The verification cache: sha256 of unchanged local files, so that opening them again needs only their metadata."""

import contextlib
import hashlib
import os
import time
import uuid
from pathlib import Path
from typing import Any

import orjson

from ...configs.errors import CatalogError
from .private import CACHE

_TICK_S = 0.02
"""Longer than a tick of the kernel clock (10 ms at most): two changes within one tick have the same times."""
_FORGOTTEN_S = 90 * 86_400.0
"""Age at which entries are deleted."""


class VerificationCache:
    """Stores the sha256 of each file with its metadata. A file whose metadata has changed is read again.

    The metadata includes the ctime, which only the kernel can set; a program can set the mtime. Corruption on the disk
    without a write is not detected; `versions verify` reads all files and ignores this cache.
    """

    def __init__(self, folder: Path | None) -> None:
        """`folder` is a private folder of the user (`UserFolder.make_private`). With None, nothing is stored."""
        self._folder = folder

    def sha256(self, path: Path) -> str:
        """Return the sha256 of a file in hex, from the cache if the file is unchanged, else by reading it.

        Raises:
            OSError: If the file cannot be read.
        """
        path = path.resolve()
        with path.open("rb") as file:
            known = self._known(path, _facts(file.fileno()))
            if known is not None:
                return known
            before = _stable_facts(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self._write(path, file.fileno(), before, sha256)
        return sha256

    def known(self, path: Path) -> str | None:
        """Return the cached sha256 of a file if the file is unchanged, else None. Never reads the content."""
        path = path.resolve()
        with contextlib.suppress(OSError), path.open("rb") as file:
            return self._known(path, _facts(file.fileno()))
        return None

    def remember(self, path: Path, sha256: str) -> None:
        """Store the sha256 of a file that the caller has just written and hashed.

        The caller must know that the file has not changed since. Does not raise if the entry cannot be written: the
        file is then read again when it is opened.
        """
        with contextlib.suppress(OSError):
            path = path.resolve()
            with path.open("rb") as file:
                self._write(path, file.fileno(), _stable_facts(file.fileno()), sha256)

    def _known(self, path: Path, facts: dict[str, int]) -> str | None:
        if self._folder is None:
            return None
        try:
            entry = orjson.loads(self._place(path).read_bytes())
            return str(entry["sha256"]) if (entry["path"], entry["facts"]) == (str(path), facts) else None
        except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
            return None

    def _write(self, path: Path, descriptor: int, facts: dict[str, int], sha256: str) -> None:
        if self._folder is None:
            return
        with contextlib.suppress(OSError):  # a full or read-only disk: the file will be read again
            os.fsync(descriptor)  # else the entry could survive a power failure that the file does not
            if _facts(descriptor) != facts:
                return  # the file is being written
            place = self._place(path)
            partial = place.with_name(f"{uuid.uuid4().hex}.partial")
            content: dict[str, Any] = {"path": str(path), "facts": facts, "sha256": sha256}
            try:
                partial.write_bytes(orjson.dumps(content))
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)
            for entry in self._folder.iterdir():
                if time.time() - entry.stat().st_mtime > _FORGOTTEN_S:
                    entry.unlink(missing_ok=True)

    def _place(self, path: Path) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(os.fsencode(path)).hexdigest()}.json"


def verification_cache_for(cache_folder: Path | None = None) -> VerificationCache:
    """Return the verification cache of the user. Without a safe folder for it, nothing is stored."""
    try:
        return VerificationCache(CACHE.make_private(CACHE.make_private(cache_folder or CACHE.path()) / "marks"))
    except CatalogError:
        return VerificationCache(None)


def remember(path: Path, sha256: str) -> None:
    """Store the sha256 of a local file that was just written and hashed, so that opening it does not read it."""
    verification_cache_for().remember(path, sha256)


def _facts(descriptor: int) -> dict[str, int]:
    found = os.fstat(descriptor)
    return {
        "device": found.st_dev,
        "inode": found.st_ino,
        "size_bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
    }


def _stable_facts(descriptor: int) -> dict[str, int]:
    """Return the metadata, after waiting until any later change would be visible in it."""
    if abs(time.time_ns() - os.fstat(descriptor).st_ctime_ns) < _TICK_S * 1e9:
        time.sleep(_TICK_S)
    return _facts(descriptor)
