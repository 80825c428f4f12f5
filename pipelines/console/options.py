"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from ...configs.address import API_KEY_ENV_VARIABLE, BASE_URL_VARIABLE
from ...configs.errors import ConfigError
from ...configs.words import unwritable
from .logs import LogFormat

CatalogUrl = Annotated[str, typer.Argument(metavar="CATALOG", help="The catalog: a path or an fsspec URL.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The YAML file of the job.")]
BeamOptions = Annotated[
    list[str] | None, typer.Argument(metavar="[-- BEAM OPTIONS]", help="Options for the Beam runner.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no summary.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. embed.batch_items=32.")
]
MaxRequests = Annotated[
    int | None,
    typer.Option(
        "--max-requests", metavar="N", min=0, help="Stop before more than N requests. The next run continues."
    ),
]
MaxCost = Annotated[
    float | None,
    typer.Option("--max-cost", metavar="X", min=0, help="Stop before the cost exceeds X, at the configured prices."),
]
Adopt = Annotated[
    bool,
    typer.Option(
        "--adopt",
        help="Write to the catalog of another job, and make it this job's; or let an emulator replace vectors.",
    ),
]
LogLines = Annotated[
    LogFormat | None,
    typer.Option(
        "--log-format",
        envvar="EPITHRE_LOG_FORMAT",
        help="Write log lines as text (the default without a terminal) or JSON.",
    ),
]
ProgressEvery = Annotated[
    float, typer.Option("--progress-every", metavar="S", min=0.5, help="Seconds between progress log lines.")
]
BaseUrl = Annotated[
    str | None, typer.Option(help=f"Base URL of the API that embeds queries. Environment: {BASE_URL_VARIABLE}.")
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"Name of the variable that holds the key. Environment: {API_KEY_ENV_VARIABLE}."),
]


def check_file(option: str, path: Path | None) -> None:
    """Raises ConfigError if the file cannot be written. Call it before anything is sent."""
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
