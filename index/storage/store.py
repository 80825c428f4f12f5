"""All I/O on the files of a catalog.

A `Store` is a folder on any fsspec file system. It provides what the catalog's protocol needs: files that appear
atomically, exclusive creation, and compare-and-swap for the pointer.
"""

import contextlib
import datetime
import hashlib
import io
import os
import shutil
import stat
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from ...configs.errors import StoreError, SwapConflictError, SwapUnknownError
from .conditional import has_conditions, is_refusal, tag_of, write_if
from .partials import partial_name
from .remote import as_os_error, connect, storage_errors

_ATTEMPTS = 4
_DELETERS = 8
_WRITTEN_APART_BYTES = 1 << 16
_WRITTEN_LATER = 4
"""Maximum number of pieces that wait to be hashed and written, some megabytes in total."""
_MEMORY = threading.RLock()
_OUTSIDE = frozenset({"", ".", ".."})
"""Invalid parts of a file name."""


class Store:
    """A folder on a local or remote file system. Picklable; it connects on first use."""

    def __init__(self, url: str, storage_options: dict[str, Any] | None = None) -> None:
        self.url = url.rstrip("/") or "/"
        self._options = dict(storage_options or {})
        self._fs: Any = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"Store({self.url!r})"  # never the options: they may hold credentials

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_options": self._options, "_fs": None, "_pid": 0}

    @property
    def _root(self) -> str:
        return str(self.fs._strip_protocol(self.url))  # noqa: SLF001 - fsspec documents no public name for it

    @property
    def fs(self) -> Any:
        """The fsspec file system. A forked process creates its own, since connections do not survive a fork."""
        if self._fs is None or self._pid != os.getpid():
            self._fs, _ = connect(self.url, {"skip_instance_cache": True, **self._options})
            self._pid = os.getpid()
        return self._fs

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """Return the full path of a file, as its file system spells it.

        Raises:
            StoreError: If the name is invalid or leads out of the folder.
        """
        parts = name.removesuffix("/").replace(os.sep, "/").split("/") if name else []
        if _OUTSIDE.intersection(parts) or "\0" in name:
            raise StoreError(f"{self.url}: invalid file name {name!r:.100}. Nothing was read or written.")
        return f"{self._root}/{name}" if name else self._root

    def _confined(self, name: str) -> str:
        """Return `path(name)`. On a local disk, check that it stays in the store after links are followed.

        The folder may be untrusted: a link could expose or delete files outside it. Devices and pipes are refused too.

        Raises:
            StoreError: If the path leads out of the store, or to a device, pipe or socket.
        """
        path = self.path(name)
        if not self.is_local:
            return path
        root, found = os.path.realpath(self._root), os.path.realpath(path)
        if found != root and not found.startswith(os.path.join(root, "")):  # noqa: PTH118 - for a root that is `/` too
            raise StoreError(f"{self._place(name)} is a link out of the folder, to {found}. It is not used.")
        with contextlib.suppress(OSError):  # the caller handles a missing file
            mode = Path(found).stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise StoreError(f"{self._place(name)} must be a file, got a device, pipe or socket.")
        return path

    def _place(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def local_path(self, name: str) -> Path:
        """Return the local path of a file. Raises StoreError if the store is not on a local disk."""
        if not self.is_local:
            raise StoreError(f"{self.url} is not on a local disk: {name} has no local path.")
        return Path(self._confined(name))

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist. Other failures raise."""
        try:
            with storage_errors(self._place(name)):
                info = self.fs.info(self._confined(name))
        except FileNotFoundError:
            return None
        return None if info["type"] == "directory" else int(info["size"])

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: If there is no such file.
            StoreError: If it has more than `max_bytes`. It is not read then.
        """
        if max_bytes is not None and (size := self.size(name) or 0) > max_bytes:
            raise StoreError(f"{self._place(name)} must have at most {max_bytes} bytes, got {size}. It was not read.")
        with storage_errors(self._place(name)):
            return bytes(self.fs.cat_file(self._confined(name)))

    def open_read(self, name: str) -> IO[bytes]:
        """Open a file for reading bytes. The file is seekable."""
        with storage_errors(self._place(name)):
            return self.fs.open(self._confined(name), "rb")  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def open_write(self, name: str, *, is_temporary: bool = False) -> Iterator["HashingWriter"]:
        """Open a file for writing. It appears completely after the block, or not at all if the block raises.

        Args:
            name: Name of the file.
            is_temporary: Whether only this run reads it. It is then not hashed, and need not survive a power failure.
        """
        path = self.path(name)
        if isinstance(self.fs, MemoryFileSystem):  # its files would appear when opened
            buffer = io.BytesIO()
            with HashingWriter(buffer, is_hashed=not is_temporary) as file:
                yield file
            self.fs.pipe_file(path, buffer.getvalue())
            return
        if not self.is_local:
            with storage_errors(self._place(name)):
                handle = self.fs.open(path, "wb")
                try:
                    with HashingWriter(handle, is_hashed=not is_temporary) as file:
                        yield file
                except BaseException:
                    with contextlib.suppress(Exception):
                        handle.discard()
                    handle.closed = True  # else its finaliser would upload the partial content
                    raise
                handle.close()
            return
        target = Path(path)
        self._confined(name.rpartition("/")[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        partial, handle = _begin(target)
        try:
            with handle:
                with HashingWriter(handle, is_hashed=not is_temporary) as file:
                    yield file
                handle.flush()
                if not is_temporary:
                    os.fsync(handle.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing an existing one."""
        with self.open_write(name) as file:
            file.write(data)

    def move(self, name: str, to: str) -> None:
        """Rename a file, replacing an existing one. An object store copies it, so that it appears completely.

        If only `to` exists, nothing is done: an earlier call has moved it.

        Raises:
            FileNotFoundError: If neither exists.
        """
        try:
            with storage_errors(self._place(name)):
                if self.is_local:
                    Path(self._confined(name)).replace(self._confined(to))
                    return
                self.fs.cp_file(self.path(name), self.path(to))
                self.fs.rm_file(self.path(name))
        except FileNotFoundError:
            if self.size(to) is None:
                raise

    def create(self, name: str, data: bytes) -> None:
        """Create a file atomically. If several writers try, exactly one succeeds.

        Raises:
            FileExistsError: If the file exists with other content.
            SwapUnknownError: If the outcome is unknown.
        """
        try:
            self.swap(name, None, data)
        except SwapConflictError as error:
            raise FileExistsError(f"{self.url}/{name} already exists.") from error

    def swap(self, name: str, expected: bytes | None, data: bytes) -> None:
        """Write the file only if it still holds `expected`, or with None only if it does not exist.

        On a local disk a lock file serialises writers; in memory, a lock of the process. On S3 and Azure the write is
        conditional on the etag, on GCS on the generation. On other file systems, comparison and write are two steps,
        so runs must not share a catalog there. `data` must contain a nonce, so that the file never holds the same
        content twice. Otherwise a lost answer could not be distinguished from a lost race.

        Raises:
            SwapConflictError: If the file holds something else.
            SwapUnknownError: If the outcome is unknown. The storage may still write the file.
        """
        if has_conditions(self.fs):
            self._swap_if(name, expected, data)
            return
        with self._alone(name):
            self._compare(name, self._found(name), expected)
            self.write(name, data)

    def delete_if(self, name: str, expected: bytes) -> bool:
        """Delete the file if it holds `expected`. Not atomic on an object store, so do not rely on it for safety."""
        with self._alone(name):
            if self._found(name) != expected:
                return False
            self.delete(name)
            return True

    def probe(self) -> None:
        """Verify with a small object that the store enforces conditions, since some stores ignore them.

        Does nothing for file systems without conditional writes.

        Raises:
            StoreError: If the store does not refuse a second creation or a stale swap, or cannot be tested.
        """
        if not has_conditions(self.fs):
            return
        name = f".probe-{uuid.uuid4().hex}"
        try:
            first, second, third = (f"{name} {word}".encode() for word in ("created", "swapped", "refused"))
            self.create(name, first)
            tag = tag_of(self.fs, self.path(name))
            self._must_refuse("a second creation", name, third, None)
            self.swap(name, first, second)
            self._must_refuse("a write over an outdated object", name, third, tag)
        finally:
            with contextlib.suppress(Exception):
                self.delete(name)

    def _must_refuse(self, what: str, name: str, data: bytes, tag: str | None) -> None:
        try:
            write_if(self.fs, self.path(name), data, tag)
        except Exception as error:
            if is_refusal(error) and self.read(name) != data:
                return
            raise StoreError(
                f"{self.url}: could not test whether the store refuses {what} ({_describe(error)}). "
                "Nothing was written. Try again."
            ) from error
        raise StoreError(
            f"{self.url}: the store does not refuse {what}, so two runs could overwrite each other. Nothing was "
            "written. Use a store with conditional writes (If-None-Match, If-Match)."
        )

    def _swap_if(self, name: str, expected: bytes | None, data: bytes) -> None:
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS + 1):
            time.sleep(0.2 * attempt)
            try:
                # Read the tag before the content. Otherwise a write between the two would be overwritten.
                tag = tag_of(self.fs, self.path(name))
                found = self._found(name)
            except Exception as error:
                if failure is None:
                    reported = as_os_error(error, self._place(name))
                    unread = f"{self._place(name)} cannot be read ({_describe(error)})"
                    raise StoreError(f"{reported if isinstance(reported, PermissionError) else unread}.") from error
                failure = error
                continue
            if failure is not None and found == data:
                return  # written: the answer was lost, or a retry of the client was refused because of its first write
            try:
                self._compare(name, found, expected)
            except SwapConflictError as error:
                error.is_certain = failure is None
                raise
            if attempt == _ATTEMPTS:
                break
            try:
                write_if(self.fs, self.path(name), data, tag)
            except Exception as error:
                reported = as_os_error(error, self._place(name))
                if failure is None and (
                    isinstance(reported, PermissionError) or (tag is None and isinstance(reported, FileNotFoundError))
                ):
                    raise reported from error.__cause__  # forbidden, or no such bucket: certainly not written
                failure = error
            else:
                return
        raise SwapUnknownError(
            f"{self.url}/{name}: it is unknown whether the file was written ({_describe(failure)}). "
            "Check it before you continue."
        ) from failure

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Lock the file against other writers. Effective on a local disk and in memory only."""
        if self.is_local:
            folder, _, base = name.rpartition("/")
            lock = Path(self._confined(f"{folder}/.{base.lstrip('.')}.lock".lstrip("/")))
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                yield
        elif isinstance(self.fs, MemoryFileSystem):
            with _MEMORY:
                yield
        else:
            yield

    def _found(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def _compare(self, name: str, found: bytes | None, expected: bytes | None) -> None:
        if found != expected:
            raise SwapConflictError(f"{self.url}/{name}: another run changed it after this run started. Run again.")

    def names(self, folder: str) -> list[str]:
        """Return the names of the files below `folder`, sorted, without hidden and partial files."""
        if self.is_local:
            return [name for name, _ in self._walk(folder) if not name.rpartition("/")[2].startswith(".")]
        root = self._root.rstrip("/") + "/"
        try:
            with storage_errors(self._place(folder)):
                found = self.fs.find(self.path(folder))
        except FileNotFoundError:
            return []
        return sorted(
            path[len(root) :] for path in found if not path.rsplit("/", 1)[-1].startswith(".") and path.startswith(root)
        )

    def _walk(self, folder: str) -> list[tuple[str, os.stat_result]]:
        """Return the files below a local folder, sorted. Links to folders are not followed and not listed."""
        folder = folder.removesuffix("/")
        top = self._confined(folder)
        if Path(top).is_file():
            return [(folder, Path(top).lstat())]
        found = []
        for here, _, names in os.walk(top):
            inner = os.path.relpath(here, top).replace(os.sep, "/")
            prefix = "/".join(part for part in (folder, inner) if part not in {"", "."})
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # deleted in the meantime
                    found.append((f"{prefix}/{name}".lstrip("/"), Path(here, name).lstat()))
        return sorted(found)

    def listing(self, folder: str = "") -> list["StoredFile"]:
        """Return all files below `folder` with size and age, including hidden and partial files, sorted by name."""
        if self.is_local:
            return [
                StoredFile(name=name, size_bytes=found.st_size, modified_s=found.st_mtime)
                for name, found in self._walk(folder)
            ]
        root = self._root.rstrip("/") + "/"
        try:
            with storage_errors(self._place(folder)):
                found = self.fs.find(self.path(folder), detail=True)
        except FileNotFoundError:
            return []
        files = (
            StoredFile(name=path[len(root) :], size_bytes=int(info["size"] or 0), modified_s=_modified_s(info))
            for path, info in found.items()
            if path.startswith(root)
        )
        return sorted(files, key=lambda file: file.name)

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with its content. Does nothing if it does not exist."""
        with contextlib.suppress(FileNotFoundError), storage_errors(self._place(name)):
            if self.is_local:
                self._confined(name.rpartition("/")[0])
                path = Path(self.path(name))
                if path.is_symlink() or not path.is_dir():
                    path.unlink()
                else:
                    shutil.rmtree(path)  # does not follow links
                return
            # Drivers treat `[`, `*` and `?` in names to delete as patterns, so each file is deleted by its own name.
            with ThreadPoolExecutor(_DELETERS) as pool:
                list(pool.map(self._delete_file, self.fs.find(self.path(name))))

    def _delete_file(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(path)


def _begin(target: Path) -> tuple[Path, IO[bytes]]:
    """Create and open a new partial file for `target`."""
    while True:
        partial = target.with_name(partial_name(target.name))
        with contextlib.suppress(FileExistsError):  # threads of a process may draw the same name
            return partial, partial.open("xb")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file in a listing of the storage."""

    name: str
    size_bytes: int
    modified_s: float | None
    """Unix time of the last change by the storage's clock; None if the storage does not report it."""


def _modified_s(info: dict[str, Any]) -> float | None:
    """Return the time of the last change. File systems differ in its name and type."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(key)
        if isinstance(value, datetime.datetime):
            return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str):
            return datetime.datetime.fromisoformat(value).timestamp()
    return None


class HashingWriter:
    """A file for writing that counts its bytes and computes its sha256. Append-only, so any store supports it.

    A separate thread hashes and writes large buffers while the caller makes the next ones. So do not modify a buffer
    after writing it (unless the file is not hashed, and therefore written at once), and use a writer in a `with` block,
    which ends when all is written. An error of the thread is raised by a later `write` or by the end of the block.
    """

    def __init__(self, file: IO[bytes], *, is_hashed: bool = True) -> None:
        self._file = file
        self._is_hashed = is_hashed
        self._sha256 = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()
        self.size_bytes = 0
        self.closed = False

    def __enter__(self) -> "HashingWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=kind is not None)
            self._thread = None
        if kind is None:
            self._wait_for(0)

    def write(self, data: bytes | memoryview) -> int:
        length = memoryview(data).nbytes
        if length >= _WRITTEN_APART_BYTES and self._is_hashed and self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        if self._thread is None:
            self._take(data)
        else:  # small pieces too, to keep the order
            self._pending.append(self._thread.submit(self._take, data))
            self._wait_for(_WRITTEN_LATER)
        self.size_bytes += length
        return length

    def _take(self, data: bytes | memoryview) -> None:
        if self._is_hashed:
            self._sha256.update(data)
        self._file.write(data)

    def _wait_for(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()

    @property
    def sha256(self) -> str:
        if not self._is_hashed:
            raise ValueError("a temporary file is not hashed")
        self._wait_for(0)
        return self._sha256.hexdigest()

    # Required by pyarrow of a file object for writing.
    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True  # the store closes the file itself, once it is complete

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _describe(error: BaseException | None) -> str:
    """Describe an error in at most 200 characters, since some messages are very long."""
    return f"{type(error).__name__}: {error}"[:200]


def sha256_of(file: IO[bytes]) -> str:
    """Return the sha256 of the rest of `file`, in hex."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
