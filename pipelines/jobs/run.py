"""The main job: embed the sources and publish a catalog version."""

import contextlib
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pyarrow as pa

from ...configs import RunConfig
from ...configs.errors import CatalogError, DamagedFileError
from ...index.local.trust import Trust
from ...index.storage.store import Store
from ...index.versions.complete import existing_versions
from ...index.versions.layout import report_name, run_folder, unit_dead_letters_name, unit_name, version_folder
from ...index.versions.manifest import read_manifest
from ...index.versions.stored_names import GATE_FAILURES
from ...transforms.embedding.endpoint import Endpoint, open_endpoint
from ...transforms.embedding.lane import LaneSetup, api_key
from ...transforms.embedding.limiters import remove_host_limiter
from ...transforms.embedding.shared_limit import set_up_shared_backend
from ...transforms.planning.compare import Comparison
from ...transforms.planning.embedding_config import (
    differences,
    embedding_config_hash,
    first_embedding_config_hash,
    request_config_hash,
)
from ...transforms.planning.job_identity import identity_of, other_job
from ...transforms.planning.plan import Plan, Unit, write_plan
from ...transforms.reports.report import Report, unchanged_report
from ...transforms.versions.reused_rows import iterate_dead_letters
from ...transforms.versions.setup import VersionSetup, public_settings
from ...transforms.workers.progress import LaneProgress, read_progress
from ..console.logs import log_event
from .base import Base, check_adoption, check_emulator, compare, find_base, is_whole, overlap
from .launch import Held, Runner, hold_catalog, software

_log = logging.getLogger(__name__)
_REUSABLE_VERSIONS = 10
"""Versions searched for reusable contents; each takes 16 bytes of memory per row."""
_ATTEMPTS = 20
"""Each attempt leaves out one more damaged file."""


def run(config: RunConfig, runner: Runner | None = None, *, adopt: bool = False) -> Report:
    """Run the job and return its report, the content of the version's `report.json`.

    If nothing changed since the current version, no version is written and the report is marked `unchanged`. If a
    gate holds the version, `held_back` in the report has the reasons.

    Args:
        config: The job.
        runner: Beam's options and the progress callbacks.
        adopt: Use the catalog even if it belongs to another job, or if an emulator would replace vectors of the API.

    Raises:
        ConfigError: Before anything is sent: a source matches no file, the key is not set, the runner is unknown.
        OtherJobError: Before anything is sent: the catalog belongs to another job.
        EmulatorError: Before any asset is sent: an emulator would replace vectors of the API.
        CatalogBusyError: When another run holds the catalog.
        EpithreBeamError: When nothing was published. Finished vectors are kept for the next run.
    """
    started_at_s = time.time()
    runner = runner or Runner()
    runner.check(config.runner, config.beam_options)
    with contextlib.ExitStack() as stack:
        held = hold_catalog(config.catalog, stack)
        Trust().remember_job(config)
        comparison = stack.enter_context(compare(config.sources, config.metadata_types))
        if comparison.passed_over:
            log_event("skipped", what=str(comparison.passed_over))
        launch = _Launch(config=config, runner=runner, comparison=comparison, started_at_s=started_at_s, adopt=adopt)
        return launch.run(held)


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """One run, in the launcher."""

    config: RunConfig
    runner: Runner
    comparison: Comparison
    """Compares the listed assets with a version."""
    started_at_s: float
    adopt: bool = False
    """Whether the run may use another job's catalog, and replace vectors of the API with those of an emulator."""
    units: list[Unit] = field(default_factory=list)
    """Units of all attempts."""

    @property
    def elapsed_s(self) -> float:
        return max(0.0, time.time() - self.started_at_s)  # the clock may have been set back

    def run(self, held: Held) -> Report:
        """Compare, run the pipeline and return the report; retry without any file that turns out to be damaged."""
        config, store, comparison = self.config, held.store, self.comparison
        found = find_base(config, store, held.latest)
        is_taken_over = self._check_job(store, found)
        endpoint: Endpoint | None = None
        damaged: list[str] = []
        attempts, spent = _ATTEMPTS, 0
        while True:
            if endpoint is None and not found.is_certain:
                endpoint = held.stack.enter_context(open_endpoint(config.embed, store))
                found = find_base(config, store, held.latest, endpoint.fingerprint)
            check_emulator(config, found, adopt=self.adopt)
            damaged = self._set_base(store, found, damaged)
            changes = comparison.changes()
            may_stay = (
                found.usable is not None
                and not damaged
                and not is_taken_over
                and changes.todo <= found.usable.counts.dead  # nothing, or what failed before
                and is_whole(store, found.usable, config.index, config.metadata_types, config.prepare)
            )
            if may_stay and changes.is_nothing:
                return self._unchanged(found, comparison.dead_letters())
            if endpoint is None and changes.todo:
                endpoint = held.stack.enter_context(open_endpoint(config.embed, store))
                if endpoint.fingerprint != found.fingerprint:
                    found = find_base(config, store, held.latest, endpoint.fingerprint)
                    continue
            try:
                return self._write(held, found, endpoint, spent, is_taken_over=is_taken_over, may_stay=may_stay)
            except DamagedFileError as error:
                _log.warning("%s The run ignores this file and reads its assets again.", error)
                attempts -= 1
                if not attempts:
                    raise
                damaged.append(error.file)
                spent += sum(lane["meter"]["requests"] for lane in read_progress(held.run))
                store.delete(version_folder(held.run.version))
                held = held.again()

    def _check_job(self, store: Store, found: Base) -> bool:
        """Return whether the run adopts the catalog of another job.

        Raises:
            OtherJobError: When adoption is not allowed.
        """
        job = identity_of(self.config)
        sentence = other_job(store.url, found.manifest, job, lambda: overlap(self.comparison, store, found.manifest))
        check_adoption(sentence, adopt=self.adopt)
        return sentence is not None

    def _set_base(self, store: Store, found: Base, damaged: Sequence[str]) -> list[str]:
        """Compare with the current version, if it is readable; return its damaged files."""
        if found.reasons:
            log_event("all_new", logging.WARNING, because=list(found.reasons))
        if found.manifest is None:
            self.comparison.clear_base()
            return list(damaged)
        is_reusable = found.usable is not None
        bad = self.comparison.set_base(
            store,
            found.manifest,
            damaged=damaged,
            prepare=self.config.prepare,
            retry_dead=self.config.embed.retry_dead,
            is_reusable=is_reusable,
        )
        if not is_reusable:
            return list(damaged)
        for name in set(bad) - set(damaged):
            _log.warning("%s/%s is damaged. The run reads its assets again.", store.url, name)
        return bad

    def _unchanged(self, found: Base, letters: Iterable[pa.Table], lanes: Sequence[LaneProgress] = ()) -> Report:
        assert found.usable is not None
        rows = sum(self.comparison.changes().unchanged.values())
        return unchanged_report(found.usable, rows, letters, self.config.embed, self.elapsed_s, lanes)

    def _write(
        self,
        held: Held,
        found: Base,
        endpoint: Endpoint | None,
        spent: int,
        *,
        is_taken_over: bool,
        may_stay: bool,
    ) -> Report:
        """Write the new version; `endpoint` is None when no asset must be read.

        If all that was read failed as before and `may_stay`, the current version stays.
        """
        config, store = self.config, held.store
        base = found.usable.version if found.usable else None
        fingerprint = endpoint.fingerprint if endpoint else found.fingerprint
        made_with = embedding_config_hash(config.embed, config.prepare, fingerprint)
        plan = self._plan(held, made_with, base)
        requests_spent = spent + (endpoint.requests if endpoint else 0)
        lane = LaneSetup(
            run=held.run,
            plan=plan.name,
            embed=endpoint.embed if endpoint else config.embed,
            prepare=config.prepare,
            sources=config.sources,
            embedding_config_hash=request_config_hash(config.embed, fingerprint),
            first_embedding_config_hash=first_embedding_config_hash(config.embed, config.prepare, fingerprint),
            reusable_versions=_reusable_versions(store, config, fingerprint, base),
            requests_spent=requests_spent,
        )
        setup = VersionSetup(
            run=held.run,
            embed=config.embed,
            index=config.index,
            gates=config.gates,
            metadata_types=config.metadata_types,
            settings=public_settings(config),
            plan=replace(plan, units=(), reused_groups=()),
            model_fingerprint=fingerprint,
            requests_spent=requests_spent,
            latest=held.latest,
            rows_before=found.manifest.counts.per_kind if found.manifest else None,
            is_compared=found.manifest is not None,
            contents_known=found.manifest is not None and "sources" in found.manifest.config,
            job=identity_of(config),
            is_taken_over=is_taken_over,
            may_stay=may_stay,
            software=software(),
            started_at_s=self.started_at_s,
        )
        self.units.extend(plan.units)
        self.runner.run(held.run, _wiring(setup, lane, plan), config.runner, config.beam_options)
        remove_host_limiter(lane.embed, lane.run.version)
        if store.size(report_name(held.run.version)) is None:
            assert found.usable is not None
            report = self._unchanged(found, iterate_dead_letters(store, found.usable), read_progress(held.run))
            store.delete(run_folder(held.run.version))
        else:
            report = orjson.loads(store.read(report_name(held.run.version)))
        if not report[GATE_FAILURES]:
            _collect(store, self.units)
        report["every_vector_is_new_because"] = list(found.reasons)
        return report

    def _plan(self, held: Held, made_with: str, base: str | None) -> Plan:
        comparison, changes = self.comparison, self.comparison.changes()
        references = self.config.embed.unit_references
        try:
            plan = write_plan(
                held.store,
                held.run.version,
                comparison,
                embedding_config_hash=made_with,
                unit_references=references,
                base=base,
            )
        except OSError as error:
            raise held.run.unwritable(error) from error
        if self.runner.expect is not None:
            self.runner.expect(sum(unit.references for unit in plan.units))
        log_event(
            "planned",
            assets=dict(changes.assets),
            source_bytes=dict(changes.size_bytes),
            unchanged=sum(changes.unchanged.values()),
            to_read=changes.todo,
            prepared_anew=sum(changes.again.values()),
            **({"because": list(changes.again_because)} if changes.again_because else {}),
            deleted=sum(changes.deleted.values()),
            units=len(plan.units),
            base=base,
        )
        return plan


def _wiring(setup: VersionSetup, lane: LaneSetup, plan: Plan) -> Any:
    def wire(pipeline: Any) -> None:
        import apache_beam as beam

        from ...transforms.embed_units import EmbedUnits
        from ...transforms.write_version import Begin, WriteVersion

        if plan.units:  # otherwise nothing is sent, and no key is needed
            set_up_shared_backend(lane.embed, api_key(lane.embed.api_key_env), lane.run.version, lane.requests_spent)
        records = pipeline | "Units" >> beam.Create(plan.units) | "EmbedUnits" >> EmbedUnits(setup=lane)
        reused_groups = pipeline | "Reused" >> beam.Create((Begin(), *plan.reused_groups))
        _ = (records, reused_groups) | "Parts" >> beam.Flatten() | "WriteVersion" >> WriteVersion(setup=setup)

    return wire


def _collect(store: Store, units: Sequence[Unit]) -> None:
    """Remove the files of units whose rows are in the version that was just published."""
    for unit in units:
        with contextlib.suppress(OSError):  # remaining files are removed later, by age
            store.delete(unit_name(unit.name))
            store.delete(unit_dead_letters_name(unit.name))


def _reusable_versions(store: Store, config: RunConfig, fingerprint: str | None, base: str | None) -> tuple[str, ...]:
    """Return the current version and the newest others with the same model and settings."""
    found = [] if base is None else [base]
    for version in reversed(existing_versions(store)):
        if len(found) == _REUSABLE_VERSIONS:
            break
        if version not in found:
            with contextlib.suppress(CatalogError):
                if not differences(read_manifest(store, version), config, fingerprint):
                    found.append(version)
    return tuple(found)
