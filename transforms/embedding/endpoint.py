"""The API that a run or a search uses: found at its address, or an emulator that is started for it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ...configs import EmbedConfig
from ...configs.errors import CatalogError, ConfigError
from ...configs.schema import EMULATOR
from ...index.storage.store import Store
from ...index.versions.history import existing_versions
from ...index.versions.manifest import MadeBy, read_manifest
from ..epithre.emulator import EmulatorSettings, start_emulator_process
from ..epithre.probe import probe

EMULATOR_KEY_ENV = "EPITHRE_EMULATOR_KEY"
"""Where a run puts the key of the emulator that it started; it opens nothing else."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """The API that a run will use, known to be there and to take the key."""

    embed: EmbedConfig
    """As configured, with the address and the key's variable of the emulator that was started, if one was."""
    fingerprint: str | None
    requests: int
    """That were sent to ask it; those to an emulator of the run's own do not count."""

    @property
    def made_by(self) -> MadeBy:
        """What its vectors are made by."""
        return MadeBy(self.embed.model, self.fingerprint, self.embed.dimension)


@contextlib.contextmanager
def open_endpoint(
    embed: EmbedConfig,
    catalog: Store,
    *,
    without_key: str = "use `--set embed.base_url=emulator` to run without one",
    longest_pause_s: float | None = None,
) -> Iterator[Endpoint]:
    """Finds the API, or starts the emulator for as long as the block runs, and asks it who it is.

    Args:
        embed: Says where it is.
        catalog: Whose versions say who it was, where it may not even be asked.
        without_key: What else the user may do who has no key.
        longest_pause_s: That the server may ask for; absent: as `embed` says.

    Raises:
        ConfigError: When the key's variable is not set.
        ApiError: When the server is not there, refuses the key, or does not know the model.
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
            raise ConfigError(
                f"embed.api_key_env names the environment variable {embed.api_key_env}, which is not set: "
                f"export it with your key, or {without_key}."
            )
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(
                f"{embed.api_key_env}: the key has characters that no key has, such as typographic quotes. "
                "Export it again, typed plainly."
            )
        if not is_own and not embed.may_send(requests=1, items=0, tokens=0):
            yield Endpoint(embed=embed, fingerprint=_fingerprint_before(embed, catalog), requests=0)
            return
        found = probe(embed, key, tries=min(3, embed.max_requests or 3), longest_pause_s=longest_pause_s)
        yield Endpoint(embed=embed, fingerprint=found.emulator, requests=0 if is_own else found.requests)


def _fingerprint_before(embed: EmbedConfig, catalog: Store) -> str | None:
    """Of an API that may not be asked who it is: it is taken for what it was when a version was last made."""
    for version in reversed(existing_versions(catalog)):
        with contextlib.suppress(CatalogError):
            manifest = read_manifest(catalog, version)
            if manifest.config.get("embed", {}).get("base_url") == embed.base_url:
                return manifest.model_fingerprint
    return None
