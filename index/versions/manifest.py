"""The manifest: what a version holds, each file by its length and sha256."""

import hashlib
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...configs.errors import CatalogError
from ..storage.store import Store
from .layout import FORMAT_VERSION, manifest_name


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


class IndexFile(NamedTuple):
    """One file of an index, by the names that the manifest has."""

    vectors: str
    codes: str | None


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
    def parts(self) -> tuple[IndexFile, ...]:
        """Each file with its codes."""
        pairs = zip(self.files, self.codes or (None,) * len(self.files), strict=True)
        return tuple(IndexFile(vectors, codes) for vectors, codes in pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """All files that a search opens."""
        return (*(name for part in self.parts for name in part if name is not None), self.assets)


class Difference(NamedTuple):
    """A value in which two things differ."""

    name: str
    ours: Any
    theirs: Any


class MadeBy(NamedTuple):
    """What vectors were made by. Only those that were made alike can be compared with each other."""

    model: str
    model_fingerprint: str | None
    """Of an emulator; None for the API itself."""
    dimension: int

    @property
    def name(self) -> str:
        return self.model_fingerprint or self.model

    def differences(self, other: "MadeBy") -> list[Difference]:
        """In what vectors made by the other differ from those made by this one; empty when they can be compared."""
        pairs = zip(self._fields, self, other, strict=True)
        return [Difference(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]


class Counts(_Part):
    """Where a version's assets come from: `assets` = `embedded` + `reused` + `dead`.

    `unchanged`, `touched`, `prepared_anew`, `changed`, `moved`, `copied` and `new` say the same rows otherwise, by
    comparison with the version before: they too add up to `embedded` + `reused`.
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
    prepared_anew: int = 0
    """Rows whose asset is what it was, but may be prepared otherwise today: read, and sent again if it is."""
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


class ManifestDraft(_Part):
    """What is known of a version before its manifest is written."""

    version: str
    previous: str | None
    software: str
    model: str
    model_fingerprint: str | None
    dimension: int
    metadata_types: dict[str, str]
    counts: Counts
    files: tuple[FileEntry, ...]
    indexes: tuple[IndexEntry, ...]
    held_back: tuple[str, ...] = ()
    """Why a guard did not let this version be published by itself."""
    prepare_rules: int = 1
    """The rules that its pictures were prepared by, or looked at (layout.PREPARE_RULES)."""
    config: dict[str, Any]
    timings_s: dict[str, float]


class Manifest(ManifestDraft):
    """All that a reader needs to open a version and to know what it is."""

    format_version: int = FORMAT_VERSION
    created_at: str
    nonce: str
    metric: str = "inner_product"
    faiss_version: str

    @property
    def made_by(self) -> MadeBy:
        return MadeBy(self.model, self.model_fingerprint, self.dimension)

    def to_bytes(self) -> bytes:
        return orjson.dumps(self.model_dump(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"

    def file(self, name: str) -> FileEntry:
        """Raises CatalogError when the version has no such file."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise CatalogError(f"the manifest of version {self.version} lists no file {name!r}.")


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
