"""The manifest: the content of a version, with the length and sha256 of each file."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...configs.errors import CatalogError
from ..storage.store import Store
from .layout import DAMAGED, FORMAT_VERSION, KINDS, manifest_name
from .stored_names import GATE_FAILURES
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
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class FileEntry(_Part):
    """A file of the version: its name below the version folder, its length and its sha256 in hex."""

    name: FileName
    size_bytes: Size
    sha256: Sha256
    rows: Count | None = None


class Histogram(_Part):
    """Number of values in each of the equal-width bins between `low` and `high`."""

    low: Number
    high: Number
    counts: Annotated[tuple[Count, ...], Field(max_length=10_000)]


class ScoreFigures(_Part):
    """Mean and standard deviation of inner products from queries of one kind to all rows of another."""

    mean: Number
    std: NotNegative
    histogram: Histogram | None = None
    """Histogram of the same inner products, without those of a query with itself. Absent in older versions."""


class OperatingPoint(_Part):
    """Search parameters of an index, with the measured recall."""

    cells_share: Share | None = None
    """Share of the cells of each file to scan. None: all vectors are scanned, without codes."""
    k_factor: Factor | None = None
    """Candidates that are scored by their vectors, as a multiple of k."""
    recall: dict[Direction, Share]
    cost_us: NotNegative
    """Estimated cost of a query on a common machine, for comparing operating points."""


class IndexFile(NamedTuple):
    """One file of an index and its codes, by their names in the manifest."""

    vectors: str
    codes: str | None


class IndexEntry(_Part):
    """The FAISS index of one kind and its measurements. A direction has the query kind first: `text->image`."""

    kind: Kind
    files: Annotated[tuple[FileName, ...], Field(min_length=1)]
    """All vectors as fp16 in row order, each file a standard FAISS `IndexScalarQuantizer`."""
    codes: tuple[FileName | None, ...] = ()
    """The codes of each file, a standard FAISS `IndexPreTransform` with positions in the file as ids. None or empty:
    no codes."""
    assets: FileName
    rows: Count
    factory: Text
    search_parameters: dict[SearchParameter, Factor] = Field(default_factory=dict)
    """The default operating point. Empty: all vectors are scanned."""
    operating_points: Annotated[tuple[OperatingPoint, ...], Field(max_length=1000)] = ()
    """Cheapest first."""
    resident_bytes: Size
    recall_k: Annotated[Count, Field(ge=1)]
    recall: dict[Direction, Share]
    """Share of correct hits. A row is correct if its stored score is not below that of the k-th best."""
    ties: dict[Direction, Share] = Field(default_factory=dict)
    """Part of `recall` that is due to ties: rows ranked below the k-th best. Absent in older versions."""
    scores: dict[Direction, ScoreFigures]
    norms: Histogram | None = None
    """Histogram of log10 of the deviation of the stored norms from 1. Absent in older versions."""

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, value: Any) -> Any:
        """Convert format 1, where an index was one file."""
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
        """The index files with their codes."""
        pairs = zip(self.files, self.codes or (None,) * len(self.files), strict=True)
        return tuple(IndexFile(vectors, codes) for vectors, codes in pairs)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all files that a search opens."""
        return (*(name for part in self.parts for name in part if name is not None), self.assets)


class Difference(NamedTuple):
    """A value that differs between two sets of vectors."""

    name: str
    ours: Any
    theirs: Any


class MadeBy(NamedTuple):
    """The origin of vectors. Only vectors of the same origin can be compared."""

    model: str
    model_fingerprint: str | None
    """Fingerprint of an emulator; None for the API."""
    dimension: int

    @property
    def name(self) -> str:
        return self.model_fingerprint or self.model

    def differences(self, other: "MadeBy") -> list[Difference]:
        """Return the values that differ from another origin. Empty if the vectors can be compared."""
        pairs = zip(self._fields, self, other, strict=True)
        return [Difference(name, ours, theirs) for name, ours, theirs in pairs if ours != theirs]


class Counts(_Part):
    """Counts of a version's assets: `assets` = `embedded` + `reused` + `dead`.

    `unchanged`, `touched`, `prepared_anew`, `changed`, `moved`, `copied` and `new` count the same rows by comparison
    with the previous version. They also add up to `embedded` + `reused`.
    """

    assets: Count
    per_kind: dict[Kind, Count]
    """Rows by kind, without dead letters."""
    embedded: Count
    """Rows embedded by this run."""
    reused: Count
    """Rows whose vector was reused."""
    deduplicated: Count
    """Embedded rows that share the vector of another row with the same content."""
    dead: Count
    unchanged: Count = 0
    """Rows with the same id, place and fingerprint. Not read."""
    touched: Count = 0
    """Rows with another fingerprint or place but the same content. Read, not sent."""
    prepared_anew: Count = 0
    """Rows with an unchanged asset whose preparation may have changed. Read, and sent only if it has."""
    changed: Count = 0
    """Rows with an existing id and new content."""
    moved: Count = 0
    """Rows with a new id and the content of a removed asset."""
    copied: Count = 0
    """Rows with a new id and the content of an existing asset."""
    new: Count = 0
    """Rows with a new id and new content."""
    other_metadata: Count = 0
    """Unchanged rows whose metadata differs."""
    deleted: Count = 0
    """Rows of the previous version whose id is gone, including the old ids of moved assets."""


class JobIdentity(_Part):
    """The job that a catalog belongs to: its name, if any, and its sources."""

    name: Text | None = None
    """The value of `job:`; None if the job has none."""
    sources: tuple[LongText, ...] = ()
    """Kind and place of each source, such as `text /srv/shop/products.csv`; `vectors` and a folder for an import."""


class ManifestDraft(_Part):
    """The fields of a manifest that are known before it is written."""

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
    gate_failures: Annotated[
        tuple[LongText, ...], Field(validation_alias=GATE_FAILURES, serialization_alias=GATE_FAILURES)
    ] = ()
    """Why a gate held this version, one sentence each."""
    prepare_rules: PrepareRules = 1
    """Version of the image preparation rules that were applied (layout.PREPARE_RULES)."""
    config: Config
    timings_s: dict[Text, Number]
    job: JobIdentity | None = None
    """The job of the run that wrote the version, or of the previous version if only the index was rebuilt. Absent in
    versions of older releases."""


class Manifest(ManifestDraft):
    """Everything a reader needs to open and describe a version."""

    format_version: Annotated[Count, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    created_at: Instant
    nonce: Text
    metric: Literal["inner_product"] = "inner_product"
    faiss_version: Text

    @property
    def made_by(self) -> MadeBy:
        """The origin of the vectors."""
        return MadeBy(self.model, self.model_fingerprint, self.dimension)

    def to_bytes(self) -> bytes:
        return orjson.dumps(self.model_dump(by_alias=True), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"

    def file(self, name: str) -> FileEntry:
        """Return the entry of a file. Raises CatalogError if the manifest does not list it."""
        for entry in self.files:
            if entry.name == name:
                return entry
        raise CatalogError(f"The manifest of version {self.version} does not list the file {name!r}.")


def disagreement(manifest: Manifest) -> str | None:
    """Describe the first contradiction in a manifest, in names or in row counts. Return None if there is none."""
    rows = {file.name: file.rows for file in manifest.files}
    if len(rows) != len(manifest.files):
        twice = sorted(name for name, times in Counter(file.name for file in manifest.files).items() if times > 1)
        return f"it lists {twice[0]!r} more than once"
    if len({index.kind for index in manifest.indexes}) != len(manifest.indexes):
        return f"it has more than one index of a kind (kinds: {[index.kind for index in manifest.indexes]})"
    for name, times in Counter(name for index in manifest.indexes for name in index.names).items():
        if name not in rows:
            return f"it does not list the file {name!r}, which an index needs"
        if times > 1:
            return f"its indexes use {name!r} {times} times"
    for what, wanted, found in _sums(manifest, rows):
        if None not in found and sum(filter(None, found)) != wanted:
            return f"the {what} must have {wanted} rows, got {sum(filter(None, found))}"
    return None


def _sums(manifest: Manifest, rows: Mapping[str, int | None]) -> Iterator[tuple[str, int, list[int | None]]]:
    """Yield a label, the expected total of rows, and the known row counts of the parts."""
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
    """Read and validate the manifest of a version. Verify it against `sha256` if given.

    The manifest may come from an untrusted catalog, so every name, number and list is validated.

    Raises:
        CatalogError: If it is missing, damaged, of another version, or has a format that this release does not know.
    """
    if not is_version(version):
        raise CatalogError(
            f"{store.url} has no version {version!r:.80}. Names of versions look like 000001-20250102T030405Z-abcdef."
        )
    name = manifest_name(version)
    try:
        data = store.read(name, max_bytes=MAX_MANIFEST_BYTES)
    except FileNotFoundError as error:
        raise CatalogError(f"{store.url} has no version {version!r}: {name} is missing.") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise CatalogError(f"{store.url}/{name} must have sha256 {sha256}, got {found}. {DAMAGED}")
    try:
        raw = orjson.loads(data)
        form = raw["format_version"]
        if isinstance(form, int) and form > FORMAT_VERSION:
            raise CatalogError(
                f"{store.url}/{name} has format {form}, but this release reads formats up to {FORMAT_VERSION}. "
                "Install a newer epithre-beam."
            )
        manifest = Manifest.model_validate(raw)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise CatalogError(f"{store.url}/{name} is not a valid manifest. {DAMAGED}") from error
    except ValidationError as error:
        raise CatalogError(
            f"{store.url}/{name} is not a valid manifest ({wrong_value(error)}). The file is damaged, or "
            "epithre-beam did not write it."
        ) from None  # the pydantic error would repeat every value
    if manifest.version != version:
        raise CatalogError(f"{store.url}/{name} is the manifest of version {manifest.version}. {DAMAGED}")
    if (problem := disagreement(manifest)) is not None:
        raise CatalogError(f"{store.url}/{name} contradicts itself: {problem}. {DAMAGED}")
    return manifest
