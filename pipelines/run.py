"""The main job: sources in, a published catalog version out."""

import contextlib
import importlib.metadata
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ..configs import ConfigError, RunConfig
from ..configs.schema import EMULATOR
from ..index.layout import next_version, report_name, run_folder
from ..index.lease import hold
from ..index.manifest import CatalogError, read_latest, read_manifest
from ..index.store import Store
from ..transforms.epithre.client import RunStopped, greet
from ..transforms.epithre.emulator import EmulatorSettings, start_emulator_process
from ..transforms.epithre.ledger import LedgerLostError
from ..transforms.plan import is_reusable
from .logs import tell

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

    Args:
        config: What to do.
        beam_options: Beam's own command-line options.
        watch: Sees the progress.
        retry_dead: Try dead letters of earlier runs again, whatever their reason was.

    Raises:
        ConfigError: Before anything is sent: a source matches nothing, the key is not set.
        RunFailed: When nothing was published. What was embedded is kept for the next run.
    """
    # Beam takes seconds to import; who only wants help or an error message should not wait for it.
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

    from ..transforms.embed import EmbedUnits, failure_name
    from ..transforms.epithre.redis_ledger import RedisLedger
    from ..transforms.lane import LaneSetup, read_progress, shared_ledger
    from ..transforms.plan import list_all, write_plan
    from ..transforms.sources import SourceError
    from ..transforms.version import VersionSetup, WriteVersion

    started_at_s = time.time()
    store = Store(config.catalog)
    runner = next((o.partition("=")[2] for o in beam_options if o.startswith("--runner=")), config.runner)
    try:
        references = list_all(config)
    except SourceError as error:
        raise RunFailed(str(error)) from error
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(_holding(store))
        # Only now: what another run publishes before it lets go of the catalog is what this one starts from.
        latest = read_latest(store)
        version = next_version(max([*existing_versions(store), latest[1] if latest else ""]) or None)
        store.write(f"{run_folder(version)}/started", b"")  # a run whose work cannot be kept must not be paid
    except OSError as error:
        stack.close()
        raise RunFailed(f"The catalog {config.catalog} cannot be written: {error.strerror or error}.") from error
    except BaseException:
        stack.close()
        raise
    try:
        with open_endpoint(config) as endpoint:
            plan = write_plan(store, version, config, references, endpoint.fingerprint)
            del references
            tell("planned", assets=plan.assets, source_bytes=plan.size_bytes, units=len(plan.units))
            setup = VersionSetup(
                lane=LaneSetup(
                    config=config,
                    version=version,
                    plan=plan.name,
                    base_url=endpoint.base_url,
                    api_key_env=endpoint.api_key_env,
                    model_fingerprint=endpoint.fingerprint,
                    paid_version=_paid_version(store, config, endpoint.fingerprint),
                    retry_dead=retry_dead,
                    requests_spent=endpoint.requests,
                ),
                plan=plan,
                previous=latest[1] if latest else None,
                latest=latest[0] if latest else None,
                software=f"epithre-beam {importlib.metadata.version('epithre-beam')}",
                started_at_s=started_at_s,
            )
            ledger = shared_ledger(setup.lane)
            if isinstance(ledger, RedisLedger):
                ledger.create(spent=endpoint.requests)
            options = PipelineOptions([f"--runner={runner}", *beam_options])
            options.view_as(SetupOptions).save_main_session = False
            pipeline = beam.Pipeline(options=options)
            _ = (
                pipeline
                | "Units" >> beam.Create(plan.units)
                | "EmbedUnits" >> EmbedUnits(setup=setup.lane)
                | "WriteVersion" >> WriteVersion(setup=setup)
            )
            with _watching(lambda: read_progress(store, version), watch):
                pipeline.run().wait_until_finish()
    except ConfigError:
        raise
    except Exception as error:
        # What a worker wrote comes first: a runner adds words of its own to what it passes on.
        with contextlib.suppress(FileNotFoundError):
            failure = orjson.loads(store.read(failure_name(version)))
            if failure["type"] in {"OSError", "PermissionError"}:
                raise RunFailed(
                    f"The catalog {config.catalog} cannot be written ({failure['message']}): "
                    "what was finished is kept, run again when it can."
                ) from error
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
        if isinstance(error, (RunStopped, LedgerLostError)):
            raise RunFailed(str(error)) from error
        raise RunFailed(f"The runner {runner} failed: {_last_line(error)}") from error
    finally:
        with contextlib.suppress(Exception):
            _forget(store, version)
        stack.close()
    report: dict[str, Any] = orjson.loads(store.read(report_name(version)))
    return report


@contextlib.contextmanager
def _holding(store: Store) -> Iterator[None]:
    """Holds the catalog for as long as the block runs.

    Raises:
        CatalogBusy: When another run holds it.
    """
    with hold(store, "run"):
        store.delete("runs")  # what runs that were killed left behind
        yield


def _paid_version(store: Store, config: RunConfig, fingerprint: str | None) -> str | None:
    """The newest version, published or held back, whose vectors were made as this run makes them."""
    for version in reversed(existing_versions(store)):
        with contextlib.suppress(CatalogError):
            if is_reusable(read_manifest(store, version), config, fingerprint):
                return version
    return None


def existing_versions(store: Store) -> list[str]:
    """The versions that have a manifest, published or not, oldest first."""
    names = (name.split("/") for name in store.names("versions"))
    return [parts[1] for parts in names if len(parts) == 3 and parts[2] == "manifest.json"]


def _forget(store: Store, version: str) -> None:
    """Removes a run's working folder, which nobody needs once the run is over, however it ended."""
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
