"""Rows reused from the previous version: read, checked, and given their current metadata."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs.errors import DamagedFileError
from ...index.storage.store import Store
from ...index.vectors.letters import iterate_letters
from ...index.vectors.units import ReusedGroup, open_vectors
from ...index.versions.files import check_file
from ...index.versions.layout import DEAD_LETTER_SCHEMA, version_folder
from ...index.versions.manifest import FileEntry, Manifest
from ..planning.compare import Changes, reused_schema
from ..planning.plan import Plan, PlanReader, plan_name, reused_dead_name, reused_name


def plan_all_reused(store: Store, version: str, manifest: Manifest) -> Plan:
    """Plan a version that reuses every row and every dead letter of another version. No vector is read.

    Args:
        store: The catalog.
        version: The new version; the plan is written to its run folder.
        manifest: Manifest of the version to reuse.

    Raises:
        DamagedFileError: When a file of the reused version cannot be read.
    """
    reused_groups = write_reused(store, version, manifest)
    rows: Counter[str] = Counter()
    for group in reused_groups:
        rows[group.kind] += group.rows
    dead: Counter[str] = Counter()
    if manifest.counts.dead:
        with (
            store.open_write(reused_dead_name(version)) as file,
            pq.ParquetWriter(pa.PythonFile(file, mode="w"), DEAD_LETTER_SCHEMA) as writer,
        ):
            for letters in iterate_dead_letters(store, manifest):
                dead.update(letters.column("kind").to_pylist())
                writer.write_table(letters)
    kinds = sorted({*manifest.counts.per_kind, *rows, *dead})
    changes = Changes(
        assets={kind: rows[kind] + dead[kind] for kind in kinds},
        size_bytes={},
        unchanged=dict(rows),
        dead=dict(dead),
        new={},
        differing={},
        deleted={},
        other_metadata=0,
    )
    return Plan(name=plan_name(version), units=(), reused_groups=reused_groups, changes=changes, base=manifest.version)


def write_reused(
    store: Store,
    version: str,
    manifest: Manifest,
    places: Mapping[tuple[str, int], npt.NDArray[np.int32]] | None = None,
) -> tuple[ReusedGroup, ...]:
    """Write which rows of another version are reused, with their metadata. No vector is read.

    Args:
        store: The catalog.
        version: The new version; the file is written to its run folder.
        manifest: Manifest of the version to reuse.
        places: By file and row group, the positions of the rows to reuse, sorted; None: all rows.

    Raises:
        DamagedFileError: When a file of the reused version cannot be read.
    """
    schema = reused_schema(manifest.metadata_types)
    groups: list[ReusedGroup] = []
    with (
        store.open_write(reused_name(version)) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema) as writer,
    ):
        for entry in _entries(manifest, "vectors/"):
            name = f"{version_folder(manifest.version)}/{entry.name}"
            for number, table in enumerate(_assets(store, manifest, entry)):
                positions = np.arange(len(table), dtype=np.int32) if places is None else places.get((name, number))
                if positions is None or not len(positions):
                    continue
                placed = table.take(pa.array(positions)).append_column("position", pa.array(positions))
                writer.write_table(placed.select(schema.names).cast(schema))
                groups.append(
                    ReusedGroup(
                        kind=table.column("kind")[0].as_py(),
                        file=name,
                        group=number,
                        row_group=len(groups),
                        rows=len(positions),
                    )
                )
    return tuple(groups)


def iterate_dead_letters(store: Store, manifest: Manifest) -> Iterator[pa.Table]:
    """Read the dead letters of a version, also of one that an earlier release wrote.

    Raises:
        DamagedFileError: When the file does not match the manifest.
    """
    for entry in _entries(manifest, "dead_letters/"):
        name = f"{version_folder(manifest.version)}/{entry.name}"
        if problem := check_file(store, manifest.version, entry):
            raise DamagedFileError(problem, file=name)
        with store.open_read(name) as file:
            try:
                yield from iterate_letters(file)
            except pa.ArrowInvalid as error:
                raise DamagedFileError(_damage(store, name, error), file=name) from error


def _entries(manifest: Manifest, folder: str) -> list[FileEntry]:
    return [entry for entry in manifest.files if entry.name.startswith(folder)]


def _assets(store: Store, manifest: Manifest, entry: FileEntry) -> Iterator[pa.Table]:
    """Read ids, kinds and metadata of a file of vectors, one row group at a time."""
    name = f"{version_folder(manifest.version)}/{entry.name}"
    columns = ["asset_id", "kind", *(["metadata"] if manifest.metadata_types else [])]
    rows = 0
    try:
        if store.size(name) != entry.size_bytes:
            raise OSError("its size differs from the manifest")
        with store.open_read(name) as handle:
            file = open_vectors(handle, manifest, entry)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=columns, use_threads=False)
                rows += len(table)
                yield table
        if rows != entry.rows:
            raise OSError("its number of rows differs from the manifest")
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DamagedFileError(_damage(store, name, error), file=name) from error


def _damage(store: Store, name: str, why: object) -> str:
    reason = " ".join(str(why).split())[:200]
    return f"{store.url}/{name}: the file is damaged ({reason})."


class ReusedRows:
    """Reads the reused groups of one run, in their order. Use it in a `with` block: it keeps the last file open."""

    def __init__(self, store: Store, version: str) -> None:
        self._store = store
        self._version = version
        self._stack = contextlib.ExitStack()
        self._rows: PlanReader | None = None
        self._name = ""
        self._file: Any = None

    def __enter__(self) -> "ReusedRows":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def read(self, group: ReusedGroup) -> pa.Table:
        """Read the rows of a group with all columns, and check every page.

        Raises:
            DamagedFileError: When a page is damaged, or a row is not the asset that was compared.
        """
        if self._rows is None:
            self._rows = self._stack.enter_context(PlanReader(self._store, reused_name(self._version)))
        wanted = self._rows.read(group.row_group)
        try:
            table = self._open(group.file).read_row_group(group.group, use_threads=False)
            if len(wanted) < len(table):
                table = table.take(wanted.column("position"))
            same = table.column("asset_id").equals(wanted.column("asset_id"))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DamagedFileError(_damage(self._store, group.file, error), file=group.file) from error
        if not same:
            why = "its rows are not those that were compared"
            raise DamagedFileError(_damage(self._store, group.file, why), file=group.file)
        if "metadata" in table.schema.names:
            table = table.drop_columns(["metadata"])
        if "metadata" in wanted.schema.names:
            table = table.append_column("metadata", wanted.column("metadata"))
        return table

    def _open(self, name: str) -> Any:
        if name != self._name:
            handle = self._stack.enter_context(contextlib.closing(self._store.open_read(name)))
            self._file = open_vectors(handle)
            self._name = name
        return self._file
