"""The API of a run or a search: a server at its address, or an emulator started for it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ...configs import EmbedConfig
from ...configs.caller import JOB, Caller
from ...configs.errors import CatalogError, ConfigError
from ...configs.schema import EMULATOR
from ...index.storage.store import Store
from ...index.versions.complete import existing_versions
from ...index.versions.manifest import MadeBy, read_manifest
from ..epithre.emulator import EmulatorSettings, start_emulator_process
from ..epithre.probe import probe

EMULATOR_KEY_ENV = "EPITHRE_EMULATOR_KEY"
"""The environment variable for the key of an emulator that a run starts. The key is valid for this emulator only."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An API that answers and accepts the key."""

    embed: EmbedConfig
    """The config; if an emulator was started, with its address and key variable."""
    fingerprint: str | None
    requests: int
    """Number of probe requests; requests to an emulator started here do not count."""

    @property
    def made_by(self) -> MadeBy:
        """Model, fingerprint and dimension of its vectors."""
        return MadeBy(self.embed.model, self.fingerprint, self.embed.dimension)


def is_key_set(embed: EmbedConfig) -> bool:
    """Return whether this process has the key. An emulator that a run starts needs none."""
    return embed.base_url == EMULATOR or bool(os.environ.get(embed.api_key_env, "").strip())


@contextlib.contextmanager
def open_endpoint(
    embed: EmbedConfig,
    catalog: Store,
    *,
    caller: Caller = JOB,
    longest_pause_s: float | None = None,
) -> Iterator[Endpoint]:
    """Probe the API, or start the emulator while the block runs.

    Args:
        embed: Address and model of the API.
        catalog: The catalog whose versions give the fingerprint when the spending limit allows no probe.
        caller: Who embeds; for messages.
        longest_pause_s: The longest pause that the server may request; absent: as in `embed`.

    Raises:
        ConfigError: When the environment variable of the key is not set.
        ApiError: When the server does not answer, refuses the key, or does not know the model.
    """
    is_own = embed.base_url == EMULATOR
    with contextlib.ExitStack() as stack:
        if is_own:
            settings = EmulatorSettings(model=embed.emulator_model, dimension=embed.dimension)
            emulator = stack.enter_context(start_emulator_process(settings))
            os.environ[EMULATOR_KEY_ENV] = emulator.api_key
            embed = embed.model_copy(update={"base_url": emulator.base_url, "api_key_env": EMULATOR_KEY_ENV})
        key = os.environ.get(embed.api_key_env, "").strip()
        if not key:
            place = caller.name("api_key_env")
            without_key = caller.trial or f"name the variable that has it ({place})"
            raise ConfigError(
                f"{place}: the environment variable {embed.api_key_env} is not set. "
                f"Export it with your key, or {without_key}."
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"{embed.api_key_env}: the key has invalid characters, such as typographic quotes. "
                "Export it again in plain ASCII."
            )
        if not is_own and not embed.may_send(requests=1, items=0, tokens=0):
            yield Endpoint(embed=embed, fingerprint=_fingerprint_before(embed, catalog), requests=0)
            return
        tries = min(3, embed.max_requests or 3)
        found = probe(embed, key, tries=tries, longest_pause_s=longest_pause_s, caller=caller)
        yield Endpoint(embed=embed, fingerprint=found.emulator, requests=0 if is_own else found.requests)


def _fingerprint_before(embed: EmbedConfig, catalog: Store) -> str | None:
    """Return the fingerprint in the newest version made with this address, for an API that must not be probed."""
    for version in reversed(existing_versions(catalog)):
        with contextlib.suppress(CatalogError):
            manifest = read_manifest(catalog, version)
            if manifest.config.get("embed", {}).get("base_url") == embed.base_url:
                return manifest.model_fingerprint
    return None
