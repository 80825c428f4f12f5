"""Check the server, the API key and the model before a run starts."""

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
from ...configs.caller import JOB, Caller
from ...configs.errors import ApiError, UnknownModelError
from ...configs.scrubbing import Scrubber
from .answers import ErrorAnswer, read_transport_error, refusal_of, short
from .bodies import ACCEPTED, MOST_MODELS_BYTES, Reply, read_reply
from .circuit_breaker import paused_error
from .dialects import DIALECTS
from .other_scheme import wrong_scheme
from .proxies import Way, way_to
from .replies import emulator_of, error_in, error_to_show
from .retries import log_pause, report_long_pause

_LATER_STATUS = {407, 408, 409, 425, 429}
"""Refusals that do not concern `/models`: from a proxy (407), or transient."""
_OTHER_SCHEME = re.compile(rb"(?i)\bhttps\b|\bssl\b|\btls\b")
"""What https servers answer to a request over plain http."""
_MODELS_NAMED = 30
_LONGEST_NAME = 10_000

log = logging.getLogger("epithre_beam.client")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The result of a probe."""

    requests: int
    """Number of requests that the probe sent."""
    emulator: str | None
    """The fingerprint of an emulator's model; None for any other server."""


def probe(
    settings: EmbedConfig,
    api_key: str,
    *,
    tries: int = 3,
    pause_s: float = 0.5,
    longest_pause_s: float | None = None,
    caller: Caller = JOB,
) -> Probe:
    """Request `/models` before a run or a query: check that the server is up, the key valid and the model known.

    The API's guide does not promise that endpoint. If a server refuses it (any 4xx that is not about the key) or
    answers something else, or if the provider does not allow it for every valid key, the probe succeeds without a check
    of the model.

    Args:
        settings: The `embed` section of a config.
        api_key: Sent as a bearer token; never logged or shown.
        tries: Maximum number of requests.
        pause_s: Pause after the first failed request, in seconds; later pauses are longer.
        longest_pause_s: Longest pause that the server may ask for, in seconds; by default as in the settings.
        caller: Who embeds; for messages.

    Raises:
        ApiError: If no run can succeed; the message says what is wrong and what to do.
        ConfigError: If the environment names a proxy or certificates that cannot be used.
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
                _check_scheme(settings, way, caller)
            last = str(error_to_show(read_transport_error(failure, scrubber), scrubber, way))
            time.sleep(pause_s * attempt)
            continue
        probed = Probe(requests=attempt, emulator=emulator_of(reply, scrubber))
        if not dialect.lists_models:
            return probed
        error = error_in(dialect.error, reply, 0, scrubber)
        if error is None or error.status == httpx.codes.OK:
            _check_model(reply, settings, scrubber, caller)
            return probed
        error = error_to_show(error, scrubber, way)
        if error.status in {401, 402, 403} or 300 <= error.status < 400:
            raise refusal_of(error, settings, caller)
        if error.status == httpx.codes.BAD_REQUEST and _OTHER_SCHEME.search(reply.content):
            _check_scheme(settings, way, caller)
        if (400 <= error.status < 500 and error.status not in _LATER_STATUS) or error.status == 501:
            return probed
        last = str(error)
        time.sleep(max(pause_s * attempt, _asked_pause_s(error, settings, caller)))
    place = caller.name("base_url")
    before = "" if caller.sends_queries else f"{place}: "
    other = caller.trial or f"give another address of the model ({place})"
    raise ApiError(
        f"{before}{settings.base_url} does not answer ({last}; tried {tries} times). "
        f"Check the address and the network, or {other}."
    )


def _check_scheme(settings: EmbedConfig, way: Way, caller: Caller) -> None:
    """Raises WrongAddressError when the server speaks http where it is asked by https, or the reverse."""
    if way.proxy is None and (error := wrong_scheme(settings.base_url, caller)) is not None:
        raise error


def _asked_pause_s(answer: ErrorAnswer, settings: EmbedConfig, caller: Caller) -> float:
    """Return the pause that the server asks for. Raises ApiPausedError if the settings do not allow it."""
    asked_s = answer.retry_after_s or 0.0
    if asked_s > settings.max_retry_after_s:
        raise paused_error(answer, asked_s, settings, caller)
    report_long_pause(answer, asked_s, log_pause)
    return asked_s


def _ask(settings: EmbedConfig, api_key: str, options: Mapping[str, Any]) -> Reply:
    """Send one request. The timeout covers the whole answer; httpx's own timeouts cover only each chunk."""
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
    with ThreadPoolExecutor(1) as thread:  # in a notebook, this thread already runs an event loop
        return thread.submit(asyncio.run, ask()).result()


def _check_model(reply: Reply, settings: EmbedConfig, scrubber: Scrubber, caller: Caller) -> None:
    """Raise UnknownModelError if a 200 lists models but not the configured one; ignore any other body."""
    if reply.problem is not None:
        log.warning("%s/models: %s. The model is not checked.", settings.base_url, reply.problem)
        return
    models: set[str] = set()
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        models = {entry["id"] for entry in orjson.loads(reply.content)["data"] if isinstance(entry["id"], str)}
    if models and settings.model not in models:
        # The scrubber takes about 1 s per million characters, so long names are dropped first.
        shown = [name for name in sorted(models) if len(name) <= _LONGEST_NAME][:_MODELS_NAMED]
        names = ", ".join(short(scrubber.text(name)) for name in shown) or "others"
        more = f" and {len(models) - len(shown):,} more" if shown and len(models) > len(shown) else ""
        raise UnknownModelError(
            f"{caller.name('model')}: {settings.base_url} does not serve the model {settings.model!r}. "
            f"Choose one of its models: {names}{more}."
        )
