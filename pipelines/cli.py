"""The command line. Exit codes are a contract: see `ExitCode`."""

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..configs import ConfigError, RunConfig, load_config
from ..index.lease import CatalogBusy, release_all
from ..index.manifest import CatalogError, publish, read_latest, read_manifest
from ..index.store import Store, StoreError
from ..transforms.epithre.client import RunStopped


class ExitCode(IntEnum):
    """What a scheduler is told."""

    PUBLISHED = 0
    FAILED = 1
    USAGE = 2
    HELD_BACK = 3
    BUSY = 4


app = typer.Typer(
    help="Embed pictures and texts with epithre-embed, keep them as Parquet, search them with FAISS.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
versions = typer.Typer(help="List, verify and publish a catalog's versions.", no_args_is_help=True)
app.add_typer(versions, name="versions")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The job's YAML file.")]
CatalogUrl = Annotated[str, typer.Argument(metavar="CATALOG", help="The catalog's path.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting, e.g. embed.batch_items=32.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
MaxRequests = Annotated[
    int | None,
    typer.Option(
        "--max-requests", metavar="N", min=0, help="Stop before more requests than this; the next run goes on."
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="X", min=0, help="Stop before it costs more, at the configured prices."),
]
BeamOptions = Annotated[list[str] | None, typer.Argument(metavar="[-- BEAM OPTIONS]", help="Options for the runner.")]


def main() -> None:
    """The console script: every expected failure is a sentence on standard error and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    if "--debug" in sys.argv[1:]:
        logging.getLogger().setLevel(logging.INFO)
    else:
        # Beam logs a failure with its traceback, and again on the way up; here it becomes one sentence.
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
        logging.lastResort = None
        for handler in logging.getLogger().handlers:
            handler.addFilter(lambda record: not record.getMessage().startswith("apitools not found"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopped)
    from ..transforms.queries import QueryError
    from ..transforms.sources import SourceError
    from .run import RunFailed

    try:
        app()
    except (ConfigError, QueryError, ValueError) as error:
        _fail(str(error), ExitCode.USAGE)
    except CatalogBusy as error:
        _fail(str(error), ExitCode.BUSY)
    except (RunFailed, RunStopped, CatalogError, StoreError, SourceError) as error:
        _fail(str(error), ExitCode.FAILED)
    except ImportError as error:
        _fail(_missing_package(error), ExitCode.USAGE)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{place}: what was finished is kept, run again.", ExitCode.FAILED)


def _missing_package(error: ImportError) -> str:
    """A service installs neither Beam nor every store's driver: what to install, in a sentence."""
    name = (error.name or "").split(".")[0]
    extras = {"apache_beam": "beam", "s3fs": "s3", "gcsfs": "gcs", "adlfs": "azure", "redis": "redis"}
    extra = extras.get(name) or next((e for n, e in extras.items() if n in str(error)), None)
    if extra is None:
        return f"A package is missing: {error}."
    return f"This needs a package that is not installed ({error}): install epithre-beam[{extra}]."


def _stopped(number: int, _: Any) -> None:
    """SIGTERM and Ctrl-C end at once. What was finished is on disk, whole; nothing else would survive a slower end."""
    word = "Terminated" if number == signal.SIGTERM else "Interrupted"
    sys.stderr.write(f"epithre-beam: {word}: units that were finished are kept, run again to go on.\n")
    sys.stderr.flush()
    release_all()  # or the next run, on another machine perhaps, would have to wait for the lease to end
    os._exit(128 + number)


def _fail(message: str, code: int) -> None:
    for line in message.splitlines():
        sys.stderr.write(f"epithre-beam: {line}\n")
    sys.exit(int(code))


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Log what the runner does, with tracebacks.")] = False,
) -> None:
    """Options that stand before the command."""


@app.command()
def run(
    config: ConfigFile,
    beam_options: BeamOptions = None,
    set_: Set = None,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Embed the assets of CONFIG, build the indexes, measure them, publish a new version of the catalog."""
    job = _load(config, [*(set_ or []), *_limits(max_requests, max_cost)])
    _run(job, beam_options, as_json=as_json, quiet=quiet, retry_dead=False)


@app.command("retry-failed")
def retry_failed(
    config: ConfigFile,
    beam_options: BeamOptions = None,
    set_: Set = None,
    max_requests: MaxRequests = None,
    max_cost: MaxCost = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run CONFIG again and send only its dead letters, whatever their reason was."""
    job = _load(config, [*(set_ or []), *_limits(max_requests, max_cost)])
    _run(job, beam_options, as_json=as_json, quiet=quiet, retry_dead=True)


def _run(job: RunConfig, beam_options: Sequence[str] | None, *, as_json: bool, quiet: bool, retry_dead: bool) -> None:
    from .progress import print_summary, shown
    from .run import run as run_job

    errors = Console(stderr=True)
    with shown(errors, quiet=quiet) as watch:
        report = run_job(job, _beam_options(beam_options), watch=watch, retry_dead=retry_dead)
    if as_json:
        _print(json.dumps(report, ensure_ascii=False))
    elif not quiet:
        print_summary(Console(), report, job.catalog)
    if report["held_back"]:
        sentences = "\n".join(f"held back: {sentence}" for sentence in report["held_back"])
        release = f"epithre-beam versions publish {job.catalog} {report['version']}"
        _fail(f"{sentences}\nThe version is kept; after a look, `{release}` releases it.", ExitCode.HELD_BACK)


@app.command()
def plan(config: ConfigFile, set_: Set = None, as_json: Json = False) -> None:
    """Show what a run of CONFIG would do: assets, requests, minutes, bytes. Nothing is read, sent or written."""
    from .plan import estimate

    found = estimate(_load(config, set_))
    if as_json:
        _print(json.dumps(found.to_dict()))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    for kind, count in found.assets.items():
        table.add_row(kind, f"{count:,} assets, {found.source_bytes[kind]:,} bytes")
    table.add_row("units", f"{found.units:,}, of which {found.units_done:,} are paid for already")
    table.add_row("to send", f"at most {found.assets_to_send:,} assets in about {found.requests:,} requests")
    table.add_row("upload", f"about {found.upload_bytes:,} bytes")
    words = "no limit is configured"
    if found.minutes_at_limit is not None:
        seconds = found.minutes_at_limit * 60
        words = f"at least {seconds:,.0f} s" if seconds < 120 else f"at least {seconds / 60:,.1f} minutes"
        words += " at the limit"
    table.add_row("time", words)
    if found.cost is not None:
        table.add_row("cost", f"about {found.cost:,.2f} at the configured prices")
    table.add_row("vectors", f"{found.vectors_bytes:,} bytes of float32, twice (units and version)")
    table.add_row("index", f"{found.index_bytes:,} bytes")
    Console().print(table)


@app.command()
def search(
    catalog: CatalogUrl,
    text: Annotated[list[str] | None, typer.Option(help="A sentence; may be given several times.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture's file; may be given several times.")] = None,
    k: Annotated[int, typer.Option("-k", help="Hits for each query.")] = 10,
    kind: Annotated[list[str] | None, typer.Option(help="Look only among `image` or `text`.")] = None,
    merge: Annotated[str, typer.Option(help="Order over both kinds: score, quota or standardised.")] = "score",
    base_url: Annotated[str | None, typer.Option(help="Another address of the same model.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Another variable with the key.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with the pictures to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Search CATALOG by sentences and pictures."""
    from ..transforms.queries import QueryError
    from .search import hits_json, print_hits, read_query_picture, write_page
    from .search import search as search_catalog

    pictures = [(str(path), read_query_picture(path)) for path in image or []]
    queries: list[str | bytes] = [*(text or []), *(data for _, data in pictures)]
    words = [*(text or []), *(name for name, _ in pictures)]
    if not queries:
        raise ConfigError("search needs a query: give --text SENTENCE or --image FILE.")
    if not 1 <= k <= 10_000:
        raise ConfigError(f"-k must be from 1 to 10000, got {k}.")
    for name in kind or []:
        if name not in {"image", "text"}:
            raise ConfigError(f"--kind must be image or text, got {name!r}.")
    if merge not in {"score", "quota", "standardised"}:
        raise ConfigError(f"--merge must be score, quota or standardised, got {merge!r}.")
    try:
        opened, results = search_catalog(
            catalog,
            queries,
            k=k,
            kinds=kind or None,  # type: ignore[arg-type]  # checked above
            merge=merge,  # type: ignore[arg-type]  # checked above
            base_url=base_url,
            api_key_env=api_key_env,
        )
    except QueryError as error:
        raise ConfigError(re.sub(r"^Query (\d+)", lambda m: f"The query {words[int(m[1])]!r}", str(error))) from error
    if html is not None:
        shown_queries = [(w, q if isinstance(q, bytes) else None) for w, q in zip(words, queries, strict=True)]
        write_page(html, shown_queries, results, opened)
    if as_json:
        _print(hits_json(words, results, opened.version))
    else:
        print_hits(Console(), words, results)


@app.command()
def emulator(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any free one.")] = 8080,
    model: Annotated[str, typer.Option(help="attributes (knows colours and shapes) or hash (fast).")] = "attributes",
    settings: Annotated[
        Path | None, typer.Option(help="A YAML file with limits and faults: see emulator/settings.py for their names.")
    ] = None,
) -> None:
    """Serve the API on loopback until interrupted. The line it prints has its address and its key."""
    from ..transforms.epithre.emulator.__main__ import main as serve

    if model not in {"attributes", "hash"}:
        raise ConfigError(f"--model must be attributes or hash, got {model!r}.")

    arguments = [f"--port={port}", f"--model={model}", *([f"--settings={settings}"] if settings else [])]
    try:
        raise typer.Exit(serve(arguments))
    except OSError as error:
        raise ConfigError(f"--port {port} cannot be served: {error.strerror or error}.") from error


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the pictures, the job and the catalog go.")] = Path("demo"),
    pictures: Annotated[int, typer.Option(help="How many to draw.")] = 400,
) -> None:
    """Draw pictures, run the main job on the emulator, search, and write a page with the results."""
    from .demo import run_demo

    run_demo(folder, pictures, Console())


@app.command()
def schema() -> None:
    """Print the JSON Schema of a job's YAML, for editors."""
    _print(json.dumps(RunConfig.model_json_schema(), indent=2))


@versions.command("list")
def list_versions(catalog: CatalogUrl, as_json: Json = False) -> None:
    """List the versions, the published one marked."""
    from .run import existing_versions

    store = Store(catalog)
    latest = read_latest(store)
    names = existing_versions(store)
    if not names and latest is None:
        raise CatalogError(f"{catalog} has no versions: there is no catalog at this path.")
    rows: list[dict[str, Any]] = []
    for name in names:
        manifest = read_manifest(store, name)
        rows.append(
            {
                "version": name,
                "is_published": latest is not None and latest[1] == name,
                "created_at": manifest.created_at,
                "model": manifest.model_fingerprint or manifest.model,
                "per_kind": manifest.counts.per_kind,
                "dead": manifest.counts.dead,
                "held_back": list(manifest.held_back),
            }
        )
    if as_json:
        _print(json.dumps(rows))
        return
    for row in rows:
        kinds = ", ".join(f"{count} {kind}" for kind, count in row["per_kind"].items())
        _print(f"{'→' if row['is_published'] else ' '} {row['version']}  {kinds}, {row['dead']} dead letters")
        _print(f"    {row['created_at']}  {row['model']}")
        for sentence in row["held_back"]:
            _print(f"    held back: {sentence}")


@versions.command("verify")
def verify_version(
    catalog: CatalogUrl,
    version: Annotated[str | None, typer.Argument(help="Absent: the published one.")] = None,
) -> None:
    """Read every byte of a version and compare it with the manifest."""
    from ..index.verify import find_damage

    store = Store(catalog)
    manifest = read_manifest(store, *_chosen(store, version))
    damage = list(find_damage(store, manifest))
    if damage:
        raise CatalogError("\n".join(damage))
    size = sum(entry.size_bytes for entry in manifest.files)
    _print(f"{manifest.version}: {len(manifest.files)} files, {size:,} bytes, all as the manifest says.")


@versions.command("publish")
def publish_version(
    catalog: CatalogUrl, version: Annotated[str, typer.Argument(help="One of `versions list`.")]
) -> None:
    """Make VERSION the one that readers open, after verifying it: for one that a guard held back, say."""
    from ..index.verify import find_damage

    store = Store(catalog)
    manifest = read_manifest(store, version)
    damage = list(find_damage(store, manifest))
    if damage:
        raise CatalogError("\n".join(damage))
    try:
        latest = read_latest(store)
        expected = latest[0] if latest else None
    except CatalogError:
        expected = store.read("LATEST.json")  # damaged: this is how it is mended
    publish(store, manifest, expected)
    _print(f"{version} is published.")


def _chosen(store: Store, version: str | None) -> tuple[str, str | None]:
    if version is not None:
        return version, None
    latest = read_latest(store)
    if latest is None:
        raise CatalogError(f"{store.url} has no published version.")
    return latest[1], latest[2]


def _limits(max_requests: int | None, max_cost: float | None) -> list[str]:
    limits = {"embed.max_requests": max_requests, "embed.max_cost": max_cost}
    return [f"{name}={value}" for name, value in limits.items() if value is not None]


def _load(path: Path, overrides: Sequence[str] | None) -> RunConfig:
    return load_config(path, overrides or ())


def _beam_options(options: Sequence[str] | None) -> list[str]:
    for option in options or []:
        if not option.startswith("--"):
            raise ConfigError(f"Beam's options follow `--` and begin with two dashes, got {option!r}.")
    return list(options or [])


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
