"""A version's files as local paths, each proved to be what the manifest says."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...configs.errors import CatalogError
from ..storage.store import Store
from ..versions.files import check_file
from ..versions.manifest import FileEntry
from .cache import BOUND_VARIABLE, FileCache, file_name
from .verification_cache import VerificationCache, verification_cache_for
from .private import CACHE

_BOUND_BYTES = 64_000_000_000
_FILES_AT_ONCE = 4


@contextlib.contextmanager
def local_files(
    store: Store,
    version: str,
    entries: Sequence[FileEntry],
    *,
    verify: bool = True,
    cache_folder: Path | None = None,
    max_bytes: int | None = None,
) -> Iterator[dict[str, Path]]:
    """The local paths of a version's files, by their names in the manifest.

    Open or map them within the block. After it, what came from a remote store may be deleted to make room for another;
    what is mapped by then stays readable. Files of a local store are left alone.

    Args:
        store: The catalog.
        version: Its version.
        entries: The files, as the manifest has them.
        verify: Compare every file with its sha256; what `VerificationCache` remembers of it counts. Without it only presence and
            length are compared, but a download always with its sha256.
        cache_folder: Absent: what EPITHRE_BEAM_CACHE names, or the system's place for this user's caches.
        max_bytes: What the cache may hold. Absent: EPITHRE_BEAM_CACHE_MB millions, or 64 GB.

    Raises:
        CatalogError: When a file is missing or damaged, or the cache cannot be used or has no room.
        StoreError: When a remote store does not answer.
    """
    if store.is_local:
        verification_cache = verification_cache_for(cache_folder) if verify else None
        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="prove") as pool:
            list(pool.map(lambda entry: _verify(store, version, entry, verification_cache), entries))
        yield {entry.name: store.local_path(file_name(version, entry)) for entry in entries}
        return
    cache = FileCache(cache_folder or CACHE.path(), _bound_bytes() if max_bytes is None else max_bytes)
    with cache.hold(store, version, entries, verify=verify) as paths:
        yield paths


def _verify(store: Store, version: str, entry: FileEntry, verification_cache: VerificationCache | None) -> None:
    problem = check_file(store, version, entry, hashed=False)
    if problem is None and verification_cache is not None:
        name = file_name(version, entry)
        try:
            found = verification_cache.sha256(store.local_path(name))
        except OSError as error:
            raise CatalogError(f"{store.url}/{name} cannot be read ({error.strerror}).") from error
        if found != entry.sha256:
            problem = f"{store.url}/{name} must have sha256 {entry.sha256}, got {found}: the file is damaged."
    if problem is not None:
        raise CatalogError(problem)


def _bound_bytes() -> int:
    """Raises CatalogError when the environment says something else than a number."""
    text = os.environ.get(BOUND_VARIABLE, "").strip()
    if not text:
        return _BOUND_BYTES
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise CatalogError(f"{BOUND_VARIABLE} must be a whole number of megabytes above 0, got {text[:40]!r}.")
    return int(text) * 1_000_000
