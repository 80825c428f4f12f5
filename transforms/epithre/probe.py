"""Asks a server who it is, before anything is read or paid."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx

from ...configs import EmbedConfig
from ...configs.errors import ApiError, UnknownModelError
from ...configs.scrubbing import Scrubber
from .answers import ErrorAnswer, read_transport_error, refusal_of, short
from .circuit_breaker import paused_error
from .dialects import DIALECTS
from .proxies import way_to
from .retries import log_pause, tell_long_pause

_FINGERPRINT = "x-emulator-fingerprint"
_MODELS_NAMED = 30


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a server said of itself before the run began."""

    requests: int
    """How many requests it took to ask."""
    emulator: str | None
    """The fingerprint of an emulator's model; None for any other server."""


def probe(
    settings: EmbedConfig, api_key: str, *, tries: int = 3, pause_s: float = 0.5, longest_pause_s: float | None = None
) -> Probe:
    """Asks `/models` before anything is read or paid: is the server there, the key good, the model known?

    The guide does not promise that endpoint, so a server without it is taken at its word later; and so is one whose
    provider does not answer every good key there.

    Args:
        settings: The `embed` section of a config.
        api_key: Sent as a bearer token, and shown nowhere.
        tries: How often to ask at most.
        pause_s: Between the first two; the later ones are longer.
        longest_pause_s: That the server may ask for; absent: as the settings say.

    Raises:
        ApiError: With what is wrong and what to do.
        ConfigError: When the environment names a proxy or certificates that cannot be used.
    """
    if longest_pause_s is not None:
        settings = settings.model_copy(update={"max_retry_after_s": min(longest_pause_s, settings.max_retry_after_s)})
    headers = {"authorization": f"Bearer {api_key}"}
    dialect = DIALECTS[settings.dialect](settings)
    scrubber, way = Scrubber(api_key), way_to(settings.base_url)
    last = ""
    with httpx.Client(timeout=min(10.0, settings.timeout_s), follow_redirects=False, **way.client_options()) as http:
        for attempt in range(1, tries + 1):
            try:
                response = http.get(f"{settings.base_url}/models", headers=headers)
            except (httpx.HTTPError, OSError) as error:
                last = str(read_transport_error(error, scrubber)) + way.words
                time.sleep(pause_s * attempt)
                continue
            status, heard = response.status_code, scrubber.headers(response.headers)
            if status in {404, 405, 501} or not dialect.lists_models:
                return Probe(requests=attempt, emulator=heard.get(_FINGERPRINT))
            if status == 200:
                return _read(response, settings, attempt, scrubber)
            error_read = dialect.error(status, heard, scrubber.body(response.content), 0)
            if way.answers_itself:
                error_read = replace(error_read, message=error_read.message + way.words)
            if status in {401, 402, 403} or 300 <= status < 400:
                raise refusal_of(error_read, settings)
            last = f"{status}{way.words if way.answers_itself else ''}"
            time.sleep(max(pause_s * attempt, _asked_pause_s(error_read, settings)))
    raise ApiError(
        f"embed.base_url {settings.base_url} does not answer ({last}, asked {tries} times): "
        "check the address and the network, or use `embed.base_url: emulator` to try without a server."
    )


def _asked_pause_s(answer: ErrorAnswer, settings: EmbedConfig) -> float:
    """How long the server asks to be left alone. Raises ApiPausedError when that is longer than is waited for."""
    asked_s = answer.retry_after_s or 0.0
    if asked_s > settings.max_retry_after_s:
        raise paused_error(answer, asked_s, settings)
    tell_long_pause(answer, asked_s, log_pause)
    return asked_s


def _read(response: httpx.Response, settings: EmbedConfig, requests: int, scrubber: Scrubber) -> Probe:
    models: dict[str, Mapping[str, Any]] = {}
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        models = {str(entry["id"]): entry for entry in response.json()["data"]}
    if models and settings.model not in models:
        names = [short(scrubber.text(name)) for name in sorted(models)[:_MODELS_NAMED]]
        more = f" and {len(models) - _MODELS_NAMED:,} more" if len(models) > _MODELS_NAMED else ""
        raise UnknownModelError(
            f"embed.model {settings.model!r} is not served by {settings.base_url}, which has {', '.join(names)}{more}."
        )
    return Probe(requests=requests, emulator=scrubber.headers(response.headers).get(_FINGERPRINT))
