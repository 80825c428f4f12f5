"""Asks a server who it is, before anything is read or paid."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from ...configs import EmbedConfig
from ...configs.errors import ApiError, UnknownModelError
from .answers import read_transport_error, refusal_of
from .dialects import DIALECTS

_FINGERPRINT = "x-emulator-fingerprint"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a server said of itself before the run began."""

    requests: int
    """How many requests it took to ask."""
    emulator: str | None
    """The fingerprint of an emulator's model; None for any other server."""


def probe(settings: EmbedConfig, api_key: str, *, tries: int = 3, pause_s: float = 0.5) -> Probe:
    """Asks `/models` before anything is read or paid: is the server there, the key good, the model known?

    The guide does not promise that endpoint, so a server without it is taken at its word later; and so is one whose
    provider does not answer every good key there.

    Raises:
        ApiError: With what is wrong and what to do.
    """
    headers = {"authorization": f"Bearer {api_key}"}
    dialect = DIALECTS[settings.dialect](settings)
    last = ""
    with httpx.Client(timeout=min(10.0, settings.timeout_s), follow_redirects=False) as http:
        for attempt in range(1, tries + 1):
            try:
                response = http.get(f"{settings.base_url}/models", headers=headers)
            except (httpx.HTTPError, OSError) as error:
                last = str(read_transport_error(error))
                time.sleep(pause_s * attempt)
                continue
            if response.status_code in {404, 405, 501} or not dialect.lists_models:
                return Probe(requests=attempt, emulator=response.headers.get(_FINGERPRINT))
            if response.status_code in {401, 402, 403} or 300 <= response.status_code < 400:
                error_read = dialect.error(response.status_code, response.headers, response.content, 0)
                raise refusal_of(error_read, settings)
            if response.status_code != 200:
                last = f"{response.status_code}"
                time.sleep(pause_s * attempt)
                continue
            return _read(response, settings, attempt)
    raise ApiError(
        f"embed.base_url {settings.base_url} does not answer ({last}, asked {tries} times): "
        "check the address and the network, or use `embed.base_url: emulator` to try without a server."
    )


def _read(response: httpx.Response, settings: EmbedConfig, requests: int) -> Probe:
    models: dict[str, Mapping[str, Any]] = {}
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        models = {str(entry["id"]): entry for entry in response.json()["data"]}
    if models and settings.model not in models:
        raise UnknownModelError(
            f"embed.model {settings.model!r} is not served by {settings.base_url}, "
            f"which has {', '.join(sorted(models))}."
        )
    return Probe(requests=requests, emulator=response.headers.get(_FINGERPRINT))
