"""The parts that most dialects share: bodies joined from the items' JSON, answers and errors in OpenAI's format."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..answers import ErrorAnswer, read_error
from ..vectors import AnswerEntry, BrokenAnswerError, load_answer, read_entry

try:
    from pybase64 import b64encode
except ImportError:
    from base64 import b64encode

_MAGIC = (
    (b"\xff\xd8\xff", b"image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", b"image/png"),
    (b"GIF8", b"image/gif"),
    (b"BM", b"image/bmp"),
    (b"II*\0", b"image/tiff"),
    (b"MM\0*", b"image/tiff"),
)


def text_json(content: bytes) -> bytes:
    """Encode UTF-8 text as a JSON string."""
    return orjson.dumps(content.decode())


def base64_json(content: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """Encode an image file as a JSON string of its base64, which needs no escaping, between other JSON."""
    return b"".join((before, b'"', b64encode(content), b'"', after))


def data_uri_json(content: bytes) -> bytes:
    """Encode an image file as a JSON string of a data URI; the first bytes determine the media type."""
    return b"".join((b'"data:', media_type(content), b";base64,", b64encode(content), b'"'))


def media_type(content: bytes) -> bytes:
    """Return the media type of an image file; `application/octet-stream` for an unknown format."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return b"image/webp"
    return next((name for magic, name in _MAGIC if content.startswith(magic)), b"application/octet-stream")


def content_json(kind: str, content: bytes) -> bytes:
    """Encode an item as a block of a chat message: `{"type":"text",…}` or `{"type":"image_url",…}` (data URI)."""
    if kind == "text":
        return b"".join((b'{"type":"text","text":', text_json(content), b"}"))
    return b"".join((b'{"type":"image_url","image_url":{"url":', data_uri_json(content), b"}}"))


def claims_of(answer: Mapping[str, Any], path: Sequence[str], names: Sequence[str]) -> list[object]:
    """Return the billed tokens that an answer states, unchecked: the fields `names` of the object at `path`.

    A value at `path` that is not an object is returned as the only element: `read_tokens` rejects it, and ignores None.
    """
    found: Any = answer
    for name in path:
        found = found.get(name)
        if not isinstance(found, dict):
            return [found]
    return [found.get(name) for name in names]


class OpenAIShape:
    """`POST /embeddings` with a list of items, answered by `data[].index` and `data[].embedding`.

    A dialect derives from it and supplies the bytes around the items and the encoding of an item.

    Args:
        head: The bytes of a body before its items.
        tail: The bytes after the items.
        query_tail: The bytes after items that are queries; by default `tail`.
    """

    path = "/embeddings"
    lists_models = False
    document_type: str | None = None
    query_type: str | None = None

    def __init__(self, head: bytes, tail: bytes, query_tail: bytes | None = None) -> None:
        self._head = head
        self._tail = tail
        self._query_tail = tail if query_tail is None else query_tail
        self.overhead_bytes = len(head) + max(len(tail), len(self._query_tail))

    def body(self, pieces: Sequence[bytes], *, is_query: bool = False) -> bytes:
        # Joined once and without a JSON encoder: each pass over the megabytes costs as much as sending them.
        parts = [part for piece in pieces for part in (b",", piece)][1:]
        return b"".join((self._head, *parts, self._query_tail if is_query else self._tail))

    def vectors(self, body: bytes) -> tuple[list[AnswerEntry], list[object]]:
        try:
            answer = load_answer(body)
            entries = [read_entry(entry.get("index"), entry["embedding"]) for entry in answer["data"]]
            return entries, claims_of(answer, ("usage",), ("total_tokens",))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BrokenAnswerError(f"the answer is not a list of embeddings ({type(error).__name__})") from None

    def error(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> ErrorAnswer:
        return read_error(status, headers, body, count)
