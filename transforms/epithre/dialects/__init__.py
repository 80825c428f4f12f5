"""How each provider's embedding endpoint is spoken to: one small module a dialect.

A dialect is three functions: items to a request's body, an answer's body to (index, vector) pairs, and an error
to what should be done about it. Everything else (budget, retries, checks) is the client's and shared.

A dialect's path follows `embed.base_url`, which ends with the API's version:

- `epithre`: `https://api.epithre.com/v1`; texts and images.
- `openai`: `https://api.openai.com/v1`; texts only.
- `jina`: `https://api.jina.ai/v1`; texts and images.
- `voyage`: `https://api.voyageai.com/v1`; texts and images, documents apart from queries.
- `cohere`: `https://api.cohere.com/v2`; texts and images, documents apart from queries.
- `vllm`: your server's, such as `http://localhost:8000/v1`; texts and images, one a request.
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
    """What the client asks of a dialect, which is made from the `embed` section of a config."""

    path: str
    """Below the base URL."""
    lists_models: bool
    """Whether `GET /models` is there for every good key, and names every model that may be asked for."""
    document_type: str | None
    """What a request calls its items when they are no queries; None where a provider does not tell the two apart."""
    query_type: str | None
    """What it calls them when they are."""
    overhead_bytes: int
    """Length of a body without items, at most; each item adds its own length and one."""

    def encode_item(self, kind: str, content: bytes) -> bytes:
        """An item as the JSON that stands for it in a request. `content`: UTF-8 text, or a picture's file.

        Raises ValueError when the provider embeds no items of that kind.
        """

    def body(self, pieces: Sequence[bytes], *, is_query: bool = False) -> bytes:
        """A request's body from encoded items, which are all queries or all none."""

    def vectors(self, body: bytes) -> tuple[list[AnswerEntry], list[object]]:
        """An answer's vectors as they came, float32, (dimension,), and what it says that it bills, for `read_tokens`.

        Raises BrokenAnswerError when the body is no such answer.
        """

    def error(self, status: int, headers: Mapping[str, str], body: bytes, count: int) -> ErrorAnswer:
        """An error answer, read."""


DIALECTS: dict[str, Callable[[EmbedConfig], Dialect]] = {
    "epithre": EpithreDialect,
    "openai": OpenAIDialect,
    "jina": JinaDialect,
    "voyage": VoyageDialect,
    "cohere": CohereDialect,
    "vllm": VllmDialect,
}

__all__ = ["DIALECTS", "Dialect"]
