"""The local cache of remote files: verified, named by sha256, limited in size, shared by all processes of a user.

    files/<sha256[:2]>/<sha256>            complete and verified, read-only
    files/<sha256[:2]>/<sha256>.partial    being downloaded, or left by a killed process
    files/<sha256[:2]>/<sha256>.lock       locked by the process that downloads the file
    files/<sha256[:2]>/<sha256>.used       mtime is the last use; processes that open the file share its lock
    marks/                                 the verification cache (verification_cache.py)
    .room.lock                             locked while space is freed, so that two processes do not use the same space

The kernel releases the locks of a process that dies. The order of locks prevents deadlocks: `.used`, then `.lock`, then
`.room.lock`. A process that holds `.room.lock` takes `.used` only without waiting.
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
from ..versions.layout import DAMAGED, version_folder
from ..versions.manifest import FileEntry
from .download import Downloads
from .private import CACHE
from .verification_cache import VerificationCache

BOUND_VARIABLE = "EPITHRE_BEAM_CACHE_MB"
_FILES_AT_ONCE = 4
_DOWNLOADS = 2
"""Downloads of a file until its sha256 matches: the second repairs a transfer error."""

_log = logging.getLogger(__name__)


class FileCache:
    """Files of remote stores on the local disk, shared by all processes of a user."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises CatalogError if the folder cannot be created, or other users can write to it."""
        self._folder = CACHE.make_private(folder)
        self._max_bytes = max_bytes
        self._files = CACHE.make_private(folder / "files")
        self._verification_cache = VerificationCache(CACHE.make_private(folder / "marks"))

    @contextlib.contextmanager
    def hold(
        self, store: Store, version: str, entries: Sequence[FileEntry], *, verify: bool
    ) -> Iterator[dict[str, Path]]:
        """Yield paths by name, like `local_files`. No process deletes them until the block ends."""
        wanted = {entry.sha256: entry for entry in entries}
        self._check(store, version, wanted.values())
        with contextlib.ExitStack() as uses:
            try:
                # Lock all before the first download, so that freeing space does not delete files needed next.
                for sha256 in wanted:
                    self._place(sha256).parent.mkdir(mode=0o700, exist_ok=True)
                    uses.callback(_unlock, _lock(self._place(sha256, ".used"), is_shared=True))
                    os.utime(self._place(sha256, ".used"))
                self._fetch_all(store, version, wanted.values(), verify=verify)
            except OSError as error:
                raise CatalogError(
                    f"The cache {self._folder} cannot be written ({error.strerror or error}). Free space on its disk, "
                    f"or set {CACHE.variable} to another folder."
                ) from error
            yield {entry.name: self._place(entry.sha256) for entry in entries}

    def _check(self, store: Store, version: str, entries: Iterable[FileEntry]) -> None:
        for entry in entries:
            if not re.fullmatch("[0-9a-f]{64}", entry.sha256):  # it becomes a path
                raise CatalogError(
                    f"{store.url}/{file_name(version, entry)} must have a sha256 of 64 hex digits in the manifest, "
                    f"got {entry.sha256[:80]!r}. The manifest is damaged."
                )
        total = sum(entry.size_bytes for entry in entries)
        if total > self._max_bytes:
            raise CatalogError(
                f"{store.url}: version {version} needs {total} bytes of the cache {self._folder}, which is limited to "
                f"{self._max_bytes} bytes. Set {BOUND_VARIABLE} to {math.ceil(total / 1e6)} or more."
            )

    def _fetch_all(self, store: Store, version: str, entries: Iterable[FileEntry], *, verify: bool) -> None:
        """Fetch several files at a time. The first failure stops the others and is raised."""
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
        """Download the file unless it is cached."""
        path = self._place(entry.sha256)
        if _is_whole(path, entry, self._verification_cache.known if verify else None):
            return
        with _alone(self._place(entry.sha256, ".lock"), downloads.stopped):
            if _is_whole(path, entry, self._verification_cache.sha256 if verify else None):
                return  # another process downloaded it, or only its entry in the verification cache was outdated
            if path.exists():
                _log.warning("%s is damaged. Downloading it again.", path)
                path.unlink()
            self._download(downloads, name, entry)

    def _download(self, downloads: Downloads, name: str, entry: FileEntry) -> None:
        path, partial = self._place(entry.sha256), self._place(entry.sha256, ".partial")
        downloads.check(name, entry.size_bytes)
        _log.info("%s/%s: downloading %d bytes.", downloads.url, name, entry.size_bytes)
        for _ in range(_DOWNLOADS):
            descriptor = self._begin(partial, entry.size_bytes)
            try:
                found = downloads.download(name, entry.size_bytes, descriptor)
                if found == entry.sha256:
                    os.fsync(descriptor)
                    os.fchmod(descriptor, 0o444)
                    with FileLock(
                        self._folder / ".room.lock"
                    ):  # so that a process that counts sees the file under exactly one name
                        partial.replace(path)
                    self._verification_cache.remember(path, found)
                    return
            finally:
                os.close(descriptor)
                partial.unlink(missing_ok=True)
        raise CatalogError(
            f"{downloads.url}/{name} must have sha256 {entry.sha256}, got {found} in each of {_DOWNLOADS} downloads. "
            f"{DAMAGED}"
        )

    def _begin(self, partial: Path, size_bytes: int) -> int:
        """Create the partial file with its full length, so that other processes count it when they free space."""
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
        """Delete leftovers of killed processes and, as needed, the least recently used files."""
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
                f"The cache {self._folder} is limited to {self._max_bytes} bytes. Other processes are using its files, "
                f"so there is no space for {size_bytes} bytes more. Try again, or increase {BOUND_VARIABLE}."
            )

    def _stored(self) -> dict[str, "_Stored"]:
        """List the cached contents by sha256."""
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
        """Delete all files of a content, unless a process is opening or downloading it."""
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
    """Return the name of a file in the store."""
    return f"{version_folder(version)}/{entry.name}"


def _is_whole(path: Path, entry: FileEntry, sha256_of: Callable[[Path], str | None] | None) -> bool:
    try:
        return path.stat().st_size == entry.size_bytes and (sha256_of is None or sha256_of(path) == entry.sha256)
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _alone(place: Path, stopped: Event) -> Iterator[None]:
    """Wait for the lock without a time limit. Raises CancelledError once `stopped` is set."""
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
    """Lock a file and return its descriptor. The file is created if it does not exist.

    Raises:
        BlockingIOError: If `is_shared` is False and another process holds the lock.
    """
    import fcntl  # POSIX only, like the cache

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
        os.close(descriptor)  # it was deleted before it was locked: another process may lock its successor


def _unlock(descriptor: int) -> None:
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked process has the descriptor too
    os.close(descriptor)
