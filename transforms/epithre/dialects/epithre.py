"""Epithre's dialect: OpenAI's format, with images as items in addition to texts."""

import orjson

from ....configs import EmbedConfig
from .shape import OpenAIShape, base64_json, text_json


class EpithreDialect(OpenAIShape):
    """`POST /embeddings`, texts as strings, images as `{"type":"image","image":"<base64>"}`."""

    lists_models = True

    def __init__(self, settings: EmbedConfig) -> None:
        super().__init__(
            b'{"model":' + orjson.dumps(settings.model) + b',"input":[',
            b'],"encoding_format":"base64"}',
        )

    def encode_item(self, kind: str, content: bytes) -> bytes:
        if kind == "text":
            return text_json(content)
        return base64_json(content, b'{"type":"image","image":', b"}")
