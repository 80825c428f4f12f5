"""Classify the rows of a run's units by comparison with the previous version, for the counts and the gates."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq

from ...configs.errors import StoreError
from ...index.storage.store import Store
from ...index.vectors.reusable import Keys, content_key, content_keys
from ...index.vectors.units import UnitRecord
from ...index.versions.layout import unit_name
from ...index.versions.manifest import Manifest
from .plan import PlanReader, deleted_name, plan_name


@dataclass(frozen=True, kw_only=True)
class UnitChanges:
    """Counts of a run's units compared with the previous version."""

    counts: Counter[str]
    """Rows that are `touched`, `prepared_anew`, `changed`, `moved`, `copied` or `new`."""
    lost: Counter[str] = field(default_factory=Counter)
    """By kind, rows of the previous version whose id is listed but has no vector now."""
    changed: Counter[str] = field(default_factory=Counter)
    """By kind, rows of the previous version whose id has another content now."""


def count_changes(
    store: Store,
    version: str,
    records: Sequence[UnitRecord],
    base: Manifest | None,
    *,
    has_deleted: bool,
    is_compared: bool = True,
) -> UnitChanges:
    """Count the units' rows as `touched`, `prepared_anew`, `changed`, `moved`, `copied` or `new`.

    Args:
        store: The catalog.
        version: The new version, whose run folder has the plan.
        records: The records of its units.
        base: The version whose rows are reused; without it, every row is new.
        has_deleted: Whether assets of `base` are deleted.
        is_compared: Whether the plan has the contents of the previous version; possible without `base`.
    """
    found = UnitChanges(counts=Counter())
    counts = found.counts
    if not is_compared or not records:
        counts["new"] = sum(record.rows for record in records)
        return found
    gone = _deleted(store, version) if has_deleted else {}
    known: dict[str, Keys] = {}
    with PlanReader(store, plan_name(version)) as plan:
        for record in records:
            references = plan.read(record.row_group, ["asset_id", "previous_sha256", "again"]).to_pydict()
            before = dict(zip(references["asset_id"], references["previous_sha256"], strict=True))
            if not record.rows:
                found.lost[record.kind] += sum(content is not None for content in before.values())
                continue
            again = {name for name, why in zip(references["asset_id"], references["again"], strict=True) if why}
            with store.open_read(unit_name(record.unit)) as file:
                rows = (
                    pq.ParquetFile(file, pre_buffer=False)
                    .read(["asset_id", "content_sha256"], use_threads=False)
                    .to_pydict()
                )
            if base is not None and record.reused_rows and record.kind not in known:
                known[record.kind] = _contents(store, base, record.kind)
            for name, content in zip(rows["asset_id"], rows["content_sha256"], strict=True):
                previous = before.pop(name)
                found.changed[record.kind] += previous not in {None, content}
                if base is None:
                    counts["new"] += 1
                elif previous is not None:
                    same = "prepared_anew" if name in again else "touched"
                    counts[same if previous == content else "changed"] += 1
                elif content in gone.get(record.kind, ()):
                    counts["moved"] += 1
                else:
                    counts["copied" if _has(known.get(record.kind), content) else "new"] += 1
            found.lost[record.kind] += sum(content is not None for content in before.values())
    return found


def _deleted(store: Store, version: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    with store.open_read(deleted_name(version)) as file:
        for batch in pq.ParquetFile(file).iter_batches(use_threads=False):
            for row in batch.to_pylist():
                found.setdefault(row["kind"], set()).add(row["content_sha256"])
    return found


def _contents(store: Store, base: Manifest, kind: str) -> Keys:
    """Return the content keys of the previous version, sorted; 8 bytes per row."""
    parts = []
    for index in base.indexes:
        if index.kind == kind:
            try:
                parts += list(content_keys(store, base, index))
            except (OSError, StoreError):
                continue  # unreadable: copies of its rows count as new
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.uint64)


def _has(keys: Keys | None, content_sha256: str) -> bool:
    if keys is None or not len(keys):
        return False
    at = int(np.searchsorted(keys, content_key(content_sha256)))
    return at < len(keys) and keys[at] == content_key(content_sha256)
