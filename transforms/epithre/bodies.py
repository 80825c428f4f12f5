"""Read the bodies of answers up to a size limit, so that a server cannot exhaust the memory.

httpx has no such limit, and it decompresses each received chunk at once: 64 kB may become gigabytes. So bodies are
decompressed here, up to the limit.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import httpx

from ...configs.scrubbing import Scrubber

ACCEPTED = "gzip, deflate"
"""The `accept-encoding` of requests: the encodings that this module decompresses."""
MOST_ERROR_BYTES = 1 << 18
MOST_MODELS_BYTES = 1 << 23
_ANSWER_BYTES = 1 << 16
_ENTRY_BYTES = 4096
_NUMBER_BYTES = 40
"""A float64 in indented JSON takes about 35."""
_LEAST_DIMENSION = 4096
"""Leaves room for an answer of another dimension than the configured one, so that the error can name it."""
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_NAMED = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"}
"""Encodings that a message may name. Any other value is arbitrary text from the server and may contain the key."""


def most_answer_bytes(items: int, dimension: int, request_bytes: int) -> int:
    """Return the maximum length in bytes of a valid answer, in any dialect and number format.

    Args:
        items: Number of items in the request.
        dimension: Dimension of a vector.
        request_bytes: Length of the request's body. Some providers repeat it in the answer, with more escapes.
    """
    vector_bytes = _NUMBER_BYTES * max(dimension, _LEAST_DIMENSION)
    return _ANSWER_BYTES + items * (_ENTRY_BYTES + vector_bytes) + 2 * request_bytes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An HTTP answer whose body was read up to the size limit."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    problem: str | None = None
    """Why `content` is not the whole body; None if it is."""

    def without_key(self, scrubber: Scrubber) -> "Reply":
        """Return a copy without the API key, which a server may repeat anywhere. Takes about 1 s per megabyte."""
        headers, content = scrubber.headers(self.headers), scrubber.body(self.content)
        return replace(self, headers=headers, content=content)


async def read_reply(response: httpx.Response, most_bytes: int) -> Reply:
    """Read a streamed answer, compressed or not.

    Args:
        response: A response whose body has not been read.
        most_bytes: Maximum size of the decompressed body of a 200; an error is read up to `MOST_ERROR_BYTES`.

    Raises:
        httpx.HTTPError: If the connection fails.
    """
    most = most_bytes if response.status_code == httpx.codes.OK else min(most_bytes, MOST_ERROR_BYTES)
    body = bytearray()
    problem = None
    try:
        inflating = _inflating(response.headers.get("content-encoding", ""))
        received = 0
        async for piece in response.aiter_raw():
            received += len(piece)
            body += inflating.inflate(piece, most + 1 - len(body)) if inflating else piece
            if max(received, len(body)) > most:
                problem = f"the answer is longer than the limit of {most:,} bytes"
                break
        if problem is None and received and inflating and not inflating.is_complete:
            problem = "the compressed answer is incomplete"
    except _UnreadableError as error:
        problem = str(error)
    del body[most:]
    return Reply(status_code=response.status_code, headers=response.headers, content=bytes(body), problem=problem)


class _UnreadableError(Exception):
    """A body cannot be decompressed."""


class _Inflating:
    """Decompresses a body chunk by chunk."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._is_first = True

    @property
    def is_complete(self) -> bool:
        return self._stream.eof

    def inflate(self, piece: bytes, most: int) -> bytes:
        """Decompress the next chunk into at most `most` bytes (more than 0)."""
        is_first, self._is_first = self._is_first, False
        try:
            return self._stream.decompress(piece, most)
        except zlib.error as error:
            if is_first and self._encoding == "deflate":  # many servers omit the zlib header
                self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
                return self.inflate(piece, most)
            raise _UnreadableError(f"the answer is not valid {self._encoding} ({error})") from None


def _inflating(encodings: str) -> _Inflating | None:
    names = [name for name in (part.strip().lower() for part in encodings.split(",")) if name not in {"", "identity"}]
    if not names:
        return None
    if len(names) == 1 and names[0] in {"gzip", "x-gzip", "deflate"}:
        return _Inflating(names[0])
    how = repr(", ".join(names)[:80]) if _NAMED.issuperset(names) else "(unknown)"
    raise _UnreadableError(f"the answer has the content-encoding {how}; only {ACCEPTED} are accepted")
