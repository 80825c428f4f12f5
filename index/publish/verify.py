"""Verify a version: every file exists, matches its sha256, and agrees with the other files.

Files are streamed: memory is bounded by one row group of vectors, whatever the size of the version.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs.errors import CatalogError, StoreError
from ..ann.codes import open_codes
from ..ann.exact import StoredRows, encode, read_header
from ..storage.store import Store
from ..vectors.assets_file import count_assets, iterate_assets
from ..vectors.distribution import NORM_TOLERANCE
from ..vectors.letters import iterate_letters
from ..vectors.units import open_vectors, vectors_of
from ..versions.complete import existing_versions, publish_command
from ..versions.files import check_file
from ..versions.latest import Latest, nothing_published, read_latest
from ..versions.layout import LATEST, version_folder
from ..versions.manifest import IndexEntry, Manifest, read_manifest


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of verifying a version, or LATEST.json itself."""

    version: str | None
    """None for LATEST.json or the catalog."""
    files: int = 0
    size_bytes: int = 0
    damage: tuple[str, ...] = ()


def verify_versions(store: Store, version: str | None = None, *, every: bool = False) -> Iterator[Verdict]:
    """Verify LATEST.json, and the published version, the version `version`, or all versions (`every`).

    Raises:
        CatalogError: If there is nothing to verify.
    """
    published: Latest | None = None
    try:
        published = _read_latest_strictly(store)
    except CatalogError as error:
        yield Verdict(version=None, damage=(str(error),))
        if version is None and not every:
            return
    names = [version] if version is not None else existing_versions(store) if every else []
    if version is None and published is not None and published.version not in names:
        names.append(published.version)
    if not names:
        raise nothing_published(store)
    for name in names:
        try:
            is_published = published is not None and published.version == name
            manifest = read_manifest(store, name, published.manifest_sha256 if published and is_published else None)
        except CatalogError as error:
            yield Verdict(version=name, damage=(str(error),))
            continue
        damage = tuple(find_damage(store, manifest))
        size_bytes = sum(entry.size_bytes for entry in manifest.files)
        yield Verdict(version=name, files=len(manifest.files), size_bytes=size_bytes, damage=damage)


def _read_latest_strictly(store: Store) -> Latest | None:
    """Read LATEST.json. Raises CatalogError if any byte differs from what was written."""
    latest = read_latest(store)
    if latest is None:
        return None
    # Its values are verified already. Changed white space is harmless, but shows that something else writes the file.
    if orjson.dumps(orjson.loads(latest.data), option=orjson.OPT_INDENT_2) + b"\n" != latest.data:
        raise CatalogError(
            f"{store.url}/{LATEST}: the file was modified after it was written. "
            f"To write it again: {publish_command(store, latest.version)}."
        )
    return latest


def find_damage(store: Store, manifest: Manifest) -> Iterator[str]:
    """Read every byte of a version and yield one sentence for each problem."""
    damaged = set()
    for entry in manifest.files:
        problem = check_file(store, manifest.version, entry)
        if problem:
            yield problem
            damaged.add(entry.name)
    listed = {entry.name: entry for entry in manifest.files}
    for index in manifest.indexes:
        names = [name for name in index.names if name not in listed]
        yield from (f"The {index.kind} index needs {name}, but the manifest does not list it." for name in names)
        vectors = sorted(name for name in listed if name.startswith(f"vectors/{index.kind}-"))
        if names or damaged & {*index.names, *vectors}:
            continue  # damaged files are not compared
        try:
            yield from _disagreements(store, manifest, index, vectors)
        except (pa.ArrowException, CatalogError, StoreError, OSError, RuntimeError, UnicodeDecodeError) as error:
            yield f"The {index.kind} files of version {manifest.version} cannot be read to the end: {error}"
    yield from _miscounts(store, manifest, damaged)


def _miscounts(store: Store, manifest: Manifest, damaged: set[str]) -> Iterator[str]:
    rows = {index.kind: index.rows for index in manifest.indexes}
    for kind, count in manifest.counts.per_kind.items():
        if rows.get(kind, 0) != count:
            yield f"The manifest counts {count} {kind} assets, but their index has {rows.get(kind, 0)} rows."
    letters = [entry for entry in manifest.files if entry.name.startswith("dead_letters/")]
    if damaged & {entry.name for entry in letters}:
        return
    dead = 0
    for entry in letters:
        name = f"{version_folder(manifest.version)}/{entry.name}"
        try:
            with store.open_read(name) as file:
                dead += sum(map(len, iterate_letters(file)))
        except (pa.ArrowException, OSError) as error:
            yield f"{store.url}/{name} cannot be read as dead letters: {' '.join(str(error).split())[:200]}."
            return
    if dead != manifest.counts.dead:
        yield f"The manifest counts {manifest.counts.dead} dead letters, but {dead} are stored."


def _disagreements(store: Store, manifest: Manifest, index: IndexEntry, vectors: list[str]) -> Iterator[str]:
    """Compare vectors, assets and index of a kind row by row; yield at most one sentence for each sort of problem."""
    prefix = version_folder(manifest.version)
    stored = 0
    for name in vectors:
        with store.open_read(f"{prefix}/{name}") as file:
            found = pq.read_metadata(file).num_rows
        if manifest.file(name).rows not in {None, found}:
            yield f"{prefix}/{name} must have {manifest.file(name).rows} rows, got {found}."
        stored += found
    for part in index.parts:
        if part.codes is None:
            continue
        with store.open_read(f"{prefix}/{part.vectors}") as file:
            rows = read_header(file, manifest.dimension)
        with open_codes(store, f"{prefix}/{part.codes}", manifest.dimension, rows):
            pass  # opening checks the codes
    place = f"{prefix}/{index.assets}"
    with store.open_read(place) as assets_file, contextlib.ExitStack() as stack:
        listed = count_assets(assets_file, f"{store.url}/{place}")
        files = [stack.enter_context(store.open_read(f"{prefix}/{name}")) for name in index.files]
        codes = StoredRows(files, manifest.dimension)
        coded = codes.rows
        if stored != index.rows:
            yield f"The {index.kind} index has {index.rows} rows, but {stored} vectors are stored."
        if listed != index.rows or coded != index.rows:
            yield (
                f"The {index.kind} index has {index.rows} rows, but its table of assets has {listed} and its files "
                f"have {coded}."
            )
        if not stored == listed == coded:
            return
        reported: set[str] = set()
        columns = {"asset_id"}
        ids = _Ids(iterate_assets(assets_file, f"{store.url}/{place}", manifest.metadata_types, listed, columns))
        row = 0
        for name in vectors:
            with store.open_read(f"{prefix}/{name}") as handle:
                file = open_vectors(handle, manifest, manifest.file(name))
                for group in range(file.num_row_groups):
                    # Arrow's threads may hold a Python buffer when the interpreter exits, which crashes it.
                    table = file.read_row_group(group, columns=["asset_id", "embedding"], use_threads=False)
                    for sort, sentence in _row_problems(table, ids, codes):
                        if sort not in reported:
                            reported.add(sort)
                            yield f"{prefix}/{name}, row group {group} (from row {row} of {index.kind}): {sentence}"
                    row += len(table)


def _row_problems(table: pa.Table, ids: "_Ids", codes: StoredRows) -> Iterator[tuple[str, str]]:
    names, listed = table.column("asset_id").to_pylist(), ids.take(len(table))
    if names != listed:
        i = next(i for i, (one, other) in enumerate(zip(names, listed, strict=True)) if one != other)
        yield "ids", f"the vector of {names[i]!r} is in the row where the table of assets has {listed[i]!r}."
    vectors = vectors_of(table)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    off = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # negated, so that NaN counts as off
    if len(off):
        yield "norm", f"the vector of {names[off[0]]!r} must have the norm 1, got {norms[off[0]]:.6g}."
    if codes.read(len(vectors)) != encode(vectors).tobytes():
        yield "codes", "the index holds other vectors than these."


class _Ids:
    """The ids of an assets file in row order, with one batch in memory at a time."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._ids: list[str] = []

    def take(self, count: int) -> list[str]:
        while len(self._ids) < count and (batch := next(self._batches, None)) is not None:
            self._ids += batch.column("asset_id").to_pylist()
        taken, self._ids = self._ids[:count], self._ids[count:]
        return taken
