"""The command `epithre-beam export`: writes a version of a catalog in the format of another tool."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from ...configs.errors import ConfigError
from ...configs.words import of_count, of_size
from ...index.storage.store import Store
from ..console.documents import json_text
from ..console.options import CatalogUrl, Json
from ..console.screen import Screen
from ..jobs.places import misplaced

Progress = Callable[[int, int], None]


def export(
    catalog: CatalogUrl,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A new or empty folder: a path or an fsspec URL.")],
    to: Annotated[str, typer.Option("--to", metavar="FORM", help="The format: faiss, clip-retrieval or pgvector.")],
    kind: Annotated[list[str] | None, typer.Option(help="Export only `image` or `text`.")] = None,
    version: Annotated[
        str | None, typer.Option(help="A version of `versions list`. Default: the current version.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a complete export in FOLDER.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")] = False,
    as_json: Json = False,
) -> None:
    """Write a version of CATALOG to FOLDER as plain FAISS files, for clip-retrieval, or for pgvector."""
    from ...index.export.export import FORMS, export_catalog

    if to not in FORMS:
        raise ConfigError(f"--to must be {', '.join(FORMS[:-1])} or {FORMS[-1]}, got {to!r}.")
    for name in kind or []:
        if name not in {"image", "text"}:
            raise ConfigError(f"--kind must be image or text, got {name!r}.")
    target = Store(folder)
    try:
        with _shown(quiet=quiet or as_json) as progress:
            done = export_catalog(
                Store(catalog),
                target,
                to,
                kinds=kind or (),
                version=version,
                overwrite=overwrite,
                progress=progress,
            )
    except OSError as error:
        if target.is_local and str(error.filename or "").startswith(target.path("")):
            raise misplaced("FOLDER", target, error) or error from error
        raise
    if as_json:
        sys.stdout.write(json_text(done) + "\n")
    elif not quiet:
        _print_summary(folder, done)


@contextlib.contextmanager
def _shown(*, quiet: bool) -> Iterator[Progress | None]:
    """Shows a progress bar while the block runs; nothing if standard error is no terminal."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Screen(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    columns = (TextColumn("exporting"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("exporting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_summary(folder: str, done: dict[str, Any]) -> None:
    kinds = ", ".join(f"{facts['rows']:,} {kind}" for kind, facts in done["kinds"].items())
    lines = [f"{done['version']} → {folder}: {kinds}, for {done['form']}"]
    lines += [f"  {file['name']}  {of_size(file['size_bytes'])}" for file in done["files"]]
    for kind, facts in done["kinds"].items():
        if nuls := facts.get("replaced_nuls"):
            lines.append(
                f"  {of_count(nuls, 'NUL character')} of {kind} became U+FFFD, because PostgreSQL cannot store them"
            )
    sys.stdout.write("".join(f"{line}\n" for line in lines))
