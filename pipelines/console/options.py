"""Options that several commands have, spelt alike."""

from pathlib import Path
from typing import Annotated

import typer

from ...configs.address import API_KEY_ENV_VARIABLE, BASE_URL_VARIABLE
from ...configs.errors import ConfigError
from ...configs.words import unwritable
from .logs import LogFormat

CatalogUrl = Annotated[str, typer.Argument(metavar="CATALOG", help="The catalog: a path or an fsspec URL.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The job's YAML file.")]
BeamOptions = Annotated[list[str] | None, typer.Argument(metavar="[-- BEAM OPTIONS]", help="Options for the runner.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting, e.g. embed.batch_items=32.")
]
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
Adopt = Annotated[bool, typer.Option("--adopt", help="Take the catalog over if it belongs to another job.")]
LogLines = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format", envvar="EPITHRE_LOG_FORMAT", help="Log lines as text (the default off a terminal) or JSON."
    ),
]
ProgressEvery = Annotated[
    float, typer.Option("--progress-every", metavar="S", min=0.5, help="Seconds between log lines of progress.")
]
BaseUrl = Annotated[str | None, typer.Option(help=f"Where the catalog's model is asked; also by {BASE_URL_VARIABLE}.")]
ApiKeyEnv = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"The variable with the key; also by {API_KEY_ENV_VARIABLE}.")
]


def check_file(option: str, path: Path | None) -> None:
    """Raises ConfigError when a file cannot be written at this path: before anything is sent."""
    if path is None:
        return
    is_there = path.exists()
    try:
        with path.open("ab"):
            pass
        if not is_there:
            path.unlink()
    except OSError as error:
        raise ConfigError(unwritable(option, str(path), error, "Name another file.")) from error
