"""Embeds queries: a few texts and pictures, prepared just as the catalog's assets were."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..configs import EmbedConfig, PrepareConfig
from .epithre.client import Client, Item, Refusal
from .prepare import Unpreparable, prepare_picture, prepare_text


class QueryError(ValueError):
    """A query cannot be embedded; the message says which and why."""


_AT_ONCE = 512
"""Queries whose requests are in memory together."""


def embed_queries(
    queries: Sequence[str | bytes | Path], embed: EmbedConfig, prepare: PrepareConfig, api_key: str
) -> npt.NDArray[np.float32]:
    """Embeds texts (str) and pictures (bytes of a picture file, or its path, which is read when it is its turn).

    Not for use inside a running event loop; there, use `transforms.epithre.client.Client` itself.

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
    embed = embed.model_copy(update={"max_requests": None, "max_cost": None})  # those are a run's

    async def ask() -> list[npt.NDArray[np.float32] | Refusal]:
        async with Client(embed, api_key) as client:
            results: list[npt.NDArray[np.float32] | Refusal] = []
            for first in range(0, len(queries), _AT_ONCE):
                part = enumerate(queries[first : first + _AT_ONCE], first)
                results += await client.embed([_item(i, query, prepare, client) for i, query in part])
            return results

    results = asyncio.run(ask())
    vectors = np.empty((len(queries), embed.dimension), np.float32)
    for i, result in enumerate(results):
        if isinstance(result, Refusal):
            raise QueryError(f"Query {i} got no vector ({result.reason.value}): {result.detail}.")
        vectors[i] = result
    return vectors


def _item(position: int, query: str | bytes | Path, prepare: PrepareConfig, client: Client) -> Item:
    try:
        if isinstance(query, str):
            kind, content = "text", prepare_text(query, prepare).encode()
        else:
            data = query.read_bytes() if isinstance(query, Path) else query
            kind, content = "image", prepare_picture(data, prepare).content
    except Unpreparable as failure:
        raise QueryError(f"Query {position} cannot be sent ({failure.reason.value}): {failure.detail}.") from None
    try:
        return client.encode(kind, content, is_query=True)
    except ValueError as error:
        raise QueryError(f"Query {position} is no query for this API: {error}.") from None
