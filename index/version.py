"""A version's last steps: collect what failed, check that nothing was lost, judge, write the manifest."""

import datetime
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import faiss
import pyarrow as pa
import pyarrow.parquet as pq

from ..configs import GuardConfig
from .layout import (
    DEAD_LETTER_SCHEMA,
    dead_letters_name,
    manifest_name,
    version_folder,
)
from .manifest import CatalogError, Counts, FileEntry, IndexEntry, Manifest
from .shards import ShardRecord
from .store import Store
from .units import CarriedGroup, UnitRecord, read_dead_letter_table

_DEFAULT_DEAD_SHARE = 0.01
_DEAD_LET_THROUGH = 5
_DEFAULT_SHRINKAGE = 0.2
_ROWS_LET_GO = 20
_SAMPLES = 5


class DeadLetterSummary:
    """Dead letters counted by reason, with a few of each to look at."""

    def __init__(self) -> None:
        self.by_reason: Counter[str] = Counter()
        self.samples: dict[str, list[dict[str, Any]]] = {}

    def add(self, letter: dict[str, Any]) -> None:
        self.by_reason[letter["reason"]] += 1
        samples = self.samples.setdefault(letter["reason"], [])
        if len(samples) < _SAMPLES:
            samples.append(letter)


def write_dead_letters(
    store: Store, version: str, records: Sequence[UnitRecord], others: Sequence[str] = ()
) -> tuple[FileEntry | None, DeadLetterSummary]:
    """Gathers dead letters into the version's own file; (None, …) when there are none.

    Args:
        store: The catalog.
        version: Where the file goes.
        records: The units of the run.
        others: Files of letters that are no units', such as those taken over from the version before.
    """
    summary = DeadLetterSummary()
    units = [record.unit for record in sorted(records, key=lambda record: record.unit) if record.dead]
    if not units and not others:
        return None, summary

    def tables() -> Iterator[pa.Table]:
        for other in others:
            with store.open_read(other) as file:
                for batch in pq.ParquetFile(file).iter_batches(use_threads=False):
                    yield pa.Table.from_batches([batch])
        for unit in units:
            yield read_dead_letter_table(store, unit)

    name = dead_letters_name(version)
    rows = 0
    with store.open_write(name) as file, pq.ParquetWriter(pa.PythonFile(file, mode="w"), DEAD_LETTER_SCHEMA) as out:
        for table in tables():
            for letter in table.to_pylist():
                summary.add(letter)
            out.write_table(table.cast(DEAD_LETTER_SCHEMA))
            rows += len(table)
    return FileEntry(name=name, size_bytes=file.size_bytes, sha256=file.sha256, rows=rows), summary


def check_conservation(
    planned: Mapping[str, int],
    records: Sequence[UnitRecord],
    shards: Sequence[ShardRecord],
    carried: Sequence[CarriedGroup] = (),
    carried_dead: Mapping[str, int] | None = None,
    imported: Mapping[str, int] | None = None,
) -> None:
    """Assets in = vectors + dead letters, for each kind, old ones and new ones together.

    Args:
        planned: Assets by kind.
        records: Of the units.
        shards: The files that were written.
        carried: Rows of the version before.
        carried_dead: Its dead letters that are taken over, by kind.
        imported: Rows of vectors from elsewhere, by kind; the shards say which of them are dead.

    Raises:
        CatalogError: When an asset was lost or doubled on the way; nothing may be published then.
    """
    old_dead = carried_dead or {}
    kinds = {*planned, *old_dead, *(r.kind for r in records), *(s.kind for s in shards), *(g.kind for g in carried)}
    for kind in sorted(kinds):
        assets = planned.get(kind, 0)
        units = [record for record in records if record.kind == kind]
        rows = sum(u.rows for u in units) + sum(group.rows for group in carried if group.kind == kind)
        rejected = sum(s.dead for s in shards if s.kind == kind)
        rows += (imported or {}).get(kind, 0) - rejected
        dead = sum(u.dead for u in units) + old_dead.get(kind, 0) + rejected
        stored = sum(s.file.rows or 0 for s in shards if s.kind == kind)
        if assets != rows + dead or stored != rows:
            raise CatalogError(
                f"{assets} {kind} assets must become as many vectors and dead letters, got {rows} vectors "
                f"({stored} of them stored) and {dead} dead letters: nothing was published, please report this."
            )


def judge(
    assets: Mapping[str, int],
    dead: Mapping[str, int],
    indexes: Sequence[IndexEntry],
    guards: GuardConfig,
    target_recall: float,
    before: Mapping[str, int] | None = None,
) -> list[str]:
    """The reasons, one sentence each, why this version should not be published by itself.

    Args:
        assets: By kind, all that were listed.
        dead: By kind, those without a vector.
        indexes: With their recall.
        guards: The allowed shares.
        target_recall: For every direction.
        before: Rows by kind of the version in force; None when there is none.
    """
    reasons = judge_shrinkage({kind: n - dead.get(kind, 0) for kind, n in assets.items()}, before or {}, guards)
    lost, total = sum(dead.values()), sum(assets.values())
    if guards.max_dead_share is None:
        too_many = lost > max(_DEFAULT_DEAD_SHARE * total, min(_DEAD_LET_THROUGH, total / 2))
        rule = f"{_DEFAULT_DEAD_SHARE:.0%} (in a small set {_DEAD_LET_THROUGH}, if no more than half)"
    else:
        too_many = lost > 0 and lost / total > guards.max_dead_share  # the product would be off: 0.29 * 100 < 29
        rule = f"{guards.max_dead_share:.2%}"
    if too_many:
        reasons.append(
            f"guards.max_dead_share allows {rule}, and {lost} of {total} assets ({lost / total:.1%}) got no vector."
        )
    reasons += [
        f"none of the {count} {kind} assets got a vector." if count > 1 else f"the only {kind} asset got no vector."
        for kind, count in assets.items()
        if count and dead.get(kind, 0) == count
    ]
    for index in indexes:
        reasons += [
            f"index.target_recall is {target_recall:g}, and {direction} reached {recall:.5g} at k={index.recall_k}."
            for direction, recall in index.recall.items()
            if recall < target_recall
        ]
    return reasons


def judge_shrinkage(rows: Mapping[str, int], before: Mapping[str, int], guards: GuardConfig) -> list[str]:
    """Which kinds would have too few rows, a sentence each, compared with those of the version in force."""
    reasons = []
    for kind, old in before.items():
        lost = old - rows.get(kind, 0)
        if guards.max_shrinkage is None:
            too_many = lost > max(_DEFAULT_SHRINKAGE * old, min(_ROWS_LET_GO, old / 2))
            rule = f"{_DEFAULT_SHRINKAGE:.0%} (in a small set {_ROWS_LET_GO}, if no more than half)"
        else:
            too_many = lost > 0 and lost / old > guards.max_shrinkage
            rule = f"{guards.max_shrinkage:.2%}"
        if too_many:
            reasons.append(
                f"guards.max_shrinkage allows a kind to lose {rule}, and of {old} {kind} rows in the version in force "
                f"{rows.get(kind, 0)} are left ({lost / old:.1%} less)."
            )
    return reasons


def write_manifest(
    store: Store,
    version: str,
    *,
    previous: str | None,
    software: str,
    model: str,
    model_fingerprint: str | None,
    dimension: int,
    metadata_types: Mapping[str, str],
    counts: Counts,
    files: Sequence[FileEntry],
    indexes: Sequence[IndexEntry],
    held_back: Sequence[str],
    config: dict[str, Any],
    timings_s: Mapping[str, float],
) -> Manifest:
    """Writes the manifest, the last file of its version's folder. `files` are named as in the store."""
    prefix = version_folder(version) + "/"
    manifest = Manifest(
        version=version,
        previous=previous,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        software=software,
        nonce=secrets.token_hex(8),
        model=model,
        model_fingerprint=model_fingerprint,
        dimension=dimension,
        faiss_version=faiss.__version__,
        metadata_types=dict(metadata_types),
        counts=counts,
        files=tuple(
            sorted((f.model_copy(update={"name": f.name.removeprefix(prefix)}) for f in files), key=lambda f: f.name)
        ),
        indexes=tuple(sorted(indexes, key=lambda i: i.kind)),
        held_back=tuple(held_back),
        config=config,
        timings_s={name: round(seconds, 3) for name, seconds in timings_s.items()},
    )
    store.write(manifest_name(version), manifest.to_bytes())
    return manifest
