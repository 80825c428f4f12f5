"""Cohere's dialect: separate input types for documents and queries; answers are in order, without indexes."""

import re
from collections.abc import Mapping
from dataclasses import replace

import orjson

from ....configs import EmbedConfig
from ..answers import ErrorAnswer, Verdict
from ..vectors import AnswerEntry, BrokenAnswerError, load_answer, read_entry
from .shape import OpenAIShape, claims_of, content_json

_MONTHLY = re.compile(r"(?i)(/|per|a) ?month|monthly")


class CohereDialect(OpenAIShape):
    """`POST /embed` of API version 2, images as data URIs. Base URL: `https://api.cohere.com/v2`."""

    path = "/embed"
    query_type: str | None = "search_query"

    def __init__(self, settings: EmbedConfig) -> None:
        self.document_type = settings.input_type or "search_document"
        model = b'{"model":' + orjson.dumps(settings.model)
        super().__init__(
            model + b',"embedding_types":["float"],"inputs":[',
            b'],"input_type":' + orjson.dumps(self.document_type) + b"}",
            b'],"input_type":' + orjson.dumps(self.query_type) + b"}",
        )

    def encode_item(self, kind: str, content: bytes) -> bytes:
        return b"".join((b'{"content":[', content_json(kind, content), b"]}"))

    def vectors(self, body: bytes) -> tuple[list[AnswerEntry], list[object]]:
        try:
            answer = load_answer(body)
            entries = [read_entry(None, vector) for vector in answer["embeddings"]["float"]]
            return entries, claims_of(answer, ("meta", "billed_units"), ("input_tokens", "image_tokens"))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BrokenAnswerError(f"the answer is not a list of embeddings ({type(error).__name__})") from None

    def error(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> ErrorAnswer:
        error = super().error(status, headers, body, count)
        if status == 429 and _MONTHLY.search(error.message):
            # A trial key used up its monthly calls: the status is that of the limit per minute, but waiting is useless.
            return replace(error, verdict=Verdict.STOP, code="insufficient_quota")
        return error
