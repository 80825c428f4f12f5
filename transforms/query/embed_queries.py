"""Embeds queries: texts and pictures, prepared just as the catalog's assets were."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...configs import EmbedConfig, PrepareConfig
from ...configs.errors import ArgumentError, QueryError
from ..epithre.client import Client, Refusal
from ..epithre.packing import Item
from ..sources.prepare import prepare_image, prepare_text
from ..sources.unpreparable import Unpreparable

_AT_ONCE = 512
"""Queries whose requests are in memory together."""


def embed_queries(
    queries: Sequence[str | bytes | Path],
    embed: EmbedConfig,
    prepare: PrepareConfig,
    api_key: str,
    *,
    names: Sequence[str] | None = None,
) -> npt.NDArray[np.float32]:
    """Embeds texts (str) and pictures (bytes of a picture file, or its path, which is read when it is its turn).

    Not for use inside a running event loop; there, use `transforms.query.searcher.Searcher`.

    Args:
        queries: In any mixture.
        embed: Where the API is, and which model: those of the catalog that is searched.
        prepare: The caps and formats of the catalog.
        api_key: For the API.
        names: What errors call each query; absent: `Query 0` and so on.

    Returns:
        float32, (len(queries), dimension), unit norm.

    Raises:
        ArgumentError: When `queries` is no list.
        QueryError: When a query is no text or picture that can be sent, or the API refuses it.
        ApiError: When the API answers nobody.
    """
    if isinstance(queries, (str, bytes, Path)) or not isinstance(queries, Sequence):
        raise ArgumentError(f"queries must be a list of texts and pictures, got {type(queries).__name__}.")
    called = [f"Query {i}" for i in range(len(queries))] if names is None else names

    async def ask() -> list[npt.NDArray[np.float32] | Refusal]:
        async with Client(query_settings(embed), api_key) as client:
            results: list[npt.NDArray[np.float32] | Refusal] = []
            for first in range(0, len(queries), _AT_ONCE):
                part = zip(queries[first : first + _AT_ONCE], called[first : first + _AT_ONCE], strict=True)
                items = [encode_query(client, query, prepare, name=name) for query, name in part]
                results += await client.embed(items)
            return results

    results = asyncio.run(ask())
    vectors = np.empty((len(queries), embed.dimension), np.float32)
    for i, result in enumerate(results):
        vectors[i] = vector_of(result, name=called[i])
    return vectors


def query_settings(embed: EmbedConfig) -> EmbedConfig:
    """The settings of a catalog without what limits a run: its queries are not what the run may spend."""
    return embed.model_copy(update={"max_requests": None, "max_cost": None})


def encode_query(client: Client, query: str | bytes | Path, prepare: PrepareConfig, *, name: str) -> Item:
    """A query ready to be sent. Any thread may call it.

    Raises:
        QueryError: When it is no text or picture that can be sent, in a sentence about `name`.
    """
    if not isinstance(query, (str, bytes, Path)):
        rule = "must be a text, a picture's bytes or its path"
        raise QueryError(f"{name} {rule}, got {type(query).__name__}.", reason="unsupported")
    try:
        if isinstance(query, str):
            kind, content = "text", prepare_text(query, prepare).encode()
        else:
            data = query.read_bytes() if isinstance(query, Path) else query
            kind, content = "image", prepare_image(data, prepare).content
    except Unpreparable as failure:
        sentence = f"{name} cannot be sent ({failure.reason.value}): {failure.detail}."
        raise QueryError(sentence, reason=failure.reason.value) from None
    try:
        return client.encode(kind, content, is_query=True)
    except ArgumentError as error:
        raise QueryError(f"{name} is no query for this API: {error}.", reason="unsupported") from None


def vector_of(result: npt.NDArray[np.float32] | Refusal, *, name: str) -> npt.NDArray[np.float32]:
    """A query's vector. Raises QueryError, in a sentence about `name`, when it got none."""
    if isinstance(result, Refusal):
        raise QueryError(
            f"{name} got no vector ({result.reason.value}): {result.detail.rstrip('.')}.", reason=result.reason.value
        )
    return result
