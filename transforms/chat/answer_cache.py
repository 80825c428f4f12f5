"""The cache of `ChatAssets`: answers by the hash of their request, one file for each.

An answer is kept before it leaves the transform, so a pipeline that was killed, or runs again with other rows, asks
only about what has no answer yet. A small file each is slower than one large file, but a row takes seconds, and no file
is ever changed.
"""

from typing import Any

import orjson

from ...configs.chat_schema import ChatConfig
from ...configs.schema import EMULATOR, is_loopback
from ...index.storage.store import Store
from .rows import Answer

_MOST_BYTES = 8_000_000
_TEXTS = ("text", "finish_reason", "model")
_COUNTS = ("input_tokens", "output_tokens", "requests")


class AnswerCache:
    """Answers by the hash of their request. Thread-safe.

    Args:
        folder: A path or an fsspec URL; it belongs to caches only.
        chat: The settings: answers of an emulator are not used for an API, nor the reverse.
    """

    def __init__(self, folder: str, chat: ChatConfig) -> None:
        self._store = Store(folder)
        self._is_emulator = chat.base_url == EMULATOR
        self._is_local = is_loopback(chat.base_url)

    def find(self, request_sha256: str) -> dict[str, Any] | None:
        """Return the fields of an answer, unchecked against its schema; None if there is none, or it is damaged.

        Raises:
            StoreError: When the folder cannot be read.
        """
        name = _name_of(request_sha256)
        if (self._store.size(name) or _MOST_BYTES + 1) > _MOST_BYTES:
            return None
        try:
            found = orjson.loads(self._store.read(name))
        except orjson.JSONDecodeError:
            return None
        if not isinstance(found, dict) or found.get("request_sha256") != request_sha256:
            return None
        emulator = found.get("emulator")
        is_right = all(isinstance(found.get(name), str) for name in _TEXTS) and isinstance(emulator, (str, type(None)))
        if not is_right or not all(type(found.get(name)) is int for name in _COUNTS):
            return None
        if not self._is_local and (emulator is not None) != self._is_emulator:
            return None
        return {name: found[name] for name in (*_TEXTS, *_COUNTS, "emulator")}

    def keep(self, answer: Answer) -> None:
        """Write an answer.

        Raises:
            StoreError: When it cannot be written.
        """
        kept: dict[str, Any] = {name: getattr(answer, name) for name in (*_TEXTS, *_COUNTS, "emulator")}
        kept["request_sha256"] = answer.request_sha256
        self._store.write(_name_of(answer.request_sha256), orjson.dumps(kept))


def _name_of(request_sha256: str) -> str:
    return f"{request_sha256[:2]}/{request_sha256}.json"
