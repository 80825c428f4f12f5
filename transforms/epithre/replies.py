"""What a reply means: good vectors and what they cost, or what is wrong. Whatever came, nothing is raised."""

from dataclasses import dataclass, replace

import httpx
import numpy as np
import numpy.typing as npt

from .answers import ErrorAnswer, Verdict, read_tokens, short, status_inside
from .bodies import Reply
from .dialects import Dialect
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


def read_reply_to(dialect: Dialect, reply: Reply, *, count: int, dimension: int, tokens: int) -> ReplyRead:
    """Reads the reply to a request.

    Args:
        dialect: That the request was in.
        reply: As it came.
        count: Items in the request.
        dimension: That every vector must have.
        tokens: Of the request, estimated; a bill of a thousand times as many is not believed.
    """
    if reply.status_code != httpx.codes.OK:
        return ReplyRead(outcome=_read_error(dialect, reply, reply.status_code, count))
    if reply.problem is not None:
        return ReplyRead(outcome=BrokenAnswerError(reply.problem))
    try:
        entries, claims = dialect.vectors(reply.content)
        vectors, renormalised = check_vectors(entries, count, dimension)
    except BrokenAnswerError as broken:
        return ReplyRead(outcome=_broken_or_error(dialect, reply, count, broken))
    billed, is_plausible = read_tokens(claims, _MOST_TIMES_ESTIMATED * max(tokens, count))
    return ReplyRead(outcome=vectors, renormalised=renormalised, tokens=billed, is_bill_plausible=is_plausible)


def _read_error(dialect: Dialect, reply: Reply, status: int, count: int) -> ErrorAnswer:
    error = dialect.error(status, reply.headers, reply.content, count)
    if reply.problem is None:
        return error
    begin = reply.content[:200].decode("utf-8", "replace")
    return replace(error, message=short(f"{reply.problem}; it begins {begin}" if begin else reply.problem))


def error_inside(dialect: Dialect, reply: Reply, count: int) -> ErrorAnswer | None:
    """An error that came in a 200, as gateways send them: what it would be with the status that it names.

    Args:
        dialect: That the request was in.
        reply: A 200 without what was asked for.
        count: Items in the request.
    """
    status = status_inside(reply.content)
    return None if status is None else _read_error(dialect, reply, status, count)


def _broken_or_error(dialect: Dialect, reply: Reply, count: int, broken: BrokenAnswerError) -> Outcome:
    error = error_inside(dialect, reply, count)
    if error is None:
        return broken
    if error.status == httpx.codes.OK and error.verdict is Verdict.BATCH:
        # Nothing in it can be relied on, so no item is given up for good.
        return BrokenAnswerError(f"an error in a 200: {error.message or error.code or 'without words'}")
    return error
