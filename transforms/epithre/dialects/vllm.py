"""The dialect of a vLLM server with a multimodal model: one vector per chat message."""

from collections.abc import Sequence

import orjson

from ....configs import EmbedConfig
from .shape import OpenAIShape, content_json


class VllmDialect(OpenAIShape):
    """`POST /embeddings`, an item as a message's content. Base URL: your server, such as `http://localhost:8000/v1`.

    A request has one item, whatever the value of `embed.batch_items` (see `EmbedConfig.items_per_request`).
    """

    lists_models = True

    def __init__(self, settings: EmbedConfig) -> None:
        super().__init__(
            b'{"model":' + orjson.dumps(settings.model) + b',"messages":[{"role":"user","content":[',
            b']}],"encoding_format":"base64"}',
        )

    def encode_item(self, kind: str, content: bytes) -> bytes:
        return content_json(kind, content)

    def body(self, pieces: Sequence[bytes], *, is_query: bool = False) -> bytes:
        if len(pieces) != 1:
            # The server embeds a message of several items as one vector, and no check of the answer detects that.
            raise ValueError(f"a request in the vllm dialect must have one item, got {len(pieces)}")
        return super().body(pieces, is_query=is_query)
