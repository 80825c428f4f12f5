"""What a catalog may request from the user: where to send the API key, and which places to read.

A manifest names the API that made its vectors, the variable with the key, and the sources of its images. It may come
from an untrusted party. A request is therefore only followed if it is for the provider itself, is given on the command
line, or was allowed before: by running a job with the same settings, or with `epithre-beam trust CATALOG`.
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
from ...configs.caller import ARGUMENTS, Caller
from ...configs.errors import CatalogError, UntrustedCatalogError
from ...configs.schema import EMULATOR
from .private import TRUST

CATALOGS_VARIABLE = "EPITHRE_BEAM_TRUSTED_CATALOGS"
"""Addresses of fully trusted catalogs, separated by spaces. For containers."""

_DEFAULTS = EmbedConfig()
_RUNNER = str(CatalogConfig.model_fields["runner"].default)
_HARMLESS = (
    "dialect", "model", "dimension", "input_type", "emulator_model", "batch_items", "batch_bytes", "batch_tokens",
    "requests_per_minute", "items_per_minute", "tokens_per_minute", "timeout_s", "max_sends", "retry_share",
)  # fmt: skip
"""Settings of `embed` that are safe to use from an untrusted manifest."""
_CAPS = ("max_file_bytes", "max_decode_pixels", "max_side", "decode_timeout_s", "max_text_chars")
"""Limits in `prepare` that only reject assets. An untrusted manifest may lower them, but not raise them."""

_log = logging.getLogger(__name__)


def asks(config: Mapping[str, Any]) -> list[str]:
    """Return what the config in a catalog's manifest requests. Each item completes "the catalog asks to …".

    The provider's own address with its default key variable, and the emulator, are always allowed and not listed.
    """
    return [
        *asks_for_key(_section(config, "embed")),
        *asks_for_count(_section(config, "embed")),
        *(ask for source in image_sources(config) for ask in asks_for_images(source)),
        *asks_for_runner(config),
        *asks_for_queries(_section(config, "index")),
    ]


def asks_for_key(embed: Mapping[str, Any]) -> list[str]:
    """Return the request to send an API key, if any."""
    address = embed.get("base_url", _DEFAULTS.base_url)
    variable = embed.get("api_key_env", _DEFAULTS.api_key_env)
    if address == EMULATOR or (address, variable) == (_DEFAULTS.base_url, _DEFAULTS.api_key_env):
        return []
    return [f"send the key in {_quoted(variable)} to {_quoted(address)}"]


def asks_for_count(embed: Mapping[str, Any]) -> list[str]:
    """Return the request to use a Redis rate limiter, if any."""
    if embed.get("redis_url") is None:
        return []
    password = embed.get("redis_password_env")
    with_password = "" if password is None else f" with the password in {_quoted(password)}"
    return [f"count requests in the Redis {_quoted(embed['redis_url'])}{with_password}"]


def image_sources(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the image sources in the config of a manifest, unchanged."""
    sources = config.get("sources") or ()
    return [raw for raw in sources if isinstance(raw, Mapping) and raw.get("kind") == "image"]


def asks_for_images(source: Mapping[str, Any]) -> list[str]:
    places = [source.get("files") or source.get("table"), *(source.get("within") or ())]
    # Permissions are stored by the hash of this text, so it must not change.
    return [f"read pictures in {' and '.join(map(_quoted, places))}"]


def asks_for_runner(config: Mapping[str, Any]) -> list[str]:
    runner, options = config.get("runner", _RUNNER), config.get("beam_options", ())
    found = [] if runner == _RUNNER else [f"run on {_quoted(runner)}"]
    return [*found, *([f"run with the options {_quoted(list(options))}"] if options else [])]


def asks_for_queries(index: Mapping[str, Any]) -> list[str]:
    return [] if index.get("queries") is None else [f"read queries in {_quoted(index['queries'])}"]


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a manifest's config, or {} if it is missing or invalid; validation reports it later."""
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _quoted(value: Any) -> str:
    """Quote a value unambiguously and without terminal control characters."""
    return json.dumps(value, default=str)


class Trust:
    """The requests that the user has allowed. An unreadable entry counts as not allowed."""

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` defaults to EPITHRE_BEAM_TRUST, or the user's settings folder of the system."""
        self._named = folder

    def allows(self, ask: str, catalog: str) -> bool:
        """Whether the catalog at this address may have the request."""
        named = os.environ.get(CATALOGS_VARIABLE, "").split()
        if _place_of(catalog) in map(_place_of, named):
            return True
        with contextlib.suppress(CatalogError, OSError, UnicodeError):
            return self._file(ask).read_text("utf-8") == ask
        return False

    def allows_all(self, config: Mapping[str, Any], catalog: str) -> bool:
        """Whether a manifest's config requests something and all of it is allowed."""
        wanted = asks(config)
        return bool(wanted) and not self.refused(wanted, catalog)

    def refused(self, wanted: Iterable[str], catalog: str) -> list[str]:
        """Return the requests that are not allowed."""
        return [ask for ask in wanted if not self.allows(ask, catalog)]

    def add(self, wanted: Iterable[str]) -> None:
        """Allow these requests from now on, for all catalogs.

        Raises:
            CatalogError: If they cannot be stored.
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
        """Allow the requests of the user's own job, so that its catalog may make them. Does not raise.

        Args:
            config: The config of the job.
            before: The config of the previous version's manifest. Its requests are not allowed by this call.
        """
        known = set() if before is None else set(asks(before))
        try:
            self.add(ask for ask in asks(config.model_dump(mode="json")) if ask not in known)
        except CatalogError as error:
            _log.info("The permissions of the job could not be stored: %s", error)

    def _file(self, ask: str) -> Path:
        folder = TRUST.make_private(self._named or TRUST.path())
        return folder / f"{hashlib.sha256(ask.encode('utf-8', 'surrogatepass')).hexdigest()}.txt"


def allowed_embed(
    config: Mapping[str, Any], catalog: str, said: Mapping[str, Any], caller: Caller = ARGUMENTS
) -> dict[str, Any]:
    """Return the `embed` section for queries of a catalog, as plain data.

    The manifest's section is used in full if all its requests are allowed. Otherwise the address and the key variable
    come from the user or the provider, and only safe settings are used from the manifest.

    Args:
        config: The config of the manifest.
        catalog: The address of the catalog.
        said: The user's settings for this search. They override the manifest.
        caller: Who searches; for messages.

    Raises:
        UntrustedCatalogError: If only the manifest requests that a key is sent to an address.
    """
    stated, trust = dict(_section(config, "embed")), Trust()
    refused = trust.refused((*asks_for_key(stated), *asks_for_count(stated)), catalog)
    if not refused:
        if "base_url" in said and not asks_for_key(stated):
            stated.pop("allow_plain_http", None)  # it was not allowed: an untrusted manifest can set it too
        return {**stated, **said}
    address = said.get("base_url", stated.get("base_url", _DEFAULTS.base_url))
    variable = said.get("api_key_env", stated.get("api_key_env", _DEFAULTS.api_key_env))
    is_key_allowed = not trust.refused(asks_for_key(stated), catalog)
    missing = []
    if not is_key_allowed and "base_url" not in said and address not in {_DEFAULTS.base_url, EMULATOR}:
        missing.append(caller.name("base_url"))
    if not is_key_allowed and "api_key_env" not in said and variable != _DEFAULTS.api_key_env and address != EMULATOR:
        missing.append(caller.name("api_key_env"))
    if missing:
        raise _untrusted(asks_for_key({"base_url": address, "api_key_env": variable}), catalog, missing)
    for ask in trust.refused(asks_for_count(stated), catalog):
        _log.warning("%s asks to %s, which is not allowed. Its requests are counted separately.", catalog, ask)
    kept = {name: stated[name] for name in _HARMLESS if name in stated}
    return {**kept, "base_url": address, "api_key_env": variable, **said}


def allowed_prepare(config: Mapping[str, Any], catalog: str) -> dict[str, Any]:
    """Return the `prepare` section for queries of a catalog. Untrusted limits are capped at the defaults."""
    stated = dict(_section(config, "prepare"))
    if Trust().allows_all(config, catalog):
        return stated
    for name in _CAPS:
        ours = getattr(PrepareConfig(), name)
        with contextlib.suppress(KeyError, TypeError):  # validation rejects other types later
            stated[name] = min(stated[name], ours)
    return stated


def check_rebuild(before: Mapping[str, Any], config: CatalogConfig, catalog: str) -> None:
    """Refuse to rebuild a catalog with a runner or queries that only its manifest requests.

    Args:
        before: The config of the manifest.
        config: The config of the rebuild: the manifest's, with the user's settings.
        catalog: The address of the catalog.

    Raises:
        UntrustedCatalogError: If the rebuild uses a request of the manifest that is not allowed.
    """
    now = config.model_dump(mode="json")
    wanted = {*asks_for_runner(now), *asks_for_queries(now["index"])}
    asked = [*asks_for_runner(before), *asks_for_queries(_section(before, "index"))]
    if refused := Trust().refused([ask for ask in asked if ask in wanted], catalog):
        raise _untrusted(refused, catalog, ())


def _untrusted(refused: Sequence[str], catalog: str, options: Sequence[str]) -> UntrustedCatalogError:
    says = f"set {' and '.join(options)}, or " if options else ""
    return UntrustedCatalogError(
        f"{catalog} asks to {', and to '.join(refused)}, which is not allowed. If you trust it, {says}"
        f"run `epithre-beam trust {shlex.quote(catalog)}`.",
        asks=list(refused),
    )


def _place_of(catalog: str) -> str:
    """Normalise the address of a catalog."""
    return catalog.rstrip("/") if "://" in catalog else os.path.abspath(Path(catalog).expanduser())  # noqa: PTH100 - links stay
