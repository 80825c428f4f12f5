"""Open a catalog: download the published or a named version if needed, and verify it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, overload

from ...configs.errors import ArgumentError, CatalogError, StoreError
from ..ann.kind_index import IndexPaths, KindIndex
from ..local.local_files import local_files
from ..storage.store import Store
from ..versions.history import find_version
from ..versions.latest import Latest, nothing_published, read_latest
from ..versions.layout import READERS, REPAIR
from ..versions.manifest import IndexEntry, Manifest, read_manifest
from ..versions.readers import VersionHold
from .catalog import Catalog, OpenVersion
from .following import FollowingCatalog

_OPENING_TRIES = 5


@overload
def open_catalog(
    url: str | Path,
    *,
    follow: Literal[False] = False,
    version: str | None = ...,
    verify: bool = ...,
    storage_options: dict[str, Any] | None = ...,
    hold_s: float | None = ...,
    cache_folder: str | Path | None = ...,
) -> Catalog: ...
@overload
def open_catalog(
    url: str | Path,
    *,
    follow: Literal[True],
    follow_every_s: float = ...,
    verify: bool = ...,
    storage_options: dict[str, Any] | None = ...,
    hold_s: float | None = ...,
    cache_folder: str | Path | None = ...,
) -> FollowingCatalog: ...
def open_catalog(
    url: str | Path,
    *,
    follow: bool = False,
    follow_every_s: float = 30.0,
    version: str | None = None,
    verify: bool = True,
    storage_options: dict[str, Any] | None = None,
    hold_s: float | None = None,
    cache_folder: str | Path | None = None,
) -> Catalog:
    """Open the published version of a catalog, or a named one, for searching.

    Args:
        url: Path or fsspec URL of the catalog. Index files of a remote catalog are downloaded into a local cache that
            all processes of the user share. The Parquet vectors are not downloaded.
        follow: Switch to every newly published version without failing a search (see `FollowingCatalog`).
        follow_every_s: Seconds between two reads of LATEST.json. Used with `follow` only.
        version: Name of the version to open, or a unique prefix. Default: the version in LATEST.json.
        verify: Compare the sha256 of every opened file with the manifest. The verification cache stores the result,
            so an unchanged file is read only once. With False, a damaged file can give wrong results without an error.
        storage_options: Options for fsspec.
        hold_s: Protect the version from `versions prune` while it is open. A file in `readers/` records the hold: it
            is renewed, removed by `close()`, and expires this many seconds after the process dies. Default: no hold.
            Without a hold, files that are already mapped stay readable on a local disk, but files that are opened
            later, such as vectors, may be gone.
        cache_folder: Folder of the verification cache and of files of remote catalogs. Default: EPITHRE_BEAM_CACHE,
            or the user's cache folder of the system. EPITHRE_BEAM_CACHE_MB limits its size (default: 64 GB).

    Raises:
        CatalogError: If nothing is published, or a file is missing, damaged or has a newer format.
            `NoCatalogError` if there is no catalog, `UnknownVersionError` if it has no such version.
        ArgumentError: If an argument has a wrong type, `url` is a file, `hold_s` or `follow_every_s` is not positive,
            or `follow` and `version` are both given.
    """
    for name, value, types, rule in (
        ("url", url, (str, Path), "a path or a URL"),
        ("version", version, (str, NoneType), "a version's name"),
        ("storage_options", storage_options, (dict, NoneType), "a dict"),
        ("cache_folder", cache_folder, (str, Path, NoneType), "a path"),
    ):
        if not isinstance(value, types) or value == "":
            raise ArgumentError(f"{name} must be {rule}, got {value!r:.80}.")
    for name, seconds, is_needed in (("hold_s", hold_s, False), ("follow_every_s", follow_every_s, True)):
        is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if (seconds is not None or is_needed) and not (is_number and 0 < seconds < float("inf")):  # type: ignore[operator]
            raise ArgumentError(f"{name} must be a positive number of seconds, got {seconds!r}.")
    if follow and version is not None:
        raise ArgumentError(
            f"follow=True cannot be combined with a version, got version={version!r}. Omit one of them."
        )
    options = _Options(verify=verify, hold_s=hold_s, cache_folder=None if cache_folder is None else Path(cache_folder))
    store = Store(str(url), storage_options)
    try:
        opened = (
            _open_published(store, options)
            if version is None
            else _open_version(store, find_version(store, version), None, options)
        )
    except (CatalogError, StoreError):
        raise
    except NotADirectoryError:
        raise ArgumentError(f"{store.url} is a file. Give the folder of a catalog.") from None
    except Exception as error:  # drivers of stores raise any type
        if store.is_local:
            raise
        raise CatalogError(f"{store.url} cannot be read ({type(error).__name__}: {error}).") from error
    if not follow:
        return Catalog(store, opened)

    def open_like(found: Latest, like: Manifest) -> OpenVersion:
        return _open_version(store, found.version, found.manifest_sha256, options, like=like)

    return FollowingCatalog(
        store, opened, published=partial(_published, store), open_like=open_like, every_s=follow_every_s
    )


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Options for opening versions."""

    verify: bool
    hold_s: float | None
    cache_folder: Path | None


def _open_published(store: Store, options: _Options) -> OpenVersion:
    for tries_left in reversed(range(_OPENING_TRIES)):
        latest = _published(store)
        try:
            return _open_version(store, latest.version, latest.manifest_sha256, options)
        except CatalogError:
            # Retry only if another version was published since LATEST.json was read: this one may be pruned.
            if not tries_left or _published(store).version == latest.version:
                raise
    raise AssertionError("the last try returns or raises")


def _published(store: Store) -> Latest:
    latest = read_latest(store)
    if latest is None:
        raise nothing_published(store)
    return latest


def _open_version(
    store: Store, version: str, sha256: str | None, options: _Options, like: Manifest | None = None
) -> OpenVersion:
    manifest = read_manifest(store, version, sha256)
    if like is not None:
        _check_alike(store, manifest, like)
    hold = None
    try:
        if options.hold_s is not None:
            hold = _hold(store, version, options.hold_s)
            read_manifest(store, version, sha256)  # a version that is complete after the hold was written stays so
        entries = [manifest.file(name) for index in manifest.indexes for name in index.names]
        with local_files(store, version, entries, verify=options.verify, cache_folder=options.cache_folder) as paths:
            indexes = {entry.kind: _open_index(manifest, entry, paths) for entry in manifest.indexes}
    except BaseException as error:
        if hold is not None:
            hold.release()
        if isinstance(error, FileNotFoundError):  # pruned between the check of a file and its opening
            raise CatalogError(
                f"{error.filename or f'{store.url}, version {version}: a file'} is missing. {REPAIR}"
            ) from error
        raise
    return OpenVersion(manifest, indexes, hold)


def _check_alike(store: Store, manifest: Manifest, like: Manifest) -> None:
    """Raise CatalogError if another model made the version: its vectors would give random hits without an error."""
    for name, had, has in like.made_by.differences(manifest.made_by):
        raise CatalogError(
            f"{store.url}: version {manifest.version} has {name} {has!r}, but the open version has {had!r}. "
            "Their vectors cannot be compared. To use it, open the catalog again: restart a server."
        )


def _hold(store: Store, version: str, hold_s: float) -> VersionHold:
    try:
        return VersionHold(store, version, hold_s)
    except (OSError, StoreError) as error:
        raise CatalogError(
            f"{store.url}/{READERS}: cannot write ({error}). Allow it, or open the catalog without hold_s."
        ) from error


def _open_index(manifest: Manifest, entry: IndexEntry, paths: Mapping[str, Path]) -> KindIndex:
    parts = [IndexPaths.of(file, manifest, paths) for file in entry.parts]
    return KindIndex(manifest, entry, parts, paths[entry.assets])
