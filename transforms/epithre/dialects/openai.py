"""OpenAI's dialect, which most servers of text models also support. Texts only."""

import orjson

from ....configs import EmbedConfig
from ....configs.errors import ArgumentError
from .shape import OpenAIShape, text_json


class OpenAIDialect(OpenAIShape):
    """`POST /embeddings`, texts as strings. Base URL: `https://api.openai.com/v1`."""

    # OpenAI lists its models, but not for a key that is restricted to embeddings.
    lists_models = False

    def __init__(self, settings: EmbedConfig) -> None:
        super().__init__(
            b'{"model":' + orjson.dumps(settings.model) + b',"input":[',
            b'],"encoding_format":"base64"}',
        )

    def encode_item(self, kind: str, content: bytes) -> bytes:
        if kind != "text":
            raise ArgumentError("the dialect 'openai' embeds texts only. Choose another dialect for images.")
        return text_json(content)
