"""Request and answer formats of the embedding providers, one small module per dialect.

A dialect builds a request's body from items, reads (index, vector) pairs from an answer's body, and interprets errors.
The client does everything else (rate limits, retries, checks) for all dialects.

A dialect's path is appended to `embed.base_url`, which ends with the API's version:

- `epithre`: `https://api.epithre.com/v1`; texts and images.
- `openai`: `https://api.openai.com/v1`; texts only.
- `jina`: `https://api.jina.ai/v1`; texts and images.
- `voyage`: `https://api.voyageai.com/v1`; texts and images; separate input types for documents and queries.
- `cohere`: `https://api.cohere.com/v2`; texts and images; separate input types for documents and queries.
- `vllm`: your own server, such as `http://localhost:8000/v1`; texts and images, one item per request.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ....configs import EmbedConfig
from ..answers import ErrorAnswer
from ..vectors import AnswerEntry
from .cohere import CohereDialect
from .epithre import EpithreDialect
from .jina import JinaDialect
from .openai import OpenAIDialect
from .vllm import VllmDialect
from .voyage import VoyageDialect


class Dialect(Protocol):
    """The interface of a dialect, which is created from the `embed` section of a config."""

    path: str
    """Path below the base URL."""
    lists_models: bool
    """Whether `GET /models` works with every valid key and lists every model."""
    document_type: str | None
    """The input type of documents in a request; None if the provider has no input types."""
    query_type: str | None
    """The input type of queries in a request; None if the provider has no input types."""
    overhead_bytes: int
    """Maximum length of a body without items; each item adds its own length plus one."""

    def encode_item(self, kind: str, content: bytes) -> bytes:
        """Encode an item as JSON. `content` is UTF-8 text or the bytes of an image file.

        Raises ValueError if the provider does not embed items of this kind.
        """

    def body(self, pieces: Sequence[bytes], *, is_query: bool = False) -> bytes:
        """Build a request's body from encoded items, either all queries or all documents."""

    def vectors(self, body: bytes) -> tuple[list[AnswerEntry], list[object]]:
        """Read an answer's vectors (float32, (dimension,)) and its billed tokens, unchecked, for `read_tokens`.

        Raises BrokenAnswerError if the body has another format.
        """

    def error(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> ErrorAnswer:
        """Parse an error answer."""


DIALECTS: dict[str, Callable[[EmbedConfig], Dialect]] = {
    "epithre": EpithreDialect,
    "openai": OpenAIDialect,
    "jina": JinaDialect,
    "voyage": VoyageDialect,
    "cohere": CohereDialect,
    "vllm": VllmDialect,
}

__all__ = ["DIALECTS", "Dialect"]
