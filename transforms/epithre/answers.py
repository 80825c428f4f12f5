"""What an answer means: vectors that were checked, or an error and what to do about it."""

import datetime
import email.utils
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from ...configs import EmbedConfig
from ...configs.errors import ApiRefusedError, RefusedKeyError, SpentQuotaError, UnknownModelError, WrongAddressError
from ...configs.scrubbing import Scrubber

try:
    from pybase64 import b64decode_as_bytearray as _decode_fast

    def decode_base64(text: str) -> bytes | bytearray:
        decoded: bytearray = _decode_fast(text)
        return decoded

except ImportError:
    from binascii import a2b_base64

    def decode_base64(text: str) -> bytes | bytearray:
        return a2b_base64(text)


_NORM_TOLERANCE = 1e-3


class BrokenAnswerError(Exception):
    """A 200 whose body is not one good vector for each item; nothing of it is used."""

    def __init__(self, message: str, *, dimension: int | None = None) -> None:
        super().__init__(message)
        self.dimension = dimension
        """The vectors' common length, when that is what was wrong."""


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

    def __str__(self) -> str:
        place = " ".join(str(part) for part in (self.status, self.code) if part)
        return f"{place}: {self.message}"


class AnswerEntry(NamedTuple):
    """A vector as it came."""

    place: object
    """The index that the server gave it, whatever that is; None: it gave none."""
    vector: npt.NDArray[np.float32]


def check_vectors(entries: Sequence[AnswerEntry], count: int, dimension: int) -> tuple[npt.NDArray[np.float32], int]:
    """Puts an answer's vectors in the order of the request's items and proves that they are vectors.

    Args:
        entries: As they came.
        count: Items in the request.
        dimension: That every vector must have.

    Returns:
        float32, (count, dimension), unit norm; and how many had to be normalised.

    Raises:
        BrokenAnswerError: On a wrong count, indexes that are no permutation, a wrong dimension, NaN, infinity, zero.
    """
    if len(entries) != count:
        raise BrokenAnswerError(f"{count} items were sent and {len(entries)} vectors came back")
    if all(entry.place is None for entry in entries):
        places = list(range(count))  # a server without indexes answers in order
    else:
        places = [_place(entry.place) for entry in entries]
        if sorted(places) != list(range(count)):
            raise BrokenAnswerError("the indexes of the answer are not those of the request")
    lengths = {entry.vector.shape for entry in entries}
    if lengths != {(dimension,)}:
        only = next(iter(lengths)) if len(lengths) == 1 else ()
        raise BrokenAnswerError(
            f"vectors must have {dimension} dimensions, got {sorted(shape[0] for shape in lengths)}",
            dimension=only[0] if only else None,
        )
    vectors = np.full((count, dimension), np.nan, np.float32)  # a row that nobody fills is refused below
    for place, entry in zip(places, entries, strict=True):
        vectors[place] = entry.vector
    is_finite, is_zero, normalised = normalise(vectors)
    if not is_finite.all():
        raise BrokenAnswerError("a vector holds NaN or infinity")
    if is_zero.any():
        raise BrokenAnswerError("a vector is zero")
    return vectors, normalised


def _place(value: object) -> int:
    """An index of an answer as a number, -1 if it is none. A bool is an int to Python, and no index to anybody."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= _LONGEST_INDEX and value.isascii() and value.isdecimal():
        return int(value)
    return -1


def normalise(vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], int]:
    """Gives vectors whose norm is off the norm 1, in place, and says which cannot have it.

    Args:
        vectors: float32, (rows, dimension).

    Returns:
        Which are finite; which are zero; how many were off.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    is_finite, is_zero = np.isfinite(norms), norms < 1e-6
    off = is_finite & ~is_zero & (np.abs(norms - 1) > _NORM_TOLERANCE)
    if off.any():
        vectors[off] = (vectors[off] / norms[off, None]).astype(np.float32)
    return is_finite, is_zero, int(off.sum())


def read_vector(value: Any) -> npt.NDArray[np.float32]:
    """A vector as base64 of little-endian float32, or as a list of numbers: float32, (dimension,)."""
    try:
        if isinstance(value, str):
            return np.frombuffer(decode_base64(value), "<f4")
        if isinstance(value, list):
            if not set(map(type, value)) <= {int, float}:  # numpy takes true for 1, and "1" as well
                raise BrokenAnswerError("a vector has values that are no numbers")
            with np.errstate(over="ignore"):  # what is too great becomes infinite, and is refused
                return np.asarray(value, np.float32)
    except (ValueError, TypeError) as error:
        raise BrokenAnswerError(f"a vector cannot be read: {error}") from None
    raise BrokenAnswerError("a vector is neither base64 nor a list of numbers")


_LONGEST_INDEX = 9
_LONGEST_PAUSE_S = 30 * 365 * 86_400.0
_STOP_STATUS = {401, 402, 403, 404, 405, 410, 501}
_RETRY_STATUS = {408, 409, 425, 429}
_QUOTA_CODES = {"insufficient_quota", "billing_hard_limit_reached"}
_STOP_CODES = {*_QUOTA_CODES, "model_not_found", "invalid_api_key"}
_TOO_LARGE = re.compile(
    r"(?i)too (many|long|large|big)|payload.*large|(maximum|max)\w* .*(batch|context|length|size|inputs|tokens|items)"
)
_PARAM_ITEM = re.compile(r"^(?:input|inputs|messages|texts|images)\[(\d+)\]")
_ITEM_LISTS = {"input", "inputs", "messages", "texts", "images"}
_UNKNOWN_MODEL = re.compile(r"(?i)\bmodel:?\s+\S+\s+(?:(?:is |was )?not (?:found|supported|available)|does not exist)")
_PROSE_ITEM = re.compile(r"(?i)(?:input|inputs|items?|element|index|position)\s*(?:\[|#|number|at index|at|:)?\s*(\d+)")
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
        kind = str(error.get("type") or "")
        code = str(error.get("code") or kind)
        detail = error.get("detail")
        param = str(error.get("param") or "")
        if isinstance(detail, list):
            detail, param = _read_detail(detail)
        message = str(error.get("message") or detail or "")
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
    is_unknown_model = status in {400, 422} and _UNKNOWN_MODEL.search(message)
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
        code=short(code),
        message=message,
        item=item if verdict is Verdict.ITEM else None,
        is_certain=named is not None,
        retry_after_s=read_retry_after(headers),
    )


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
    if error.status in {401, 403} and error.code not in _QUOTA_CODES:
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
        message = message or str(one.get("msg") or "")
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
    return {name: value for name, value in found.items() if value is not None and value >= 1}


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
