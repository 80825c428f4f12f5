"""`LATEST.json`: the pointer to the current version."""

import contextlib
import hashlib
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from ...configs.errors import CatalogError, NoCatalogError
from ..storage.store import Store
from .complete import existing_versions, publish_advice
from .layout import LATEST, UNITS
from .lease import active_holder
from .manifest import Manifest, read_manifest
from .values import MAX_SMALL_BYTES, is_sha256, is_version


class Latest(NamedTuple):
    """The content of LATEST.json."""

    data: bytes
    """The raw bytes, the expected content for the next swap."""
    version: str
    manifest_sha256: str


def read_latest(store: Store) -> Latest | None:
    """Read LATEST.json. Return None if nothing is published.

    Raises:
        CatalogError: If the file is damaged.
    """
    try:
        data = store.read(LATEST, max_bytes=MAX_SMALL_BYTES)
    except FileNotFoundError:
        return None
    latest = parse_latest(data)
    if latest is None:
        raise CatalogError(
            f"{store.url}/{LATEST} must have a version and a manifest_sha256. The file is damaged. "
            f"{publish_advice(store)}"
        )
    return Latest(data, latest["version"], latest["manifest_sha256"])


def published_manifest(store: Store) -> Manifest:
    """Read and verify the manifest of the current version.

    Raises:
        CatalogError: If nothing is published, or the manifest or LATEST.json is damaged.
    """
    latest = read_latest(store)
    if latest is None:
        raise nothing_published(store)
    return read_manifest(store, latest.version, latest.manifest_sha256)


_CHECK_PLACE = "Check the path; `epithre-beam run` and WriteCatalog make a catalog."


def nothing_published(store: Store) -> CatalogError:
    """Return the error for a missing LATEST.json: no catalog, a first run under way, or no version passed the gates."""
    with contextlib.suppress(Exception):  # a store that cannot list the folder
        try:
            found = store.fs.ls(store.path(""), detail=False)
        except FileNotFoundError:
            return NoCatalogError(f"{store.url}: there is no catalog here, the folder does not exist. {_CHECK_PLACE}")
        holder = None if existing_versions(store) else active_holder(store)
        if holder is not None:
            return NoCatalogError(
                f"{store.url}: no version is current yet, the first {holder.purpose} is under way ({holder}). "
                "Wait until it has ended."
            )
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found}
        if UNITS in names and not existing_versions(store):
            return NoCatalogError(
                f"{store.url}: no version is published yet, since a run was interrupted. Run the job again to continue."
            )
        if "versions" not in names:
            return NoCatalogError(
                f"{store.url}: there is no catalog here, the folder has no `versions`. {_CHECK_PLACE}"
            )
    return CatalogError(f"{store.url} has no current version: {LATEST} is missing. {publish_advice(store)}")


def latest_bytes(version: str, manifest_sha256: str, condemned: Iterable[str] = (), left: Iterable[str] = ()) -> bytes:
    """Make a new content for LATEST.json. A nonce makes it unique, a checksum detects changes.

    Args:
        version: The current version.
        manifest_sha256: The sha256 of its manifest.
        condemned: Versions that are being deleted.
        left: Newer versions that were current before a rollback to an older one.
    """
    latest: dict[str, Any] = {
        "version": version,
        "manifest_sha256": manifest_sha256,
        "condemned": sorted(set(condemned)),
        "nonce": secrets.token_hex(16),
    }
    if names := sorted(set(left)):
        latest["left"] = names
    latest["check"] = _check(latest)
    return orjson.dumps(latest, option=orjson.OPT_INDENT_2) + b"\n"


def condemned_in(latest: bytes | None) -> tuple[str, ...]:
    """Return the versions that LATEST.json lists as being deleted. They may never be published again."""
    parsed = None if latest is None else parse_latest(latest)
    return () if parsed is None else tuple(parsed.get("condemned", ()))


def left_in(latest: bytes | None) -> tuple[str, ...]:
    """Return the versions in LATEST.json that were current and are newer than the current one."""
    parsed = None if latest is None else parse_latest(latest)
    return () if parsed is None else tuple(parsed.get("left", ()))


def parse_latest(data: bytes) -> dict[str, Any] | None:
    """Parse LATEST.json. Return None if it is damaged. Earlier releases wrote only the first two fields."""
    try:
        latest = orjson.loads(data)
        if not is_version(latest["version"]) or not is_sha256(latest["manifest_sha256"]):
            return None
        condemned = latest.get("condemned", [])
        if not isinstance(condemned, list) or not all(map(is_version, condemned)):
            return None
        if len(latest) > 2 and latest["check"] != _check(latest):
            return None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    return dict(latest)


def _check(latest: dict[str, Any]) -> str:
    rest = {name: value for name, value in latest.items() if name != "check"}
    return hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
