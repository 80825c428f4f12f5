"""The API that embedded a catalog, used to embed queries with the same model."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...configs import EmbedConfig, PrepareConfig
from ...configs.address import ApiAddress
from ...configs.caller import ARGUMENTS, Caller
from ...configs.errors import CatalogError
from ...configs.load import parse_settings
from ...configs.schema import UNKNOWN_MODEL
from ...index.local.trust import allowed_embed, allowed_prepare
from ...index.storage.store import Store
from ...index.versions.manifest import Manifest
from ..embedding.endpoint import Endpoint, open_endpoint
from ..epithre.dialects import DIALECTS

LONGEST_PAUSE_S = 5.0
"""The longest pause requested by the server that a query waits for; a longer one is an error at once."""


@dataclass(frozen=True, kw_only=True)
class QueryEndpoint:
    """The API that embedded a catalog, with the settings for preparing and sending queries."""

    embed: EmbedConfig
    prepare: PrepareConfig
    api_key: str = field(repr=False)
    caller: Caller
    """Who searches; for messages."""


@contextlib.contextmanager
def open_query_endpoint(manifest: Manifest, url: str, address: ApiAddress | None = None) -> Iterator[QueryEndpoint]:
    """Find the API that embedded a catalog, or start the emulator that did while the block runs.

    Args:
        manifest: Manifest of the version that is searched.
        url: URL of the catalog, for messages.
        address: Address of the model given by the user; absent: from the environment, or from the manifest.

    Raises:
        CatalogError: When the model of the catalog is unknown, or the server has another model.
        UntrustedCatalogError: When the manifest names an address to which this user has not allowed sending a key.
        ConfigError: When the environment variable of the key is not set, or the address is invalid.
        ApiError: When the server does not answer, refuses the key, or does not know the model.
    """
    _check_known(manifest, url)
    address = address or ApiAddress()
    embed = allowed_embed(manifest.config, url, address.said(), address.caller)
    config = parse_settings({"catalog": url, "embed": embed, "prepare": allowed_prepare(manifest.config, url)})
    with open_endpoint(config.embed, Store(url), caller=address.caller, longest_pause_s=LONGEST_PAUSE_S) as endpoint:
        check_made_by(manifest, url, endpoint)
        api_key = os.environ[endpoint.embed.api_key_env].strip()
        yield QueryEndpoint(embed=endpoint.embed, prepare=config.prepare, api_key=api_key, caller=address.caller)


def as_queries(embed: EmbedConfig) -> EmbedConfig:
    """Return a catalog's settings for queries: some providers embed queries differently from documents."""
    query_type = DIALECTS[embed.dialect](embed).query_type
    return embed if query_type is None else embed.model_copy(update={"input_type": query_type})


def query_settings_of(
    manifest: Manifest, url: str, stated: Mapping[str, Any], caller: Caller = ARGUMENTS
) -> tuple[EmbedConfig, PrepareConfig]:
    """Return the settings for embedding queries of a catalog.

    Args:
        manifest: Manifest of the version that is searched.
        url: URL of the catalog, for messages.
        stated: Settings of `embed` that the user gives. What determines a vector comes from the manifest.
        caller: Who searches; for messages.

    Raises:
        CatalogError: When the model of the catalog is unknown.
        UntrustedCatalogError: When the manifest names an address to which this user has not allowed sending a key.
        ConfigError: When a setting is invalid.
    """
    _check_known(manifest, url)
    named = {name: stated[name] for name in ("base_url", "api_key_env") if name in stated}
    embed = {**allowed_embed(manifest.config, url, {**ApiAddress().said(), **named}, caller), **stated}
    made = manifest.config.get("embed", {})
    embed |= {name: made[name] for name in ("dialect", "model", "dimension") if name in made}
    config = parse_settings({"catalog": url, "embed": embed, "prepare": allowed_prepare(manifest.config, url)})
    return as_queries(config.embed), config.prepare


def _check_known(manifest: Manifest, url: str) -> None:
    if manifest.model == UNKNOWN_MODEL:
        raise CatalogError(
            f"{url}: the catalog has imported vectors of an unknown model, so no query can be embedded. "
            "Search with your own vectors in Python, or import them with their model (`index --from … --model NAME`)."
        )


def check_made_by(manifest: Manifest, url: str, endpoint: Endpoint) -> None:
    """Raise CatalogError when the vectors of the API cannot be compared with those of a catalog."""
    if different := manifest.made_by.differences(endpoint.made_by):
        facts = ", ".join(f"{name} was {then!r} and is {now!r}" for name, then, now in different)
        raise CatalogError(
            f"{url}: the model of {endpoint.embed.base_url} differs from the model of the catalog ({facts}), so their "
            "vectors cannot be compared. Search with the model of the catalog, or embed the catalog again."
        )
