"""The exception for an asset that cannot be sent."""

import re
import struct

from ...configs.words import of_count
from ...index.versions.layout import Reason

_CUT_OFF = re.compile(
    r"(?i)truncated|unexpected end|end of file|not enough|past the end|incomplete"
    r"|requires a buffer|index out of range"
)
"""What decoders say of a file that ends too early."""


class Unpreparable(Exception):  # noqa: N818 - not an error of the run: it becomes a dead letter
    """The asset cannot be sent. It becomes a dead letter with this reason and detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def undecodable(error: BaseException, name: str, size_bytes: int | None = None) -> Unpreparable:
    """Return the exception for an image that its decoder refused. Its own message is for programmers, and is left out.

    Args:
        error: The decoder's error.
        name: The name of the format.
        size_bytes: The size of the file, if known.
    """
    if isinstance(error, (EOFError, struct.error, IndexError)) or _CUT_OFF.search(str(error)):
        size = name if size_bytes is None else f"{name}, {of_count(size_bytes, 'byte')}"
        return Unpreparable(Reason.UNDECODABLE, f"the file is cut off ({size})")
    return Unpreparable(Reason.UNDECODABLE, f"the image cannot be decoded ({name})")
