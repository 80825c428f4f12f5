"""Local paths of the files of a version, verified against the manifest."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...configs.errors import CatalogError
from ..storage.store import Store
from ..versions.files import check_file
from ..versions.layout import DAMAGED
from ..versions.manifest import FileEntry
from .cache import BOUND_VARIABLE, FileCache, file_name
from .private import CACHE
from .verification_cache import VerificationCache, verification_cache_for

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
    """Yield the local paths of a version's files, by their names in the manifest.

    Open or map the files within the block. After the block, cached files of a remote store may be deleted to free
    space; files that are mapped stay readable. Files of a local store are never deleted.

    Args:
        store: The catalog.
        version: The version.
        entries: The files, as listed in the manifest.
        verify: Compare the sha256 of every file, using the `VerificationCache`. With False, only existence and length
            are compared; downloads are always compared by sha256.
        cache_folder: Folder of the cache. Default: EPITHRE_BEAM_CACHE, or the user's cache folder of the system.
        max_bytes: Size limit of the cache. Default: EPITHRE_BEAM_CACHE_MB in megabytes, or 64 GB.

    Raises:
        CatalogError: If a file is missing or damaged, or the cache is unusable or full.
        StoreError: If a remote store does not answer.
    """
    if store.is_local:
        verification_cache = verification_cache_for(cache_folder) if verify else None
        with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="verify") as pool:
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
            problem = f"{store.url}/{name} must have sha256 {entry.sha256}, got {found}. {DAMAGED}"
    if problem is not None:
        raise CatalogError(problem)


def _bound_bytes() -> int:
    """Return the size limit of the cache. Raises CatalogError if the environment variable is not a number."""
    text = os.environ.get(BOUND_VARIABLE, "").strip()
    if not text:
        return _BOUND_BYTES
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise CatalogError(f"{BOUND_VARIABLE} must be a whole number of megabytes above 0, got {text[:40]!r}.")
    return int(text) * 1_000_000
