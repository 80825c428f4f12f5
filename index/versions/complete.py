"""The versions that are complete: those with a manifest, whether or not they were published."""

import shlex
from collections.abc import Iterator

from ...configs.errors import CatalogError, StoreError
from ..storage.store import Store
from .manifest import Manifest, read_manifest
from .values import is_version

_READ = 20
"""Manifests that are read for a message, the newest first."""


def existing_versions(store: Store) -> list[str]:
    """Return the versions that have a manifest, published or not, oldest first."""
    names = (name.split("/") for name in store.names("versions"))
    return [parts[1] for parts in names if len(parts) == 3 and parts[2] == "manifest.json" and is_version(parts[1])]


def publish_command(store: Store, version: str) -> str:
    """Return the command that makes a version the current one, in backquotes."""
    return f"`epithre-beam versions publish {shlex.quote(store.url)} {version}`"


def publish_advice(store: Store) -> str:
    """Return what to do when LATEST.json is missing or damaged: publish the newest version that no gate holds back."""
    try:
        found = list(_newest(store))
    except (OSError, StoreError):  # the store fails meanwhile
        return f"List the versions with `epithre-beam versions list {shlex.quote(store.url)}`, and publish one."
    for manifest in found:
        if not manifest.gate_failures:
            name = manifest.version
            command = publish_command(store, name)
            return f"The newest version that no gate holds back is {name}. To publish it: {command}."
    if found:
        name, why = found[0].version, found[0].gate_failures[0].rstrip(".")
        return f"{name} is held back by a gate ({why}). Check it, then publish it: {publish_command(store, name)}."
    return "No version is complete. Run the job again: `epithre-beam run CONFIG`."


def _newest(store: Store) -> Iterator[Manifest]:
    for version in existing_versions(store)[: -_READ - 1 : -1]:
        try:
            yield read_manifest(store, version)
        except CatalogError:  # damaged; an older one may be sound
            continue
