"""What catalogs may ask of this user: where a key is sent, and which places are read for them.

A manifest names the API that made its vectors, the variable with its key, and the sources of its pictures. It may come
from anybody, so none of it is done unless the provider itself is meant, the user says so with the command, or it has
been allowed: by running a job that does the same, or by `epithre-beam trust CATALOG`.
"""

import contextlib
import hashlib
import json
import logging
import os
import shlex
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...configs import CatalogConfig, EmbedConfig, PrepareConfig
from ...configs.errors import CatalogError, UntrustedCatalogError
from ...configs.schema import EMULATOR
from .private import TRUST

CATALOGS_VARIABLE = "EPITHRE_BEAM_TRUSTED_CATALOGS"
"""Catalogs that may ask for anything, by their addresses, with spaces between them: for containers."""

_DEFAULTS = EmbedConfig()
_RUNNER = str(CatalogConfig.model_fields["runner"].default)
_HARMLESS = (
    "dialect", "model", "dimension", "input_type", "emulator_model", "batch_items", "batch_bytes", "batch_tokens",
    "requests_per_minute", "items_per_minute", "tokens_per_minute", "timeout_s", "max_sends", "retry_share",
)  # fmt: skip
"""Settings of `embed` that send nothing anywhere and take nothing from others."""
_CAPS = ("max_file_bytes", "max_decode_pixels", "max_side", "decode_timeout_s", "max_text_chars")
"""Settings of `prepare` that refuse and change nothing: a stranger's may be lower, and no higher."""

_log = logging.getLogger(__name__)


def asks(config: Mapping[str, Any]) -> list[str]:
    """What a catalog asks of those who use it, by the config in its manifest: a sentence each, after "it asks to".

    What every catalog may have is not among them: the provider's own address with its own key, and the emulator.
    """
    return [
        *asks_for_key(_section(config, "embed")),
        *asks_for_count(_section(config, "embed")),
        *(ask for source in image_sources(config) for ask in asks_for_images(source)),
        *asks_for_runner(config),
        *asks_for_queries(_section(config, "index")),
    ]


def asks_for_key(embed: Mapping[str, Any]) -> list[str]:
    address = embed.get("base_url", _DEFAULTS.base_url)
    variable = embed.get("api_key_env", _DEFAULTS.api_key_env)
    if address == EMULATOR or (address, variable) == (_DEFAULTS.base_url, _DEFAULTS.api_key_env):
        return []
    return [f"send the key in {_quoted(variable)} to {_quoted(address)}"]


def asks_for_count(embed: Mapping[str, Any]) -> list[str]:
    if embed.get("redis_url") is None:
        return []
    password = embed.get("redis_password_env")
    with_password = "" if password is None else f" with the password in {_quoted(password)}"
    return [f"count requests in the Redis {_quoted(embed['redis_url'])}{with_password}"]


def image_sources(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sources of pictures in the config of a manifest, as they stand there."""
    sources = config.get("sources") or ()
    return [raw for raw in sources if isinstance(raw, Mapping) and raw.get("kind") == "image"]


def asks_for_images(source: Mapping[str, Any]) -> list[str]:
    places = [source.get("files") or source.get("table"), *(source.get("within") or ())]
    return [f"read pictures in {' and '.join(map(_quoted, places))}"]


def asks_for_runner(config: Mapping[str, Any]) -> list[str]:
    runner, options = config.get("runner", _RUNNER), config.get("beam_options", ())
    found = [] if runner == _RUNNER else [f"run on {_quoted(runner)}"]
    return [*found, *([f"run with the options {_quoted(list(options))}"] if options else [])]


def asks_for_queries(index: Mapping[str, Any]) -> list[str]:
    return [] if index.get("queries") is None else [f"read queries in {_quoted(index['queries'])}"]


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a manifest's config; what is none is told when the config is checked."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _quoted(value: Any) -> str:
    """Unlike any other value, and without anything that a terminal obeys."""
    return json.dumps(value, default=str)


class Trust:
    """What this user has allowed; what cannot be read has not been."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: absent: what EPITHRE_BEAM_TRUST names, or the system's place for this user's settings."""
        self._named = folder

    def allows(self, ask: str, catalog: str) -> bool:
        """Whether a catalog at this address may have what it asks for."""
        named = os.environ.get(CATALOGS_VARIABLE, "").split()
        if _place_of(catalog) in map(_place_of, named):
            return True
        with contextlib.suppress(CatalogError, OSError, UnicodeError):
            return self._file(ask).read_text("utf-8") == ask
        return False

    def allows_all(self, config: Mapping[str, Any], catalog: str) -> bool:
        """Whether all that a manifest's config asks for is allowed, and it asks for something at all."""
        wanted = asks(config)
        return bool(wanted) and not self.refused(wanted, catalog)

    def refused(self, wanted: Iterable[str], catalog: str) -> list[str]:
        """Of what a catalog asks for: what it may not have."""
        return [ask for ask in wanted if not self.allows(ask, catalog)]

    def add(self, wanted: Iterable[str]) -> None:
        """Allows this from now on, whatever catalog asks for it.

        Raises:
            CatalogError: When it cannot be remembered.
        """
        for ask in wanted:
            file = self._file(ask)
            partial = file.with_name(f"{uuid.uuid4().hex}.partial")
            try:
                partial.write_text(ask, "utf-8")
                partial.replace(file)
            except OSError as error:
                raise CatalogError(f"{file} cannot be written: {error.strerror or error}.") from error
            finally:
                partial.unlink(missing_ok=True)

    def remember_job(self, config: CatalogConfig, before: Mapping[str, Any] | None = None) -> None:
        """Allows what a job of this user's says, so that the catalog it makes may ask for it; no error if it cannot.

        Args:
            config: Of the job.
            before: Of the manifest that the job goes on from: what that asks for is not the user's word.
        """
        known = set() if before is None else set(asks(before))
        try:
            self.add(ask for ask in asks(config.model_dump(mode="json")) if ask not in known)
        except CatalogError as error:
            _log.info("What the job allows is not remembered: %s", error)

    def _file(self, ask: str) -> Path:
        folder = TRUST.make_private(self._named or TRUST.path())
        return folder / f"{hashlib.sha256(ask.encode('utf-8', 'surrogatepass')).hexdigest()}.txt"


def allowed_embed(config: Mapping[str, Any], catalog: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The `embed` section that queries of a catalog are sent with, as plain data.

    What the manifest says counts in full where all that it asks for is allowed. Otherwise the address and the key's
    variable are the user's or the provider's, and of the rest only what does no harm.

    Args:
        config: Of the manifest.
        catalog: Its address.
        said: What the user says for this command, which goes before the manifest.

    Raises:
        UntrustedCatalogError: When the manifest wants a key sent to where nobody but itself says.
    """
    stated, trust = dict(_section(config, "embed")), Trust()
    refused = trust.refused((*asks_for_key(stated), *asks_for_count(stated)), catalog)
    if not refused:
        if "base_url" in said and not asks_for_key(stated):
            stated.pop("allow_plain_http", None)  # nobody has allowed it: a stranger may say the same
        return {**stated, **said}
    address = said.get("base_url", stated.get("base_url", _DEFAULTS.base_url))
    variable = said.get("api_key_env", stated.get("api_key_env", _DEFAULTS.api_key_env))
    is_key_allowed = not trust.refused(asks_for_key(stated), catalog)
    missing = []
    if not is_key_allowed and "base_url" not in said and address not in {_DEFAULTS.base_url, EMULATOR}:
        missing.append("--base-url")
    if not is_key_allowed and "api_key_env" not in said and variable != _DEFAULTS.api_key_env and address != EMULATOR:
        missing.append("--api-key-env")
    if missing:
        raise _untrusted(asks_for_key({"base_url": address, "api_key_env": variable}), catalog, missing)
    for ask in trust.refused(asks_for_count(stated), catalog):
        _log.warning("%s asks to %s, which is not allowed: its requests are counted apart.", catalog, ask)
    kept = {name: stated[name] for name in _HARMLESS if name in stated}
    return {**kept, "base_url": address, "api_key_env": variable, **said}


def allowed_prepare(config: Mapping[str, Any], catalog: str) -> dict[str, Any]:
    """The `prepare` section that queries of a catalog are prepared with: a stranger's caps are no wider than ours."""
    stated = dict(_section(config, "prepare"))
    if Trust().allows_all(config, catalog):
        return stated
    for name in _CAPS:
        ours = getattr(PrepareConfig(), name)
        with contextlib.suppress(KeyError, TypeError):  # what is no number is refused when it is checked
            stated[name] = min(stated[name], ours)
    return stated


def check_rebuild(before: Mapping[str, Any], config: CatalogConfig, catalog: str) -> None:
    """Refuses to rebuild a catalog in a way, or with queries, that its manifest alone asks for.

    Args:
        before: The config of the manifest.
        config: That the catalog is rebuilt with: the manifest's, and what the user says.
        catalog: Its address.

    Raises:
        UntrustedCatalogError: With what the manifest asks for.
    """
    now = config.model_dump(mode="json")
    wanted = {*asks_for_runner(now), *asks_for_queries(now["index"])}
    asked = [*asks_for_runner(before), *asks_for_queries(_section(before, "index"))]
    if refused := Trust().refused([ask for ask in asked if ask in wanted], catalog):
        raise _untrusted(refused, catalog, ())


def _untrusted(refused: Sequence[str], catalog: str, options: Sequence[str]) -> UntrustedCatalogError:
    says = f"say so ({' and '.join(options)}), or " if options else ""
    return UntrustedCatalogError(
        f"{catalog} asks to {', and to '.join(refused)}, which nobody here has allowed. If that is right, {says}"
        f"allow it: epithre-beam trust {shlex.quote(catalog)}.",
        asks=list(refused),
    )


def _place_of(catalog: str) -> str:
    """One spelling of a catalog's address."""
    return catalog.rstrip("/") if "://" in catalog else os.path.abspath(Path(catalog).expanduser())  # noqa: PTH100 - links stay
