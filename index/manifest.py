"""The manifest: what a version holds, proved by sha256, and `LATEST.json`, which names the version in force."""

import contextlib
import hashlib
import itertools
import secrets
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .layout import FORMAT_VERSION, LATEST, manifest_name
from .store import Store, SwapConflictError, SwapUnknownError


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


class OperatingPoint(_Part):
    """A way to ask an index, and the recall that was measured with it."""

    cells_share: float | None = None
    """Of the cells of each file, those that are scanned; None: all vectors are scanned, without codes."""
    k_factor: float | None = None
    """So many times k candidates are scored by their vectors."""
    recall: dict[str, float]
    cost_us: float
    """What a query costs by a model of a common machine: to compare points with each other."""


class IndexEntry(_Part):
    """The FAISS index of one kind and what was measured of it. A direction is `text->image`: query kind first."""

    kind: str
    files: tuple[str, ...]
    """Every vector as fp16, stock `IndexScalarQuantizer`, in the order of the rows."""
    codes: tuple[str | None, ...] = ()
    """For each file its codes, stock `IndexPreTransform`, ids are positions in the file; empty or None: it has none."""
    assets: str
    rows: int
    factory: str
    search_parameters: dict[str, float] = Field(default_factory=dict)
    """The operating point that is used unless another is asked for; empty: all vectors are scanned."""
    operating_points: tuple[OperatingPoint, ...] = ()
    """Cheapest first."""
    resident_bytes: int
    recall_k: int
    recall: dict[str, float]
    scores: dict[str, ScoreFigures]
    norms: Histogram | None = None
    """How far the stored vectors' norms are from 1: log10 of the deviation; absent in older versions."""

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, value: Any) -> Any:
        """An index was one file then."""
        if isinstance(value, dict) and "file" in value and "files" not in value:
            return {**value, "files": (value["file"],)}
        return value

    @property
    def parts(self) -> tuple[tuple[str, str | None], ...]:
        """Each file with its codes."""
        return tuple(zip(self.files, self.codes or (None,) * len(self.files), strict=True))

    @property
    def names(self) -> tuple[str, ...]:
        """All files that a search opens."""
        return (*(name for part in self.parts for name in part if name is not None), self.assets)


class Counts(_Part):
    """Where a version's assets come from: `assets` = `embedded` + `reused` + `dead`.

    `unchanged`, `touched`, `changed`, `moved`, `copied` and `new` say the same rows otherwise, by comparison with the
    version before: they too add up to `embedded` + `reused`.
    """

    assets: int
    per_kind: dict[str, int]
    """Rows, without dead letters."""
    embedded: int
    """Rows whose vector this run paid for."""
    reused: int
    """Rows whose vector was there already."""
    deduplicated: int
    """Of the embedded ones: rows that share the vector of another with the same content."""
    dead: int
    unchanged: int = 0
    """Rows whose id, place and fingerprint are what they were: not even read."""
    touched: int = 0
    """Rows with another fingerprint or place and the same content: read, not sent."""
    changed: int = 0
    """Rows with the id of an old one and another content."""
    moved: int = 0
    """Rows with a new id and the content of an asset that is gone."""
    copied: int = 0
    """Rows with a new id and the content of an asset that is still there."""
    new: int = 0
    """Rows with a new id and a new content."""
    other_metadata: int = 0
    """Of the unchanged ones: rows whose metadata differs."""
    deleted: int = 0
    """Rows of the version before whose id is gone; a moved asset's old id is one of them."""


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
    latest = _parse_latest(data)
    if latest is None:
        raise CatalogError(
            f"{store.url}/{LATEST} must hold a version and a manifest_sha256, but it is damaged: "
            "`epithre-beam versions publish` names a version anew."
        )
    return data, latest["version"], latest["manifest_sha256"]


def nothing_published(store: Store) -> CatalogError:
    """Where LATEST.json is missing: there is no such folder, it is no catalog, or all its versions are held back."""
    why = f"{store.url}/{LATEST} is missing (`epithre-beam versions list` shows what a guard holds back)."
    with contextlib.suppress(Exception):  # a store that does not tell what it has
        try:
            found = store.fs.ls(store.path(""), detail=False)
        except FileNotFoundError:
            return CatalogError(f"{store.url} has no published version: there is no such folder.")
        if "versions" not in {str(path).rstrip("/").rpartition("/")[2] for path in found}:
            why = "this folder is no catalog, it has no `versions`."
    return CatalogError(f"{store.url} has no published version: {why}")


def latest_bytes(version: str, manifest_sha256: str, condemned: Iterable[str] = ()) -> bytes:
    """A content for LATEST.json that the file never held before, and that shows when a byte of it is changed."""
    latest: dict[str, Any] = {
        "version": version,
        "manifest_sha256": manifest_sha256,
        "condemned": sorted(set(condemned)),
        "nonce": secrets.token_hex(16),
    }
    latest["check"] = _check(latest)
    return orjson.dumps(latest, option=orjson.OPT_INDENT_2) + b"\n"


def condemned_in(latest: bytes | None) -> tuple[str, ...]:
    """The versions that this LATEST.json names as being deleted; they may never be published again."""
    parsed = None if latest is None else _parse_latest(latest)
    return () if parsed is None else tuple(parsed.get("condemned", ()))


def _parse_latest(data: bytes) -> dict[str, Any] | None:
    """None when it is damaged. Earlier releases wrote the first two fields only."""
    try:
        latest = orjson.loads(data)
        if not isinstance(latest["version"], str) or not isinstance(latest["manifest_sha256"], str):
            return None
        if len(latest) > 2 and latest["check"] != _check(latest):
            return None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return dict(latest)


def _check(latest: dict[str, Any]) -> str:
    rest = {name: value for name, value in latest.items() if name != "check"}
    return hashlib.sha256(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


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

    `expected` is LATEST.json as it was before anything of the version was written or, for a version that exists
    already, verified: what prune deletes is then never published.

    Raises:
        CatalogError: When the version's manifest is not there.
        SwapConflictError: When another run has published since, or prune has condemned the version.
        SwapUnknownError: When it cannot be found out whether the version is published.
    """
    version = manifest.version
    condemned = condemned_in(expected)
    if version in condemned:
        raise SwapConflictError(f"{store.url} has condemned version {version}, prune is deleting it: choose another.")
    try:
        # What is stored: an older release wrote fewer fields into its manifests than this one would.
        digest = hashlib.sha256(store.read(manifest_name(version))).hexdigest()
    except FileNotFoundError as error:
        raise CatalogError(f"{store.url} has no version {version!r}: {manifest_name(version)} is missing.") from error
    try:
        store.swap(LATEST, expected, latest_bytes(version, digest, condemned))
    except (SwapConflictError, SwapUnknownError) as error:
        end = how_it_ended(store, version, expected)
        is_refused = isinstance(error, SwapConflictError) and error.is_certain
        if end == "unknown" and not is_refused:
            raise SwapUnknownError(
                f"It is not known whether version {version} was published in {store.url}: nothing was deleted; "
                "`epithre-beam versions list` shows it when the store answers again."
            ) from error
        if end != "published":
            raise SwapConflictError(f"{store.url}/{LATEST} was changed by another run since this one began.") from error


def fence(store: Store, condemned: Sequence[str] = ()) -> bytes | None:
    """Swaps LATEST.json onto itself, so that no run that read it before can publish, and condemns versions.

    Only condemned versions may be deleted afterwards: who reads LATEST.json from now on refuses to publish them, who
    read it before is refused. Names stay condemned, whatever is published meanwhile, until their manifest is gone.

    Returns:
        The new content; None when nothing is published, and then no version may be deleted.

    Raises:
        SwapConflictError: When a condemned version is the one in force, or another run was faster.
        SwapUnknownError: When the storage does not tell; nothing may be deleted.
    """
    latest = read_latest(store)
    if latest is None:
        return None
    expected, version, digest = latest
    if version in condemned:
        raise SwapConflictError(f"{store.url} has published version {version} in the meantime: it must not be deleted.")
    earlier = [name for name in condemned_in(expected) if store.size(manifest_name(name)) is not None]
    data = latest_bytes(version, digest, [*earlier, *condemned])
    store.swap(LATEST, expected, data)
    return data


End = Literal["published", "conflict", "unknown"]


def how_it_ended(store: Store, version: str, expected: bytes | None) -> End:
    """What became of an attempt to publish `version` over `expected` whose answer was lost or was a refusal."""
    began = None if expected is None else _parse_latest(expected)
    try:
        latest = read_latest(store)
        chain: Iterable[str | None] = () if latest is None else _ancestry(store, latest[1])
        if expected is not None and began is None:
            chain = itertools.islice(chain, 1)  # without a beginning, what is older may be older than the attempt
        found = None if latest is None else latest[0]
        return judge_end(version, expected, None if began is None else began["version"], found, chain)
    except Exception:  # whatever a store's driver raises: what cannot be read is not known
        return "unknown"


def judge_end(
    version: str, expected: bytes | None, began: str | None, found: bytes | None, chain: Iterable[str | None]
) -> End:
    """Decides from what LATEST.json holds now.

    Args:
        version: What was to be published.
        expected: What LATEST.json held when the attempt began.
        began: The version that `expected` names; None when there was none, or it was damaged.
        found: What it holds now.
        chain: The version in force, its `previous`, and so on; None where one is gone and its own is not known.
    """
    if found == expected:
        return "unknown"  # a request that is under way may still change it
    for name in chain:
        if name == version:
            return "published"
        if name is None:
            return "unknown"
        if name == began:
            break  # what is older was not published by this attempt
    # Contents never return, so that a request that is still under way will be refused.
    return "conflict"


def _ancestry(store: Store, version: str | None) -> Iterator[str | None]:
    while version is not None:
        yield version
        try:
            version = read_manifest(store, version).previous
        except CatalogError:  # pruned since
            yield None
            return
