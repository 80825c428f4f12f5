"""The settings of the engine that embeds the queries of a pipeline like the catalog that is searched."""

import functools
from collections.abc import Mapping
from typing import Any

from ...index.versions.manifest import MadeBy, Manifest
from ..embedding.arguments import SEARCH_TRANSFORM
from ..embedding.endpoint import Endpoint
from ..embedding.engine import EngineSetup, fingerprint_of
from .query_endpoint import check_made_by, query_settings_of


def query_engine_setup(
    manifest: Manifest,
    url: str,
    stated: Mapping[str, Any],
    *,
    scope: str,
    within: tuple[str, ...] | None,
    storage_options: str,
) -> EngineSetup:
    """Return the settings for the queries of a catalog, after checking once a process that the API has its model.

    Args:
        manifest: Manifest of the version that is searched.
        url: URL of the catalog.
        stated: Settings of `embed` that the user gives.
        scope: The pipeline, for limits of requests.
        within: The folders that images may be read from; None: all.
        storage_options: A JSON object with the options for fsspec.

    Raises:
        CatalogError: When the model of the catalog is unknown, or the server has another model.
        UntrustedCatalogError: When only the manifest says where the key is to be sent.
        ConfigError: When a setting is invalid.
        ApiError: When the server does not answer or refuses the key.
    """
    embed, prepare = query_settings_of(manifest, url, stated, SEARCH_TRANSFORM)
    if "rate_limiter" not in stated and embed.rate_limiter == "memory":
        embed = embed.model_copy(update={"rate_limiter": "host"})  # as `EmbedAssets`, which it shares the limit with
    setup = EngineSetup(
        embed=embed,
        prepare=prepare,
        scope=scope,
        within=within,
        storage_options=storage_options,
        caller=SEARCH_TRANSFORM,
    )
    made_by = MadeBy(embed.model, _fingerprint(setup), embed.dimension)
    if manifest.made_by.differences(made_by):
        check_made_by(manifest, url, Endpoint(embed=embed, fingerprint=made_by.model_fingerprint, requests=0))
    return setup


@functools.lru_cache(maxsize=16)
def _fingerprint(setup: EngineSetup) -> str | None:
    return fingerprint_of(setup)
