"""What a reply means: good vectors and what they cost, or what is wrong. Whatever came, nothing is raised."""

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
"""Checked vectors, float32, (items, dimension), unit norm, in the order of the request; or what was wrong."""

_MOST_TIMES_ESTIMATED = 1000
"""A bill's tokens at most, as a multiple of the estimate: a picture may be 100 times what it is thought to be."""


@dataclass(frozen=True, kw_only=True)
class ReplyRead:
    """A reply that was read and checked."""

    outcome: Outcome
    renormalised: int = 0
    """How many vectors had another norm than 1."""
    tokens: int = 0
    """That it bills; 0: it says nothing of use."""
    is_bill_plausible: bool = True
    """Whether what it says of its bill can be true."""


def read_reply_to(
    dialect: Dialect, reply: Reply, *, count: int, dimension: int, tokens: int, scrubber: Scrubber
) -> ReplyRead:
    """Reads the reply to a request. An error is read without the key; vectors are read as they came.

    Args:
        dialect: That the request was in.
        reply: As it came.
        count: Items in the request.
        dimension: That every vector must have.
        tokens: Of the request, estimated; a bill of a thousand times as many is not believed.
        scrubber: Knows the key.
    """
    if reply.status_code != httpx.codes.OK or reply.problem is not None:
        error = error_in(dialect, reply, count, scrubber)
        return ReplyRead(outcome=error or BrokenAnswerError(reply.problem or ""))
    try:
        entries, claims = dialect.vectors(reply.content)
        vectors, renormalised = check_vectors(entries, count, dimension)
    except BrokenAnswerError as broken:
        return ReplyRead(outcome=_broken_or_error(dialect, reply, count, broken, scrubber))
    billed, is_plausible = read_tokens(claims, _MOST_TIMES_ESTIMATED * max(tokens, count))
    return ReplyRead(outcome=vectors, renormalised=renormalised, tokens=billed, is_bill_plausible=is_plausible)


def error_in(dialect: Dialect, reply: Reply, count: int, scrubber: Scrubber) -> ErrorAnswer | None:
    """The error that a reply is; None: it is none, or nothing to go by.

    In a 200, as gateways send them, it is what it would be with the status that it names; 200 where it names none.

    Args:
        dialect: That the request was in.
        reply: No 200, or one without what was asked for. Of either no more words are read than an error needs.
        count: Items in the request.
        scrubber: Knows the key.
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
    error = dialect.error(status, reply.headers, reply.content, count)
    if reply.problem is None:
        return error
    begin = reply.content[:200].decode("utf-8", "replace")
    return replace(error, message=short(f"{reply.problem}; it begins {begin}" if begin else reply.problem))


def error_to_show(error: ErrorAnswer, scrubber: Scrubber, way: Way) -> ErrorAnswer:
    """An error without the key, if escapes within escapes had hidden it, and with the proxy that was on the way."""
    message = scrubber.text(error.message)
    if not error.status or way.answers_itself:
        message += way.words
    return replace(error, code=scrubber.text(error.code), message=message)


def _broken_or_error(
    dialect: Dialect, reply: Reply, count: int, broken: BrokenAnswerError, scrubber: Scrubber
) -> Outcome:
    error = error_in(dialect, reply, count, scrubber)
    if error is None:
        return broken
    if error.status == httpx.codes.OK and error.verdict is Verdict.BATCH:
        # Nothing in it can be relied on, so no item is given up for good.
        return BrokenAnswerError(f"an error in a 200: {error.message or error.code or 'without words'}")
    return error
