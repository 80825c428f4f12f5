"""How each provider's embedding endpoint is spoken to: one small module a dialect.

A dialect is three functions: items to a request's body, an answer's body to (index, vector) pairs, and an error
to what should be done about it. Everything else (budget, retries, checks) is the client's and shared.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..answers import ApiError
from .epithre import EpithreDialect


class Dialect(Protocol):
    """What the client asks of a dialect."""

    path: str
    """Below the base URL."""

    def encode_item(self, kind: str, content: bytes) -> bytes:
        """An item as the JSON that stands for it in a request. `content`: UTF-8 text, or a picture's file."""

    def body(self, model: str, pieces: Sequence[bytes]) -> bytes:
        """A request's body from encoded items."""

    def overhead_bytes(self, model: str) -> int:
        """Length of a body without items; each item adds its own length and one."""

    def vectors(self, body: bytes) -> tuple[list[tuple[int | None, npt.NDArray[np.float32]]], int]:
        """An answer's (index, float32 vector) pairs as they came, and the tokens it bills.

        Raises BrokenAnswerError when the body is no such answer.
        """

    def error(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> ApiError:
        """An error answer, read."""


DIALECTS: dict[str, type[Dialect]] = {"epithre": EpithreDialect}

__all__ = ["DIALECTS", "Dialect", "EpithreDialect"]
