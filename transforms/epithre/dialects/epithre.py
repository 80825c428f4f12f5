"""Epithre's own dialect: OpenAI's shape, with images as items beside the texts."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import orjson

from ..answers import ApiError, BrokenAnswerError, read_error, read_vector

try:
    from pybase64 import b64encode
except ImportError:
    from base64 import b64encode


class EpithreDialect:
    """`POST /embeddings`, texts as strings, images as `{"type":"image","image":"<base64>"}`."""

    path = "/embeddings"

    def encode_item(self, kind: str, content: bytes) -> bytes:
        if kind == "text":
            return orjson.dumps(content.decode())
        return b"".join((b'{"type":"image","image":"', b64encode(content), b'"}'))

    def body(self, model: str, pieces: Sequence[bytes]) -> bytes:
        # Joined by hand: base64 needs no escaping, and a JSON encoder would read all the megabytes again.
        return b"".join((self._head(model), b",".join(pieces), self._tail))

    def overhead_bytes(self, model: str) -> int:
        return len(self._head(model)) + len(self._tail)

    def vectors(self, body: bytes) -> tuple[list[tuple[int | None, npt.NDArray[np.float32]]], int]:
        try:
            answer = orjson.loads(body)
            data = answer["data"]
            entries = [(entry.get("index"), read_vector(entry["embedding"])) for entry in data]
            usage = answer.get("usage") or {}
            return entries, int(usage.get("total_tokens") or 0)
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise BrokenAnswerError(f"the answer is no list of embeddings ({type(error).__name__})") from None

    def error(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> ApiError:
        return read_error(status, headers, body, count)

    def _head(self, model: str) -> bytes:
        return b'{"model":' + orjson.dumps(model) + b',"input":['

    _tail = b'],"encoding_format":"base64"}'
