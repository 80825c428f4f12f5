"""The main job: sources in, a published catalog version out."""

import contextlib
import importlib.metadata
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ..configs import ConfigError, RunConfig
from ..configs.schema import EMULATOR
from ..index.history import existing_versions
from ..index.layout import (
    RUNS,
    next_version,
    report_name,
    run_folder,
    unit_dead_letters_name,
    unit_name,
    version_folder,
)
from ..index.lease import hold
from ..index.manifest import CatalogError, Manifest, read_latest, read_manifest
from ..index.store import Store
from ..index.units import DamagedFileError
from ..transforms.compare import Comparison
from ..transforms.epithre.client import RunStopped, greet
from ..transforms.epithre.emulator import EmulatorSettings, start_emulator_process
from ..transforms.epithre.ledger import LedgerLostError
from ..transforms.epithre.redis_ledger import RedisLedger
from ..transforms.lane import LaneSetup, read_progress, shared_ledger
from ..transforms.plan import Plan, Unit, differences, write_plan
from ..transforms.report import unchanged_report
from ..transforms.setup import VersionSetup
from ..transforms.sources import SourceError
from .base import compare, find_base, is_whole
from .logs import tell

_log = logging.getLogger(__name__)
_PAID_VERSIONS = 3
_ATTEMPTS = 20
"""Each leaves out one damaged file."""

EMULATOR_KEY_ENV = "EPITHRE_EMULATOR_KEY"
"""Where a run puts the key of the emulator that it started; it opens nothing else."""

Watch = Callable[[list[dict[str, Any]]], None]
"""Is told every half second what the lanes say of themselves."""


class RunFailed(Exception):  # noqa: N818 - what happened to the run
    """The run failed and nothing was published; the message says why and what to do."""


class RunPaused(RunFailed):
    """The run has spent what it may; what it paid for is kept, and the next run goes on. `facts` are for programs."""

    def __init__(self, message: str, facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.facts = facts


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The API that a run will use, known to be there and to take the key."""

    base_url: str
    api_key_env: str
    fingerprint: str | None
    requests: int
    """That were sent to ask it; those to an emulator of the run's own do not count."""


@contextlib.contextmanager
def open_endpoint(config: RunConfig) -> Iterator[Endpoint]:
    """Finds the API, or starts the emulator for as long as the block runs, and asks it who it is.

    Raises:
        ConfigError: When the key's variable is not set.
        RunStopped: When the server is not there, refuses the key, or does not know the model.
    """
    embed = config.embed
    with contextlib.ExitStack() as stack:
        if embed.base_url == EMULATOR:
            settings = EmulatorSettings(model=embed.emulator_model, dimension=embed.dimension)
            emulator = stack.enter_context(start_emulator_process(settings))
            os.environ[EMULATOR_KEY_ENV] = emulator.api_key
            embed = embed.model_copy(update={"base_url": emulator.base_url, "api_key_env": EMULATOR_KEY_ENV})
        key = os.environ.get(embed.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"embed.api_key_env names the environment variable {embed.api_key_env}, which is not set: "
                "export it with your key, or use `--set embed.base_url=emulator` to run without one."
            )
        if config.embed.base_url != EMULATOR and not embed.may_send(requests=1, items=0, tokens=0):
            yield _unasked(config)
            return
        greeting = greet(embed, key, tries=min(3, embed.max_requests or 3))
        yield Endpoint(
            base_url=embed.base_url,
            api_key_env=embed.api_key_env,
            fingerprint=greeting.emulator,
            requests=0 if config.embed.base_url == EMULATOR else greeting.requests,
        )


def _unasked(config: RunConfig) -> Endpoint:
    """The API of a run that may not even ask who it is: it is taken for what it was when a version was last made."""
    store = Store(config.catalog)
    fingerprint = None
    for version in reversed(existing_versions(store)):
        with contextlib.suppress(CatalogError):
            manifest = read_manifest(store, version)
            if manifest.config.get("embed", {}).get("base_url") == config.embed.base_url:
                fingerprint = manifest.model_fingerprint
                break
    return Endpoint(
        base_url=config.embed.base_url, api_key_env=config.embed.api_key_env, fingerprint=fingerprint, requests=0
    )


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
        try:
            stack.enter_context(_holding(store))
            # Only now: what another run publishes before it lets go of the catalog is what this one starts from.
            latest = read_latest(store)
            version = _new_version(store, latest, stack)
            store.write(f"{run_folder(version)}/started", b"")  # a run whose work cannot be kept must not be paid
        except OSError as error:
            raise _unwritable(config, error) from error
        try:
            comparison = stack.enter_context(compare(config))
            return _run(
                config, store, latest, version, comparison, stack, beam_options, watch, retry_dead, started_at_s
            )
        except (SourceError, RunStopped, LedgerLostError) as error:
            raise RunFailed(str(error)) from error


def _run(
    config: RunConfig,
    store: Store,
    latest: tuple[bytes, str, str] | None,
    version: str,
    comparison: Comparison,
    stack: contextlib.ExitStack,
    beam_options: Sequence[str],
    watch: Watch | None,
    retry_dead: bool,
    started_at_s: float,
) -> dict[str, Any]:
    """Compares, and runs the pipeline; again without a file of the version in force that turns out damaged."""
    found = find_base(config, store, latest)
    endpoint: Endpoint | None = None
    damaged: list[str] = []
    attempts, spent = _ATTEMPTS, 0
    while True:
        if endpoint is None and not found.is_certain:
            endpoint = stack.enter_context(open_endpoint(config))
            found = find_base(config, store, latest, endpoint.fingerprint)
        base = found.usable
        if base is not None:
            damaged = comparison.set_base(store, base, damaged=damaged, retry_dead=retry_dead)
            for name in damaged:
                _log.warning("%s/%s is damaged: what it held is read again.", store.url, name)
        else:
            comparison.clear_base()
            if found.reasons:
                _log.warning("Every vector is new: %s.", "; ".join(found.reasons))
        changes = comparison.changes()
        if base is not None and not damaged and changes.is_nothing and is_whole(store, base, config):
            return unchanged_report(base, comparison, config.embed, max(0.0, time.time() - started_at_s))
        if endpoint is None and changes.todo:
            endpoint = stack.enter_context(open_endpoint(config))
            if endpoint.fingerprint != found.fingerprint:
                found = find_base(config, store, latest, endpoint.fingerprint)
                continue
        fingerprint = endpoint.fingerprint if endpoint else found.fingerprint
        try:
            plan = write_plan(store, version, config, comparison, fingerprint, base.version if base else None)
        except OSError as error:
            raise _unwritable(config, error) from error
        tell(
            "planned",
            assets=dict(changes.assets),
            source_bytes=dict(changes.size_bytes),
            unchanged=sum(changes.unchanged.values()),
            to_read=changes.todo,
            deleted=sum(changes.deleted.values()),
            units=len(plan.units),
            base=plan.base,
        )
        lane = LaneSetup(
            config=config,
            version=version,
            plan=plan.name,
            base_url=endpoint.base_url if endpoint else "",
            api_key_env=endpoint.api_key_env if endpoint else "",
            model_fingerprint=fingerprint,
            paid_versions=_paid_versions(store, config, fingerprint, base),
            retry_dead=retry_dead,
            requests_spent=spent + (endpoint.requests if endpoint else 0),
        )
        setup = VersionSetup(
            lane=lane,
            plan=replace(plan, units=(), carried=()),
            previous=latest[1] if latest else None,
            rows_before=found.manifest.counts.per_kind if found.manifest else None,
            latest=latest[0] if latest else None,
            software=f"epithre-beam {importlib.metadata.version('epithre-beam')}",
            started_at_s=started_at_s,
        )
        try:
            _run_pipeline(setup, plan, beam_options, watch)
        except DamagedFileError as error:
            _log.warning("%s It is left out, and what it held is read again.", error)
            attempts -= 1
            if not attempts:
                raise RunFailed(str(error)) from error
            damaged.append(error.name)
            spent += sum(lane["meter"]["requests"] for lane in read_progress(store, version))
            store.delete(version_folder(version))
            version = _new_version(store, latest, stack)
            continue
        report: dict[str, Any] = orjson.loads(store.read(report_name(version)))
        if not report["held_back"]:
            _collect(store, plan.units)
        return report


def _run_pipeline(setup: VersionSetup, plan: Plan, beam_options: Sequence[str], watch: Watch | None) -> None:
    # Beam takes seconds to import; a run that finds nothing changed should not wait for it.
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

    from ..transforms.embed import EmbedUnits, failure_name
    from ..transforms.version import Begin, WriteVersion

    config, version = setup.lane.config, setup.lane.version
    store = Store(config.catalog)
    runner = next((o.partition("=")[2] for o in beam_options if o.startswith("--runner=")), config.runner)
    try:
        ledger = shared_ledger(setup.lane)
        if isinstance(ledger, RedisLedger):
            ledger.create(spent=setup.lane.requests_spent)
        options = PipelineOptions([f"--runner={runner}", *beam_options])
        options.view_as(SetupOptions).save_main_session = False
        pipeline = beam.Pipeline(options=options)
        records = pipeline | "Units" >> beam.Create(plan.units) | "EmbedUnits" >> EmbedUnits(setup=setup.lane)
        carried = pipeline | "Carried" >> beam.Create((Begin(), *plan.carried))
        _ = (records, carried) | "Parts" >> beam.Flatten() | "WriteVersion" >> WriteVersion(setup=setup)
        with _watching(lambda: read_progress(store, version), watch):
            pipeline.run().wait_until_finish()
    except ConfigError:
        raise
    except Exception as error:
        # What a worker wrote comes first: a runner adds words of its own to what it passes on.
        with contextlib.suppress(FileNotFoundError):
            failure = orjson.loads(store.read(failure_name(version)))
            if failure["type"] == "DamagedFileError":
                raise DamagedFileError(failure["facts"]["file"], failure["message"]) from error
            if failure["type"] in {"OSError", "PermissionError"}:
                raise _unwritable(config, failure["message"]) from error
            known = failure["type"] in {
                "RunStopped",
                "LedgerLostError",
                "CatalogError",
                "StoreError",
                "SwapConflictError",
                "SwapUnknownError",
            }
            if failure["type"] == "SpendingLimitReached":
                raise RunPaused(failure["message"], failure["facts"]) from error
            message = failure["message"] if known else f"{failure['type']}: {failure['message']}"
            raise RunFailed(message) from error
        if isinstance(error, (RunStopped, LedgerLostError)):  # before there was a worker to note it
            raise
        line = _last_line(error)
        if line.startswith(("OSError: ", "PermissionError: ")):  # what could not be written could not be noted either
            raise _unwritable(config, line.partition(": ")[2]) from error
        raise RunFailed(f"The runner {runner} failed: {line}") from error


def _unwritable(config: RunConfig, reason: OSError | str) -> RunFailed:
    return RunFailed(
        f"The catalog {config.catalog} cannot be written ({reason}): what was finished is kept, run again when it can."
    )


def _collect(store: Store, units: Sequence[Unit]) -> None:
    """Removes the files of units whose rows stand in the version that was just published."""
    for unit in units:
        with contextlib.suppress(OSError):  # what is left is collected by age
            store.delete(unit_name(unit.name))
            store.delete(unit_dead_letters_name(unit.name))


@contextlib.contextmanager
def _holding(store: Store) -> Iterator[None]:
    """Holds the catalog for as long as the block runs.

    Raises:
        CatalogBusy: When another run holds it.
    """
    with hold(store, "run"):
        store.delete(RUNS)  # what runs that were killed left behind
        yield


def _paid_versions(store: Store, config: RunConfig, fingerprint: str | None, base: Manifest | None) -> tuple[str, ...]:
    """The version in force and the newest others whose vectors were made as this run makes them."""
    found = [] if base is None else [base.version]
    for version in reversed(existing_versions(store)):
        if len(found) == _PAID_VERSIONS:
            break
        if version not in found:
            with contextlib.suppress(CatalogError):
                if not differences(read_manifest(store, version), config, fingerprint):
                    found.append(version)
    return tuple(found)


def _new_version(store: Store, latest: tuple[bytes, str, str] | None, stack: contextlib.ExitStack) -> str:
    version = next_version(max([*existing_versions(store), latest[1] if latest else ""]) or None)
    stack.callback(_forget, store, version)
    return version


def _forget(store: Store, version: str) -> None:
    """Removes what a run needs only while it lasts, however it ended."""
    with contextlib.suppress(Exception):
        store.delete(run_folder(version))


@contextlib.contextmanager
def _watching(read: Callable[[], list[dict[str, Any]]], watch: Watch | None) -> Iterator[None]:
    if watch is None:
        yield
        return
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            with contextlib.suppress(Exception):  # progress is a courtesy and must not stop a run
                watch(read())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
        with contextlib.suppress(Exception):
            watch(read())  # the last word of a run that failed; one that published has cleared it away


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"\s*\[while running.*", "", lines[-1]) if lines else type(error).__name__
    return text[:300]
