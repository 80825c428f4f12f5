"""Finds reusable vectors by the content that was embedded, so that the same content is not sent again."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...configs import PrepareConfig
from ...configs.errors import CatalogError, StoreError
from ...configs.schema import stored_prepare
from ..storage.store import Store
from ..versions.files import check_file
from ..versions.layout import KINDS, UNITS, is_unit, version_folder
from ..versions.manifest import IndexEntry, Manifest
from .assets_file import iterate_assets
from .folder_mark import FolderMark, open_marked
from .units import open_vectors, read_unit_footer

_GROUPS_KEPT = 4
_COLUMNS = ["content_sha256", "media_type", "width", "height", "prepared", "embedding"]
_WHOSE = ["kind", "content_sha256"]
_READERS = 8
_NORM_TOLERANCE = 1e-3
"""Rows of a folder may have been changed by the program that wrote them."""

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class ReusableVector:
    """A reusable vector and the stored facts about the image or text it was made from."""

    vector: npt.NDArray[np.float32]
    """float32, (dimension,), unit norm."""
    media_type: str
    width: int | None
    height: int | None
    prepared: str | None
    settings: PrepareConfig | None
    """The settings it was prepared with; None when `prepared` contains everything."""


@dataclass
class _Contents:
    """The known contents of one kind: the rows of all its row groups, in sequence."""

    groups: list[tuple[str, int]] = field(default_factory=list)
    """(file, row group)"""
    settings: list[PrepareConfig | None] = field(default_factory=list)
    """One for each row group."""
    sizes: list[int] = field(default_factory=list)
    parts: list[Keys] = field(default_factory=list)
    keys: Keys = field(default_factory=lambda: np.empty(0, np.uint64))
    """Sorted."""
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    starts: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def sort(self) -> None:
        keys = np.concatenate(self.parts) if self.parts else np.empty(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        self.keys, self.rows, self.parts = keys[order], order.astype(np.int64), []
        self.starts = np.cumsum([0, *self.sizes])[:-1].astype(np.int64)


class ReusableVectors:
    """Looks up contents in versions and unit files. Thread-safe; needs 16 bytes per row and a few row groups.

    A damaged file is treated as missing: its contents are embedded again.
    """

    def __init__(
        self,
        store: Store,
        manifests: Sequence[Manifest],
        embedding_config_hash: str,
        of_first_rules: Mapping[str, PrepareConfig] | None = None,
        folder: FolderMark | None = None,
    ) -> None:
        """Reads the keys of all available contents.

        Args:
            store: The catalog.
            manifests: The manifests of the versions whose vectors may be reused.
            embedding_config_hash: The hash of the units that may be reused, from runs that stopped before they wrote
                a version.
            of_first_rules: Embedding config hashes of units whose rows do not record their prepare settings, with
                these settings.
            folder: The mark of a folder of vectors that may be reused; its files are in `store`.
        """
        self._store = store
        self._contents: dict[str, _Contents] = {}
        self._kept: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        self._dimensions: dict[str, int] = {}
        """Of the files of a folder of vectors, which have other columns than those of a catalog."""
        for manifest in manifests:
            self._add_version(manifest)
        if folder is not None:
            self._add_folder(folder)
        self._add_units({**(of_first_rules or {}), embedding_config_hash: None})
        for contents in self._contents.values():
            contents.sort()

    def find(self, kind: str, content_sha256: str) -> ReusableVector | None:
        """Returns the vector of an asset of this kind and content, or None."""
        return next(self.find_all(kind, content_sha256), None)

    def find_all(self, kind: str, content_sha256: str) -> Iterator[ReusableVector]:
        """Returns all vectors of assets of this kind and content, those of the current version first."""
        contents = self._contents.get(kind)
        if contents is None:
            return
        key = content_key(content_sha256)
        first = int(np.searchsorted(contents.keys, key))
        for at in range(first, len(contents.keys)):
            if contents.keys[at] != key:
                return
            row = int(contents.rows[at])
            group = int(np.searchsorted(contents.starts, row, side="right")) - 1
            try:
                table = self._group(*contents.groups[group])
            except (pa.ArrowException, OSError, KeyError):
                continue
            values = table.slice(row - int(contents.starts[group]), 1)
            found = values.drop_columns(["embedding"]).to_pylist()[0]
            if found.pop("content_sha256") == content_sha256:  # the keys compare only the first 64 bits
                vector = np.array(values.column("embedding").chunk(0).flatten(), np.float32)
                if not abs(float(np.linalg.norm(vector)) - 1) < _NORM_TOLERANCE:
                    continue
                yield ReusableVector(vector=vector, settings=contents.settings[group], **found)

    def _add_version(self, manifest: Manifest) -> None:
        prefix = version_folder(manifest.version)
        for index in manifest.indexes:
            try:
                parts = list(content_keys(self._store, manifest, index))
                groups, sizes = [], []
                names = [f.name for f in manifest.files if f.name.startswith(f"vectors/{index.kind}-")]
                for name in sorted(names):
                    with self._store.open_read(f"{prefix}/{name}") as file:
                        metadata = open_vectors(file, manifest, manifest.file(name)).metadata
                    groups += [(f"{prefix}/{name}", g) for g in range(metadata.num_row_groups)]
                    sizes += [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
            except (pa.ArrowException, OSError, StoreError, CatalogError):
                continue
            if sum(sizes) == sum(map(len, parts)):
                contents = self._contents.setdefault(index.kind, _Contents())
                contents.groups += groups
                contents.settings += [stored_prepare(manifest.config)] * len(groups)
                contents.sizes += sizes
                contents.parts += parts

    def _add_folder(self, mark: FolderMark) -> None:
        for entry in mark.files:
            if mark.dimension is None or self._store.size(entry.name) != entry.size_bytes:
                continue
            self._dimensions[entry.name] = mark.dimension
            try:
                with self._store.open_read(entry.name) as handle:
                    file = self._open(handle, entry.name)
                    found = [_keys_by_kind(_read_group(file, i, _WHOSE)) for i in range(file.num_row_groups)]
            except (pa.ArrowException, OSError, StoreError):
                continue
            for number, keys_by_kind in enumerate(found):
                for kind, keys in keys_by_kind.items():
                    contents = self._contents.setdefault(kind, _Contents())
                    contents.groups.append((entry.name, number))
                    contents.settings.append(None)
                    contents.sizes.append(len(keys))
                    contents.parts.append(keys)

    def _open(self, handle: Any, name: str) -> Any:
        dimension = self._dimensions.get(name)
        return open_vectors(handle) if dimension is None else open_marked(handle, dimension)

    def _add_units(self, config_hashes: Mapping[str, PrepareConfig | None]) -> None:
        names = [name for name in self._store.names(UNITS) if is_unit(name)]
        with ThreadPoolExecutor(_READERS) as pool:
            for name, found in zip(
                names, pool.map(lambda name: self._unit_keys(name, config_hashes), names), strict=True
            ):
                if found is not None:
                    kind, keys, embedding_config_hash = found
                    contents = self._contents.setdefault(kind, _Contents())
                    contents.groups.append((name, 0))
                    contents.settings.append(config_hashes[embedding_config_hash])
                    contents.sizes.append(len(keys))
                    contents.parts.append(keys)

    def _unit_keys(self, name: str, config_hashes: Mapping[str, PrepareConfig | None]) -> tuple[str, Keys, str] | None:
        try:
            footer = read_unit_footer(self._store, name.removeprefix(f"{UNITS}/").removesuffix(".parquet"))
            if footer is None or footer.embedding_config_hash not in config_hashes or not footer.rows:
                return None
            with self._store.open_read(name) as file:
                table = _read_group(open_vectors(file), 0, _WHOSE)
        except (pa.ArrowException, OSError, KeyError):
            return None
        return table.column("kind")[0].as_py(), _keys(table.column("content_sha256")), footer.embedding_config_hash

    def _group(self, name: str, number: int) -> pa.Table:
        with self._lock:
            if (name, number) in self._kept:
                self._kept.move_to_end((name, number))
                return self._kept[name, number]
            with self._store.open_read(name) as file:
                self._kept[name, number] = _read_group(self._open(file, name), number, _COLUMNS).combine_chunks()
            while len(self._kept) > _GROUPS_KEPT:
                self._kept.popitem(last=False)
            return self._kept[name, number]


def content_keys(store: Store, manifest: Manifest, index: IndexEntry) -> Iterator[Keys]:
    """Yields the first 64 bits of the content hash of each row of a kind, batch by batch.

    Raises:
        CatalogError: When the table of assets does not belong to the kind.
        pa.ArrowInvalid: When a row has no valid content sha256.
        StoreError: When the table of assets is missing or damaged; reading an unverified table may crash.
    """
    problem = check_file(store, manifest.version, manifest.file(index.assets))
    if problem:
        raise StoreError(problem)
    name, columns = f"{version_folder(manifest.version)}/{index.assets}", ["content_sha256"]
    with store.open_read(name) as file:
        for batch in iterate_assets(file, f"{store.url}/{name}", manifest.metadata_types, index.rows, columns):
            yield _keys(batch.column(0))


def _read_group(file: Any, number: int, columns: list[str]) -> pa.Table:
    return file.read_row_group(number, columns=columns, use_threads=False)


def _keys(column: pa.Array | pa.ChunkedArray) -> Keys:
    try:
        return np.array([content_key(s) for s in column.to_pylist()], np.uint64)
    except (ValueError, TypeError) as error:
        raise pa.ArrowInvalid(f"content_sha256 is not a sha256: {error}") from error


def _keys_by_kind(table: pa.Table) -> dict[str, Keys]:
    """Return the keys of the rows of each kind. Rows of the other kind and without a hash keep their place, as 0."""
    kinds, hashes = table.column("kind").to_pylist(), table.column("content_sha256").to_pylist()
    rows = list(zip(kinds, (digest or "0" for digest in hashes), strict=True))
    try:
        return {
            kind: np.array([content_key(digest) if of == kind else 0 for of, digest in rows], np.uint64)
            for kind in set(kinds) & set(KINDS)
        }
    except ValueError as error:
        raise pa.ArrowInvalid(f"content_sha256 is not a sha256: {error}") from error


def content_key(content_sha256: str) -> np.uint64:
    return np.uint64(int(content_sha256[:16], 16))
