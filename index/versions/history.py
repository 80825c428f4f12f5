"""The versions of a catalog: their size and state, the current one and the one before it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...configs.errors import CatalogError, UnknownVersionError
from ..storage.store import Store
from .complete import existing_versions, publish_advice
from .latest import Latest, nothing_published, published_manifest, read_latest
from .layout import manifest_name, next_version, run_folder, version_folder
from .manifest import Manifest, read_manifest
from .values import is_version

_NAMED = 10
"""Versions in a message."""


@dataclass(frozen=True, kw_only=True)
class VersionInfo:
    """A version that has a manifest or is named in LATEST.json."""

    version: str
    is_published: bool
    size_bytes: int
    """Total size of all files in its folder."""
    modified_s: float | None
    """Time of its newest file, as Unix time of the storage's clock; None if the storage does not report it."""
    manifest: Manifest | None
    damage: str | None
    """Why `manifest` is None, in one sentence."""


def find_version(store: Store, name: str) -> str:
    """The version that `name` names: its whole name, a beginning of it, or its number without leading zeros.

    A beginning or a number must fit only one version: `000009` and `9` name 000009-20250102T030405Z-abcdef.

    Raises:
        UnknownVersionError: With the versions that it may have meant, when there is none such or more than one.
        CatalogError: When the catalog has no versions at all.
    """
    if is_version(name) and store.size(manifest_name(name)) is not None:
        return name
    folders = dict.fromkeys(parts[1] for parts in (file.split("/") for file in store.names("versions")))
    if name in folders:
        return name  # damaged: the reader of the version reports it
    versions = existing_versions(store)
    if not versions:
        raise nothing_published(store)
    found = [version for version in versions if version.startswith(name) or _has_number(version, name)] if name else []
    if len(found) == 1:
        return found[0]
    if found:
        listed = _named(found)
        raise UnknownVersionError(f"{store.url}: {len(found)} versions fit {name!r}: {listed}. Give more of the name.")
    raise UnknownVersionError(f"{store.url} has no version {name!r:.80}. It has {_named(versions)}.")


def _has_number(version: str, number: str) -> bool:
    """Whether the version has this number, with or without leading zeros."""
    is_number = number.isascii() and number.isdigit()
    return is_number and version.partition("-")[0].lstrip("0") == number.lstrip("0")


def _named(versions: Sequence[str]) -> str:
    """The newest of them, in words."""
    more = f" and {len(versions) - _NAMED:,} older" if len(versions) > _NAMED else ""
    return ", ".join(versions[-_NAMED:]) + more


def list_versions(store: Store, published: Latest | None) -> list[VersionInfo]:
    """Return all versions, oldest first. Reads the manifests and lists the other files.

    Args:
        store: The catalog.
        published: LATEST.json; None if nothing is published or it is damaged.
    """
    sizes: dict[str, int] = {}
    times: dict[str, list[float]] = {}
    found = set() if published is None else {published.version}
    for file in store.listing("versions"):
        version = file.name.split("/")[1]
        sizes[version] = sizes.get(version, 0) + file.size_bytes
        if file.modified_s is not None:
            times.setdefault(version, []).append(file.modified_s)
        if file.name == manifest_name(version):
            found.add(version)
    versions = []
    for version in sorted(found):
        is_published = published is not None and published.version == version
        manifest, damage = None, None
        try:
            manifest = read_manifest(store, version, published.manifest_sha256 if published and is_published else None)
        except CatalogError as error:
            damage = str(error)
        versions.append(
            VersionInfo(
                version=version,
                is_published=is_published,
                size_bytes=sizes.get(version, 0),
                modified_s=max(times.get(version, []), default=None),
                manifest=manifest,
                damage=damage,
            )
        )
    return versions


def version_before(store: Store) -> str:
    """Return the version that was current when the published one was made.

    Raises:
        UnknownVersionError: If there is none.
        CatalogError: If nothing is published.
    """
    manifest = published_manifest(store)
    if manifest.previous is None:
        raise UnknownVersionError(f"{store.url} has no version before {manifest.version}, its first version.")
    return manifest.previous


def read_base(store: Store) -> Latest | None:
    """Read LATEST.json before a version is written. None in a new catalog.

    Raises:
        CatalogError: If a catalog with history has no LATEST.json, or it is damaged.
    """
    latest = read_latest(store)
    names = existing_versions(store) if latest is None else []
    for version in names:
        if _previous(store, version) in names:  # a version is based only on a published one
            raise CatalogError(
                f"{store.url}/LATEST.json is missing, but {version} was written after a published version. "
                f"{publish_advice(store)}"
            )
    return latest


def _previous(store: Store, version: str) -> str | None:
    try:
        return read_manifest(store, version).previous
    except CatalogError:
        return None


def new_version(store: Store, latest: Latest | None) -> str:
    """Return a name for the next version, which sorts after all others."""
    return next_version(max([*existing_versions(store), latest.version if latest else ""]) or None)


def forget_unfinished(store: Store, version: str) -> None:
    """Remove a run's temporary files, and its version if it is unfinished. Does not raise."""
    with contextlib.suppress(Exception):
        store.delete(run_folder(version))
        if store.size(manifest_name(version)) is None:
            store.delete(version_folder(version))
