"""The command `epithre-beam trust`: what a catalog asks for, allowed by the person who was shown it."""

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
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Allow it without being asked.")] = False,
) -> None:
    """Show what CATALOG asks for (where a key is sent, which places are read), and allow it from now on."""
    manifest = published_manifest(Store(catalog))
    wanted, known = asks(manifest.config), Trust()
    refused = known.refused(wanted, catalog)
    if not refused:
        said = "may have all that it asks for" if wanted else "asks for nothing"
        sys.stdout.write(f"{catalog} {said}.\n")
        return
    sys.stdout.write(f"{catalog}, version {manifest.version}, asks to\n")
    sys.stdout.write("".join(f"  {ask}\n" for ask in refused))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"{catalog}: nothing is allowed without an answer. Give --yes where nobody can be asked.")
        if not typer.confirm("Allow this from now on, whichever catalog asks for it?"):
            raise ConfigError(f"{catalog}: nothing was allowed.")
    known.add(refused)
    sys.stdout.write("allowed.\n")
