"""Small catalogs, written by our own code from seeded vectors, with their expected contents."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from epithre_beam.configs import GateConfig, IndexConfig
from epithre_beam.index import DeadLetter, Manifest, Reason, Store, open_catalog
from epithre_beam.index.ann.build import build_indexes
from epithre_beam.index.publish.conservation import check_conservation
from epithre_beam.index.publish.dead_letters import write_dead_letters
from epithre_beam.index.publish.gates import check_gates
from epithre_beam.index.publish.publish import publish
from epithre_beam.index.publish.write_manifest import write_manifest
from epithre_beam.index.search.catalog import Catalog
from epithre_beam.index.vectors.shards import ShardRecord, ShardTask, plan_shards, write_shard
from epithre_beam.index.vectors.units import UnitRecord, read_unit, write_unit
from epithre_beam.index.versions.latest import read_latest
from epithre_beam.index.versions.layout import asset_fields, metadata_type, vector_schema
from epithre_beam.index.versions.manifest import Counts, FileEntry, IndexEntry, ManifestDraft

Floats = npt.NDArray[np.float32]

VERSION = "000001-20250102T030405Z-abcdef"
TYPES = {"lang": "string", "price": "double"}
LANGUAGES = ("id", "en", None)


def unit_vectors(rows: int, dimension: int, seed: int = 0) -> Floats:
    """float32, (rows, dimension), unit norm."""
    drawn = np.random.default_rng([seed, rows, dimension]).standard_normal((rows, dimension)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def clustered_vectors(rows: int, dimension: int, seed: int, gap: float = 0.3) -> Floats:
    """float32, (rows, dimension), unit norm, similar to the vectors of real models.

    All kinds have the same clusters; the variance of the axes decreases, and each seed has its own offset.
    """
    strengths = np.arange(1, dimension + 1) ** -0.5
    centres = np.random.default_rng(dimension).standard_normal((40, dimension)) * strengths
    rng = np.random.default_rng([seed, dimension])
    offset = gap * rng.standard_normal(dimension) * strengths
    drawn = centres[rng.integers(0, len(centres), rows)] + offset
    drawn += 0.7 * rng.standard_normal((rows, dimension)) * strengths
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def asset_rows(kind: str, start: int, rows: int) -> pa.Table:
    """Assets numbered from `start`, with the columns of a unit file."""
    return numbered_rows(kind, range(start, start + rows))


def numbered_rows(kind: str, numbers: Sequence[int]) -> pa.Table:
    """Assets with these numbers, with the columns of a unit file."""
    rows = len(numbers)
    image = kind == "image"
    columns = {
        "asset_id": [f"{kind} {i:05d}" for i in numbers],
        "kind": [kind] * rows,
        "uri": [f"/pictures/{i}.jpg" if image else None for i in numbers],
        "text": [None if image else f"caption {i} ✓" for i in numbers],
        "content_sha256": [hashlib.sha256(f"{kind}{i}".encode()).hexdigest() for i in numbers],
        "fingerprint": [f"etag-{i}" for i in numbers],
        "media_type": ["image/jpeg" if image else "text/plain"] * rows,
        "size_bytes": [1000 + i for i in numbers],
        "width": [640 if image else None for _ in numbers],
        "height": [480 if image else None for _ in numbers],
        "prepared": ["as is"] * rows,
    }
    return pa.Table.from_pydict(columns, schema=pa.schema(asset_fields()))


def metadata_of(table: pa.Table) -> pa.Array:
    """The metadata of each asset, a function of its number."""
    numbers = [int(name.split()[1]) for name in table.column("asset_id").to_pylist()]
    values = [{"lang": LANGUAGES[i % 3], "price": None if i % 7 == 0 else i / 10} for i in numbers]
    return pa.array(values, metadata_type(TYPES))


def unit_of(kind: str, i: int) -> str:
    """A unit name that is a hash, so that the order of names differs from the order of creation."""
    return hashlib.sha256(f"{kind}{i}".encode()).hexdigest()[:16]


def write_units(
    store: Store,
    kind: str,
    vectors: Floats,
    rows_per_unit: int,
    *,
    dead: int = 0,
    numbers: Sequence[int] | None = None,
) -> list[UnitRecord]:
    """Splits `vectors` into unit files; the first has `dead` dead letters. `numbers` are the asset numbers."""
    numbers = range(len(vectors)) if numbers is None else numbers
    records = []
    for i, start in enumerate(range(0, len(vectors), rows_per_unit)):
        part = vectors[start : start + rows_per_unit]
        letters = [
            DeadLetter(asset_id=f"{kind} lost {j}", kind=kind, uri=None, stage="read", reason=Reason.MISSING, detail="")
            for j in range(dead if i == 0 else 0)
        ]
        unit = unit_of(kind, i)
        assets = numbered_rows(kind, numbers[start : start + len(part)])
        write_unit(store, unit, assets, part, letters, deduplicated=0)
        records.append(
            UnitRecord(
                unit=unit,
                kind=kind,
                row_group=i,
                rows=len(part),
                dead=len(letters),
                deduplicated=0,
                reused=False,
            )
        )
    return records


def write_shards(
    store: Store, records: Sequence[UnitRecord], dimension: int, rows_per_file: int, version: str = VERSION
) -> list[ShardRecord]:
    def tables(units: Sequence[UnitRecord]) -> Iterator[pa.Table]:
        for record in units:
            table = read_unit(store, record.unit)
            yield table.append_column("metadata", metadata_of(table))

    schema = vector_schema(dimension, TYPES)
    tasks = plan_shards(records, rows_per_file)
    return [write_shard(store, version, task, tables(task.parts), schema, rows_per_group=13) for task in tasks]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A catalog, and its expected rows in order."""

    folder: Path
    store: Store
    manifest: Manifest
    records: list[UnitRecord]
    shards: list[ShardRecord]
    vectors: dict[str, Floats] = field(default_factory=dict)
    assets: dict[str, pa.Table] = field(default_factory=dict)

    def open(self) -> Catalog:
        return open_catalog(self.folder)

    def index(self, kind: str) -> IndexEntry:
        return next(entry for entry in self.manifest.indexes if entry.kind == kind)

    def files(self) -> list[Path]:
        """The files that opening reads."""
        base = self.folder / "versions" / self.manifest.version
        entries = [base / name for index in self.manifest.indexes for name in index.names]
        return [self.folder / "LATEST.json", base / "manifest.json", *entries]


def make(
    folder: Path,
    vectors: Mapping[str, Floats],
    *,
    rows_per_unit: int = 13,
    rows_per_file: int = 30,
    index: IndexConfig | None = None,
    recall_k: int = 10,
    recall_queries: int = 50,
    dead: int = 0,
    version: str = VERSION,
    previous: str | None = None,
    numbers: Mapping[str, Sequence[int]] | None = None,
) -> Made:
    """Makes and publishes a version of the given vectors, with all steps of a run except reading and embedding."""
    assets_of = {kind: range(len(rows)) if numbers is None else numbers[kind] for kind, rows in vectors.items()}
    store = Store(str(folder))
    dimension = next(iter(vectors.values())).shape[1]
    records = [
        record
        for kind, rows in vectors.items()
        for record in write_units(store, kind, rows, rows_per_unit, dead=dead, numbers=assets_of[kind])
    ]
    shards = write_shards(store, records, dimension, rows_per_file, version)
    planned = {kind: len(rows) + dead for kind, rows in vectors.items()}
    check_conservation(planned, records, shards)
    index = index or IndexConfig(recall_k=recall_k, recall_queries=recall_queries)
    built = build_indexes(store, version, shards, dimension, index)
    entries = [one.entry for one in built]
    files: list[FileEntry] = [shard.file for shard in shards] + [file for one in built for file in one.files]
    dead_file, _ = write_dead_letters(store, version, records)
    files += [] if dead_file is None else [dead_file]
    lost = dict.fromkeys(vectors, dead)
    manifest = write_manifest(
        store,
        ManifestDraft(
            version=version,
            previous=previous,
            software="tests",
            model="a model",
            model_fingerprint=None,
            dimension=dimension,
            metadata_types=TYPES,
            counts=Counts(
                assets=sum(planned.values()),
                per_kind={kind: len(rows) for kind, rows in vectors.items()},
                embedded=sum(len(rows) for rows in vectors.values()),
                reused=0,
                deduplicated=0,
                dead=sum(lost.values()),
            ),
            files=files,
            indexes=entries,
            gate_failures=check_gates(planned, lost, entries, GateConfig(), 0.9),
            config={},
            timings_s={},
        ),
    )
    latest = read_latest(store)
    publish(store, manifest, None if latest is None else latest.data)
    expected: dict[str, Floats] = {}
    assets: dict[str, pa.Table] = {}
    for kind, rows in vectors.items():
        cuts = sorted(
            (unit_of(kind, i), start, min(rows_per_unit, len(rows) - start))
            for i, start in enumerate(range(0, len(rows), rows_per_unit))
        )
        expected[kind] = np.concatenate([rows[:0], *(rows[start : start + length] for _, start, length in cuts)])
        table = pa.concat_tables(
            [numbered_rows(kind, assets_of[kind][start : start + length]) for _, start, length in [*cuts, ("", 0, 0)]]
        )
        assets[kind] = table.append_column("metadata", metadata_of(table))
    return Made(
        folder=folder,
        store=store,
        manifest=manifest,
        records=records,
        shards=shards,
        vectors=expected,
        assets=assets,
    )


@pytest.fixture(scope="session")
def make_catalog(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Made]:
    """`make` in a new folder."""

    def made(vectors: Mapping[str, Floats], **settings: Any) -> Made:
        return make(tmp_path_factory.mktemp("catalog") / "c", vectors, **settings)

    return made


@pytest.fixture(scope="session")
def small(make_catalog: Callable[..., Made]) -> Made:
    """61 images and 45 texts in 16 dimensions, in several units, files and row groups. Read-only."""
    return make_catalog({"image": unit_vectors(61, 16, 1), "text": unit_vectors(45, 16, 2)}, dead=2)


@pytest.fixture
def own_copy(make_catalog: Callable[..., Made]) -> Made:
    """A catalog that a test may damage."""
    vectors = {"image": unit_vectors(20, 8, 1), "text": unit_vectors(9, 8, 2)}
    return make_catalog(vectors, rows_per_unit=5, rows_per_file=8, dead=1)


@pytest.fixture(scope="session")
def draw_vectors() -> Callable[..., Floats]:
    """`unit_vectors`."""
    return unit_vectors


@pytest.fixture(scope="session")
def draw_clustered() -> Callable[..., Floats]:
    """`clustered_vectors`."""
    return clustered_vectors


@pytest.fixture(scope="session")
def cut_units() -> Callable[..., list[UnitRecord]]:
    """`write_units`."""
    return write_units


@pytest.fixture(scope="session")
def lay_shards() -> Callable[..., list[ShardRecord]]:
    """`write_shards`."""
    return write_shards


@pytest.fixture(scope="session")
def draw_assets() -> Callable[..., pa.Table]:
    """`asset_rows`."""
    return asset_rows


@pytest.fixture(scope="session")
def add_version() -> Callable[..., Made]:
    """`make` in a given folder, to add a version to a catalog."""
    return make


def publish_texts(store: Store, types: dict[str, str], columns: dict[str, Any], vectors: Any, index: Any) -> None:
    """Publishes a version of texts with these columns; other columns are null or constant."""
    version, (rows, dimension) = "000001-20250102T030405Z-abcdef", vectors.shape
    schema = vector_schema(dimension, types)
    embedding = schema.field("embedding").type
    filled = {
        **{field.name: pa.nulls(rows, field.type) for field in schema if field.nullable},
        **{name: ["text"] * rows for name in ("kind", "content_sha256", "fingerprint")},
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=embedding),
        **columns,
    }
    table = pa.Table.from_pydict(filled, schema=schema)
    shard = write_shard(store, version, ShardTask(kind="text", shard=0, shards=1, parts=()), [table], schema)
    (built,) = build_indexes(store, version, [shard], dimension, index)
    manifest = write_manifest(
        store,
        ManifestDraft(
            version=version,
            previous=None,
            software="tests",
            model="a model",
            model_fingerprint=None,
            dimension=dimension,
            metadata_types=types,
            counts=Counts(assets=rows, per_kind={"text": rows}, embedded=rows, reused=0, deduplicated=0, dead=0),
            files=[shard.file, *built.files],
            indexes=[built.entry],
            gate_failures=(),
            config={},
            timings_s={},
        ),
    )
    publish(store, manifest, None)
