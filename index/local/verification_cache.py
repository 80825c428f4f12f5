"""What was proved of local files once, so that the next opening of eight gigabytes costs a look at their metadata."""

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
"""Two changes of a file within one tick of the kernel's clock, 10 ms at most, have the same times."""
_FORGOTTEN_S = 90 * 86_400.0


class VerificationCache:
    """Remembers each file's sha256 with what the kernel says of it; what has changed since is read again.

    The file's ctime is part of it: who writes to a file can set its mtime, but its ctime is set by the kernel alone.
    What a disk loses without a write is not noticed; `versions verify` reads everything, whatever is remembered.
    """

    def __init__(self, folder: Path | None) -> None:
        """`folder`: this user's own (`UserFolder.make_private`); None: nothing is remembered."""
        self._folder = folder

    def sha256(self, path: Path) -> str:
        """The sha256 of a file in hex: what is remembered of it, if that still holds, or else by reading it all.

        Raises:
            OSError: When it cannot be read.
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
        """What is remembered of a file, if that still holds. Never reads the file."""
        path = path.resolve()
        with contextlib.suppress(OSError), path.open("rb") as file:
            return self._known(path, _facts(file.fileno()))
        return None

    def remember(self, path: Path, sha256: str) -> None:
        """What `sha256` would leave behind, for a file whose writer has hashed it; that nobody wrote since is his word.

        No error if it cannot be written: the file is read again when it is opened.
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
        with contextlib.suppress(OSError):  # a full or read-only disk: it will be read again
            os.fsync(descriptor)  # or a mark could outlive a power cut that its file does not
            if _facts(descriptor) != facts:
                return  # somebody writes to it
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
    """The marks of this user. Where there is no folder to be trusted with them, nothing is remembered, and no error."""
    try:
        return VerificationCache(CACHE.make_private(CACHE.make_private(cache_folder or CACHE.path()) / "marks"))
    except CatalogError:
        return VerificationCache(None)


def remember(path: Path, sha256: str) -> None:
    """Leaves a mark for a local file that has just been written and hashed: its first opening needs not read it."""
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
    """The facts, not before a change from now on would show in them."""
    if abs(time.time_ns() - os.fstat(descriptor).st_ctime_ns) < _TICK_S * 1e9:
        time.sleep(_TICK_S)
    return _facts(descriptor)
