"""Interpret a reply as checked vectors with their billed tokens, or as an error. Nothing here raises."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import httpx
import numpy as np
import numpy.typing as npt

from ...configs.scrubbing import Scrubber
from .answers import ErrorAnswer, Verdict, read_tokens, short, status_inside
from .bodies import MOST_ERROR_BYTES, Reply
from .dialects import Dialect
from .proxies import Way
from .vectors import BrokenAnswerError, check_vectors

Outcome = npt.NDArray[np.float32] | BrokenAnswerError | ErrorAnswer
"""Checked vectors, float32, (items, dimension), unit norm, in the order of the request; or an error."""

ReadError = Callable[[int, Mapping[str, str], bytes, int], ErrorAnswer]
"""Parses an error from a status, headers, a body, and the number of items in the request."""

_EMULATOR = "x-emulator-fingerprint"
_EMULATORS = re.compile(r"emulator-[A-Za-z0-9_.-]{1,100}")
_MOST_TIMES_ESTIMATED = 1000
"""The highest plausible bill, as a multiple of the estimate; an image may cost 100 times its estimate."""


@dataclass(frozen=True, kw_only=True)
class ReplyRead:
    """A parsed and checked reply."""

    outcome: Outcome
    renormalised: int = 0
    """Number of vectors whose norm was not 1."""
    tokens: int = 0
    """Billed tokens; 0 if the reply states none."""
    is_bill_plausible: bool = True
    """Whether the billed tokens are plausible."""
    emulator: str | None = None
    """The fingerprint of the emulator that made the vectors; None for any other server."""


def read_reply_to(
    dialect: Dialect, reply: Reply, *, count: int, dimension: int, tokens: int, scrubber: Scrubber
) -> ReplyRead:
    """Parse the reply to a request. The API key is removed from errors.

    Args:
        dialect: Dialect of the request.
        reply: The reply as received.
        count: Number of items in the request.
        dimension: Required dimension of every vector.
        tokens: Estimated tokens of the request; a bill of more than 1,000 times as many is not plausible.
        scrubber: Removes the API key.
    """
    if reply.status_code != httpx.codes.OK or reply.problem is not None:
        error = error_in(dialect.error, reply, count, scrubber)
        return ReplyRead(outcome=error or BrokenAnswerError(reply.problem or ""))
    try:
        entries, claims = dialect.vectors(reply.content)
        vectors, renormalised = check_vectors(entries, count, dimension)
    except BrokenAnswerError as broken:
        return ReplyRead(outcome=broken_or_error(dialect.error, reply, count, broken, scrubber))
    billed, is_plausible = read_tokens(claims, _MOST_TIMES_ESTIMATED * max(tokens, count))
    return ReplyRead(
        outcome=vectors,
        renormalised=renormalised,
        tokens=billed,
        is_bill_plausible=is_plausible,
        emulator=emulator_of(reply, scrubber),
    )


def emulator_of(reply: Reply, scrubber: Scrubber) -> str | None:
    """Return the fingerprint of the emulator that sent a reply; None for any other server."""
    found = scrubber.text(reply.headers.get(_EMULATOR, ""))
    return found if _EMULATORS.fullmatch(found) else None


def error_in(read: ReadError, reply: Reply, count: int, scrubber: Scrubber) -> ErrorAnswer | None:
    """Return the error that a reply contains; None if it contains none or cannot be interpreted.

    A gateway may send an error with status 200: then the result has the status that the error names, or 200.

    Args:
        read: Parses an error.
        reply: A reply whose status is not 200, or a 200 without the expected content.
        count: Number of items in the request.
        scrubber: Removes the API key.
    """
    status = reply.status_code
    if status == httpx.codes.OK:
        inside = status_inside(reply.content) if reply.problem is None else None
        if inside is None:
            return None
        status = inside
        if len(reply.content) > MOST_ERROR_BYTES:
            problem = f"the error is longer than {MOST_ERROR_BYTES:,} bytes"
            reply = replace(reply, content=reply.content[:MOST_ERROR_BYTES], problem=problem)
    reply = reply.without_key(scrubber)
    error = read(status, reply.headers, reply.content, count)
    if reply.problem is None:
        return error
    begin = reply.content[:200].decode("utf-8", "replace")
    return replace(error, message=short(f"{reply.problem}; it begins {begin}" if begin else reply.problem))


def error_to_show(error: ErrorAnswer, scrubber: Scrubber, way: Way) -> ErrorAnswer:
    """Return the error with the API key removed, even from nested escapes, and with the name of the proxy."""
    message = scrubber.text(error.message)
    if not error.status or way.answers_itself:
        message += way.words
    return replace(error, code=scrubber.text(error.code), message=message)


def broken_or_error(
    read: ReadError, reply: Reply, count: int, broken: BrokenAnswerError, scrubber: Scrubber
) -> BrokenAnswerError | ErrorAnswer:
    """Return the error that a 200 without the expected content contains, or that it is broken."""
    error = error_in(read, reply, count, scrubber)
    if error is None:
        return broken
    if error.status == httpx.codes.OK and error.verdict is Verdict.BATCH:
        # Such an answer is not reliable enough to refuse an item permanently.
        return BrokenAnswerError(f"an error with status 200: {error.message or error.code or 'no message'}")
    return error
