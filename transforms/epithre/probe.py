"""Asks a server who it is, before anything is read or paid."""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from ...configs import EmbedConfig
from ...configs.errors import ApiError, UnknownModelError
from .answers import Verdict, read_transport_error, refusal_of, short
from .bodies import ACCEPTED, MOST_MODELS_BYTES, Reply, read_reply
from .dialects import DIALECTS, Dialect
from .replies import error_inside

_FINGERPRINT = "x-emulator-fingerprint"
_FINGERPRINTS = re.compile(r"emulator-[A-Za-z0-9_.-]{1,100}")
_LATER_STATUS = {408, 409, 425, 429}
_MODELS_NAMED = 30

log = logging.getLogger("epithre_beam.client")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a server said of itself before the run began."""

    requests: int
    """How many requests it took to ask."""
    emulator: str | None
    """The fingerprint of an emulator's model; None for any other server."""


def probe(settings: EmbedConfig, api_key: str, *, tries: int = 3, pause_s: float = 0.5) -> Probe:
    """Asks `/models` before anything is read or paid: is the server there, the key good, the model known?

    The guide does not promise that endpoint. So a server that refuses it (any 4xx that is not about the key) or answers
    something else is taken at its word later; and so is one whose provider does not answer every good key there.

    Raises:
        ApiError: With what is wrong and what to do.
    """
    dialect = DIALECTS[settings.dialect](settings)
    last = ""
    for attempt in range(1, tries + 1):
        try:
            reply = _ask(settings, api_key)
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            last = str(read_transport_error(error))
            time.sleep(pause_s * attempt)
            continue
        status = reply.status_code
        if status == httpx.codes.OK and dialect.lists_models:
            return _read(reply, settings, dialect, attempt)
        error_read = dialect.error(status, reply.headers, reply.content, 0)
        if not dialect.lists_models or status == httpx.codes.NOT_IMPLEMENTED:
            return Probe(requests=attempt, emulator=_fingerprint(reply))
        if status in {401, 402, 403} or 300 <= status < 400:
            raise refusal_of(error_read, settings)
        if 400 <= status < 500 and status not in _LATER_STATUS:
            return Probe(requests=attempt, emulator=_fingerprint(reply))
        last = str(error_read)
        time.sleep(pause_s * attempt)
    raise ApiError(
        f"embed.base_url {settings.base_url} does not answer ({last}, asked {tries} times): "
        "check the address and the network, or use `embed.base_url: emulator` to try without a server."
    )


def _ask(settings: EmbedConfig, api_key: str) -> Reply:
    """One request. It ends in time whatever the server does, which httpx promises only for each piece of an answer."""
    timeout_s = min(10.0, settings.timeout_s)
    headers = {"authorization": f"Bearer {api_key}", "accept-encoding": ACCEPTED}

    async def ask() -> Reply:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(timeout=timeout_s, follow_redirects=False) as http,
            http.stream("GET", f"{settings.base_url}/models", headers=headers) as response,
        ):
            return await read_reply(response, MOST_MODELS_BYTES)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(ask())
    with ThreadPoolExecutor(1) as thread:  # a notebook's loop runs in this one
        return thread.submit(asyncio.run, ask()).result()


def _read(reply: Reply, settings: EmbedConfig, dialect: Dialect, requests: int) -> Probe:
    """What a 200 says: an error about the key, a list of models, or something else, which is nothing to go by."""
    if reply.problem is not None:
        log.warning("%s/models: %s. Whether it serves the model is not known.", settings.base_url, reply.problem)
        return Probe(requests=requests, emulator=_fingerprint(reply))
    inside = error_inside(dialect, reply, 0)
    if inside is not None and inside.verdict is Verdict.STOP and inside.status in {401, 402, 403}:
        raise refusal_of(inside, settings)
    models: dict[str, Mapping[str, Any]] = {}
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        models = {entry["id"]: entry for entry in orjson.loads(reply.content)["data"] if isinstance(entry["id"], str)}
    if models and settings.model not in models:
        names = [short(name) for name in sorted(models)[:_MODELS_NAMED]]
        more = f" and {len(models) - _MODELS_NAMED:,} more" if len(models) > _MODELS_NAMED else ""
        raise UnknownModelError(
            f"embed.model {settings.model!r} is not served by {settings.base_url}, which has {', '.join(names)}{more}."
        )
    return Probe(requests=requests, emulator=_fingerprint(reply))


def _fingerprint(reply: Reply) -> str | None:
    found = reply.headers.get(_FINGERPRINT, "")
    return found if _FINGERPRINTS.fullmatch(found) else None
