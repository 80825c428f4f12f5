"""The command `epithre-beam trust`: shows what a catalog requests, and allows it."""

import sys
from typing import Annotated

import typer

from ...configs.errors import ConfigError
from ...index.local.trust import Trust, asks
from ...index.storage.store import Store
from ...index.versions.latest import published_manifest
from ..console.options import CatalogUrl


def trust(
    catalog: CatalogUrl,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Allow it without a question.")] = False,
) -> None:
    """Show what CATALOG requests (where a key is sent, which places are read), and allow it from now on."""
    manifest = published_manifest(Store(catalog))
    wanted, known = asks(manifest.config), Trust()
    refused = known.refused(wanted, catalog)
    if not refused:
        said = "all requests are allowed" if wanted else "there are no requests"
        sys.stdout.write(f"{catalog}: {said}.\n")
        return
    sys.stdout.write(f"{catalog}, version {manifest.version}, requests to\n")
    sys.stdout.write("".join(f"  {ask}\n" for ask in refused))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(
                f"{catalog}: nothing was allowed, because standard input is no terminal. Use --yes to allow it."
            )
        if not typer.confirm("Allow this from now on, for every catalog that requests it?"):
            raise ConfigError(f"{catalog}: nothing was allowed.")
    known.add(refused)
    sys.stdout.write("allowed.\n")
