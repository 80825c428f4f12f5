"""The queries of a bulk search: find them, cut them into blocks, and read them with their vectors."""

import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...configs.errors import DamagedFileError
from ...index.storage.store import Store
from ...index.vectors.units import UnitRecord, open_vectors, read_unit, vectors_of
from ...index.versions.layout import DeadLetter, Reason, version_folder
from ...index.versions.manifest import FileEntry, Manifest
from ..planning.plan import PlanReader, Unit
from ..versions.imported_rows import read_imported
from ..versions.imports import ImportedGroup, VectorFolder

QUERY_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("query_kind", pa.string(), nullable=False),
        pa.field("query_source", pa.string(), nullable=False),
        pa.field("query", pa.string()),
    ]
)
"""`query_source`: the entry in the job, such as `queries[0]`. `query`: the text, or the URI of an image."""


@dataclass(frozen=True, kw_only=True)
class UnitQueries:
    """Queries of a unit that this job embeds."""

    unit: Unit

    @property
    def kind(self) -> str:
        return self.unit.kind

    @property
    def rows(self) -> int:
        return self.unit.references

    @property
    def key(self) -> str:
        return self.unit.name


@dataclass(frozen=True, kw_only=True)
class VectorGroup:
    """Queries whose vectors are in a file of the user."""

    source: int
    """Position in the job's `vectors`."""
    group: ImportedGroup
    fingerprint: str
    """Fingerprint of the file."""

    @property
    def kind(self) -> str:
        return self.group.kind

    @property
    def rows(self) -> int:
        return self.group.rows

    @property
    def key(self) -> str:
        return f"vectors[{self.source}] {self.group.file} {self.group.group} {self.rows} {self.fingerprint}"


@dataclass(frozen=True, kw_only=True)
class AssetGroup:
    """Queries that are assets of a catalog: rows of one row group in its Parquet files."""

    source: int
    """Position in the job's `assets`."""
    catalog: str
    file: str
    """Name of the file in that catalog's store."""
    group: int
    kind: str
    rows: int
    positions: tuple[int, ...] | None
    """Positions of the requested rows; None: all rows."""
    is_same: bool
    """Whether the assets are in the version that is searched."""

    @property
    def key(self) -> str:
        return f"assets[{self.source}] {self.catalog} {self.file} {self.group} {self.positions}"


QueryGroup = UnitQueries | VectorGroup | AssetGroup


@dataclass(frozen=True, kw_only=True)
class Block:
    """Queries of one kind that are searched together. Small, because the runner shuffles blocks."""

    number: int
    groups: tuple[QueryGroup, ...]

    @property
    def kind(self) -> str:
        return self.groups[0].kind

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The queries of a block and their vectors."""

    table: pa.Table
    """`QUERY_SCHEMA`."""
    vectors: npt.NDArray[np.float32]
    """(rows, dimension), unit norm."""
    is_same: npt.NDArray[np.bool_]
    """bool, (rows,): whether a query is an asset of the version that is searched."""
    dead: list[DeadLetter]
    """Queries from the user's files that have an invalid vector."""


def cut_blocks(groups: Iterable[QueryGroup], size: int) -> list[Block]:
    """Pack groups, in their order, into blocks of one kind and about `size` queries."""
    blocks: list[list[QueryGroup]] = []
    for _, of_kind in itertools.groupby(sorted(groups, key=lambda group: group.kind), lambda group: group.kind):
        held = size
        for group in of_kind:
            if held >= size:
                blocks.append([])
                held = 0
            blocks[-1].append(group)
            held += group.rows
    return [Block(number=i, groups=tuple(held)) for i, held in enumerate(blocks)]


def embedded(block: Block, records: Mapping[str, UnitRecord]) -> Block | None:
    """Return the block without empty units; `references` of each other unit becomes its number of rows."""
    groups: list[QueryGroup] = []
    for group in block.groups:
        if not isinstance(group, UnitQueries):
            groups.append(group)
        elif rows := records[group.unit.name].rows:
            groups.append(replace(group, unit=replace(group.unit, references=rows)))
    return replace(block, groups=tuple(groups)) if groups else None


def find_assets(
    store: Store,
    manifest: Manifest,
    *,
    kind: str | None,
    ids: Sequence[str] | None,
    source: int,
    is_same: bool,
) -> tuple[list[AssetGroup], list[str]]:
    """Return the requested rows of a version by row group, and the ids that the version does not have."""
    groups: list[AssetGroup] = []
    missing = None if ids is None else dict.fromkeys(ids)
    wanted = None if ids is None else pa.array(list(missing or ()), pa.string())
    prefixes = [f"vectors/{name}-" for name in (kind,) if name] or ["vectors/"]
    for entry in manifest.files:
        if not any(entry.name.startswith(prefix) for prefix in prefixes):
            continue
        name = f"{version_folder(manifest.version)}/{entry.name}"
        for number, table in _iterate_columns(store, manifest, entry, ["asset_id", "kind"]):
            positions = None
            if wanted is not None and missing is not None:
                found = pc.is_in(table.column("asset_id"), value_set=wanted).to_numpy(zero_copy_only=False)
                positions = tuple(np.flatnonzero(found).tolist())
                for asset_id in table.column("asset_id").take(pa.array(positions, pa.int64())).to_pylist():
                    missing.pop(asset_id, None)
                if not positions:
                    continue
            groups.append(
                AssetGroup(
                    source=source,
                    catalog=store.url,
                    file=name,
                    group=number,
                    kind=table.column("kind")[0].as_py(),
                    rows=len(table) if positions is None else len(positions),
                    positions=positions,
                    is_same=is_same,
                )
            )
    return groups, list(missing or ())


def missing_letters(kind: str, ids: Sequence[str], source: int, catalog: str) -> list[DeadLetter]:
    return [
        DeadLetter(
            asset_id=asset_id,
            kind=kind,
            uri=None,
            stage="read",
            reason=Reason.MISSING,
            detail=f"assets[{source}]: {catalog} has no {kind} with this id",
        )
        for asset_id in ids
    ]


def read_queries(block: Block, output: Store, plan: str | None, folders: Sequence[VectorFolder]) -> Queries:
    """Read the queries of a block and their vectors.

    Args:
        block: The block; its units must be finished.
        output: The store of the job's output, which contains the units.
        plan: The name of the plan file of the units.
        folders: The folders of the job's `vectors`.

    Raises:
        DamagedFileError: When a file of vectors is damaged.
        SourceError: When a file of the user cannot be read.
    """
    tables: list[pa.Table] = []
    vectors: list[npt.NDArray[np.float32]] = []
    same: list[npt.NDArray[np.bool_]] = []
    dead: list[DeadLetter] = []
    for group in block.groups:
        for table, source, letters in _read(group, output, plan, folders):
            tables.append(_words(table, source))
            vectors.append(vectors_of(table))
            same.append(np.full(len(table), isinstance(group, AssetGroup) and group.is_same))
            dead += letters
    return Queries(
        table=pa.concat_tables(tables).combine_chunks(),
        vectors=np.concatenate(vectors),
        is_same=np.concatenate(same),
        dead=dead,
    )


def _read(
    group: QueryGroup, output: Store, plan: str | None, folders: Sequence[VectorFolder]
) -> Iterator[tuple[pa.Table, pa.Array | str, list[DeadLetter]]]:
    if isinstance(group, VectorGroup):
        for table, dead in read_imported(folders[group.source], [group.group]):
            yield table, f"vectors[{group.source}]", dead
    elif isinstance(group, AssetGroup):
        table = _read_assets(group)
        yield table, f"assets[{group.source}]", []
    else:
        assert plan is not None
        table = read_unit(output, group.unit.name)
        with PlanReader(output, plan) as reader:
            references = reader.read(group.unit.row_group, ["asset_id", "source"])
        sources = dict(zip(*(references.column(name).to_pylist() for name in ("asset_id", "source")), strict=True))
        names = [f"queries[{sources[name]}]" for name in table.column("asset_id").to_pylist()]
        yield table, pa.array(names, pa.string()), []


def _read_assets(group: AssetGroup) -> pa.Table:
    store = Store(group.catalog)
    columns = ["asset_id", "kind", "uri", "text", "embedding"]
    try:
        with store.open_read(group.file) as handle:
            table = open_vectors(handle).read_row_group(group.group, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(store, group.file, error) from error
    return table if group.positions is None else table.take(pa.array(group.positions, pa.int64()))


def _iterate_columns(
    store: Store, manifest: Manifest, entry: FileEntry, columns: list[str]
) -> Iterator[tuple[int, pa.Table]]:
    name = f"{version_folder(manifest.version)}/{entry.name}"
    try:
        with store.open_read(name) as handle:
            file = open_vectors(handle, manifest, entry)
            for number in range(file.num_row_groups):
                yield number, file.read_row_group(number, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(store, name, error) from error


def _damaged(store: Store, name: str, error: Exception) -> DamagedFileError:
    reason = " ".join(str(error).split())[:200]
    return DamagedFileError(
        f"{store.url}/{name}: the file cannot be read ({reason}). "
        f"Run `epithre-beam versions verify {shlex.quote(store.url)}` for details.",
        file=name,
    )


def _words(table: pa.Table, source: pa.Array | str) -> pa.Table:
    if isinstance(source, str):
        source = pa.array([source] * len(table), pa.string())
    query = pc.coalesce(table.column("text"), table.column("uri"))
    columns = [table.column("asset_id"), table.column("kind"), source, query]
    return pa.table(columns, schema=QUERY_SCHEMA)
