"""Embeds queries: texts and pictures, prepared just as the catalog's assets were."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..configs import EmbedConfig, PrepareConfig
from .epithre.client import Client, Item, Refusal
from .prepare import Unpreparable, prepare_picture, prepare_text


class QueryError(ValueError):
    """A query cannot be embedded; the message says which and why.

    `reason` is for programs: a `Reason`, a `RefusalReason`, or `unsupported` for a kind that the API does not embed.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


_AT_ONCE = 512
"""Queries whose requests are in memory together."""


def embed_queries(
    queries: Sequence[str | bytes | Path], embed: EmbedConfig, prepare: PrepareConfig, api_key: str
) -> npt.NDArray[np.float32]:
    """Embeds texts (str) and pictures (bytes of a picture file, or its path, which is read when it is its turn).

    Not for use inside a running event loop; there, use `transforms.searcher.Searcher`.

    Args:
        queries: In any mixture.
        embed: Where the API is, and which model: those of the catalog that is searched.
        prepare: The caps and formats of the catalog.
        api_key: For the API.

    Returns:
        float32, (len(queries), dimension), unit norm.

    Raises:
        QueryError: When a query is no text or picture that can be sent, or the API refuses it.
        RunStopped: When the API answers nobody.
    """

    async def ask() -> list[npt.NDArray[np.float32] | Refusal]:
        async with Client(query_settings(embed), api_key) as client:
            results: list[npt.NDArray[np.float32] | Refusal] = []
            for first in range(0, len(queries), _AT_ONCE):
                part = enumerate(queries[first : first + _AT_ONCE], first)
                items = [encode_query(client, query, prepare, name=f"Query {i}") for i, query in part]
                results += await client.embed(items)
            return results

    results = asyncio.run(ask())
    vectors = np.empty((len(queries), embed.dimension), np.float32)
    for i, result in enumerate(results):
        vectors[i] = vector_of(result, name=f"Query {i}")
    return vectors


def query_settings(embed: EmbedConfig) -> EmbedConfig:
    """The settings of a catalog without what limits a run: its queries are not what the run may spend."""
    return embed.model_copy(update={"max_requests": None, "max_cost": None})


def encode_query(client: Client, query: str | bytes | Path, prepare: PrepareConfig, *, name: str) -> Item:
    """A query ready to be sent. Any thread may call it.

    Raises:
        QueryError: When it is no text or picture that can be sent, in a sentence about `name`.
    """
    try:
        if isinstance(query, str):
            kind, content = "text", prepare_text(query, prepare).encode()
        else:
            data = query.read_bytes() if isinstance(query, Path) else query
            kind, content = "image", prepare_picture(data, prepare).content
    except Unpreparable as failure:
        sentence = f"{name} cannot be sent ({failure.reason.value}): {failure.detail}."
        raise QueryError(sentence, failure.reason.value) from None
    try:
        return client.encode(kind, content, is_query=True)
    except ValueError as error:
        raise QueryError(f"{name} is no query for this API: {error}.", "unsupported") from None


def vector_of(result: npt.NDArray[np.float32] | Refusal, *, name: str) -> npt.NDArray[np.float32]:
    """A query's vector. Raises QueryError, in a sentence about `name`, when it got none."""
    if isinstance(result, Refusal):
        raise QueryError(
            f"{name} got no vector ({result.reason.value}): {result.detail.rstrip('.')}.", result.reason.value
        )
    return result
