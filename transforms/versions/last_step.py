"""The last step of a version: check, count, report, publish. Its writes are the last of a run, in this order."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import orjson

from ...index.ann.build import BuiltIndex
from ...index.publish.conservation import check_conservation
from ...index.publish.dead_letters import DeadLetterSummary, write_dead_letters
from ...index.publish.gates import check_gates
from ...index.publish.publish import how_it_ended, publish
from ...index.publish.write_manifest import write_manifest
from ...index.storage.store import Store
from ...index.vectors.shards import ShardRecord
from ...index.vectors.units import IncomingGroup, ReusedGroup, UnitRecord
from ...index.versions.layout import manifest_name, report_name, report_page_name, run_folder
from ...index.versions.manifest import Counts, FileEntry, Manifest, ManifestDraft, read_manifest
from ..planning.changes import UnitChanges, count_changes
from ..planning.plan import reused_dead_name
from ..reports.report import make_report, render_report
from ..workers.progress import LaneProgress, read_progress
from .as_before import is_as_before
from .imported_rows import imported_dead_name
from .imports import ImportedGroup
from .setup import VersionSetup


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of a run: the version, and the failures of the gates that hold it, if any."""

    version: str
    gate_failures: tuple[str, ...] = field(default=())


@dataclass(frozen=True, kw_only=True)
class Written:
    """Everything that the previous steps wrote or found."""

    units: tuple[UnitRecord, ...]
    reused_groups: tuple[ReusedGroup, ...]
    imported: tuple[ImportedGroup, ...]
    incoming: tuple[IncomingGroup, ...]
    shards: tuple[ShardRecord, ...]
    indexes: tuple[BuiltIndex, ...]
    """Sorted by kind."""

    @classmethod
    def of(cls, elements: Iterable[object]) -> "Written":
        """Sort the elements of a pipeline by type; other elements are ignored."""
        everything = list(elements)
        indexes = [e for e in everything if isinstance(e, BuiltIndex)]
        return cls(
            units=tuple(e for e in everything if isinstance(e, UnitRecord)),
            reused_groups=tuple(e for e in everything if isinstance(e, ReusedGroup)),
            imported=tuple(e for e in everything if isinstance(e, ImportedGroup)),
            incoming=tuple(e for e in everything if isinstance(e, IncomingGroup)),
            shards=tuple(e for e in everything if isinstance(e, ShardRecord)),
            indexes=tuple(sorted(indexes, key=lambda built: built.entry.kind)),
        )

    @property
    def rejected(self) -> list[ShardRecord]:
        """The shards with dead letters: imported rows with an invalid vector."""
        return sorted((shard for shard in self.shards if shard.dead), key=lambda shard: (shard.kind, shard.shard))

    def taken_in(self, kind: str) -> int:
        """Return the number of rows of a kind that came with their vectors, valid or not."""
        groups: tuple[ImportedGroup | IncomingGroup, ...] = (*self.imported, *self.incoming)
        return sum(group.rows for group in groups if group.kind == kind)


class _DeadLetters(NamedTuple):
    """The dead letters of the version."""

    file: FileEntry | None
    summary: DeadLetterSummary
    per_kind: dict[str, int]


def complete_version(written: Written, setup: VersionSetup) -> Outcome:
    """Check the counts and the gates, write the manifest and the report, and publish if every gate passes.

    Raises:
        CatalogError: When an asset was lost or duplicated during the run.
        SwapConflictError: When another run has published since this one began.
        SwapUnknownError: When it is unknown whether the version is published.
    """
    store, version, changes = setup.run.store(), setup.run.version, setup.plan.changes
    expected = setup.latest.data if setup.latest else None
    if how_it_ended(store, version, expected) == "published":
        return Outcome(version=version)  # a runner may repeat this step after it succeeded
    if (held := _held_before(store, version)) is not None:
        return held
    if is_as_before(written.units, setup):
        return Outcome(version=setup.plan.base or "")
    check_conservation(
        changes.assets,
        written.units,
        written.shards,
        written.reused_groups,
        changes.dead,
        {kind: written.taken_in(kind) for kind in changes.assets},
    )
    dead = _gather_dead_letters(written, setup)
    entries = [built.entry for built in written.indexes]
    compared = _compare(written, setup)
    gone, changed = Counter(changes.gone) + compared.lost, compared.changed if setup.contents_known else Counter()
    if setup.is_taken_over:
        gone, changed = Counter(), Counter()
    gate_failures = check_gates(
        changes.assets,
        dead.per_kind,
        entries,
        setup.gates,
        setup.index.target_recall,
        setup.rows_before,
        gone=gone,
        changed=changed,
    )
    lanes = read_progress(setup.run)
    manifest = _write_manifest(written, setup, dead, _count(written, setup, dead, compared), gate_failures, lanes)
    _write_report(written, setup, manifest, dead, lanes)
    if not gate_failures:
        publish(store, manifest, expected)
        store.delete(run_folder(version))
    return Outcome(version=version, gate_failures=tuple(gate_failures))


def _held_before(store: Store, version: str) -> Outcome | None:
    """Return the outcome of an earlier attempt of this step, if a gate held the version; its files are gone by now."""
    if store.size(manifest_name(version)) is None:
        return None
    failures = read_manifest(store, version).gate_failures
    return Outcome(version=version, gate_failures=failures) if failures else None


def _gather_dead_letters(written: Written, setup: VersionSetup) -> _DeadLetters:
    version, changes = setup.run.version, setup.plan.changes
    others = [reused_dead_name(version)] if sum(changes.dead.values()) else []
    others += [imported_dead_name(version, shard) for shard in written.rejected]
    file, summary = write_dead_letters(setup.run.store(), version, written.units, others)
    per_kind = {
        kind: sum(r.dead for r in written.units if r.kind == kind)
        + sum(s.dead for s in written.rejected if s.kind == kind)
        + changes.dead.get(kind, 0)
        for kind in changes.assets
    }
    return _DeadLetters(file, summary, per_kind)


def _compare(written: Written, setup: VersionSetup) -> UnitChanges:
    if setup.compared is not None:
        return setup.compared
    store, plan = setup.run.store(), setup.plan
    return count_changes(
        store,
        setup.run.version,
        written.units,
        None if plan.base is None else read_manifest(store, plan.base),
        has_deleted=bool(sum(plan.changes.deleted.values())),
        is_compared=setup.is_compared,
    )


def _count(written: Written, setup: VersionSetup, dead: _DeadLetters, compared: UnitChanges) -> Counts:
    changes, units = setup.plan.changes, written.units
    taken_in = _taken_in(written)
    counts = compared.counts + Counter(new=taken_in)
    unchanged = sum(changes.unchanged.values())
    return Counts(
        assets=sum(changes.assets.values()),
        per_kind={kind: changes.assets[kind] - dead.per_kind[kind] for kind in changes.assets},
        embedded=sum(r.rows - r.reused_rows for r in units if not r.reused) + sum(g.rows for g in written.incoming),
        reused=unchanged + taken_in + sum(r.rows if r.reused else r.reused_rows for r in units),
        deduplicated=sum(r.deduplicated for r in units if not r.reused),
        dead=sum(dead.per_kind.values()),
        unchanged=unchanged,
        other_metadata=changes.other_metadata,
        deleted=sum(changes.deleted.values()),
        **counts,
    )


def _taken_in(written: Written) -> int:
    """Return the number of imported rows with a valid vector."""
    return sum(group.rows for group in written.imported) - sum(shard.dead for shard in written.rejected)


def _write_manifest(
    written: Written,
    setup: VersionSetup,
    dead: _DeadLetters,
    counts: Counts,
    gate_failures: Sequence[str],
    lanes: Sequence[LaneProgress],
) -> Manifest:
    shards = written.shards
    timings = {
        "embed": max((lane["elapsed_s"] for lane in lanes), default=0.0),
        **{f"vectors_{kind}": sum(s.seconds for s in shards if s.kind == kind) for kind in {s.kind for s in shards}},
        **{f"index_{built.entry.kind}": built.seconds for built in written.indexes},
        "total": max(0.0, time.time() - setup.started_at_s),  # the clock may have been set back
    }
    files = [shard.file for shard in shards if shard.rows] + [f for built in written.indexes for f in built.files]
    draft = ManifestDraft(
        version=setup.run.version,
        previous=setup.latest.version if setup.latest else None,
        software=setup.software,
        model=setup.embed.model,
        model_fingerprint=setup.model_fingerprint,
        dimension=setup.embed.dimension,
        metadata_types=dict(setup.metadata_types),
        counts=counts,
        files=(*files, *([] if dead.file is None else [dead.file])),
        indexes=tuple(built.entry for built in written.indexes),
        gate_failures=tuple(gate_failures),
        prepare_rules=setup.prepare_rules,
        config=dict(setup.settings),
        timings_s=timings,
        job=setup.job,
    )
    return write_manifest(setup.run.store(), draft)


def _write_report(
    written: Written, setup: VersionSetup, manifest: Manifest, dead: _DeadLetters, lanes: Sequence[LaneProgress]
) -> None:
    store, version = setup.run.store(), setup.run.version
    report = make_report(manifest, dead.summary, lanes, setup.embed)
    if setup.folder is not None:
        normalised = sum(shard.normalised for shard in written.shards)
        report["imported"] = {"from": setup.folder.url, "rows": _taken_in(written), "normalised": normalised}
    if written.incoming:
        rows = sum(group.rows for group in written.incoming)
        report["imported"] = {"from": "a pipeline", "rows": rows, "normalised": setup.normalised}
    store.write(report_page_name(version), render_report(report, manifest).encode())
    store.write(report_name(version), orjson.dumps(report, option=orjson.OPT_INDENT_2))
