"""`LATEST.json`: which version is in force."""

import contextlib
import hashlib
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

import orjson

from ...configs.errors import CatalogError, NoCatalogError
from ..storage.store import Store
from .layout import LATEST
from .manifest import Manifest, read_manifest
from .values import MAX_SMALL_BYTES, is_sha256, is_version


class Latest(NamedTuple):
    """LATEST.json as it stands."""

    data: bytes
    """The file itself: it is swapped against this."""
    version: str
    manifest_sha256: str


def read_latest(store: Store) -> Latest | None:
    """None when nothing is published.

    Raises:
        CatalogError: When the file is not what this library writes.
    """
    try:
        data = store.read(LATEST, max_bytes=MAX_SMALL_BYTES)
    except FileNotFoundError:
        return None
    latest = parse_latest(data)
    if latest is None:
        raise CatalogError(
            f"{store.url}/{LATEST} must hold a version and a manifest_sha256, but it is damaged: "
            "`epithre-beam versions publish` names a version anew."
        )
    return Latest(data, latest["version"], latest["manifest_sha256"])


def published_manifest(store: Store) -> Manifest:
    """The manifest of the version in force, verified.

    Raises:
        CatalogError: When nothing is published, or the manifest or LATEST.json is damaged.
    """
    latest = read_latest(store)
    if latest is None:
        raise nothing_published(store)
    return read_manifest(store, latest.version, latest.manifest_sha256)


_CHECK_PLACE = "Check the path; `epithre-beam run` makes a catalog."


def nothing_published(store: Store) -> CatalogError:
    """Where LATEST.json is missing: there is no such folder, it is no catalog, or all its versions are held back."""
    why = f"{LATEST} is missing. `epithre-beam versions list` shows the versions that a gate holds."
    with contextlib.suppress(Exception):  # a store that does not tell what it has
        try:
            found = store.fs.ls(store.path(""), detail=False)
        except FileNotFoundError:
            return NoCatalogError(f"{store.url}: there is no catalog here, the folder does not exist. {_CHECK_PLACE}")
        if "versions" not in {str(path).rstrip("/").rpartition("/")[2] for path in found}:
            return NoCatalogError(
                f"{store.url}: there is no catalog here, the folder has no `versions`. {_CHECK_PLACE}"
            )
    return CatalogError(f"{store.url} has no published version: {why}")


def latest_bytes(version: str, manifest_sha256: str, condemned: Iterable[str] = (), left: Iterable[str] = ()) -> bytes:
    """A content for LATEST.json that the file never held before, and that shows when a byte of it is changed.

    Args:
        version: The version in force.
        manifest_sha256: Of its manifest.
        condemned: Versions that are being deleted.
        left: Newer versions that were in force and were left for an older one.
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
    """The versions that this LATEST.json names as being deleted; they may never be published again."""
    parsed = None if latest is None else parse_latest(latest)
    return () if parsed is None else tuple(parsed.get("condemned", ()))


def left_in(latest: bytes | None) -> tuple[str, ...]:
    """The versions that this LATEST.json says were in force and are newer than the one that is."""
    parsed = None if latest is None else parse_latest(latest)
    return () if parsed is None else tuple(parsed.get("left", ()))


def parse_latest(data: bytes) -> dict[str, Any] | None:
    """None when it is damaged. Earlier releases wrote the first two fields only."""
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
