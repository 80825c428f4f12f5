"""Download files of a remote store in parallel ranges, and hash them on arrival."""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from ...configs.errors import CatalogError, StoreError
from ..storage.store import Store
from ..versions.layout import DAMAGED, REPAIR

_READERS = 8
RANGE_BYTES = 8_000_000
"""Memory is a small multiple of _READERS times this, whatever the number and size of the files."""
_WAITS_S = (0.2, 0.8, 3.2)
_BLOCK_BYTES = 1 << 20
_Answer = TypeVar("_Answer")


class Downloads:
    """Downloads from one store over shared connections. Use it with `with`. Thread-safe."""

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
        """Stop all downloads. They raise CancelledError when their pending requests are answered."""
        self.stopped.set()

    @property
    def url(self) -> str:
        return self._store.url

    def check(self, name: str, size_bytes: int) -> None:
        """Raise CatalogError if the file is missing or has another length, StoreError if the store does not answer."""
        found = self._ask(name, lambda: self._store.size(name))
        if found is None:
            raise CatalogError(f"{self.url}/{name} is missing. {REPAIR}")
        if found != size_bytes:
            raise CatalogError(f"{self.url}/{name} must have {size_bytes} bytes, got {found}. {DAMAGED}")

    def download(self, name: str, size_bytes: int, descriptor: int) -> str:
        """Download a file of the store into an open file. Return the sha256 of the written bytes, in hex.

        Raises:
            CatalogError: If the store has no such file.
            StoreError: If the store does not deliver it, also after retries.
            OSError: If the local file cannot be written.
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
            wait(pieces)  # a late write could hit a descriptor that is reused for another file
        return digest.hexdigest()

    def _copy(self, name: str, start: int, end: int, descriptor: int) -> None:
        path, fs = self._store.path(name), self._store.fs
        rest = memoryview(self._ask(name, lambda: _read_range(fs, path, start, end)))
        while rest:
            written = os.pwrite(descriptor, rest, start)
            start, rest = start + written, rest[written:]

    def _ask(self, name: str, question: Callable[[], _Answer]) -> _Answer:
        """Call `question` up to four times and return its result. Any error is retried, since drivers differ.

        Raises:
            CatalogError: If there is no such file.
            StoreError: If the store does not answer or refuses.
        """
        failure: Exception | None = None
        for wait_s in (0.0, *_WAITS_S):
            if self.stopped.wait(wait_s):
                raise CancelledError
            try:
                return question()
            except FileNotFoundError as error:
                raise CatalogError(f"{self.url}/{name} is missing. {REPAIR}") from error
            except (PermissionError, StoreError) as error:
                failure = error
                break
            except Exception as error:
                failure = error
        reported = f"{type(failure).__name__}: {failure}"[:200]
        raise StoreError(f"{self.url}/{name} cannot be read ({reported}). Try again.") from failure


def _read_range(fs: Any, path: str, start: int, end: int) -> bytes:
    data = bytes(fs.cat_file(path, start=start, end=end))
    if len(data) > end - start:
        raise StoreError(f"the store must support range requests, but sent {len(data)} bytes instead of {end - start}")
    if len(data) < end - start:
        raise EOFError(f"the store sent {len(data)} bytes instead of {end - start}")
    return data
