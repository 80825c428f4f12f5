"""Shared by jobs that write: hold the output folder, and run the pipeline."""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ... import __version__
from ...configs.errors import ConfigError, EpithreBeamError, RunnerError
from ...index.storage.store import Store
from ...index.versions.history import forget_unfinished, new_version, read_base
from ...index.versions.latest import Latest
from ...index.versions.layout import RUNS
from ...index.versions.lease import hold
from ...transforms.workers.failures import failure_in, failure_of
from ...transforms.workers.progress import LaneProgress, read_progress
from ...transforms.workers.run_folder import RunFolder
from .beam_options import check_job_server, parsed_options
from .places import misplaced
from .remote_jobs import RemoteJob, under_way
from .runner_errors import advised, message_of
from .worker_processes import ask_loopback_directly, process_runner, run_to_its_end, uses_processes

_RECORDS_HELD = 100
_DEFAULT_RUNNER = "FnApiRunner"

Watch = Callable[[list[LaneProgress]], None]
"""Called every half second with the progress of all lanes."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """A folder that this process holds for a run, and the version that the run writes."""

    run: RunFolder
    latest: Latest | None
    """LATEST.json at the time the folder was acquired."""
    stack: contextlib.ExitStack = field(repr=False)
    """Clean-up at the end of the run, successful or not."""

    @property
    def store(self) -> Store:
        return self.run.store()

    def again(self) -> "Held":
        """Start another version in the same folder, because the previous one could not be finished."""
        run = replace(self.run, version=_new_version(self.store, self.latest, self.stack))
        run.begin()
        return replace(self, run=run)


def hold_catalog(url: str, stack: contextlib.ExitStack) -> Held:
    """Hold a catalog until `stack` closes.

    Raises:
        ConfigError: When no catalog can exist at this location.
        CatalogBusyError: When another run holds it.
        CatalogError: When its LATEST.json is missing.
        UnwritableError: When it cannot be written.
    """
    return hold_folder(url, "catalog", stack, read_base)


def hold_folder(url: str, label: str, stack: contextlib.ExitStack, read: Callable[[Store], Latest | None]) -> Held:
    """Hold a folder that one run at a time may write, until `stack` closes.

    Args:
        url: The folder.
        label: Name of the folder in the configuration.
        stack: Releases the folder when it closes.
        read: Reads the current version. It is called while the folder is held, so that the run starts from what the
            previous run published.

    Raises:
        ConfigError: When the folder cannot exist at this location.
        CatalogBusyError: When another run holds it.
        UnwritableError: When it cannot be written.
    """
    store = Store(url)
    run = RunFolder(url=store.url, version="", label=label)
    try:
        stack.enter_context(hold(store, "run", label=label))
        store.delete(RUNS)  # left behind by runs that were killed
        latest = read(store)
        run = replace(run, version=_new_version(store, latest, stack))
        run.begin()  # fails before anything is sent if the folder cannot be written
    except OSError as error:
        raise misplaced(label, store, error) or run.unwritable(error) from error
    return Held(run=run, latest=latest, stack=stack)


def _new_version(store: Store, latest: Latest | None, stack: contextlib.ExitStack) -> str:
    """Return the name of the next version; an unfinished version is removed when `stack` closes."""
    version = new_version(store, latest)
    stack.callback(forget_unfinished, store, version)
    return version


def software() -> str:
    return f"epithre-beam {__version__}"


@dataclass(frozen=True, kw_only=True)
class Runner:
    """How a command runs its pipelines: Beam's options and the progress callbacks."""

    beam_options: Sequence[str] = ()
    """Beam's own command-line options; they override those of the job."""
    watch: Watch | None = None
    expect: Callable[[int], None] | None = None
    """Called with the number of assets to embed, before a worker reports progress."""

    def check(self, runner: str, beam_options: Sequence[str] = (), *, is_run: bool = True) -> None:
        """Check the runner and Beam's options, before anything is listed or sent.

        Args:
            runner: Beam's name of the job's runner.
            beam_options: Beam's options in the job.
            is_run: Whether a run follows, so that the job server must answer.

        Raises:
            ConfigError: When Beam does not know the runner or an option, or rejects a value.
            RunnerError: When no job server answers at `--job_endpoint`.
        """
        if runner == _DEFAULT_RUNNER and not beam_options and not self.beam_options:
            return  # without an import of Beam, which takes seconds
        options = self._parsed(runner, beam_options)
        if is_run:
            check_job_server(options)

    def _parsed(self, runner: str, beam_options: Sequence[str]) -> Any:
        return parsed_options([f"--runner={runner}", *beam_options, *self.beam_options])

    def run(self, run: RunFolder, wire: Callable[[Any], None], runner: str, beam_options: Sequence[str] = ()) -> None:
        """Run a pipeline to its end.

        Args:
            run: Folder with the progress and failures of workers.
            wire: Adds the steps to the pipeline.
            runner: Beam's name of the job's runner.
            beam_options: Beam's options in the job.

        Raises:
            ConfigError: When Beam rejects the options.
            EpithreBeamError: The error that stopped a worker; a `DefectError` with the traceback if it is unexpected.
            RunnerError: When the runner itself failed.
        """
        ask_loopback_directly()
        # Importing Beam takes seconds; a run without changes does not need it.
        import apache_beam as beam
        from apache_beam.options.pipeline_options import SetupOptions, StandardOptions

        options = self._parsed(runner, beam_options)
        runner = str(options.view_as(StandardOptions).runner)
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
            # Prefer the error that a worker recorded: runners add pages of their own text.
            if (failure := failure_of(run) or failure_in(str(error))) is not None:
                pages.forget()
                raise failure from None
            if isinstance(error, EpithreBeamError):  # raised before a worker started
                raise
            raise RunnerError(f"The runner {runner} failed: {advised(message_of(error))}") from error
        finally:
            pages.report()


class _RunnersErrors(logging.Filter):
    """Buffers errors that a runner logs, and drops them if a worker recorded a better error."""

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
        """Log the buffered records."""
        while self._records:
            record = self._records.popleft()
            logging.getLogger(record.name).handle(record)


def _is_local(runner: Any) -> bool:
    """Return whether a runner works in this process and ends with it."""
    from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner, SwitchingDirectRunner
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    return isinstance(runner, (BundleBasedDirectRunner, SwitchingDirectRunner, FnApiRunner))


def _place(options: Any, runner: str) -> str:
    """Return where a job runs, for messages."""
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
            with contextlib.suppress(Exception):  # a failure to show progress must not stop a run
                watch(read())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
        with contextlib.suppress(Exception):
            watch(read())  # the last progress of a failed run; a published run has removed it
