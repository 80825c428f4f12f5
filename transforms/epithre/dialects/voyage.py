"""Voyage's multimodal dialect: an item is a list of contents; separate input types for documents and queries."""

import orjson

from ....configs import EmbedConfig
from .shape import OpenAIShape, data_uri_json, text_json


class VoyageDialect(OpenAIShape):
    """`POST /multimodalembeddings`, images as data URIs. Base URL: `https://api.voyageai.com/v1`."""

    path = "/multimodalembeddings"
    query_type: str | None = "query"

    def __init__(self, settings: EmbedConfig) -> None:
        self.document_type = settings.input_type or "document"
        super().__init__(
            b'{"model":' + orjson.dumps(settings.model) + b',"inputs":[',
            b'],"input_type":' + orjson.dumps(self.document_type) + b"}",
            b'],"input_type":' + orjson.dumps(self.query_type) + b"}",
        )

    def encode_item(self, kind: str, content: bytes) -> bytes:
        if kind == "text":
            return b"".join((b'{"content":[{"type":"text","text":', text_json(content), b"}]}"))
        return b"".join((b'{"content":[{"type":"image_base64","image_base64":', data_uri_json(content), b"}]}"))
