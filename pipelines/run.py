"""The main job: sources in, a published catalog version out."""

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from ..configs import RunConfig
from ..index.history import existing_versions
from ..index.layout import report_name, unit_dead_letters_name, unit_name, version_folder
from ..index.manifest import CatalogError, read_manifest
from ..index.store import Store
from ..index.units import DamagedFileError
from ..transforms.compare import Comparison
from ..transforms.endpoint import Endpoint, open_endpoint
from ..transforms.epithre.client import RunStopped
from ..transforms.epithre.ledger import LedgerLostError
from ..transforms.epithre.redis_ledger import RedisLedger
from ..transforms.lane import LaneSetup, read_progress, shared_ledger
from ..transforms.plan import Plan, Unit, differences, write_plan
from ..transforms.report import unchanged_report
from ..transforms.setup import VersionSetup, public_settings
from ..transforms.sources import SourceError
from .base import Base, compare, find_base, is_whole
from .endings import RunFailed
from .launch import Latest, Watch, begin, new_version, run_pipeline, software, unwritable
from .logs import tell

_log = logging.getLogger(__name__)
_PAID_VERSIONS = 10
"""Versions that are looked through for contents; each takes 16 bytes of memory a row."""
_ATTEMPTS = 20
"""Each leaves out one damaged file."""


def run(
    config: RunConfig, beam_options: Sequence[str] = (), watch: Watch | None = None, *, retry_dead: bool = False
) -> dict[str, Any]:
    """Runs the job and returns its report, the content of the version's `report.json`.

    Where nothing has changed since the version in force, no version is written, and the report says that it
    is `unchanged`.

    Args:
        config: What to do.
        beam_options: Beam's own command-line options.
        watch: Sees the progress.
        retry_dead: Try dead letters of earlier runs again, whatever their reason was.

    Raises:
        ConfigError: Before anything is sent: a source matches nothing, the key is not set.
        CatalogBusy: When another run holds the catalog.
        RunFailed: When nothing was published. What was embedded is kept for the next run.
    """
    started_at_s = time.time()
    store = Store(config.catalog)
    with contextlib.ExitStack() as stack:
        latest, version = begin(store, stack)
        launch = _Launch(
            config=config,
            store=store,
            latest=latest,
            beam_options=beam_options,
            watch=watch,
            retry_dead=retry_dead,
            started_at_s=started_at_s,
            stack=stack,
        )
        try:
            return launch.run(version, stack.enter_context(compare(config)))
        except (SourceError, RunStopped, LedgerLostError) as error:
            raise RunFailed(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """A run under way in its launcher."""

    config: RunConfig
    store: Store
    latest: Latest | None
    """What `read_latest` gave when the catalog was taken."""
    beam_options: Sequence[str]
    watch: Watch | None
    retry_dead: bool
    started_at_s: float
    stack: contextlib.ExitStack
    """What is to be undone when the run is over, however it ends."""
    units: list[Unit] = field(default_factory=list)
    """Of all attempts."""

    @property
    def elapsed_s(self) -> float:
        return max(0.0, time.time() - self.started_at_s)  # a clock may have been put back

    def new_version(self) -> str:
        return new_version(self.store, self.latest, self.stack)

    def run(self, version: str, comparison: Comparison) -> dict[str, Any]:
        """Compares, and runs the pipeline; again without a file that turns out damaged. Returns the report."""
        config, store = self.config, self.store
        found = find_base(config, store, self.latest)
        endpoint: Endpoint | None = None
        damaged: list[str] = []
        attempts, spent = _ATTEMPTS, 0
        while True:
            if endpoint is None and not found.is_certain:
                endpoint = self.stack.enter_context(open_endpoint(config))
                found = find_base(config, store, self.latest, endpoint.fingerprint)
            damaged = self._set_base(comparison, found, damaged)
            changes = comparison.changes()
            if (
                found.usable
                and not damaged
                and changes.is_nothing
                and is_whole(store, found.usable, config.index, config.metadata_types)
            ):
                rows = sum(changes.unchanged.values())
                return unchanged_report(found.usable, rows, comparison.dead_letters(), config.embed, self.elapsed_s)
            if endpoint is None and changes.todo:
                endpoint = self.stack.enter_context(open_endpoint(config))
                if endpoint.fingerprint != found.fingerprint:
                    found = find_base(config, store, self.latest, endpoint.fingerprint)
                    continue
            try:
                return self._write(version, comparison, found, endpoint, spent)
            except DamagedFileError as error:
                _log.warning("%s It is left out, and what it held is read again.", error)
                attempts -= 1
                if not attempts:
                    raise RunFailed(str(error)) from error
                damaged.append(error.name)
                spent += sum(lane["meter"]["requests"] for lane in read_progress(store, version))
                store.delete(version_folder(version))
                version = self.new_version()

    def _set_base(self, comparison: Comparison, found: Base, damaged: Sequence[str]) -> list[str]:
        """Compares with the version in force, if its vectors may be taken over; returns its files that may not."""
        if found.usable is None:
            comparison.clear_base()
            if found.reasons:
                tell("all_new", logging.WARNING, because=list(found.reasons))
            return list(damaged)
        bad = comparison.set_base(self.store, found.usable, damaged=damaged, retry_dead=self.retry_dead)
        for name in set(bad) - set(damaged):
            _log.warning("%s/%s is damaged: what it held is read again.", self.store.url, name)
        return bad

    def _write(
        self, version: str, comparison: Comparison, found: Base, endpoint: Endpoint | None, spent: int
    ) -> dict[str, Any]:
        """Writes the version that is to be; without an endpoint where nothing is to be read."""
        config, store, changes = self.config, self.store, comparison.changes()
        base = found.usable.version if found.usable else None
        fingerprint = endpoint.fingerprint if endpoint else found.fingerprint
        try:
            plan = write_plan(store, version, config, comparison, fingerprint, base)
        except OSError as error:
            raise unwritable(config.catalog, error) from error
        tell(
            "planned",
            assets=dict(changes.assets),
            source_bytes=dict(changes.size_bytes),
            unchanged=sum(changes.unchanged.values()),
            to_read=changes.todo,
            deleted=sum(changes.deleted.values()),
            units=len(plan.units),
            base=base,
        )
        lane = LaneSetup(
            config=config,
            version=version,
            plan=plan.name,
            base_url=endpoint.base_url if endpoint else "",
            api_key_env=endpoint.api_key_env if endpoint else "",
            model_fingerprint=fingerprint,
            paid_versions=_paid_versions(store, config, fingerprint, base),
            retry_dead=self.retry_dead,
            requests_spent=spent + (endpoint.requests if endpoint else 0),
        )
        setup = VersionSetup(
            config=config,
            metadata_types=config.metadata_types,
            settings=public_settings(config),
            version=version,
            plan=replace(plan, units=(), carried=()),
            model_fingerprint=fingerprint,
            requests_spent=lane.requests_spent,
            previous=self.latest[1] if self.latest else None,
            rows_before=found.manifest.counts.per_kind if found.manifest else None,
            latest=self.latest[0] if self.latest else None,
            software=software(),
            started_at_s=self.started_at_s,
        )
        self.units.extend(plan.units)
        _run_pipeline(setup, lane, plan, self.beam_options, self.watch)
        report: dict[str, Any] = orjson.loads(store.read(report_name(version)))
        if not report["held_back"]:
            _collect(store, self.units)
        return {**report, "every_vector_is_new_because": list(found.reasons)}


def _run_pipeline(
    setup: VersionSetup, lane: LaneSetup, plan: Plan, beam_options: Sequence[str], watch: Watch | None
) -> None:
    def wire(pipeline: Any) -> None:
        import apache_beam as beam

        from ..transforms.embed import EmbedUnits
        from ..transforms.version import Begin, WriteVersion

        ledger = shared_ledger(lane)
        if isinstance(ledger, RedisLedger):
            ledger.create(spent=lane.requests_spent)
        records = pipeline | "Units" >> beam.Create(plan.units) | "EmbedUnits" >> EmbedUnits(setup=lane)
        carried = pipeline | "Carried" >> beam.Create((Begin(), *plan.carried))
        _ = (records, carried) | "Parts" >> beam.Flatten() | "WriteVersion" >> WriteVersion(setup=setup)

    run_pipeline(setup.config, setup.version, wire, beam_options, watch)


def _collect(store: Store, units: Sequence[Unit]) -> None:
    """Removes the files of units whose rows stand in the version that was just published."""
    for unit in units:
        with contextlib.suppress(OSError):  # what is left is collected by age
            store.delete(unit_name(unit.name))
            store.delete(unit_dead_letters_name(unit.name))


def _paid_versions(store: Store, config: RunConfig, fingerprint: str | None, base: str | None) -> tuple[str, ...]:
    """The version in force and the newest others whose vectors were made as this run makes them."""
    found = [] if base is None else [base]
    for version in reversed(existing_versions(store)):
        if len(found) == _PAID_VERSIONS:
            break
        if version not in found:
            with contextlib.suppress(CatalogError):
                if not differences(read_manifest(store, version), config, fingerprint):
                    found.append(version)
    return tuple(found)
