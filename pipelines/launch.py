"""What commands that write a version have in common: holding the catalog, running the pipeline, telling what failed."""

import contextlib
import importlib.metadata
import io
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson

from ..configs import CatalogConfig, ConfigError
from ..index.history import existing_versions
from ..index.layout import RUNS, manifest_name, next_version, run_folder, version_folder
from ..index.lease import hold
from ..index.manifest import CatalogError, read_latest, read_manifest
from ..index.store import Store
from ..index.units import DamagedFileError
from ..transforms.epithre.client import RunStopped
from ..transforms.epithre.ledger import LedgerLostError
from ..transforms.lane import read_progress
from .endings import RunFailed, RunPaused, misplaced
from .workers import run_to_its_end

Watch = Callable[[list[dict[str, Any]]], None]
"""Is told every half second what the lanes say of themselves."""


@contextlib.contextmanager
def holding(store: Store) -> Iterator[None]:
    """Holds the catalog for as long as the block runs.

    Raises:
        CatalogBusy: When another run holds it.
    """
    with hold(store, "run"):
        store.delete(RUNS)  # what runs that were killed left behind
        yield


def check_not_lost(store: Store) -> None:
    """Nothing is published: in a catalog that is new that is so, in one that had a version in force a file is missing.

    Raises:
        RunFailed: When a version was made after another one, which must have been in force then.
    """
    names = existing_versions(store)
    for version in names:
        with contextlib.suppress(CatalogError):
            if read_manifest(store, version).previous in names:
                raise RunFailed(
                    f"{store.url}/LATEST.json is missing, though {version} was made after another version: "
                    "`epithre-beam versions list` shows them, and `versions publish` puts one in force again."
                )


Latest = tuple[bytes, str, str]
"""What `read_latest` gives of a catalog that has a version in force."""


def begin(store: Store, stack: contextlib.ExitStack) -> tuple[Latest | None, str]:
    """Holds the catalog until the end of `stack`; what is in force in it, and a name for the version to be written.

    Raises:
        ConfigError: When there can be no catalog at this place.
        CatalogBusy: When another run holds it.
        RunFailed: When it cannot be written, or its LATEST.json was lost.
    """
    try:
        stack.enter_context(holding(store))
        # Only now: what another run publishes before it lets go of the catalog is what this one starts from.
        latest = read_latest(store)
        if latest is None:
            check_not_lost(store)
        version = new_version(store, latest, stack)
        store.write(f"{run_folder(version)}/started", b"")  # a run whose work cannot be kept must not be paid
    except OSError as error:
        raise misplaced("catalog", store, error) or unwritable(store.url, error) from error
    return latest, version


def new_version(store: Store, latest: Latest | None, stack: contextlib.ExitStack) -> str:
    """A name for the version to be written; what is left of one that was not finished goes at the end of `stack`."""
    version = next_version(max([*existing_versions(store), latest[1] if latest else ""]) or None)
    stack.callback(_forget, store, version)
    return version


def _forget(store: Store, version: str) -> None:
    """Removes what a run needs only while it lasts, and a version that it did not finish."""
    with contextlib.suppress(Exception):
        store.delete(run_folder(version))
        if store.size(manifest_name(version)) is None:
            store.delete(version_folder(version))


def software() -> str:
    return f"epithre-beam {importlib.metadata.version('epithre-beam')}"


def unwritable(catalog: str, reason: OSError | str) -> RunFailed:
    if isinstance(reason, OSError) and reason.strerror:
        reason = f"{reason.strerror}: {reason.filename}" if reason.filename else reason.strerror
    reason = re.sub(r"^\[Errno \d+\] ", "", str(reason))
    return RunFailed(
        f"The catalog {catalog} cannot be written ({reason}): what was finished is kept, run again when it can."
    )


def run_pipeline(
    config: CatalogConfig,
    version: str,
    wire: Callable[[Any], None],
    beam_options: Sequence[str],
    watch: Watch | None,
) -> None:
    """Runs what `wire` puts into a pipeline, to its end.

    Raises:
        ConfigError: When Beam does not take the options.
        DamagedFileError: When a file of the catalog turned out damaged.
        RunFailed: When it failed otherwise, in one sentence.
    """
    # Beam takes seconds to import; a run that finds nothing changed should not wait for it.
    import apache_beam as beam
    from apache_beam.options.pipeline_options import DirectOptions, SetupOptions

    from ..transforms.embed import failure_name

    store = Store(config.catalog)
    runner = next((o.partition("=")[2] for o in beam_options if o.startswith("--runner=")), config.runner)
    try:
        options = _parsed([f"--runner={runner}", *config.beam_options, *beam_options])
        options.view_as(SetupOptions).save_main_session = False
        try:
            pipeline = beam.Pipeline(options=options)
        except (ValueError, ImportError, AttributeError) as error:  # nothing has begun
            why = _last_line(error).partition(" Valid values")[0].rstrip(".")
            rule = "runner must be one that Beam can start with its options"
            raise ConfigError(f"{rule}, got {runner!r}: {why}.") from error
        wire(pipeline)
        has_processes = options.view_as(DirectOptions).direct_running_mode == "multi_processing"
        with _watching(lambda: read_progress(store, version), watch):
            if runner == "FnApiRunner" and has_processes:
                run_to_its_end(lambda: pipeline.run().wait_until_finish())
            else:
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
                raise unwritable(config.catalog, failure["message"]) from error
            known = failure["type"] in {
                "RunStopped",
                "LedgerLostError",
                "CatalogError",
                "SourceError",
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
            raise unwritable(config.catalog, line.partition(": ")[2]) from error
        raise RunFailed(f"The runner {runner} failed: {line}") from error


def _parsed(options: Sequence[str]) -> Any:
    """Beam's options. Its parser ends the process over a wrong value, after a page of usage."""
    from apache_beam.options.pipeline_options import PipelineOptions

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = PipelineOptions(list(options))
            parsed.get_all_options()
    except SystemExit as error:
        raise ConfigError(
            f"Beam does not take these options: {said.getvalue().strip().rpartition('error: ')[2]}."
        ) from error
    return parsed


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
