"""Compare two versions: added, removed, changed and moved assets, and changed settings.

Only the tables of assets are read, no vectors. Each row takes 32 bytes of memory, about 50 during the comparison: its
position, 64-bit hashes of its id and content (probability of a collision among a million rows: 1 in 37 million), and
32-bit hashes of its metadata and uri (compared only between rows with the same id).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from ...configs.errors import CatalogError
from ...configs.schema import stored_prepare
from ..storage.store import Store
from ..vectors.assets_file import iterate_assets
from ..versions.files import check_file
from ..versions.layout import version_folder
from ..versions.manifest import IndexEntry, Manifest

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]

CHANGES = ("added", "removed", "moved", "changed", "metadata", "relocated")
"""In this order: only in the new version; only in the old version; same content under a new id; new content under the
same id; same content with other metadata; same content with another uri."""


@dataclass(frozen=True, kw_only=True)
class KindDiff:
    """The differences of one kind. An asset counts once, except that `relocated` is independent of `metadata`."""

    kind: str
    old_rows: int
    new_rows: int
    counts: Mapping[str, int]
    """Number of assets for each of `CHANGES`. `old_rows` + added - removed = `new_rows`."""
    samples: Mapping[str, tuple[str, ...]]
    """Some ids for each of `CHANGES`; `old → new` for a moved asset."""


@dataclass(frozen=True, kw_only=True)
class VersionDiff:
    """All differences between two versions."""

    old: str
    new: str
    kinds: tuple[KindDiff, ...]
    settings: Mapping[str, tuple[Any, Any]]
    """Changed values (old, new) of model, dimension, preparation, index and metadata columns."""


def diff_versions(store: Store, old: Manifest, new: Manifest, *, samples: int = 10) -> VersionDiff:
    """Compare two versions of a catalog.

    Args:
        store: The catalog.
        old: Manifest of the old version.
        new: Manifest of the new version.
        samples: Maximum number of sample ids per change.

    Raises:
        CatalogError: If a table of assets is missing or damaged.
    """
    kinds = []
    for kind in sorted({index.kind for index in (*old.indexes, *new.indexes)}):
        before, after = _Side(store, old, kind), _Side(store, new, kind)
        found = _compare(before, after)
        kinds.append(
            KindDiff(
                kind=kind,
                old_rows=len(before.ids),
                new_rows=len(after.ids),
                counts={change: max(len(one), len(other)) for change, (one, other) in found.items()},
                samples={change: _sample(before, after, *places, samples) for change, places in found.items()},
            )
        )
    return VersionDiff(old=old.version, new=new.version, kinds=tuple(kinds), settings=_settings(old, new))


class _Side:
    """The assets of one kind in one version as hashes, sorted by the hash of the id."""

    def __init__(self, store: Store, manifest: Manifest, kind: str) -> None:
        self._store = store
        entry = next((index for index in manifest.indexes if index.kind == kind), None)
        self._name = "" if entry is None else f"{version_folder(manifest.version)}/{entry.assets}"
        self._types = manifest.metadata_types
        self._all_rows = rows = 0 if entry is None else entry.rows
        words = {"ids": np.uint64, "contents": np.uint64, "metadata": np.uint32, "uris": np.uint32}
        found: dict[str, Any] = {name: np.empty(rows, word) for name, word in words.items()}
        if entry is not None:
            self._check(manifest, entry)
            first = 0
            for batch in self._batches({"asset_id", "content_sha256", "uri", "metadata"}):
                part = slice(first, first + batch.num_rows)
                has_metadata = "metadata" in batch.schema.names
                metadata = batch.column("metadata").to_pylist() if has_metadata else [None] * batch.num_rows
                found["ids"][part] = _hashes(batch.column("asset_id").to_pylist(), 8)
                found["contents"][part] = _hashes(batch.column("content_sha256").to_pylist(), 8)
                found["metadata"][part] = _hashes(map(_metadata_text, metadata), 4)
                found["uris"][part] = _hashes((uri or "" for uri in batch.column("uri").to_pylist()), 4)
                first = part.stop
        # One after the other, so that only one array at a time exists twice in memory.
        self.rows: Places = np.argsort(found["ids"], kind="stable")
        self.ids: Hashes = found.pop("ids")[self.rows]
        self.contents: Hashes = found.pop("contents")[self.rows]
        self.metadata: npt.NDArray[np.uint32] = found.pop("metadata")[self.rows]
        self.uris: npt.NDArray[np.uint32] = found.pop("uris")[self.rows]

    def names(self, places: Places) -> list[str]:
        """Return the asset ids at the given places."""
        rows = self.rows[places]
        names: dict[int, str] = {}
        first = 0
        for batch in self._batches({"asset_id"}) if len(rows) else ():
            for row in rows[(rows >= first) & (rows < first + batch.num_rows)].tolist():
                names[row] = batch.column("asset_id")[row - first].as_py()
            first += batch.num_rows
        return [names[row] for row in rows.tolist()]

    def _check(self, manifest: Manifest, entry: IndexEntry) -> None:
        problem = check_file(self._store, manifest.version, manifest.file(entry.assets))
        if problem:
            raise CatalogError(problem)

    def _batches(self, columns: set[str]) -> Iterable[pa.RecordBatch]:
        place = f"{self._store.url}/{self._name}"
        with self._store.open_read(self._name) as file:
            yield from iterate_assets(file, place, self._types, self._all_rows, columns)


def _compare(old: _Side, new: _Side) -> dict[str, tuple[Places, Places]]:
    """Return the places in the old and in the new version for each change; empty where a version lacks the asset."""
    nothing: Places = np.empty(0, np.int64)
    at = np.searchsorted(old.ids, new.ids)
    in_both = np.zeros(len(new.ids), bool)
    inside = at < len(old.ids)
    in_both[inside] = old.ids[at[inside]] == new.ids[inside]
    here, there = np.flatnonzero(in_both), at[in_both]
    del at, inside
    is_gone = np.ones(len(old.ids), bool)
    is_gone[there] = False
    added, removed = np.flatnonzero(~in_both), np.flatnonzero(is_gone)
    del in_both, is_gone
    was, now = _pair(old.contents[removed], new.contents[added])
    moved = removed[was], added[now]
    is_changed = old.contents[there] != new.contents[here]
    is_other = ~is_changed & (old.metadata[there] != new.metadata[here])
    is_relocated = ~is_changed & (old.uris[there] != new.uris[here])
    return {
        "added": (nothing, np.delete(added, now)),
        "removed": (np.delete(removed, was), nothing),
        "moved": moved,
        "changed": (there[is_changed], here[is_changed]),
        "metadata": (there[is_other], here[is_other]),
        "relocated": (there[is_relocated], here[is_relocated]),
    }


def _pair(old: Hashes, new: Hashes) -> tuple[Places, Places]:
    """Pair places with equal values, each place at most once: three copies and two copies give two pairs."""
    old_order, new_order = np.argsort(old, kind="stable"), np.argsort(new, kind="stable")
    old, new = old[old_order], new[new_order]
    first = np.searchsorted(old, new, "left")
    rank = np.arange(len(new)) - np.searchsorted(new, new, "left")
    paired = first + rank < np.searchsorted(old, new, "right")
    return old_order[(first + rank)[paired]], new_order[paired]


def _sample(old: _Side, new: _Side, before: Places, after: Places, count: int) -> tuple[str, ...]:
    one, other = old.names(before[:count]), new.names(after[:count])
    if one and other:
        return tuple(b if a == b else f"{a} → {b}" for a, b in zip(one, other, strict=True))
    return tuple(sorted(one or other))


def _hashes(values: Iterable[str], size_bytes: int) -> npt.NDArray[np.unsignedinteger]:
    digests = (hashlib.blake2b(value.encode(), digest_size=size_bytes).digest() for value in values)
    return np.frombuffer(b"".join(digests), f"<u{size_bytes}")


def _metadata_text(values: Mapping[str, Any] | None) -> str:
    """Serialise metadata without nulls, so that a new column changes only the rows with a value in it."""
    present = {name: value for name, value in (values or {}).items() if value is not None}
    return orjson.dumps(present, option=orjson.OPT_SORT_KEYS).decode()


def _settings(old: Manifest, new: Manifest) -> dict[str, tuple[Any, Any]]:
    before, after = _flat(old), _flat(new)
    names = sorted({*before, *after})
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def _flat(manifest: Manifest) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model": manifest.model,
        "model_fingerprint": manifest.model_fingerprint,
        "dimension": manifest.dimension,
        "metric": manifest.metric,
    }
    settings |= {f"metadata.{name}": value for name, value in manifest.metadata_types.items()}
    prepare = stored_prepare(manifest.config)
    sections = {
        "prepare": manifest.config.get("prepare") if prepare is None else prepare.model_dump(mode="json"),
        "index": manifest.config.get("index"),
    }
    for section, values in sections.items():
        settings |= {f"{section}.{name}": value for name, value in (values or {}).items()}
    return settings
