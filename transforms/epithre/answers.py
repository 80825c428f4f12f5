"""What an answer says beside its vectors: an error and what to do about it, what it bills, which limits there are."""

import datetime
import email.utils
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import httpx
import orjson

from ...configs import EmbedConfig
from ...configs.errors import ApiRefusedError, RefusedKeyError, SpentQuotaError, UnknownModelError, WrongAddressError
from ...configs.scrubbing import Scrubber


class Verdict(Enum):
    """What to do with an answer that is no 200."""

    RETRY = "retry"
    """Later, the same: the server or the way to it failed."""
    ITEM = "item"
    """One item is at fault, and the server says which."""
    BATCH = "batch"
    """Something in the request is at fault, and the server does not say what."""
    TOO_LARGE = "too_large"
    """The request has too many items, bytes or tokens."""
    STOP = "stop"
    """No request will ever succeed: key, quota, model, address."""


@dataclass(frozen=True, kw_only=True)
class ErrorAnswer:
    """An error of the API, read."""

    verdict: Verdict
    status: int
    code: str
    message: str
    item: int | None = None
    is_certain: bool = False
    """Whether `item` was given as data; prose may count from one, or mean another number."""
    retry_after_s: float | None = None

    @property
    def may_be_an_item(self) -> bool:
        """Whether the server, or what stands before it, may have failed at one of the items."""
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
"""What gateways call a status in an error that they send in a 200."""
_MOST_LIMIT = 1e12
"""A greater limit than this is none, and would only serve to overflow a sum."""
_SECRET = re.compile(r"(?i)(bearer\s+|sk-|key[=: ]+)\S+")


def read_error(status: int, headers: Mapping[str, str], body: bytes, count: int) -> ErrorAnswer:
    """Reads an error in the shape that OpenAI's API gave the field, or whatever a proxy says instead.

    Other providers answer `{"message":…}` or `{"detail":…}`; FastAPI's `detail` is a list of what it found where.

    Args:
        status: Of the answer.
        headers: Of the answer, looked up in lower case.
        body: JSON, HTML or nothing.
        count: Items in the request.
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
        message = "a page that is no JSON" if body.lstrip()[:1] == b"<" else "an answer that is no JSON object"
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
    """The status of an error that came in a 200, as gateways send them.

    Args:
        body: Of an answer that holds no good vectors.

    Returns:
        400 to 599 where the error names it, as a number or by a usual name; 200: an error that names none; None: the
        answer is no error.
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
    """What an answer bills.

    Args:
        claims: The numbers of its `usage` that add up to the bill, whatever they are; None: it gave none.
        most: Tokens that the request can have had.

    Returns:
        Tokens, from 0 to `most`; and whether all that the answer says of them can be true.
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
    """An exchange that ended without an answer, in the same terms as one that ended with an error.

    Args:
        error: As the HTTP client raised it; one of the protocol quotes what was sent or received.
        scrubber: Knows the key.
    """
    is_timeout = isinstance(error, (httpx.TimeoutException, TimeoutError))
    words = "no answer in time" if is_timeout else short(scrubber.text(str(error))) or type(error).__name__
    return ErrorAnswer(verdict=Verdict.RETRY, status=0, code="timeout" if is_timeout else "connection", message=words)


def refusal_of(error: ErrorAnswer, settings: EmbedConfig) -> ApiRefusedError:
    """What an answer amounts to after which no request will ever succeed."""
    where = settings.base_url
    if (error.status in {401, 403} and error.code not in _QUOTA_CODES) or error.code == "invalid_api_key":
        return RefusedKeyError(
            f"{where} refused the key ({error}): check the environment variable {settings.api_key_env}, which "
            "embed.api_key_env names."
        )
    if error.status == 402 or error.code in _QUOTA_CODES:
        return SpentQuotaError(
            f"{where} says that the quota is used up ({error}): waiting does not help, raise it and run again."
        )
    if 300 <= error.status < 400:
        return WrongAddressError(
            f"{where} redirects elsewhere ({error}), and the key does not follow: change embed.base_url."
        )
    said = f"{where} does not serve embed.model {settings.model!r} at this address ({error}): check both."
    if error.code == "model_not_found" or _UNKNOWN_MODEL.search(error.message):
        return UnknownModelError(said)
    return WrongAddressError(said)


def _read_detail(found: list[Any]) -> tuple[str, str]:
    """FastAPI's list as a message, and the item's position in the manner of OpenAI's `param` if it names just one.

    Where it names several it is the request that it does not understand, and no item is at fault.
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
    """A server's words fit for a log: one line, short, and nothing in them that looks like a key."""
    text = _SECRET.sub(r"\1***", " ".join(text.split()))
    return text if len(text) <= 200 else text[:197] + "..."


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `retry-after` as a number or an HTTP date; None when not told.

    A date is read against the answer's own `date`, because the two clocks need not agree. Whatever it says is finite:
    30 years at most, which can be added to any clock.
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
    """An HTTP date, with its zone; None where it is none."""
    try:
        moment = email.utils.parsedate_to_datetime(text or "")
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)


def read_limits(headers: Mapping[str, str]) -> dict[str, float]:
    """The limits a minute that a server states in `x-ratelimit-limit-…`, by name."""
    found = {name: _number(headers.get(f"x-ratelimit-limit-{name}")) for name in ("requests", "tokens", "items")}
    return {name: value for name, value in found.items() if value is not None and 1 <= value <= _MOST_LIMIT}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _words(value: object) -> str:
    """A field of an error as text. Errors within errors are looked into a little; what else it is has no words."""
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
