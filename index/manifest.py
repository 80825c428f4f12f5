"""The manifest: what a version holds, proved by sha256, and `LATEST.json`, which names the version in force."""

import hashlib
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .layout import FORMAT_VERSION, LATEST, manifest_name
from .store import Store


class CatalogError(Exception):
    """A catalog cannot be opened, trusted or changed; the message names the file, the rule and the value."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEntry(_Part):
    """A file of the version: its name below the version's folder, its length and its sha256 in hex."""

    name: str
    size_bytes: int
    sha256: str
    rows: int | None = None


class Histogram(_Part):
    """How many values fell into each of `counts` equal bins between `low` and `high`."""

    low: float
    high: float
    counts: tuple[int, ...]


class ScoreFigures(_Part):
    """Mean and standard deviation of inner products from queries of one kind to all rows of another."""

    mean: float
    std: float
    histogram: Histogram | None = None
    """Of the same inner products, without those of a query with itself; absent in older versions."""


class IndexEntry(_Part):
    """One FAISS index and what was measured of it. Directions are written `text->image`: query kind first."""

    kind: str
    file: str
    assets: str
    rows: int
    factory: str
    search_parameters: dict[str, float] = Field(default_factory=dict)
    resident_bytes: int
    recall_k: int
    recall: dict[str, float]
    scores: dict[str, ScoreFigures]
    norms: Histogram | None = None
    """How far the stored vectors' norms are from 1: log10 of the deviation; absent in older versions."""


class Counts(_Part):
    """`assets` = `embedded` + `reused` + `dead`; the others say how the rows came about."""

    assets: int
    per_kind: dict[str, int]
    embedded: int
    reused: int
    deduplicated: int
    dead: int
    moved: int = 0
    deleted: int = 0


class Manifest(_Part):
    """All that a reader needs to open a version and to know what it is."""

    format_version: int = FORMAT_VERSION
    version: str
    previous: str | None
    created_at: str
    software: str
    nonce: str
    model: str
    model_fingerprint: str | None
    dimension: int
    metric: str = "inner_product"
    faiss_version: str
    metadata_types: dict[str, str]
    counts: Counts
    files: tuple[FileEntry, ...]
    indexes: tuple[IndexEntry, ...]
    held_back: tuple[str, ...] = ()
    """Why a guard did not let this version be published by itself."""
    config: dict[str, Any]
    timings_s: dict[str, float]

    def to_bytes(self) -> bytes:
        return orjson.dumps(self.model_dump(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"

    def file(self, name: str) -> FileEntry:
        """Raises CatalogError when the version has no such file."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise CatalogError(f"the manifest of version {self.version} lists no file {name!r}.")


def read_latest(store: Store) -> tuple[bytes, str, str] | None:
    """LATEST.json as it stands: (its bytes, version, sha256 of the manifest); None when nothing is published.

    Raises:
        CatalogError: When the file is not what this library writes.
    """
    try:
        data = store.read(LATEST)
    except FileNotFoundError:
        return None
    try:
        latest = orjson.loads(data)
        return data, str(latest["version"]), str(latest["manifest_sha256"])
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise CatalogError(
            f"{store.url}/{LATEST} must hold a version and a manifest_sha256, but it is damaged: "
            "`epithre-beam versions publish` names a version anew."
        ) from error


def read_manifest(store: Store, version: str, sha256: str | None = None) -> Manifest:
    """Reads a version's manifest and, given its `sha256`, proves it.

    Raises:
        CatalogError: When it is missing, damaged, or of a format that this release does not know.
    """
    name = manifest_name(version)
    try:
        data = store.read(name)
    except FileNotFoundError as error:
        raise CatalogError(f"{store.url} has no version {version!r}: {name} is missing.") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise CatalogError(f"{store.url}/{name} must have sha256 {sha256}, got {found}: the file is damaged.")
    try:
        raw = orjson.loads(data)
        if raw["format_version"] > FORMAT_VERSION:
            raise CatalogError(
                f"{store.url}/{name} has format {raw['format_version']}; this release reads up to {FORMAT_VERSION}: "
                "install a newer epithre-beam."
            )
        return Manifest.model_validate(raw)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise CatalogError(f"{store.url}/{name} is no manifest that can be read: the file is damaged.") from error


def publish(store: Store, manifest: Manifest, expected: bytes | None) -> None:
    """Writes the manifest's name into LATEST.json, if that still holds `expected`.

    Raises:
        SwapConflictError: When another run has published since.
    """
    digest = hashlib.sha256(manifest.to_bytes()).hexdigest()
    data = orjson.dumps({"version": manifest.version, "manifest_sha256": digest}, option=orjson.OPT_INDENT_2) + b"\n"
    store.swap(LATEST, expected, data)
