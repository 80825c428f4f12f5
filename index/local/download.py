"""Copies files of a remote store to the disk, many ranges at once, and hashes them as they come."""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from ...configs.errors import CatalogError, StoreError
from ..storage.store import Store

_READERS = 8
RANGE_BYTES = 8_000_000
"""Memory is _READERS times this and some copies of it, whatever the number and the size of the files."""
_WAITS_S = (0.2, 0.8, 3.2)
_BLOCK_BYTES = 1 << 20
_Answer = TypeVar("_Answer")


class Downloads:
    """Downloads from one store; its files share the connections. Use `with`; any thread may download."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="download")
        self.stopped = threading.Event()

    def __enter__(self) -> "Downloads":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self._readers.shutdown()

    def stop(self) -> None:
        """What is under way ends with CancelledError, when the requests that are on their way have been answered."""
        self.stopped.set()

    @property
    def url(self) -> str:
        return self._store.url

    def check(self, name: str, size_bytes: int) -> None:
        """Raises CatalogError when there is no such file, or it has another length; StoreError without an answer."""
        found = self._ask(name, lambda: self._store.size(name))
        if found is None:
            raise CatalogError(f"{self.url}/{name} is missing.")
        if found != size_bytes:
            raise CatalogError(f"{self.url}/{name} must have {size_bytes} bytes, got {found}: the file is damaged.")

    def download(self, name: str, size_bytes: int, descriptor: int) -> str:
        """Writes a file of the store into an open one, and gives the sha256 of what then stands there.

        Raises:
            CatalogError: When the store has no such file.
            StoreError: When it does not give it, also when asked again.
            OSError: When it cannot be written.
        """
        starts = range(0, size_bytes, RANGE_BYTES)
        ends = [min(start + RANGE_BYTES, size_bytes) for start in starts]
        pieces = [
            self._readers.submit(self._copy, name, start, end, descriptor)
            for start, end in zip(starts, ends, strict=True)
        ]
        digest = hashlib.sha256()
        try:
            for piece, start, end in zip(pieces, starts, ends, strict=True):
                piece.result()
                for place in range(start, end, _BLOCK_BYTES):
                    digest.update(os.pread(descriptor, min(_BLOCK_BYTES, end - place), place))
        finally:
            for piece in pieces:
                piece.cancel()
            wait(pieces)  # nobody may write to a descriptor that is another file's by then
        return digest.hexdigest()

    def _copy(self, name: str, start: int, end: int, descriptor: int) -> None:
        path, fs = self._store.path(name), self._store.fs
        rest = memoryview(self._ask(name, lambda: _read_range(fs, path, start, end)))
        while rest:
            written = os.pwrite(descriptor, rest, start)
            start, rest = start + written, rest[written:]

    def _ask(self, name: str, question: Callable[[], _Answer]) -> _Answer:
        """The store's answer, asked for up to four times, for every store has errors of its own.

        Raises:
            CatalogError: When there is no such file.
            StoreError: When there is no answer, or it is refused.
        """
        failure: Exception | None = None
        for wait_s in (0.0, *_WAITS_S):
            if self.stopped.wait(wait_s):
                raise CancelledError
            try:
                return question()
            except FileNotFoundError as error:
                raise CatalogError(f"{self.url}/{name} is missing.") from error
            except (PermissionError, StoreError) as error:
                failure = error
                break
            except Exception as error:
                failure = error
        reported = f"{type(failure).__name__}: {failure}"[:200]
        raise StoreError(f"{self.url}/{name} cannot be read ({reported}): try again.") from failure


def _read_range(fs: Any, path: str, start: int, end: int) -> bytes:
    data = bytes(fs.cat_file(path, start=start, end=end))
    if len(data) > end - start:
        raise StoreError(f"it must answer requests for ranges, and sends {len(data)} bytes for {end - start}")
    if len(data) < end - start:
        raise EOFError(f"it sends {len(data)} bytes for {end - start}")
    return data
