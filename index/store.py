"""The only place where a catalog's files are read and written.

A `Store` is a folder on any fsspec file system. It gives what the catalog's protocol needs and no more: whole
files that appear at once or not at all, creation with one winner, and a compare-and-swap for the pointer.
"""

import contextlib
import hashlib
import io
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem


class StoreError(Exception):
    """The storage refused or broke a promise; the message names the file."""


class SwapConflictError(StoreError):
    """The file is not what it was when it was read: somebody else has written it since."""


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
            # Listing caches have returned files that are gone and sizes that were.
            options = {"use_listings_cache": False, "skip_instance_cache": True, **self._options}
            self._fs, _ = fsspec.url_to_fs(self.url, **options)
            self._pid = os.getpid()
        return self._fs

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The full path of a file in this store, as its file system spells it."""
        return f"{self._root}/{name}" if name else self._root

    def local_path(self, name: str) -> Path:
        """Raises StoreError when the store is not on a local disk."""
        if not self.is_local:
            raise StoreError(f"{self.url} is not on a local disk, so {name} has no local path.")
        return Path(self.path(name))

    def size(self, name: str) -> int | None:
        """The file's size in bytes, or None when there is no such file. Every other failure raises."""
        try:
            info = self.fs.info(self.path(name))
        except FileNotFoundError:
            return None
        return None if info["type"] == "directory" else int(info["size"])

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError when there is no such file."""
        return bytes(self.fs.cat_file(self.path(name)))

    def open_read(self, name: str) -> IO[bytes]:
        """A seekable file of bytes."""
        return self.fs.open(self.path(name), "rb")  # type: ignore[no-any-return]

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
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.partial")
        try:
            with partial.open("xb") as file:
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

    def swap(self, name: str, expected: bytes | None, data: bytes) -> None:
        """Writes the file only when it still holds `expected` (None: only when there is none).

        On a local disk a lock file serialises the writers. On other file systems the check and the write are two
        steps: the conditional writes of object stores are not used yet, so two runs must not share a catalog there.

        Raises:
            SwapConflictError: When the file holds something else.
        """
        if self.is_local:
            lock = Path(self.path(f".{name}.lock"))
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                self._compare(name, expected)
                self.write(name, data)
            return
        self._compare(name, expected)
        self.write(name, data)

    def _compare(self, name: str, expected: bytes | None) -> None:
        try:
            found: bytes | None = self.read(name)
        except FileNotFoundError:
            found = None
        if found != expected:
            raise SwapConflictError(f"{self.url}/{name} was changed by another run since this one began.")

    def names(self, folder: str) -> list[str]:
        """The files below `folder`, as names in this store, sorted. Partial files are not among them."""
        root = self._root.rstrip("/") + "/"
        try:
            found = self.fs.find(self.path(folder))
        except FileNotFoundError:
            return []
        return sorted(
            path[len(root) :] for path in found if not path.rsplit("/", 1)[-1].startswith(".") and path.startswith(root)
        )

    def delete(self, name: str) -> None:
        """Deletes a file or a folder with all that is in it; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(name), recursive=True)


class HashingWriter:
    """A file for writing that knows its length and sha256. Only ever appends, so that any store can take it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0
        self.closed = False

    def write(self, data: bytes | memoryview) -> int:
        self._sha256.update(data)
        self._file.write(data)
        length = memoryview(data).nbytes
        self.size_bytes += length
        return length

    @property
    def sha256(self) -> str:
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


def sha256_of(file: IO[bytes]) -> str:
    """The sha256 of all that is left in `file`, in hex."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
