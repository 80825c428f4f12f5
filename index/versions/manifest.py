"""The manifest: what a version holds, each file by its length and sha256."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...configs.errors import CatalogError
from ..storage.store import Store
from .layout import FORMAT_VERSION, KINDS, manifest_name
from .values import (
    MAX_COLUMNS,
    MAX_MANIFEST_BYTES,
    Config,
    Count,
    Dimension,
    Direction,
    Factor,
    FileName,
    Instant,
    Kind,
    LongText,
    MetadataKind,
    MetadataName,
    NotNegative,
    Number,
    PrepareRules,
    SearchParameter,
    Sha256,
    Share,
    Size,
    Text,
    VersionName,
    is_version,
    wrong_value,
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FileEntry(_Part):
    """A file of the version: its name below the version's folder, its length and its sha256 in hex."""

    name: FileName
    size_bytes: Size
    sha256: Sha256
    rows: Count | None = None


class Histogram(_Part):
    """How many values fell into each of `counts` equal bins between `low` and `high`."""

    low: Number
    high: Number
    counts: Annotated[tuple[Count, ...], Field(max_length=10_000)]


class ScoreFigures(_Part):
    """Mean and standard deviation of inner products from queries of one kind to all rows of another."""

    mean: Number
    std: NotNegative
    histogram: Histogram | None = None
    """Of the same inner products, without those of a query with itself; absent in older versions."""


class OperatingPoint(_Part):
    """A way to ask an index, and the recall that was measured with it."""

    cells_share: Share | None = None
    """Of the cells of each file, those that are scanned; None: all vectors are scanned, without codes."""
    k_factor: Factor | None = None
    """So many times k candidates are scored by their vectors."""
    recall: dict[Direction, Share]
    cost_us: NotNegative
    """What a query costs by a model of a common machine: to compare points with each other."""


class IndexFile(NamedTuple):
    """One file of an index, by the names that the manifest has."""

    vectors: str
    codes: str | None


class IndexEntry(_Part):
    """The FAISS index of one kind and what was measured of it. A direction is `text->image`: query kind first."""

    kind: Kind
    files: Annotated[tuple[FileName, ...], Field(min_length=1)]
    """Every vector as fp16, stock `IndexScalarQuantizer`, in the order of the rows."""
    codes: tuple[FileName | None, ...] = ()
    """For each file its codes, stock `IndexPreTransform`, ids are positions in the file; empty or None: it has none."""
    assets: FileName
    rows: Count
    factory: Text
    search_parameters: dict[SearchParameter, Factor] = Field(default_factory=dict)
    """The operating point that is used unless another is asked for; empty: all vectors are scanned."""
    operating_points: Annotated[tuple[OperatingPoint, ...], Field(max_length=1000)] = ()
    """Cheapest first."""
    resident_bytes: Size
    recall_k: Annotated[Count, Field(ge=1)]
    recall: dict[Direction, Share]
    """The share of right answers. Right is a row that no stored score tells from the k-th best."""
    ties: dict[Direction, Share] = Field(default_factory=dict)
    """Of `recall`, the share that is right by that alone: rows below the k-th best; absent in older versions."""
    scores: dict[Direction, ScoreFigures]
    norms: Histogram | None = None
    """How far the stored vectors' norms are from 1: log10 of the deviation; absent in older versions."""

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, value: Any) -> Any:
        """An index was one file then."""
        if isinstance(value, dict) and "file" in value and "files" not in value:
            return {**value, "files": (value["file"],)}
        return value

    @model_validator(mode="after")
    def _agrees(self) -> "IndexEntry":
        if self.codes and len(self.codes) != len(self.files):
            raise ValueError(f"must have as many codes as files, {len(self.files)}, got {len(self.codes)}")
        if self.search_parameters.get("cells_share", 0) > 1:
            raise ValueError(f"must have a cells_share up to 1, got {self.search_parameters['cells_share']}")
        return self

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

    assets: Count
    per_kind: dict[Kind, Count]
    """Rows, without dead letters."""
    embedded: Count
    """Rows whose vector this run paid for."""
    reused: Count
    """Rows whose vector was there already."""
    deduplicated: Count
    """Of the embedded ones: rows that share the vector of another with the same content."""
    dead: Count
    unchanged: Count = 0
    """Rows whose id, place and fingerprint are what they were: not even read."""
    touched: Count = 0
    """Rows with another fingerprint or place and the same content: read, not sent."""
    prepared_anew: Count = 0
    """Rows whose asset is what it was, but may be prepared otherwise today: read, and sent again if it is."""
    changed: Count = 0
    """Rows with the id of an old one and another content."""
    moved: Count = 0
    """Rows with a new id and the content of an asset that is gone."""
    copied: Count = 0
    """Rows with a new id and the content of an asset that is still there."""
    new: Count = 0
    """Rows with a new id and a new content."""
    other_metadata: Count = 0
    """Of the unchanged ones: rows whose metadata differs."""
    deleted: Count = 0
    """Rows of the version before whose id is gone; a moved asset's old id is one of them."""


class JobIdentity(_Part):
    """Which job a catalog belongs to: its name if it has one, and where its sources are."""

    name: Text | None = None
    """The job's own `job:`; None when it has none."""
    sources: tuple[LongText, ...] = ()
    """A kind and a place each, such as `text /srv/shop/products.csv`; `vectors` and a folder for an import."""


class ManifestDraft(_Part):
    """What is known of a version before its manifest is written."""

    version: VersionName
    previous: VersionName | None
    software: Text
    model: Text
    model_fingerprint: Text | None
    dimension: Dimension
    metadata_types: Annotated[dict[MetadataName, MetadataKind], Field(max_length=MAX_COLUMNS)]
    counts: Counts
    files: tuple[FileEntry, ...]
    indexes: tuple[IndexEntry, ...]
    gate_failures: tuple[LongText, ...] = ()
    """Why a guard did not let this version be published by itself."""
    prepare_rules: PrepareRules = 1
    """The rules that its pictures were prepared by, or looked at (layout.PREPARE_RULES)."""
    config: Config
    timings_s: dict[Text, Number]
    job: JobIdentity | None = None
    """Of the run that wrote the version, or of the one before where only the index was built anew; absent in versions
    that an older release wrote."""


class Manifest(ManifestDraft):
    """All that a reader needs to open a version and to know what it is."""

    format_version: Annotated[Count, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    created_at: Instant
    nonce: Text
    metric: Literal["inner_product"] = "inner_product"
    faiss_version: Text

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


def disagreement(manifest: Manifest) -> str | None:
    """What a manifest says twice and not alike, in a few words: names, and the rows of files, kinds and the version."""
    rows = {file.name: file.rows for file in manifest.files}
    if len(rows) != len(manifest.files):
        twice = sorted(name for name, times in Counter(file.name for file in manifest.files).items() if times > 1)
        return f"it lists {twice[0]!r} more than once"
    if len({index.kind for index in manifest.indexes}) != len(manifest.indexes):
        return f"it has more than one index of a kind, {[index.kind for index in manifest.indexes]}"
    for name, times in Counter(name for index in manifest.indexes for name in index.names).items():
        if name not in rows:
            return f"it lists no file {name!r}, which an index needs"
        if times > 1:
            return f"its indexes use {name!r} {times} times"
    for what, wanted, found in _sums(manifest, rows):
        if None not in found and sum(filter(None, found)) != wanted:
            return f"the {what} must have {wanted} rows, got {sum(filter(None, found))}"
    return None


def _sums(manifest: Manifest, rows: Mapping[str, int | None]) -> Iterator[tuple[str, int, list[int | None]]]:
    """What it is, the rows that it must have together, and those that its parts have, as far as they are known."""
    for index in manifest.indexes:
        yield f"{index.kind} index", index.rows, [rows[name] for name in index.files]
        yield f"{index.kind} table of assets", index.rows, [rows[index.assets]]
        if vectors := [count for name, count in rows.items() if name.startswith(f"vectors/{index.kind}-")]:
            yield f"{index.kind} vectors", index.rows, vectors
        for part in index.parts:
            if part.codes is not None and (wanted := rows[part.vectors]) is not None:
                yield f"codes of {part.vectors}", wanted, [rows[part.codes]]
    for kind in KINDS:
        indexed: list[int | None] = [index.rows for index in manifest.indexes if index.kind == kind]
        yield f"{kind} index", manifest.counts.per_kind.get(kind, 0), indexed
    letters = [count for name, count in rows.items() if name.startswith("dead_letters/")]
    yield "files of dead letters", manifest.counts.dead, letters


def read_manifest(store: Store, version: str, sha256: str | None = None) -> Manifest:
    """Reads a version's manifest and, given its `sha256`, proves it.

    Nothing in it is taken on trust: every name, number and list is as this library writes it, or it is refused.

    Raises:
        CatalogError: When it is missing, damaged, another version's, or of a format that this release does not know.
    """
    if not is_version(version):
        raise CatalogError(f"{store.url} has no version {version!r:.80}: versions are named such as 000001-….")
    name = manifest_name(version)
    try:
        data = store.read(name, max_bytes=MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise CatalogError(f"{store.url} has no version {version!r}: {name} is missing.") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise CatalogError(f"{store.url}/{name} must have sha256 {sha256}, got {found}: the file is damaged.")
    try:
        raw = orjson.loads(data)
        form = raw["format_version"]
        if isinstance(form, int) and form > FORMAT_VERSION:
            raise CatalogError(
                f"{store.url}/{name} has format {form}; this release reads up to {FORMAT_VERSION}: "
                "install a newer epithre-beam."
            )
        manifest = Manifest.model_validate(raw)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise CatalogError(f"{store.url}/{name} is no manifest that can be read: the file is damaged.") from error
    except ValidationError as error:
        raise CatalogError(
            f"{store.url}/{name} is no manifest that can be read ({wrong_value(error)}): the file is damaged, or "
            "epithre-beam did not write it."
        ) from None  # pydantic's own error repeats every value
    if manifest.version != version:
        raise CatalogError(f"{store.url}/{name} is the manifest of version {manifest.version}: the file is damaged.")
    if (problem := disagreement(manifest)) is not None:
        raise CatalogError(f"{store.url}/{name} contradicts itself: {problem}. The file is damaged.")
    return manifest
