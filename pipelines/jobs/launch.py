"""What jobs that write have in common: holding the folder that is written, and running the pipeline."""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ... import __version__
from ...configs.errors import CatalogError, ConfigError, EpithreBeamError, RunnerError
from ...index.storage.store import Store
from ...index.versions.history import existing_versions
from ...index.versions.latest import Latest, read_latest
from ...index.versions.layout import RUNS, manifest_name, next_version, run_folder, version_folder
from ...index.versions.lease import hold
from ...index.versions.manifest import read_manifest
from ...transforms.workers.failures import failure_in, failure_of
from ...transforms.workers.progress import LaneProgress, read_progress
from ...transforms.workers.run_folder import RunFolder
from .beam_options import parsed_options
from .places import misplaced
from .remote_jobs import RemoteJob, under_way
from .runner_errors import message_of
from .worker_processes import ask_loopback_directly, process_runner, run_to_its_end, uses_processes

_RECORDS_HELD = 100

Watch = Callable[[list[LaneProgress]], None]
"""Is told every half second what the lanes say of themselves."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A folder that this process holds for a run, and the version that the run is to write."""

    run: RunFolder
    latest: Latest | None
    """LATEST.json when the catalog was taken."""
    stack: contextlib.ExitStack = field(repr=False)
    """What is to be undone when the run is over, however it ends."""

    @property
    def store(self) -> Store:
        return self.run.store()

    def again(self) -> "Held":
        """The same folder, for another version: the one before could not be finished."""
        run = replace(self.run, version=_new_version(self.store, self.latest, self.stack))
        run.begin()
        return replace(self, run=run)


def hold_catalog(url: str, stack: contextlib.ExitStack) -> Held:
    """Holds a catalog until the end of `stack`.

    Raises:
        ConfigError: When there can be no catalog at this place.
        CatalogBusyError: When another run holds it.
        CatalogError: When its LATEST.json was lost.
        UnwritableError: When it cannot be written.
    """
    return hold_folder(url, "catalog", stack, _read_latest)


def hold_folder(url: str, label: str, stack: contextlib.ExitStack, read: Callable[[Store], Latest | None]) -> Held:
    """Holds a folder that one run at a time may write, until the end of `stack`.

    Args:
        url: The folder.
        label: What the user calls it.
        stack: Gives it back.
        read: What is in force there, called when it is held: what another run publishes before it lets go is what
            this one starts from.

    Raises:
        ConfigError: When there can be no such folder at this place.
        CatalogBusyError: When another run holds it.
        UnwritableError: When it cannot be written.
    """
    store = Store(url)
    run = RunFolder(url=store.url, version="", label=label)
    try:
        stack.enter_context(hold(store, "run", label=label))
        store.delete(RUNS)  # what runs that were killed left behind
        latest = read(store)
        run = replace(run, version=_new_version(store, latest, stack))
        run.begin()  # a run whose work cannot be kept must not be paid
    except OSError as error:
        raise misplaced(label, store, error) or run.unwritable(error) from error
    return Held(run=run, latest=latest, stack=stack)


def _read_latest(store: Store) -> Latest | None:
    """LATEST.json. None in a catalog that is new; in one that had a version in force a file is missing."""
    latest = read_latest(store)
    names = existing_versions(store) if latest is None else []
    for version in names:
        if _previous(store, version) in names:  # which must have been in force then
            raise CatalogError(
                f"{store.url}/LATEST.json is missing, though {version} was made after another version: "
                "`epithre-beam versions list` shows them, and `versions publish` puts one in force again."
            )
    return latest


def _previous(store: Store, version: str) -> str | None:
    try:
        return read_manifest(store, version).previous
    except CatalogError:
        return None


def _new_version(store: Store, latest: Latest | None, stack: contextlib.ExitStack) -> str:
    """A name for the version to be written; what is left of one that was not finished goes at the end of `stack`."""
    version = next_version(max([*existing_versions(store), latest.version if latest else ""]) or None)
    stack.callback(_forget, store, version)
    return version


def _forget(store: Store, version: str) -> None:
    """Removes what a run needs only while it lasts, and a version that it did not finish."""
    with contextlib.suppress(Exception):
        store.delete(run_folder(version))
        if store.size(manifest_name(version)) is None:
            store.delete(version_folder(version))


def software() -> str:
    return f"epithre-beam {__version__}"


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How the pipelines of a command are run, and who watches them."""

    beam_options: Sequence[str] = ()
    """Beam's own command-line options; they go over those of the job."""
    watch: Watch | None = None
    expect: Callable[[int], None] | None = None
    """Is told how many assets are to be embedded, before a worker says so."""

    def run(self, run: RunFolder, wire: Callable[[Any], None], runner: str, beam_options: Sequence[str] = ()) -> None:
        """Runs what `wire` puts into a pipeline, to its end.

        Args:
            run: Whose folder has what workers say.
            wire: Is given the pipeline.
            runner: Beam's name of the runner, of the job.
            beam_options: Of the job.

        Raises:
            ConfigError: When Beam does not take the options.
            EpithreBeamError: What stopped a worker; a `DefectError` with its traceback if nobody foresaw it.
            RunnerError: When the runner itself failed.
        """
        ask_loopback_directly()
        # Beam takes seconds to import; a run that finds nothing changed should not wait for it.
        import apache_beam as beam
        from apache_beam.options.pipeline_options import SetupOptions

        said = (option.partition("=")[2] for option in self.beam_options if option.startswith("--runner="))
        runner = next(said, runner)
        options = parsed_options([f"--runner={runner}", *beam_options, *self.beam_options])
        options.view_as(SetupOptions).save_main_session = False
        has_processes = runner == "FnApiRunner" and uses_processes(options)
        try:
            pipeline = beam.Pipeline(runner=process_runner() if has_processes else None, options=options)
        except (ValueError, ImportError, AttributeError) as error:  # nothing has begun
            why = message_of(error).partition(" Valid values")[0].rstrip(".")
            raise ConfigError(f"runner: Beam cannot start {runner!r} with these options ({why}).") from error
        wire(pipeline)
        pages = _RunnersErrors()
        try:
            with pages.held(), _watching(lambda: read_progress(run), self.watch):
                if has_processes:
                    run_to_its_end(lambda: pipeline.run().wait_until_finish())
                elif _is_local(pipeline.runner):
                    pipeline.run().wait_until_finish()
                else:
                    with under_way(RemoteJob(place=_place(options, runner), stop=run.end)) as job:
                        job.submit(pipeline.run).wait_until_finish()
        except Exception as error:
            # What a worker wrote comes first: a runner adds pages of its own to what it passes on.
            if (failure := failure_of(run) or failure_in(str(error))) is not None:
                pages.forget()
                raise failure from None
            if isinstance(error, EpithreBeamError):  # before there was a worker to note it
                raise
            raise RunnerError(f"The runner {runner} failed: {message_of(error)}") from error
        finally:
            pages.report()


class _RunnersErrors(logging.Filter):
    """What a runner logs as errors while it runs a pipeline, held until it is known whether a worker told it better."""

    def __init__(self) -> None:
        super().__init__()
        self._records: deque[logging.LogRecord] = deque(maxlen=_RECORDS_HELD)

    def filter(self, record: logging.LogRecord) -> bool:
        is_beams = record.name == "root" or record.name.startswith("apache_beam.")  # job services log as the root
        if record.levelno < logging.ERROR or not is_beams:
            return True
        if record not in self._records:  # each handler asks
            self._records.append(record)
        return False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        handlers = list(logging.getLogger().handlers)
        for handler in handlers:
            handler.addFilter(self)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(self)

    def forget(self) -> None:
        self._records.clear()

    def report(self) -> None:
        """Logs what is still held."""
        while self._records:
            record = self._records.popleft()
            logging.getLogger(record.name).handle(record)


def _is_local(runner: Any) -> bool:
    """Whether a runner works in this process, and ends with it."""
    from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    return isinstance(runner, (BundleBasedDirectRunner, SwitchingDirectRunner, FnApiRunner))


def _place(options: Any, runner: str) -> str:
    """Where a job runs, for people."""
    said = options.get_all_options()
    names = ("job_endpoint", "flink_master", "spark_master_url", "dask_client_address", "project")
    return next((str(said[name]) for name in names if said.get(name) not in {None, "", "[auto]"}), runner)


@contextlib.contextmanager
def _watching(read: Callable[[], list[LaneProgress]], watch: Watch | None) -> Iterator[None]:
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
