"""Vectors that an earlier version holds, found by what was embedded: the same content is never paid again."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from .layout import version_folder
from .manifest import Manifest
from .store import Store

_GROUPS_KEPT = 4
_COLUMNS = ["content_sha256", "media_type", "width", "height", "prepared", "embedding"]


@dataclass(frozen=True, kw_only=True)
class PaidVector:
    """A vector and what is known of the picture or text that it was paid for."""

    vector: npt.NDArray[np.float32]
    """float32, (dimension,), unit norm."""
    media_type: str
    width: int | None
    height: int | None
    prepared: str | None


class PaidVectors:
    """Looks contents up in a version. 16 bytes of memory a row, and a few row groups; any thread may call it.

    A file that turns out damaged is treated as if it were not there: its contents are embedded anew.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._prefix = version_folder(manifest.version)
        self._keys: dict[str, npt.NDArray[np.uint64]] = {}
        self._rows: dict[str, npt.NDArray[np.int64]] = {}
        self._groups: dict[str, list[tuple[str, int]]] = {}
        self._starts: dict[str, npt.NDArray[np.int64]] = {}
        self._kept: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        for index in manifest.indexes:
            try:
                self._load(manifest, index.kind, index.assets)
            except (pa.ArrowInvalid, OSError, ValueError):
                self._keys.pop(index.kind, None)

    def find(self, kind: str, content_sha256: str) -> PaidVector | None:
        """The vector of an asset of this kind and content, if the version has one."""
        keys = self._keys.get(kind)
        if keys is None or not len(keys):
            return None
        key = _key(content_sha256)
        at = int(np.searchsorted(keys, key))
        if at == len(keys) or keys[at] != key:
            return None
        row = int(self._rows[kind][at])
        group = int(np.searchsorted(self._starts[kind], row, side="right")) - 1
        try:
            table = self._group(kind, group)
        except (pa.ArrowInvalid, OSError):
            return None
        values = table.slice(row - int(self._starts[kind][group]), 1)
        found = values.drop_columns(["embedding"]).to_pylist()[0]
        if found.pop("content_sha256") != content_sha256:  # only the first 64 bits were compared so far
            return None
        vector = np.array(values.column("embedding").chunk(0).flatten(), np.float32)
        return PaidVector(vector=vector, **found)

    def _load(self, manifest: Manifest, kind: str, assets: str) -> None:
        with self._store.open_read(f"{self._prefix}/{assets}") as file:
            reader = pa.ipc.open_file(file)
            column = reader.schema.get_field_index("content_sha256")
            parts = [
                np.array([_key(s) for s in reader.get_batch(i).column(column).to_pylist()], np.uint64)
                for i in range(reader.num_record_batches)
            ]
        keys = np.concatenate(parts) if parts else np.empty(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        self._keys[kind], self._rows[kind] = keys[order], order.astype(np.int64)
        groups, sizes = [], []
        for entry in sorted((f for f in manifest.files if f.name.startswith(f"vectors/{kind}-")), key=lambda f: f.name):
            with self._store.open_read(f"{self._prefix}/{entry.name}") as file:
                metadata = pq.read_metadata(file)
            groups += [(entry.name, g) for g in range(metadata.num_row_groups)]
            sizes += [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        self._groups[kind] = groups
        self._starts[kind] = np.cumsum([0, *sizes])[:-1].astype(np.int64)
        if sum(sizes) != len(keys):
            raise ValueError("vectors and assets differ in number")

    def _group(self, kind: str, group: int) -> pa.Table:
        with self._lock:
            if (kind, group) in self._kept:
                self._kept.move_to_end((kind, group))
                return self._kept[kind, group]
            name, number = self._groups[kind][group]
            with self._store.open_read(f"{self._prefix}/{name}") as file:
                reader: Any = pq.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)
                self._kept[kind, group] = reader.read_row_group(number, columns=_COLUMNS).combine_chunks()
            while len(self._kept) > _GROUPS_KEPT:
                self._kept.popitem(last=False)
            return self._kept[kind, group]


def _key(content_sha256: str) -> np.uint64:
    return np.uint64(int(content_sha256[:16], 16))
