"""Parse the parts of an answer other than its vectors: errors, token usage, rate limits and retry delays."""

import datetime
import email.utils
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httpx
import orjson

from ...configs.caller import JOB, Caller
from ...configs.errors import ApiRefusedError, RefusedKeyError, SpentQuotaError, UnknownModelError, WrongAddressError
from ...configs.schema import ApiConfig
from ...configs.scrubbing import Scrubber
from ...configs.words import of_moment


class Verdict(Enum):
    """What to do with an answer whose status is not 200."""

    RETRY = "retry"
    """Send the same request later: the server or the network failed."""
    ITEM = "item"
    """One item is invalid, and the server says which."""
    BATCH = "batch"
    """The request is invalid, and the server does not say which item."""
    TOO_LARGE = "too_large"
    """The request has too many items, bytes or tokens."""
    STOP = "stop"
    """No request can succeed: the key, the quota, the model or the address is wrong."""


@dataclass(frozen=True, kw_only=True)
class ErrorAnswer:
    """A parsed error of the API."""

    verdict: Verdict
    status: int
    code: str
    message: str
    item: int | None = None
    is_certain: bool = False
    """Whether `item` comes from a structured field. A number in prose may count from 1 or mean something else."""
    retry_after_s: float | None = None

    @property
    def may_be_an_item(self) -> bool:
        """Whether one of the items may have made the server, or a proxy in front of it, fail."""
        return self.verdict is Verdict.RETRY and self.status not in _RETRY_STATUS

    def __str__(self) -> str:
        place = " ".join(str(part) for part in (self.status, self.code) if part)
        return f"{place}: {self.message}"


_LONGEST_PAUSE_S = 30 * 365 * 86_400.0
_STOP_STATUS = {401, 402, 403, 404, 405, 410, 501}
_RETRY_STATUS = {408, 409, 425, 429}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached"}
_STOP_CODES = {*_QUOTA_CODES, "model_not_found", "invalid_api_key"}
_TOO_LARGE = re.compile(
    r"(?i)too (many|long|large|big)|payload.*large|(maximum|max)\w* .*(batch|context|length|size|inputs|tokens|items)"
)
_PARAM_ITEM = re.compile(r"^(?:input|inputs|messages|texts|images)\[(\d{1,9})\]")
_ITEM_LISTS = {"input", "inputs", "messages", "texts", "images"}
_VERSION_PATH = re.compile(r"/v\d+\w*/?$")
"""The end of most base URLs."""
_UNKNOWN_MODEL = re.compile(r"(?i)\bmodel:?\s+\S+\s+(?:(?:is |was )?not (?:found|supported|available)|does not exist)")
_PROSE_ITEM = re.compile(
    r"(?i)(?:input|inputs|items?|element|index|position)\s*(?:\[|#|number|at index|at|:)?\s*(\d{1,9})(?!\d)"
)
_STATUS_CODE = re.compile(r"(?:HTTP )?([45]\d\d)(?!\d)")
_STATUS_OF_CODES = (
    (re.compile(r"(?i)rate.?limit|too.?many.?requests|resource.?exhausted|slow.?down"), 429),
    (re.compile(r"(?i)overloaded|unavailable|capacity"), 503),
    (re.compile(r"(?i)time.?out|deadline"), 504),
    (re.compile(r"(?i)server.?error|internal|upstream|bad.?gateway"), 502),
)
"""Names that gateways use for a status when they send an error with status 200."""
_MOST_LIMIT = 1e12
"""A stated limit above this value is ignored: it limits nothing and could overflow a sum."""
_SECRET = re.compile(r"(?i)(bearer\s+|sk-|key[=: ]+)\S+")


def read_error(status: int, headers: Mapping[str, str], body: bytes, count: int) -> ErrorAnswer:
    """Parse an error in OpenAI's format, in another provider's format, or from a proxy.

    Other providers answer `{"message":…}` or `{"detail":…}`; FastAPI's `detail` is a list of validation errors.

    Args:
        status: HTTP status of the answer.
        headers: Headers of the answer, looked up in lower case.
        body: JSON, HTML or empty.
        count: Number of items in the request.
    """
    code = kind = message = param = ""
    parsed = _loads(body)
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else None
    if isinstance(error, dict):
        kind = short(_words(error.get("type")))
        code = short(_words(error.get("code")))
        code = kind if code in {"", str(status)} else code
        detail = error.get("detail")
        param = _words(error.get("param"))
        if isinstance(detail, list):
            detail, param = _read_detail(detail)
        message = _words(error.get("message")) or _words(detail)
    elif isinstance(error, str):
        message = error
    else:
        message = "an HTML page instead of JSON" if body.lstrip()[:1] == b"<" else "the answer is not a JSON object"
    message = short(message)
    named = _PARAM_ITEM.match(param)
    prose = named or _PROSE_ITEM.search(message)
    item = int(prose.group(1)) if prose else None
    if item is not None and item >= count:
        item = None
    is_unknown_model = status in {200, 400, 422} and _UNKNOWN_MODEL.search(message)
    if 300 <= status < 400 or status in _STOP_STATUS or {code, kind} & _STOP_CODES or is_unknown_model:
        verdict = Verdict.STOP
    elif status in _RETRY_STATUS or status >= 500:
        verdict = Verdict.RETRY
    elif status == 413 or (named is None and _TOO_LARGE.search(f"{code} {message}")):
        verdict = Verdict.TOO_LARGE
    elif item is not None:
        verdict = Verdict.ITEM
    else:
        verdict = Verdict.BATCH
    return ErrorAnswer(
        verdict=verdict,
        status=status,
        code=code,
        message=message,
        item=item if verdict is Verdict.ITEM else None,
        is_certain=named is not None,
        retry_after_s=read_retry_after(headers),
    )


def status_inside(body: bytes) -> int | None:
    """Return the status of an error that a gateway sent with status 200.

    Args:
        body: Body of an answer without valid vectors.

    Returns:
        400 to 599 if the error names a status, as a number or by a usual name; 200 for an error that names none; None
        if the answer is not an error.
    """
    parsed = _loads(body)
    if not isinstance(parsed, dict):
        return None
    error = parsed.get("error")
    is_error = bool(error) or parsed.get("object") == "error"
    if not is_error and not ({"data", "embeddings"} & parsed.keys()):
        is_error = any(isinstance(parsed.get(name), str) for name in ("message", "detail"))
    if not is_error:
        return None
    places = [error, parsed] if isinstance(error, dict) else [parsed]
    codes = [_words(place.get(name)) for place in places for name in ("code", "status", "status_code", "type")]
    for code in codes:
        if found := _STATUS_CODE.match(code):
            return int(found.group(1))
    return next((status for code in codes for pattern, status in _STATUS_OF_CODES if pattern.search(code)), 200)


def read_tokens(claims: Sequence[object], most: int) -> tuple[int, bool]:
    """Return the number of tokens that an answer bills.

    Args:
        claims: Unchecked values of the answer's `usage` that add up to the billed tokens; None for a missing value.
        most: Upper bound of the tokens in the request.

    Returns:
        Tokens, from 0 to `most`; and whether all the values are plausible.
    """
    tokens, is_plausible = 0, True
    for claim in claims:
        if claim is None:
            continue
        if not isinstance(claim, (int, float)) or isinstance(claim, bool) or not 0 <= claim < math.inf:
            is_plausible = False
        else:
            tokens += int(claim)
    return min(tokens, most), is_plausible and tokens <= most


def read_transport_error(error: Exception, scrubber: Scrubber) -> ErrorAnswer:
    """Describe a request that ended without an answer as an `ErrorAnswer`.

    Args:
        error: Exception of the HTTP client. A protocol error may quote what was sent or received.
        scrubber: Removes the API key.
    """
    is_timeout = isinstance(error, (httpx.TimeoutException, TimeoutError))
    words = "no answer in time" if is_timeout else short(scrubber.text(str(error))) or type(error).__name__
    return ErrorAnswer(verdict=Verdict.RETRY, status=0, code="timeout" if is_timeout else "connection", message=words)


def refusal_of(error: ErrorAnswer, settings: ApiConfig, caller: Caller = JOB) -> ApiRefusedError:
    """Return the exception for an answer after which no request can succeed."""
    where, address = settings.base_url, caller.name("base_url")
    if (error.status in {401, 403} and error.code not in _QUOTA_CODES) or error.code == "invalid_api_key":
        return RefusedKeyError(
            f"{where}: the server refused the API key ({error}). Check the environment variable "
            f"{settings.api_key_env} ({caller.name('api_key_env')})."
        )
    if error.status == 402 or error.code in _QUOTA_CODES:
        advice, facts = "Raise the quota and run again; waiting does not help.", {}
        if error.retry_after_s:
            retry_at = time.time() + error.retry_after_s
            advice, facts = f"Raise the quota, or run again after {of_moment(retry_at)}.", pause_facts(retry_at)
        return SpentQuotaError(f"{where}: the quota is used up ({error}). {advice}", **facts)
    if 300 <= error.status < 400:
        return WrongAddressError(
            f"{where}: the server redirects to another address ({error}), and the API key is not sent there. "
            f"Change {address}."
        )
    model = caller.name("model")
    is_path_wrong = error.status == 404 and not _VERSION_PATH.search(where)
    path_hint = f"Does {address} end in /v1? " if is_path_wrong else ""
    message = (
        f"{where}: this address does not serve {model} {settings.model!r} ({error}). "
        f"{path_hint}Check {address} and {model}."
    )
    if error.code == "model_not_found" or _UNKNOWN_MODEL.search(error.message):
        return UnknownModelError(message)
    return WrongAddressError(message)


def pause_facts(retry_at: float) -> dict[str, str]:
    """Return the facts of an error after which the server wants no request before `retry_at`, seconds of the epoch."""
    moment = datetime.datetime.fromtimestamp(math.ceil(retry_at), datetime.UTC)
    return {"retry_at": moment.isoformat(timespec="seconds")}


def _read_detail(found: list[Any]) -> tuple[str, str]:
    """Return the message of FastAPI's `detail` list, and the item's position in the form of OpenAI's `param`.

    A list that names several positions means that the request is malformed; then no item is named.
    """
    message = ""
    params = set()
    for one in found:
        if not isinstance(one, dict):
            continue
        message = message or _words(one.get("msg"))
        place = one["loc"] if isinstance(one.get("loc"), list) else []
        lists = [i for i, part in enumerate(place) if isinstance(part, str) and part in _ITEM_LISTS]
        numbers = [part for part in place[lists[0] :] if type(part) is int] if lists else []
        params.add(f"{place[lists[0]]}[{numbers[0]}]" if numbers else "")
    return message, params.pop() if len(params) == 1 else ""


def short(text: str) -> str:
    """Shorten a server's text for a log: one line, at most 200 characters, without anything that looks like a key."""
    text = _SECRET.sub(r"\1***", " ".join(text.split()))
    return text if len(text) <= 200 else text[:197] + "..."


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, from `retry-after-ms` or `retry-after` (a number or an HTTP date); None if absent.

    A date is compared with the answer's own `date`, because the clocks of client and server may differ. The result is
    at most 30 years, so that it can be added to any clock.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(milliseconds / 1000, _LONGEST_PAUSE_S)
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds if seconds is None else min(seconds, _LONGEST_PAUSE_S)
    until = _moment(value)
    if until is None:
        return None
    now = _moment(headers.get("date")) or datetime.datetime.now(datetime.UTC)
    return min(max(0.0, (until - now).total_seconds()), _LONGEST_PAUSE_S)


def _moment(text: str | None) -> datetime.datetime | None:
    """Parse an HTTP date, with its time zone; None if it is invalid."""
    try:
        moment = email.utils.parsedate_to_datetime(text or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def read_limits(headers: Mapping[str, str]) -> dict[str, float]:
    """Return the limits per minute that a server states in `x-ratelimit-limit-…`, by name."""
    found = {name: _number(headers.get(f"x-ratelimit-limit-{name}")) for name in ("requests", "tokens", "items")}
    return {name: value for name, value in found.items() if value is not None and 1 <= value <= _MOST_LIMIT}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _words(value: object) -> str:
    """Return a field of an error as text: a string, a number, or the message of a nested error; otherwise empty."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        found = (value.get(name) for name in ("message", "msg", "detail", "error"))
        return next((words for words in found if isinstance(words, str) and words), "")
    return ""


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
