"""The only place where a catalog's files are read and written.

A `Store` is a folder on any fsspec file system. It gives what the catalog's protocol needs and no more: whole
files that appear at once or not at all, creation with one winner, and a compare-and-swap for the pointer.
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
_HASHED_APART_BYTES = 1 << 16
_HASHED_LATER = 4
"""Pieces that may wait to be hashed, some megabytes together."""
_MEMORY = threading.RLock()
_OUTSIDE = frozenset({"", ".", ".."})
"""What no part of a file's name may be."""


class Store:
    """A folder on a file system, local or remote. Picklable; the connection is made where it is used."""

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
        """The fsspec file system. A process that was forked makes its own: connections do not survive a fork."""
        if self._fs is None or self._pid != os.getpid():
            self._fs, _ = connect(self.url, {"skip_instance_cache": True, **self._options})
            self._pid = os.getpid()
        return self._fs

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The full path of a file in this store, as its file system spells it.

        Raises:
            StoreError: When the name is none of a file in this store: it would leave the folder.
        """
        parts = name.removesuffix("/").replace(os.sep, "/").split("/") if name else []
        if _OUTSIDE.intersection(parts) or "\0" in name:
            raise StoreError(f"{self.url}: {name!r:.100} is not the name of a file in it. Nothing was read or written.")
        return f"{self._root}/{name}" if name else self._root

    def _confined(self, name: str) -> str:
        """`path`, which on a local disk leads to a place within the store, links followed, and to no device or pipe.

        What lies in the folder may be a stranger's: a link could show files from elsewhere, or have them deleted.

        Raises:
            StoreError: When it leads elsewhere.
        """
        path = self.path(name)
        if not self.is_local:
            return path
        root, found = os.path.realpath(self._root), os.path.realpath(path)
        if found != root and not found.startswith(os.path.join(root, "")):  # noqa: PTH118 - for a root that is `/` too
            raise StoreError(f"{self._place(name)} leads out of the folder, to {found}: nothing there is used.")
        with contextlib.suppress(OSError):  # what is not there is for the caller to find
            mode = Path(found).stat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise StoreError(f"{self._place(name)} must be a file, and it is a device, a pipe or a socket.")
        return path

    def _place(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def local_path(self, name: str) -> Path:
        """Raises StoreError when the store is not on a local disk."""
        if not self.is_local:
            raise StoreError(f"{self.url} is not on a local disk, so {name} has no local path.")
        return Path(self._confined(name))

    def size(self, name: str) -> int | None:
        """The file's size in bytes, or None when there is no such file. Every other failure raises."""
        try:
            with storage_errors(self._place(name)):
                info = self.fs.info(self._confined(name))
        except FileNotFoundError:
            return None
        return None if info["type"] == "directory" else int(info["size"])

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: When there is no such file.
            StoreError: When it has more than `max_bytes`: nothing is read then.
        """
        if max_bytes is not None and (size := self.size(name) or 0) > max_bytes:
            raise StoreError(f"{self._place(name)} must have at most {max_bytes} bytes, got {size}: it is not read.")
        with storage_errors(self._place(name)):
            return bytes(self.fs.cat_file(self._confined(name)))

    def open_read(self, name: str) -> IO[bytes]:
        """A seekable file of bytes."""
        with storage_errors(self._place(name)):
            return self.fs.open(self._confined(name), "rb")  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def open_write(self, name: str) -> Iterator["HashingWriter"]:
        """A file that exists whole after the block, or not at all when the block raises."""
        path = self.path(name)
        if isinstance(self.fs, MemoryFileSystem):  # its files appear when they are opened
            buffer = io.BytesIO()
            yield HashingWriter(buffer)
            self.fs.pipe_file(path, buffer.getvalue())
            return
        if not self.is_local:
            with storage_errors(self._place(name)):
                handle = self.fs.open(path, "wb")
                try:
                    yield HashingWriter(handle)
                except BaseException:
                    with contextlib.suppress(Exception):
                        handle.discard()
                    handle.closed = True  # or its finaliser would upload what there is
                    raise
                handle.close()
            return
        target = Path(path)
        self._confined(name.rpartition("/")[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        partial, handle = _begin(target)
        try:
            with handle as file:
                yield HashingWriter(file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def write(self, name: str, data: bytes) -> None:
        """Writes a whole file at once, over an older one."""
        with self.open_write(name) as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> None:
        """Writes a file that must not be there yet. Of several who try, one wins; a reader sees it whole or not at all.

        Raises:
            FileExistsError: When there is one; its content is not this `data`.
            SwapUnknownError: When the storage does not tell.
        """
        try:
            self.swap(name, None, data)
        except SwapConflictError as error:
            raise FileExistsError(f"{self.url}/{name} exists.") from error

    def swap(self, name: str, expected: bytes | None, data: bytes) -> None:
        """Writes the file only when it still holds `expected` (None: only when there is none).

        On a local disk a lock file serialises the writers, in memory a lock of the process. On S3 and Azure the write
        is conditional on the etag, on GCS on the generation. On any other file system the check and the write are two
        steps: runs must not share a catalog there. `data` must be unlike all that the file ever held, by a nonce: only
        so can a lost answer be told from a lost race, and an etag from its own return.

        Raises:
            SwapConflictError: When the file holds something else.
            SwapUnknownError: When the storage does not tell, and may yet write it.
        """
        if has_conditions(self.fs):
            self._swap_if(name, expected, data)
            return
        with self._alone(name):
            self._compare(name, self._found(name), expected)
            self.write(name, data)

    def delete_if(self, name: str, expected: bytes) -> bool:
        """Deletes the file if it holds `expected`. On an object store these are two steps: for courtesy, not safety."""
        with self._alone(name):
            if self._found(name) != expected:
                return False
            self.delete(name)
            return True

    def probe(self) -> None:
        """Proves on a small object that the store keeps its conditions: some accept them and do not look at them.

        Only for stores whose conditional writes are used; on a local disk there is nothing to prove.

        Raises:
            StoreError: When a second creation or a stale swap is not refused, or it cannot be found out.
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
            self._must_refuse("a write over a version that is gone", name, third, tag)
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
                f"{self.url} must be able to refuse {what}, and it could not be tried "
                f"({_describe(error)}): nothing was written there, try again."
            ) from error
        raise StoreError(
            f"{self.url} must refuse {what}, but does it: two runs could destroy each other's work there, so nothing "
            "was written; use a store with conditional writes (If-None-Match, If-Match)."
        )

    def _swap_if(self, name: str, expected: bytes | None, data: bytes) -> None:
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS + 1):
            time.sleep(0.2 * attempt)
            try:
                # The tag before the content: the other way round, a write between the two would be written over.
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
                return  # done, and only the answer was lost; or the client asked again and was refused by its own write
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
                    raise reported from error.__cause__  # not allowed, or no such bucket: certainly not written
                failure = error
            else:
                return
        raise SwapUnknownError(
            f"It is not known whether {self.url}/{name} was written ({_describe(failure)}): look at it before going on."
        ) from failure

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Nobody else compares and writes this file meanwhile: true on a local disk and in memory, not elsewhere."""
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
            raise SwapConflictError(f"{self.url}/{name} was changed by another run since this one began.")

    def names(self, folder: str) -> list[str]:
        """The files below `folder`, as names in this store, sorted. Partial files are not among them."""
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
        """The files below a folder on a local disk, sorted; links to folders are not followed and not among them."""
        folder = folder.removesuffix("/")
        top = self._confined(folder)
        if Path(top).is_file():
            return [(folder, Path(top).lstat())]
        found = []
        for here, _, names in os.walk(top):
            inner = os.path.relpath(here, top).replace(os.sep, "/")
            prefix = "/".join(part for part in (folder, inner) if part not in {"", "."})
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # deleted since
                    found.append((f"{prefix}/{name}".lstrip("/"), Path(here, name).lstat()))
        return sorted(found)

    def listing(self, folder: str = "") -> list["StoredFile"]:
        """Every file below `folder` with its size and age, hidden and partial ones too, sorted by name."""
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
        """Deletes a file or a folder with all that is in it; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError), storage_errors(self._place(name)):
            if self.is_local:
                self._confined(name.rpartition("/")[0])
                path = Path(self.path(name))
                if path.is_symlink() or not path.is_dir():
                    path.unlink()
                else:
                    shutil.rmtree(path)  # which follows no link
                return
            # Drivers take `[`, `*` and `?` in a name that they delete for a pattern: each file is named to them.
            with ThreadPoolExecutor(_DELETERS) as pool:
                list(pool.map(self._delete_file, self.fs.find(self.path(name))))

    def _delete_file(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(path)


def _begin(target: Path) -> tuple[Path, IO[bytes]]:
    """A new partial file for `target`, opened."""
    while True:
        partial = target.with_name(partial_name(target.name))
        with contextlib.suppress(FileExistsError):  # threads of a process may draw the same name
            return partial, partial.open("xb")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file as the storage lists it."""

    name: str
    size_bytes: int
    modified_s: float | None
    """time.time() of its last change by the storage's clock; None where it does not say."""


def _modified_s(info: dict[str, Any]) -> float | None:
    """Every file system has its own name for it, and its own form."""
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
    """A file for writing that knows its length and sha256. Only ever appends, so that any store can take it.

    What is written must not be changed afterwards: large pieces are hashed by a thread of their own.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._thread: ThreadPoolExecutor | None = None
        self._hashing: deque[Future[None]] = deque()
        self.size_bytes = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        length = memoryview(data).nbytes
        if length >= _HASHED_APART_BYTES and self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        if self._thread is None:
            self._sha256.update(data)
        else:  # small pieces too, for the order matters
            self._hashing.append(self._thread.submit(self._sha256.update, data))
        self._file.write(data)
        while len(self._hashing) > _HASHED_LATER:
            self._hashing.popleft().result()
        self.size_bytes += length
        return length

    @property
    def sha256(self) -> str:
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
            self._hashing.clear()
        return self._sha256.hexdigest()

    # What pyarrow asks of a file object that it writes to.
    def tell(self) -> int:
        return self.size_bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True  # the store closes the file itself, once it is known to be whole

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False


def _describe(error: BaseException | None) -> str:
    """An error in a few words; some drivers' messages are pages."""
    return f"{type(error).__name__}: {error}"[:200]


def sha256_of(file: IO[bytes]) -> str:
    """The sha256 of all that is left in `file`, in hex."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
