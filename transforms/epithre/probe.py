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
from ...configs.scrubbing import Scrubber
from .answers import ErrorAnswer, read_transport_error, refusal_of, short
from .bodies import ACCEPTED, MOST_MODELS_BYTES, Reply, read_reply
from .circuit_breaker import paused_error
from .dialects import DIALECTS
from .other_scheme import wrong_scheme
from .proxies import Way, way_to
from .replies import error_in, error_to_show
from .retries import log_pause, report_long_pause

_FINGERPRINT = "x-emulator-fingerprint"
_FINGERPRINTS = re.compile(r"emulator-[A-Za-z0-9_.-]{1,100}")
_LATER_STATUS = {407, 408, 409, 425, 429}
"""Refusals that say nothing of `/models`: of a proxy (407), or for now."""
_OTHER_SCHEME = re.compile(rb"(?i)\bhttps\b|\bssl\b|\btls\b")
"""What servers of https say to a request over plain http."""
_MODELS_NAMED = 30
_LONGEST_NAME = 10_000

log = logging.getLogger("epithre_beam.client")


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

    The guide does not promise that endpoint. So a server that refuses it (any 4xx that is not about the key) or answers
    something else is taken at its word later; and so is one whose provider does not answer every good key there.

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
    dialect = DIALECTS[settings.dialect](settings)
    scrubber, way = Scrubber(api_key), way_to(settings.base_url)
    options = way.client_options()
    last = ""
    for attempt in range(1, tries + 1):
        try:
            reply = _ask(settings, api_key, options)
        except (httpx.HTTPError, TimeoutError, OSError) as failure:
            if attempt == 1 and not isinstance(failure, (httpx.TimeoutException, TimeoutError)):
                _check_scheme(settings, way)
            last = str(error_to_show(read_transport_error(failure, scrubber), scrubber, way))
            time.sleep(pause_s * attempt)
            continue
        probed = Probe(requests=attempt, emulator=_fingerprint(reply, scrubber))
        if not dialect.lists_models:
            return probed
        error = error_in(dialect, reply, 0, scrubber)
        if error is None or error.status == httpx.codes.OK:
            _check_model(reply, settings, scrubber)
            return probed
        error = error_to_show(error, scrubber, way)
        if error.status in {401, 402, 403} or 300 <= error.status < 400:
            raise refusal_of(error, settings)
        if error.status == httpx.codes.BAD_REQUEST and _OTHER_SCHEME.search(reply.content):
            _check_scheme(settings, way)
        if (400 <= error.status < 500 and error.status not in _LATER_STATUS) or error.status == 501:
            return probed
        last = str(error)
        time.sleep(max(pause_s * attempt, _asked_pause_s(error, settings)))
    raise ApiError(
        f"embed.base_url {settings.base_url} does not answer ({last}, asked {tries} times): "
        "check the address and the network, or use `embed.base_url: emulator` to try without a server."
    )


def _check_scheme(settings: EmbedConfig, way: Way) -> None:
    """Raises WrongAddressError when the server speaks http where it is asked by https, or the reverse."""
    if way.proxy is None and (error := wrong_scheme(settings.base_url)) is not None:
        raise error


def _asked_pause_s(answer: ErrorAnswer, settings: EmbedConfig) -> float:
    """How long the server asks to be left alone. Raises ApiPausedError when that is longer than is waited for."""
    asked_s = answer.retry_after_s or 0.0
    if asked_s > settings.max_retry_after_s:
        raise paused_error(answer, asked_s, settings)
    report_long_pause(answer, asked_s, log_pause)
    return asked_s


def _ask(settings: EmbedConfig, api_key: str, options: Mapping[str, Any]) -> Reply:
    """One request. It ends in time whatever the server does, which httpx promises only for each piece of an answer."""
    timeout_s = min(10.0, settings.timeout_s)
    headers = {"authorization": f"Bearer {api_key}", "accept-encoding": ACCEPTED}

    async def ask() -> Reply:
        async with (
            asyncio.timeout(timeout_s),
            httpx.AsyncClient(timeout=timeout_s, follow_redirects=False, **options) as http,
            http.stream("GET", f"{settings.base_url}/models", headers=headers) as response,
        ):
            return await read_reply(response, MOST_MODELS_BYTES)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(ask())
    with ThreadPoolExecutor(1) as thread:  # a notebook's loop runs in this one
        return thread.submit(asyncio.run, ask()).result()


def _check_model(reply: Reply, settings: EmbedConfig, scrubber: Scrubber) -> None:
    """Raises UnknownModelError when a 200 is a list of models without the asked one; another is nothing to go by."""
    if reply.problem is not None:
        log.warning("%s/models: %s. Whether it serves the model is not known.", settings.base_url, reply.problem)
        return
    models: set[str] = set()
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        models = {entry["id"] for entry in orjson.loads(reply.content)["data"] if isinstance(entry["id"], str)}
    if models and settings.model not in models:
        # Names are searched for the key before they are cut, and that takes a second for each million characters.
        shown = [name for name in sorted(models) if len(name) <= _LONGEST_NAME][:_MODELS_NAMED]
        names = ", ".join(short(scrubber.text(name)) for name in shown) or "others"
        more = f" and {len(models) - len(shown):,} more" if shown and len(models) > len(shown) else ""
        raise UnknownModelError(
            f"embed.model {settings.model!r} is not served by {settings.base_url}, which has {names}{more}."
        )


def _fingerprint(reply: Reply, scrubber: Scrubber) -> str | None:
    found = scrubber.text(reply.headers.get(_FINGERPRINT, ""))
    return found if _FINGERPRINTS.fullmatch(found) else None
