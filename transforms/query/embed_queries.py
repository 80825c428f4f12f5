"""Embed queries: texts and images, prepared in the same way as the catalog's assets."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...configs import EmbedConfig, PrepareConfig
from ...configs.caller import EMBED, Caller
from ...configs.errors import ArgumentError, QueryError
from ..epithre.client import Client, Refusal
from ..epithre.packing import Item
from ..sources.prepare import prepare_image, prepare_text
from ..sources.unpreparable import Unpreparable

_AT_ONCE = 512
"""Number of queries whose requests are in memory at the same time."""


def embed_queries(
    queries: Sequence[str | bytes | Path],
    embed: EmbedConfig,
    prepare: PrepareConfig,
    api_key: str,
    *,
    names: Sequence[str] | None = None,
    caller: Caller = EMBED,
) -> npt.NDArray[np.float32]:
    """Embed texts (str) and images (the bytes of an image file, or its path).

    Must not be called inside a running event loop; use `transforms.query.searcher.Searcher` there.

    Args:
        queries: Texts and images, in any mixture. Files are read in batches, just before they are sent.
        embed: Address and model of the API, as in the catalog that is searched.
        prepare: Limits and formats of the catalog.
        api_key: Key for the API.
        names: Name of each query in error messages; absent: `Query 0`, `Query 1`, and so on.
        caller: Who searches; for messages.

    Returns:
        float32, (len(queries), dimension), unit norm.

    Raises:
        ArgumentError: When `queries` is not a list.
        QueryError: When a query cannot be sent, or the API refuses it.
        ApiError: When the API is not available.
    """
    if isinstance(queries, (str, bytes, Path)) or not isinstance(queries, Sequence):
        raise ArgumentError(f"queries must be a list of texts and images, got {type(queries).__name__}.")
    called = [f"Query {i}" for i in range(len(queries))] if names is None else names

    async def ask() -> list[npt.NDArray[np.float32] | Refusal]:
        async with Client(query_settings(embed), api_key, caller=caller) as client:
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
    """Return `embed` without the spending limits of a run, which do not apply to queries."""
    return embed.model_copy(update={"max_requests": None, "max_cost": None})


def encode_query(client: Client, query: str | bytes | Path, prepare: PrepareConfig, *, name: str) -> Item:
    """Prepare and encode a query for sending. Thread-safe.

    Raises:
        QueryError: When the query cannot be sent. The message starts with `name`.
    """
    if not isinstance(query, (str, bytes, Path)):
        rule = "must be a text, the bytes of an image or its path"
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
        raise QueryError(f"{name} is not supported by this API: {error}.", reason="unsupported") from None


def vector_of(result: npt.NDArray[np.float32] | Refusal, *, name: str) -> npt.NDArray[np.float32]:
    """Return the vector of a query. Raises QueryError, with a message that starts with `name`, if there is none."""
    if isinstance(result, Refusal):
        raise QueryError(
            f"{name} got no vector ({result.reason.value}): {result.detail.rstrip('.')}.", reason=result.reason.value
        )
    return result
