"""The cache of remote files on this disk: by their sha256, proved, within a bound, one user's and all his processes'.

    files/<sha256[:2]>/<sha256>            whole and proved, read-only
    files/<sha256[:2]>/<sha256>.partial    being downloaded, or left behind by a process that was killed
    files/<sha256[:2]>/<sha256>.lock       held by whoever downloads it
    files/<sha256[:2]>/<sha256>.used       its mtime is the last opening; all who are opening the file share its lock
    marks/                                 what is remembered of proved files (marks.py)
    .room.lock                             held while room is made, so that two do not take the same

The locks are the kernel's: a process that dies lets go of them. Nobody waits in a circle: who holds `.used` waits for
`.lock`, who holds that for `.room.lock`, and who holds that takes `.used` only where nobody else has it.
"""

import contextlib
import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from filelock import FileLock, Timeout

from ...configs.errors import CatalogError
from ..storage.store import Store
from ..versions.layout import version_folder
from ..versions.manifest import FileEntry
from .download import Downloads
from .verification_cache import VerificationCache
from .private import CACHE

BOUND_VARIABLE = "EPITHRE_BEAM_CACHE_MB"
_FILES_AT_ONCE = 4
_DOWNLOADS = 2
"""What was damaged on its way is not damaged again."""

_log = logging.getLogger(__name__)


class FileCache:
    """Files of remote stores on this disk, each there once for all processes of this user."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises CatalogError when the folder cannot be made, or others could put files there."""
        self._folder = CACHE.make_private(folder)
        self._max_bytes = max_bytes
        self._files = CACHE.make_private(folder / "files")
        self._verification_cache = VerificationCache(CACHE.make_private(folder / "marks"))

    @contextlib.contextmanager
    def hold(
        self, store: Store, version: str, entries: Sequence[FileEntry], *, verify: bool
    ) -> Iterator[dict[str, Path]]:
        """Paths by name, as `local_files` gives them; until the block ends no process deletes them."""
        wanted = {entry.sha256: entry for entry in entries}
        self._check(store, version, wanted.values())
        with contextlib.ExitStack() as uses:
            try:
                # All before the first download: making room must not delete what is wanted next.
                for sha256 in wanted:
                    self._place(sha256).parent.mkdir(mode=0o700, exist_ok=True)
                    uses.callback(_unlock, _lock(self._place(sha256, ".used"), is_shared=True))
                    os.utime(self._place(sha256, ".used"))
                self._fetch_all(store, version, wanted.values(), verify=verify)
            except OSError as error:
                raise CatalogError(
                    f"The cache {self._folder} cannot be written ({error.strerror or error}): make room on its disk, "
                    f"or name another folder by {CACHE.variable}."
                ) from error
            yield {entry.name: self._place(entry.sha256) for entry in entries}

    def _check(self, store: Store, version: str, entries: Iterable[FileEntry]) -> None:
        for entry in entries:
            if not re.fullmatch("[0-9a-f]{64}", entry.sha256):  # it becomes a path
                raise CatalogError(
                    f"{store.url}/{file_name(version, entry)} must have a sha256 of 64 hex digits in its manifest, "
                    f"got {entry.sha256[:80]!r}: the manifest is damaged."
                )
        total = sum(entry.size_bytes for entry in entries)
        if total > self._max_bytes:
            raise CatalogError(
                f"{store.url}, version {version}, needs {total} bytes of the cache {self._folder}, which may hold "
                f"{self._max_bytes}: set {BOUND_VARIABLE} to {math.ceil(total / 1e6)} or more."
            )

    def _fetch_all(self, store: Store, version: str, entries: Iterable[FileEntry], *, verify: bool) -> None:
        """Some files at a time; the first failure stops the others and is raised."""
        with Downloads(store) as downloads, ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="cache") as pool:
            futures = [
                pool.submit(self._fetch, downloads, file_name(version, entry), entry, verify=verify)
                for entry in entries
            ]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            finally:  # also when the wait is interrupted
                for future in futures:
                    future.cancel()
                downloads.stop()

    def _fetch(self, downloads: Downloads, name: str, entry: FileEntry, *, verify: bool) -> None:
        """Sees to it that the file is there."""
        path = self._place(entry.sha256)
        if _is_whole(path, entry, self._verification_cache.known if verify else None):
            return
        with _alone(self._place(entry.sha256, ".lock"), downloads.stopped):
            if _is_whole(path, entry, self._verification_cache.sha256 if verify else None):
                return  # another process was faster, or only the mark was void
            if path.exists():
                _log.warning("%s is damaged and is downloaded anew.", path)
                path.unlink()
            self._download(downloads, name, entry)

    def _download(self, downloads: Downloads, name: str, entry: FileEntry) -> None:
        path, partial = self._place(entry.sha256), self._place(entry.sha256, ".partial")
        downloads.check(name, entry.size_bytes)
        _log.info("%s/%s is downloaded, %d bytes.", downloads.url, name, entry.size_bytes)
        for _ in range(_DOWNLOADS):
            descriptor = self._begin(partial, entry.size_bytes)
            try:
                found = downloads.download(name, entry.size_bytes, descriptor)
                if found == entry.sha256:
                    os.fsync(descriptor)
                    os.fchmod(descriptor, 0o444)
                    with FileLock(self._folder / ".room.lock"):  # who counts sees it under one name or the other
                        partial.replace(path)
                    self._verification_cache.remember(path, found)
                    return
            finally:
                os.close(descriptor)
                partial.unlink(missing_ok=True)
        raise CatalogError(
            f"{downloads.url}/{name} must have sha256 {entry.sha256}, got {found} in each of {_DOWNLOADS} downloads: "
            "the file is damaged."
        )

    def _begin(self, partial: Path, size_bytes: int) -> int:
        """An empty file that has its full length already, so that others who make room count it."""
        partial.unlink(missing_ok=True)  # a killed process may have left it
        with FileLock(self._folder / ".room.lock"):
            self._make_room(size_bytes)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.ftruncate(descriptor, size_bytes)
            except BaseException:
                os.close(descriptor)
                partial.unlink()
                raise
        return descriptor

    def _make_room(self, size_bytes: int) -> None:
        """Deletes what killed processes left, and as many of the files that were not used for longest as it takes."""
        stored = self._stored()
        total = sum(content.size_bytes for content in stored.values())
        free = shutil.disk_usage(self._folder).free
        bound = min(self._max_bytes, total + free)
        if size_bytes > bound:
            raise OSError(errno.ENOSPC, f"{size_bytes} bytes are needed, {free} are free")
        for sha256, content in sorted(stored.items(), key=lambda item: (item[1].is_whole, item[1].used_s, item[0])):
            if (content.is_whole and total + size_bytes <= bound) or not self._evict(sha256):
                continue
            total -= content.size_bytes
        if total + size_bytes > bound:
            if bound < self._max_bytes:
                raise OSError(errno.ENOSPC, f"{size_bytes} bytes are needed, {free} are free")
            raise CatalogError(
                f"The cache {self._folder} may hold {self._max_bytes} bytes, and with what other processes are opening "
                f"has no room for {size_bytes} more: try again, or raise {BOUND_VARIABLE}."
            )

    def _stored(self) -> dict[str, "_Stored"]:
        """What there is of each content, by its sha256."""
        stored: dict[str, _Stored] = {}
        for path in self._files.glob("*/*"):
            sha256, _, part = path.name.partition(".")
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                content = stored.setdefault(sha256, _Stored())
                content.size_bytes += found.st_size
                content.is_whole |= not part
                if part == "used":
                    content.used_s = found.st_mtime
        return stored

    def _evict(self, sha256: str) -> bool:
        """Deletes all that there is of a content, unless a process is opening or downloading it."""
        try:
            descriptor = _lock(self._place(sha256, ".used"), is_shared=False)
        except BlockingIOError:
            return False
        try:
            for suffix in ("", ".partial", ".lock", ".used"):
                self._place(sha256, suffix).unlink(missing_ok=True)
        finally:
            _unlock(descriptor)
        return True

    def _place(self, sha256: str, suffix: str = "") -> Path:
        return self._files / sha256[:2] / f"{sha256}{suffix}"


@dataclass(kw_only=True)
class _Stored:
    size_bytes: int = 0
    used_s: float = 0.0
    is_whole: bool = False


def file_name(version: str, entry: FileEntry) -> str:
    """A file's name in the store."""
    return f"{version_folder(version)}/{entry.name}"


def _is_whole(path: Path, entry: FileEntry, sha256_of: Callable[[Path], str | None] | None) -> bool:
    try:
        return path.stat().st_size == entry.size_bytes and (sha256_of is None or sha256_of(path) == entry.sha256)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _alone(place: Path, stopped: Event) -> Iterator[None]:
    """Waits for the lock for as long as it takes, unless it is told to stop."""
    lock = FileLock(place)
    while True:
        try:
            lock.acquire(timeout=0.5)
            break
        except Timeout:
            if stopped.is_set():
                raise CancelledError from None
    try:
        yield
    finally:
        lock.release()


def _lock(place: Path, *, is_shared: bool) -> int:
    """Locks a file, which is made if it is not there, and gives its descriptor.

    Raises:
        BlockingIOError: When it is not to be shared and somebody has it.
    """
    import fcntl  # only POSIX has it, and the cache is only there

    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(place.stat(), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was deleted before it was locked: another may lock the next one


def _unlock(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process that was forked off has the descriptor too
    os.close(descriptor)
