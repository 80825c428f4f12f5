"""The API that made a catalog, for embedding queries just as its assets were."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from ...configs import EmbedConfig, PrepareConfig
from ...configs.address import ApiAddress
from ...configs.errors import CatalogError
from ...configs.load import parse_settings
from ...configs.schema import UNKNOWN_MODEL
from ...index.local.trust import allowed_embed, allowed_prepare
from ...index.storage.store import Store
from ...index.versions.manifest import Manifest
from ..embedding.endpoint import Endpoint, open_endpoint

LONGEST_PAUSE_S = 5.0
"""Somebody waits for a query: a longer pause that the server asks for is an error at once."""


@dataclass(frozen=True, kw_only=True)
class QueryEndpoint:
    """The API that made a catalog, and how its queries are prepared and sent."""

    embed: EmbedConfig
    prepare: PrepareConfig
    api_key: str = field(repr=False)


@contextlib.contextmanager
def open_query_endpoint(manifest: Manifest, url: str, address: ApiAddress | None = None) -> Iterator[QueryEndpoint]:
    """Finds the API that made a catalog, or starts the emulator that did for as long as the block runs.

    Args:
        manifest: Of the version that is searched.
        url: The catalog's, for messages.
        address: Where the user says that the model is; absent: what the environment says, or the manifest.

    Raises:
        CatalogError: When it is not known what made the catalog, or the server's model is another.
        UntrustedCatalogError: When the manifest wants a key sent to where this user has not allowed it.
        ConfigError: When the key's variable is not set, or the address is none that a job may have.
        ApiError: When the server is not there, refuses the key, or does not know the model.
    """
    if manifest.model == UNKNOWN_MODEL:
        raise CatalogError(
            f"{url} has vectors from elsewhere, and it is not known what made them, so no query can be embedded: "
            "search with vectors of your own in Python, or name their model (`index --from … --model NAME`)."
        )
    embed = allowed_embed(manifest.config, url, (address or ApiAddress()).said())
    config = parse_settings({"catalog": url, "embed": embed, "prepare": allowed_prepare(manifest.config, url)})
    without_key = "name the variable that has it (--api-key-env)"
    with open_endpoint(config.embed, Store(url), without_key=without_key, longest_pause_s=LONGEST_PAUSE_S) as endpoint:
        check_made_by(manifest, url, endpoint)
        api_key = os.environ[endpoint.embed.api_key_env].strip()
        yield QueryEndpoint(embed=endpoint.embed, prepare=config.prepare, api_key=api_key)


def check_made_by(manifest: Manifest, url: str, endpoint: Endpoint) -> None:
    """Raises CatalogError when the API's vectors cannot be compared with those of a catalog."""
    if different := manifest.made_by.differences(endpoint.made_by):
        facts = ", ".join(f"{name} was {then!r} and is {now!r}" for name, then, now in different)
        raise CatalogError(
            f"{url} was made by another model than {endpoint.embed.base_url} has ({facts}): their vectors cannot be "
            "compared. Search with the model that made the catalog, or embed it again."
        )
