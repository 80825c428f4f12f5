"""Opens a catalog: what LATEST.json names, or a named version, brought to this machine and verified."""

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
from ..versions.layout import READERS
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
    """Opens a catalog's published version, or a named one, for searching.

    Args:
        url: The catalog's path or fsspec URL. What a search needs of a remote one is brought into a cache on a local
            disk, which all processes of this user share; the vectors as Parquet are not.
        follow: Go over to every version that is published from now on, without failing a search (`FollowingCatalog`).
        follow_every_s: How often LATEST.json is looked at for that.
        version: Its name, or the beginning of it that no other shares; absent: the one that LATEST.json names.
        verify: Compare every file that is opened with its sha256 in the manifest. It is remembered, so that a file
            is read for it once and not again before it changes. Without it a damaged file may give wrong results in
            silence.
        storage_options: For fsspec.
        hold_s: Keep the version from being pruned while it is open: a file in `readers/` says so, which is renewed,
            removed by `close()`, and void this long after the process has died. Absent: nothing is written. What is
            mapped already stays readable on a local disk either way; what is opened later, such as vectors, does not.
        cache_folder: For what is remembered and for files of remote catalogs. Absent: what EPITHRE_BEAM_CACHE names,
            or the system's place for this user's caches. EPITHRE_BEAM_CACHE_MB bounds it; 64 GB if it is not set.

    Raises:
        CatalogError: When there is nothing published, or a file is missing, damaged or of a newer format.
            `NoCatalogError` where there is no catalog, `UnknownVersionError` where it has no such version.
        ArgumentError: When an argument is of a wrong type, `url` is a file, `hold_s` or `follow_every_s` is not
            positive, or a named version shall be followed.
    """
    for name, value, types, rule in (
        ("url", url, (str, Path), "a path or an address"),
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
        raise ArgumentError(f"follow=True goes with what LATEST.json names, got version={version!r}: give one of them.")
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
        raise ArgumentError(f"{store.url} is a file: a catalog is a folder.") from None
    except Exception as error:  # whatever a store's driver raises
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
    """How versions are opened."""

    verify: bool
    hold_s: float | None
    cache_folder: Path | None


def _open_published(store: Store, options: _Options) -> OpenVersion:
    for tries_left in reversed(range(_OPENING_TRIES)):
        latest = _published(store)
        try:
            return _open_version(store, latest.version, latest.manifest_sha256, options)
        except CatalogError:
            # Another version was published, and this one pruned, since LATEST.json was read?
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
            read_manifest(store, version, sha256)  # what was whole when the hold stood, stays so
        entries = [manifest.file(name) for index in manifest.indexes for name in index.names]
        with local_files(store, version, entries, verify=options.verify, cache_folder=options.cache_folder) as paths:
            indexes = {entry.kind: _open_index(manifest, entry, paths) for entry in manifest.indexes}
    except BaseException as error:
        if hold is not None:
            hold.release()
        if isinstance(error, FileNotFoundError):  # pruned between the check of a file and its opening
            raise CatalogError(f"{error.filename or f'{store.url}, version {version}: a file'} is missing.") from error
        raise
    return OpenVersion(manifest, indexes, hold)


def _check_alike(store: Store, manifest: Manifest, like: Manifest) -> None:
    """Who searches now has vectors of one model; those of another would find anything, in silence."""
    for name, had, has in like.made_by.differences(manifest.made_by):
        raise CatalogError(
            f"{store.url}, version {manifest.version}, has {name} {has!r} and not {had!r}, with which it was "
            "opened: queries of the one cannot be compared with vectors of the other, open the catalog anew."
        )


def _hold(store: Store, version: str, hold_s: float) -> VersionHold:
    try:
        return VersionHold(store, version, hold_s)
    except (OSError, StoreError) as error:
        raise CatalogError(
            f"{store.url}/{READERS} cannot be written ({error}): allow it, or open the catalog without hold_s."
        ) from error


def _open_index(manifest: Manifest, entry: IndexEntry, paths: Mapping[str, Path]) -> KindIndex:
    parts = [IndexPaths.of(file, manifest, paths) for file in entry.parts]
    return KindIndex(manifest, entry, parts, paths[entry.assets])
