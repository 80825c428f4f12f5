"""Reads the bodies of answers, no further than a request can need: what a server sends must not fill the memory.

httpx has no such limit. It also inflates each piece that arrives as a whole, and 64 kB may be gigabytes; so bodies are
inflated here, up to the limit.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import httpx

from ...configs.scrubbing import Scrubber

ACCEPTED = "gzip, deflate"
"""The `accept-encoding` of requests: what is inflated here."""
MOST_ERROR_BYTES = 1 << 18
MOST_MODELS_BYTES = 1 << 23
_ANSWER_BYTES = 1 << 16
_ENTRY_BYTES = 4096
_NUMBER_BYTES = 40
"""A float64 as indented JSON is about 35."""
_LEAST_DIMENSION = 4096
"""So that an answer of another dimension than the configured one is read, and the right one advised."""
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_NAMED = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"}
"""Encodings that a message may name. Another one is whatever the server likes to say, such as the key."""


def most_answer_bytes(items: int, dimension: int, request_bytes: int) -> int:
    """How long a good answer can be, in any dialect and number format.

    Args:
        items: In the request.
        dimension: Of a vector.
        request_bytes: Length of the request's body, which some providers repeat, with more escapes.
    """
    vector_bytes = _NUMBER_BYTES * max(dimension, _LEAST_DIMENSION)
    return _ANSWER_BYTES + items * (_ENTRY_BYTES + vector_bytes) + 2 * request_bytes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer of a server that was read as far as it may be long."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    problem: str | None = None
    """Why `content` is not all of the body; None: it is."""

    def without_key(self, scrubber: Scrubber) -> "Reply":
        """The same without the key, which a server may repeat anywhere. It takes a second for each megabyte."""
        headers, content = scrubber.headers(self.headers), scrubber.body(self.content)
        return replace(self, headers=headers, content=content)


async def read_reply(response: httpx.Response, most_bytes: int) -> Reply:
    """Reads a streamed answer, compressed or not.

    Args:
        response: Its head was read, its body was not.
        most_bytes: Of the body of a 200, inflated; an error is read up to `MOST_ERROR_BYTES`.

    Raises:
        httpx.HTTPError: When the connection fails.
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
                problem = f"the answer is longer than the {most:,} bytes that it can need"
                break
        if problem is None and received and inflating and not inflating.is_complete:
            problem = "the compressed answer ends too early"
    except _UnreadableError as error:
        problem = str(error)
    del body[most:]
    return Reply(status_code=response.status_code, headers=response.headers, content=bytes(body), problem=problem)


class _UnreadableError(Exception):
    """A body is compressed in a way that cannot be undone."""


class _Inflating:
    """A compressed body, inflated as it comes."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._is_first = True

    @property
    def is_complete(self) -> bool:
        return self._stream.eof

    def inflate(self, piece: bytes, most: int) -> bytes:
        """At most `most` bytes of what the next piece holds; more than 0."""
        is_first, self._is_first = self._is_first, False
        try:
            return self._stream.decompress(piece, most)
        except zlib.error as error:
            if is_first and self._encoding == "deflate":  # many servers send it without the header of zlib
                self._stream = zlib.decompressobj(-zlib.MAX_WBITS)
                return self.inflate(piece, most)
            raise _UnreadableError(f"the answer says that it is {self._encoding}, and is not ({error})") from None


def _inflating(encodings: str) -> _Inflating | None:
    names = [name for name in (part.strip().lower() for part in encodings.split(",")) if name not in {"", "identity"}]
    if not names:
        return None
    if len(names) == 1 and names[0] in {"gzip", "x-gzip", "deflate"}:
        return _Inflating(names[0])
    how = repr(", ".join(names)[:80]) if _NAMED.issuperset(names) else "nobody knows"
    raise _UnreadableError(f"the answer is compressed as {how}, and only {ACCEPTED} were asked for")
