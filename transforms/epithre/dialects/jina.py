"""Jina's dialect: OpenAI's format, but every item is an object and the request states the dimension."""

import orjson

from ....configs import EmbedConfig
from .shape import OpenAIShape, base64_json, text_json


class JinaDialect(OpenAIShape):
    """`POST /embeddings`, items as `{"text":…}` and `{"image":"<base64>"}`. Base URL: `https://api.jina.ai/v1`."""

    def __init__(self, settings: EmbedConfig) -> None:
        super().__init__(
            b'{"model":' + orjson.dumps(settings.model) + b',"input":[',
            b'],"embedding_type":"base64","normalized":true,"dimensions":%d}' % settings.dimension,
        )

    def encode_item(self, kind: str, content: bytes) -> bytes:
        if kind == "text":
            return b"".join((b'{"text":', text_json(content), b"}"))
        return b"".join((b'{"image":', base64_json(content), b"}"))
