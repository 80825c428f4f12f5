"""Opens a subset of a version's index files, for a worker that searches its share of a large catalog."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..local.local_files import local_files
from ..storage.store import Store
from ..versions.manifest import IndexEntry, IndexFile, Manifest, read_manifest
from .kind_index import IndexPaths, KindIndex


@dataclass(frozen=True, kw_only=True)
class IndexPart:
    """An index file with its codes."""

    kind: str
    number: int
    """Its position among the files of its kind."""
    first_row: int
    rows: int
    size_bytes: int


def index_parts(manifest: Manifest, kinds: Iterable[str]) -> list[IndexPart]:
    """Returns the index files of some kinds, in the order of their rows."""
    found = []
    for entry in manifest.indexes:
        if entry.kind not in kinds:
            continue
        first = 0
        for number, part in enumerate(entry.parts):
            rows = manifest.file(part.vectors).rows or 0
            size = sum(manifest.file(name).size_bytes for name in part if name is not None)
            found.append(IndexPart(kind=entry.kind, number=number, first_row=first, rows=rows, size_bytes=size))
            first += rows
    return found


def group_parts(parts: Iterable[IndexPart], max_bytes: int) -> list[tuple[IndexPart, ...]]:
    """Groups adjacent files of one kind up to `max_bytes`; a larger file forms its own group."""
    groups: list[list[IndexPart]] = []
    for part in parts:
        last = groups[-1] if groups else []
        if last and last[0].kind == part.kind and sum(p.size_bytes for p in last) + part.size_bytes <= max_bytes:
            last.append(part)
        else:
            groups.append([part])
    return [tuple(group) for group in groups]


def open_parts(url: str, version: str, parts: Sequence[IndexPart], cache_folder: Path | None = None) -> KindIndex:
    """Opens adjacent files of one kind and the table of all its assets.

    Raises:
        CatalogError: When a file is missing, damaged or of a newer format.
    """
    store = Store(url)
    manifest = read_manifest(store, version)
    (entry,) = [entry for entry in manifest.indexes if entry.kind == parts[0].kind]
    files = [entry.parts[part.number] for part in parts]
    return _open(store, manifest, entry, files, parts[0].first_row, cache_folder)


def open_assets(url: str, version: str, cache_folder: Path | None = None) -> dict[str, KindIndex]:
    """Opens the assets tables of all kinds, without vectors, to look up the assets of found rows."""
    store = Store(url)
    manifest = read_manifest(store, version)
    return {entry.kind: _open(store, manifest, entry, [], 0, cache_folder) for entry in manifest.indexes}


def _open(
    store: Store,
    manifest: Manifest,
    entry: IndexEntry,
    files: Sequence[IndexFile],
    first_row: int,
    cache_folder: Path | None,
) -> KindIndex:
    wanted = [*(name for file in files for name in file if name is not None), entry.assets]
    entries = [manifest.file(name) for name in wanted]
    with local_files(store, manifest.version, entries, cache_folder=cache_folder) as paths:
        parts = [IndexPaths.of(file, manifest, paths) for file in files]
        return KindIndex(manifest, entry, parts, paths[entry.assets], first_row=first_row)
