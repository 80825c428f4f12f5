"""The API that a run or a search uses: found at its address, or an emulator that is started for it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..configs import CatalogConfig, ConfigError, EmbedConfig, PrepareConfig
from ..configs.load import parse_settings
from ..configs.schema import EMULATOR, UNKNOWN_MODEL
from ..index.history import existing_versions
from ..index.manifest import CatalogError, Manifest, read_manifest
from ..index.store import Store
from .epithre.client import greet
from .epithre.emulator import EmulatorSettings, start_emulator_process

EMULATOR_KEY_ENV = "EPITHRE_EMULATOR_KEY"
"""Where a run puts the key of the emulator that it started; it opens nothing else."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The API that a run will use, known to be there and to take the key."""

    base_url: str
    api_key_env: str
    fingerprint: str | None
    requests: int
    """That were sent to ask it; those to an emulator of the run's own do not count."""


@contextlib.contextmanager
def open_endpoint(
    config: CatalogConfig, *, without_key: str = "use `--set embed.base_url=emulator` to run without one"
) -> Iterator[Endpoint]:
    """Finds the API, or starts the emulator for as long as the block runs, and asks it who it is.

    Args:
        config: Whose `embed` says where it is.
        without_key: What else the user may do who has no key.

    Raises:
        ConfigError: When the key's variable is not set.
        RunStopped: When the server is not there, refuses the key, or does not know the model.
    """
    embed = config.embed
    with contextlib.ExitStack() as stack:
        if embed.base_url == EMULATOR:
            settings = EmulatorSettings(model=embed.emulator_model, dimension=embed.dimension)
            emulator = stack.enter_context(start_emulator_process(settings))
            os.environ[EMULATOR_KEY_ENV] = emulator.api_key
            embed = embed.model_copy(update={"base_url": emulator.base_url, "api_key_env": EMULATOR_KEY_ENV})
        key = os.environ.get(embed.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"embed.api_key_env names the environment variable {embed.api_key_env}, which is not set: "
                f"export it with your key, or {without_key}."
            )
        if config.embed.base_url != EMULATOR and not embed.may_send(requests=1, items=0, tokens=0):
            yield _unasked(config)
            return
        greeting = greet(embed, key, tries=min(3, embed.max_requests or 3))
        yield Endpoint(
            base_url=embed.base_url,
            api_key_env=embed.api_key_env,
            fingerprint=greeting.emulator,
            requests=0 if config.embed.base_url == EMULATOR else greeting.requests,
        )


@dataclass(frozen=True, kw_only=True)
class QueryEndpoint:
    """The API that made a catalog, and how its queries are prepared and sent."""

    embed: EmbedConfig
    prepare: PrepareConfig
    api_key: str = field(repr=False)


@contextlib.contextmanager
def open_query_endpoint(
    manifest: Manifest, url: str, *, base_url: str | None = None, api_key_env: str | None = None
) -> Iterator[QueryEndpoint]:
    """Finds the API that made a catalog, or starts the emulator that did for as long as the block runs.

    Args:
        manifest: Of the version that is searched.
        url: The catalog's, for messages.
        base_url: Another address of the same model.
        api_key_env: Another variable with the key.

    Raises:
        CatalogError: When it is not known what made the catalog, or the server's model is another.
        ConfigError: When the key's variable is not set, or `base_url` is none that a job may have.
        RunStopped: When the server is not there, refuses the key, or does not know the model.
    """
    if manifest.model == UNKNOWN_MODEL:
        raise CatalogError(
            f"{url} has vectors from elsewhere, and it is not known what made them, so no query can be embedded: "
            "search with vectors of your own in Python, or name their model (`index --from … --model NAME`)."
        )
    asked = {"base_url": base_url, "api_key_env": api_key_env}
    changes = {name: value for name, value in asked.items() if value is not None}
    config = parse_settings({**manifest.config, "embed": {**manifest.config.get("embed", {}), **changes}})
    embed = config.embed
    with open_endpoint(config, without_key="name the variable that has it (--api-key-env)") as endpoint:
        if endpoint.fingerprint != manifest.model_fingerprint:
            raise CatalogError(
                f"{url} was made by {manifest.model_fingerprint or manifest.model}, and "
                f"{endpoint.base_url} is {endpoint.fingerprint or 'no emulator'}: their vectors cannot be compared. "
                "Search with the model that made the catalog, or embed it again."
            )
        yield QueryEndpoint(
            embed=embed.model_copy(update={"base_url": endpoint.base_url, "api_key_env": endpoint.api_key_env}),
            prepare=config.prepare,
            api_key=os.environ[endpoint.api_key_env].strip(),
        )


def _unasked(config: CatalogConfig) -> Endpoint:
    """The API of a run that may not even ask who it is: it is taken for what it was when a version was last made."""
    store = Store(config.catalog)
    fingerprint = None
    for version in reversed(existing_versions(store)):
        with contextlib.suppress(CatalogError):
            manifest = read_manifest(store, version)
            if manifest.config.get("embed", {}).get("base_url") == config.embed.base_url:
                fingerprint = manifest.model_fingerprint
                break
    return Endpoint(
        base_url=config.embed.base_url, api_key_env=config.embed.api_key_env, fingerprint=fingerprint, requests=0
    )
