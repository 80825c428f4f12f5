"""The command line. Its exit codes are stable: see `ExitCode`."""

import contextlib
import errno
import io
import itertools
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ... import __version__
from ...configs import RunConfig, load_config
from ...configs.address import ApiAddress
from ...configs.caller import COMMAND
from ...configs.errors import ConfigError
from ...configs.load import load_search_job
from ...configs.search_schema import SearchJob
from ...index.versions.lease import release_all
from ..console.documents import json_text
from ..console.help import Commands
from ..console.logs import EVENTS, LogFormat, log_event, set_format
from ..console.options import (
    Adopt,
    ApiKeyEnv,
    BaseUrl,
    BeamOptions,
    CatalogUrl,
    ConfigFile,
    Json,
    LogLines,
    MaxCost,
    MaxRequests,
    ProgressEvery,
    Quiet,
    Set,
    check_file,
)
from ..console.outcomes import Reporter, outcome_of_error, outcome_of_report, outcome_of_search, outcome_of_signal
from ..console.screen import Screen, guard_output
from ..jobs import remote_jobs
from .export import export
from .quality import evaluate, look
from .serve import serve
from .streams import open_closed_streams
from .trust import trust
from .versions import versions

if TYPE_CHECKING:
    from ...transforms.reports.report import Report
    from ..console.progress import Watch

app = typer.Typer(
    cls=Commands,
    help="Embed images and texts with epithre-embed, store the vectors as Parquet, search them with FAISS.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich tables cut text off on a narrow terminal
)
app.add_typer(versions, name="versions")

_reporter = Reporter()
"""Reports the outcome of the program: the end of a command, its failure, or a signal."""


_stopping: threading.Thread | None = None
"""The thread that ends the program after it cancelled remote jobs."""


def console() -> NoReturn:
    """The console script.

    It ends the process with `os._exit`, because threads of Arrow and Beam have aborted the interpreter at its normal
    exit, after the command was complete.
    """
    open_closed_streams()
    code = main()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except ValueError:
            pass
        except OSError as error:
            if error.errno != errno.EPIPE:  # a closed pipe, as of `| head`, is no error
                _reporter.end(outcome_of_error(error))
                code = code or 1
    os._exit(code)


def main() -> int:
    """Runs a command and returns its exit code. Expected failures become a message on standard error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):
            sys.stdout.reconfigure(
                errors="backslashreplace"
            )  # as standard error does: the terminal may not support every character
    guard_output()
    logging.basicConfig(level=logging.WARNING)
    set_format(LogFormat.TEXT)
    if "--debug" in sys.argv[1:]:
        logging.getLogger().setLevel(logging.INFO)
    else:
        # Beam logs a failure several times with its traceback; here it becomes one message.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        logging.lastResort = None
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not record.getMessage().startswith("apitools not found"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped)
    _reporter.as_json = _wants_document(sys.argv[1:])
    try:
        code = app(standalone_mode=False, terminal_width=shutil.get_terminal_size().columns - 1)
    except Exception as error:
        if _stopping is not None:
            _stopping.join()  # the job failed because it was cancelled; the thread ends the process
        outcome = outcome_of_error(error)
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]  # prints the help page
            _reporter.end(outcome, has_sentence=False)
        _reporter.end(outcome)
        return int(outcome.exit_code)
    return code if isinstance(code, int) else 0


def _wants_document(arguments: Sequence[str]) -> bool:
    """Whether the command must print a JSON document. Decided before parsing, because the arguments may be invalid."""
    arguments = list(itertools.takewhile(lambda argument: argument != "--", arguments))
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    return command in {"run", "retry-failed", "index", "search-batch"} and "--json" in arguments


def _stopped(number: int, _: Any) -> None:
    """Ends the program at once on SIGTERM and Ctrl-C. Finished units are complete on disk.

    A job on a cluster would continue to run and to cost money, so it is cancelled first. This happens in a thread,
    because the interrupted code may hold the locks of the connection to the cluster. A second signal does not wait.
    """
    global _stopping  # noqa: PLW0603 - signals have no object of their own
    if _reporter.is_over:
        return  # the outcome is already reported
    if _stopping is None and remote_jobs.any_under_way():
        _stopping = threading.Thread(target=_cancel_and_end, args=(number,), name="stop", daemon=True)
        _stopping.start()
        return
    _end_by(number, [f"{place} may still be running. Cancel it there." for place in remote_jobs.places()])


def _cancel_and_end(number: int) -> None:
    sentences = remote_jobs.cancel_all()
    if not _reporter.is_over:  # the command may have ended in the meantime
        _end_by(number, sentences)


def _end_by(number: int, sentences: Sequence[str]) -> None:
    _reporter.end(outcome_of_signal(number, is_run=_reporter.is_run, more=sentences))
    release_all()  # otherwise the next run waits until the lease expires
    os._exit(128 + number)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        _print(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Log the runner's messages, with tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def run(
    config: ConfigFile,
    beam_options: BeamOptions = None,
    set_: Set = None,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    adopt: Adopt = False,
    as_json: Json = False,
    quiet: Quiet = False,
    log_format: LogLines = None,
    progress_every: ProgressEvery = 30.0,
) -> int:
    """Embed the assets of CONFIG, build and measure the indexes, and publish a new version of the catalog."""
    overrides = [*(set_ or []), *_limits(max_requests, max_cost)]
    output_options = OutputOptions(as_json=as_json, quiet=quiet, log_format=log_format, progress_every_s=progress_every)
    return _run("run", config, overrides, beam_options, output_options, adopt=adopt)


@app.command("retry-failed")
def retry_failed(
    config: ConfigFile,
    beam_options: BeamOptions = None,
    set_: Set = None,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    adopt: Adopt = False,
    as_json: Json = False,
    quiet: Quiet = False,
    log_format: LogLines = None,
    progress_every: ProgressEvery = 30.0,
) -> int:
    """Run CONFIG and send its dead letters again, for any reason."""
    overrides = [*(set_ or []), *_limits(max_requests, max_cost), "embed.retry_dead=true"]
    output_options = OutputOptions(as_json=as_json, quiet=quiet, log_format=log_format, progress_every_s=progress_every)
    return _run("retry-failed", config, overrides, beam_options, output_options, adopt=adopt)


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How a run reports its progress and outcome."""

    as_json: bool
    quiet: bool
    log_format: LogFormat | None
    progress_every_s: float

    @property
    def lines(self) -> LogFormat | None:
        """The format of log lines; None if a progress bar or nothing is shown."""
        if self.log_format is None and (self.quiet or sys.stderr.isatty()):
            return None
        if self.quiet and self.log_format is LogFormat.TEXT:
            return None
        return self.log_format or LogFormat.TEXT


def _run(
    command: str,
    path: Path,
    overrides: Sequence[str],
    beam_options: Sequence[str] | None,
    output_options: OutputOptions,
    *,
    adopt: bool,
) -> int:
    _begin(output_options)
    job = _load(path, overrides)
    options = _beam_options(beam_options)
    secrets = [os.environ.get(name or "", "").strip() for name in (job.embed.api_key_env, job.embed.redis_password_env)]
    _reporter.secrets = secrets
    set_format(output_options.lines or LogFormat.TEXT, secrets)
    from ..jobs.launch import Runner
    from ..jobs.run import run as run_job

    log_event("started", command=command, config=str(path), catalog=job.catalog, process=os.getpid())

    def write(watch: "Watch") -> "Report":
        return run_job(job, Runner(beam_options=options, watch=watch, expect=watch.expect), adopt=adopt)

    return _watched(job.catalog, output_options, job.embed.lanes, write)


def _begin(output_options: OutputOptions) -> None:
    """Sets up the output of a command that writes a version."""
    _reporter.log_format = output_options.lines
    _reporter.is_run = True
    set_format(output_options.lines or LogFormat.TEXT)
    logging.captureWarnings(capture=True)
    if output_options.lines is not None:
        logging.getLogger(EVENTS).setLevel(logging.WARNING if output_options.quiet else logging.INFO)
    else:
        logging.getLogger(EVENTS).setLevel(logging.CRITICAL)  # the progress bar and the summary replace them


def _watched(catalog: str, output_options: OutputOptions, lanes: int, write: Callable[["Watch"], "Report"]) -> int:
    """Writes a version, shows its progress and outcome, and returns the exit code."""
    from ..console.progress import print_summary

    with _shown(output_options, lanes) as watch:
        report = write(watch)
        watch.report_end(report)
    outcome = outcome_of_report(report, catalog)
    if not output_options.as_json and not output_options.quiet:
        print_summary(Screen(), report, catalog)
    _reporter.end(outcome)
    return int(outcome.exit_code)


def _shown(output_options: OutputOptions, lanes: int) -> contextlib.AbstractContextManager["Watch"]:
    from ..console.progress import shown

    as_lines = output_options.lines is not None
    return shown(
        Screen(stderr=True),
        quiet=output_options.quiet,
        as_lines=as_lines,
        lanes=lanes,
        every_s=output_options.progress_every_s,
    )


@app.command()
def index(
    catalog: CatalogUrl,
    beam_options: BeamOptions = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. index.target_recall=0.99."),
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="A Parquet file or a folder of them, with columns `id`, `kind` and vectors: a path or an fsspec URL.",
        ),
    ] = None,
    embedding: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="--from: the column of vectors. Default: `embedding` or `vector`."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="--from: the model that made the vectors. Default: as `WriteVectors` recorded it."
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:TYPE", help="--from: a metadata column to store, e.g. price:double."),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option("--adopt", help="--from: write to the catalog of another job, and make it this job's."),
    ] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build even if the settings have not changed.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    log_format: LogLines = None,
    progress_every: ProgressEvery = 30.0,
) -> int:
    """Build a version of CATALOG from its vectors with new index settings, or import vectors. Nothing is sent."""
    output_options = OutputOptions(as_json=as_json, quiet=quiet, log_format=log_format, progress_every_s=progress_every)
    _begin(output_options)
    options = _beam_options(beam_options)
    if folder is None and (embedding or model or metadata or adopt):
        raise ConfigError("--embedding, --model, --metadata and --adopt require --from FOLDER. Add it.")
    from ..jobs.build_index import build_index, import_vectors
    from ..jobs.launch import Runner

    def write(watch: "Watch") -> "Report":
        runner = Runner(beam_options=options, watch=watch, expect=watch.expect)
        if folder is None:
            return build_index(catalog, set_ or (), rebuild=rebuild, runner=runner)
        return import_vectors(
            catalog,
            folder,
            set_ or (),
            embedding=embedding,
            model=model,
            metadata=metadata or (),
            adopt=adopt,
            runner=runner,
        )

    log_event("started", command="index", catalog=catalog, process=os.getpid())
    return _watched(catalog, output_options, 0, write)


@app.command()
def plan(config: ConfigFile, set_: Set = None, as_json: Json = False) -> None:
    """Show what a run of CONFIG would do: changes, requests, minutes, cost.

    It reads the tables and lists the files, but opens no image. It sends and writes nothing.
    """
    from ..jobs.estimate import estimate, plan_table

    found = estimate(_load(config, set_))
    if as_json:
        _print(json_text(found.to_dict()))
        return
    Screen().print(plan_table(found))


@app.command()
def search(
    catalog: CatalogUrl,
    text: Annotated[list[str] | None, typer.Option(help="A text query. Repeatable.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="The file of an image query. Repeatable.")] = None,
    k: Annotated[int, typer.Option("-k", help="Number of hits per query.")] = 10,
    kind: Annotated[list[str] | None, typer.Option(help="Search only `image` or `text`.")] = None,
    where: Annotated[
        str | None,
        typer.Option(metavar="JSON", help='A filter on metadata, e.g. \'{"lang": "id", "price": {"$lt": 10}}\'.'),
    ] = None,
    merge: Annotated[
        str, typer.Option(help="How hits of both kinds are merged: score, quota or standardised.")
    ] = "score",
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the images to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Search CATALOG with texts and images."""
    from ..jobs.search import hits_json, left_out, named_queries, print_hits, write_page
    from ..jobs.search import search as search_catalog

    queries = named_queries(text or [], image or [])
    if not queries:
        raise ConfigError("search: there is no query. Give --text TEXT or --image FILE.")
    if not 1 <= k <= 10_000:
        raise ConfigError(f"-k must be from 1 to 10000, got {k}.")
    for name in kind or []:
        if name not in {"image", "text"}:
            raise ConfigError(f"--kind must be image or text, got {name!r}.")
    if merge not in {"score", "quota", "standardised"}:
        raise ConfigError(f"--merge must be score, quota or standardised, got {merge!r}.")
    check_file("--html", html)
    opened, results = search_catalog(
        catalog,
        queries,
        k=k,
        kinds=kind or None,  # type: ignore[arg-type]  # checked above
        where=where,
        merge=merge,  # type: ignore[arg-type]  # checked above
        address=ApiAddress(base_url=base_url, api_key_env=api_key_env, caller=COMMAND),
    )
    if html is not None:
        write_page(html, queries, results, opened)
    if as_json:
        _print(hits_json(queries, results, opened.version))
    else:
        print_hits(Screen(), queries, results)
        for sentence in [] if where is None else left_out(opened, kind or None, where):  # type: ignore[arg-type]
            Screen(stderr=True).print(sentence, highlight=False, markup=False, soft_wrap=True)


@app.command("search-batch")
def search_batch(
    config: ConfigFile,
    beam_options: BeamOptions = None,
    set_: Set = None,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    as_json: Json = False,
    quiet: Quiet = False,
    log_format: LogLines = None,
    progress_every: ProgressEvery = 30.0,
) -> int:
    """Search a catalog with the many queries of CONFIG and write the hits as Parquet. See docs/searching.md."""
    output_options = OutputOptions(as_json=as_json, quiet=quiet, log_format=log_format, progress_every_s=progress_every)
    _begin(output_options)
    job = load_search_job(config, [*(set_ or ()), *_limits(max_requests, max_cost)])
    options = _beam_options(beam_options)
    names = (job.embed.get("api_key_env", "EPITHRE_KEY"), job.embed.get("redis_password_env"))
    _reporter.secrets = [os.environ.get(str(name or ""), "").strip() for name in names]
    set_format(output_options.lines or LogFormat.TEXT, _reporter.secrets)
    from ..jobs.launch import Runner
    from ..jobs.search_batch import search_batch as search_all

    log_event("started", command="search-batch", config=str(config), catalog=job.catalog, process=os.getpid())
    with _shown(output_options, 1 if job.queries else 0) as watch:
        report = search_all(job, Runner(beam_options=options, watch=watch, expect=watch.expect))
        watch.report_searched(report)
    outcome = outcome_of_search(report, job.output)
    if not as_json and not quiet and not outcome.exit_code:
        Screen().print(outcome.message, highlight=False, markup=False, soft_wrap=True)
    _reporter.end(outcome)
    return int(outcome.exit_code)


app.command()(serve)
app.command()(evaluate)
app.command()(look)
app.command()(export)
app.command()(trust)


@app.command()
def emulator(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="The port. 0: any free port.")] = 8080,
    model: Annotated[
        str, typer.Option(help="attributes (recognises colours and shapes) or hash (fast).")
    ] = "attributes",
    settings: Annotated[
        Path | None, typer.Option(help="A YAML file with limits and faults: see docs/emulator.md.")
    ] = None,
) -> None:
    """Serve the emulator of the API on loopback until interrupted. Prints its address and key."""
    from ...transforms.epithre.emulator.__main__ import main as serve

    if model not in {"attributes", "hash"}:
        raise ConfigError(f"--model must be attributes or hash, got {model!r}.")

    arguments = [f"--port={port}", f"--model={model}", *([f"--settings={settings}"] if settings else [])]
    try:
        raise typer.Exit(serve(arguments))
    except OSError as error:
        raise ConfigError(f"--port {port} cannot be served: {error.strerror or error}. Use another port.") from error


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The folder for the images, the job and the catalog.")
    ] = Path("demo"),
    images: Annotated[int, typer.Option(help="Number of images to draw.")] = 400,
) -> None:
    """Draw images, run a job on the emulator, search, and write a page with the results."""
    from ..jobs.demo import run_demo

    run_demo(folder, images, Screen())


@app.command()
def schema(
    of_search: Annotated[
        bool, typer.Option("--search-batch", help="The schema of a bulk search instead of a run.")
    ] = False,
) -> None:
    """Print the JSON Schema of a job's YAML file, for editors."""
    _print(json_text((SearchJob if of_search else RunConfig).model_json_schema(), indent=2))


def _limits(max_requests: int | None, max_cost: float | None) -> list[str]:
    limits = {"embed.max_requests": max_requests, "embed.max_cost": max_cost}
    return [f"{name}={value}" for name, value in limits.items() if value is not None]


def _load(path: Path, overrides: Sequence[str] | None) -> RunConfig:
    return load_config(path, overrides or ())


def _beam_options(options: Sequence[str] | None) -> list[str]:
    for option in options or []:
        if not option.startswith("--"):
            raise ConfigError(f"Beam options must follow `--` and begin with two dashes, got {option!r}.")
    return list(options or [])


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    console()
