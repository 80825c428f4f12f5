"""Search a catalog from an event loop by text, image, vector or asset. This module does not use Beam."""

import asyncio
import contextlib
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import NoneType, TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from ...configs import AssetKind, EmbedConfig, PrepareConfig
from ...configs.address import ApiAddress
from ...configs.caller import ARGUMENTS, EMBED, Caller
from ...configs.errors import ApiError, ApiPausedError, ArgumentError, UnknownAssetError
from ...index.search.catalog import MAX_K, Catalog
from ...index.search.hits import Hit
from ...index.search.merge import Merge
from ..epithre.client import Client, Refusal, RefusalReason
from .embed_queries import encode_query, query_settings, vector_of
from .query_endpoint import LONGEST_PAUSE_S, open_query_endpoint

Vector = npt.NDArray[np.float32]
Query = str | bytes | Vector | tuple[AssetKind, str]
"""A text, the bytes of an image file, a vector of the catalog's model, or an asset of the catalog as (kind, id)."""

_T = TypeVar("_T")
_HASHED_APART_BYTES = 1 << 18
_PREPARING_THREADS = 2
_PAUSE_S = 5.0
"""After an outage, queries fail fast for this time."""
_LONGEST_REST_S = 600.0
"""Upper bound for a pause that the API requests, so that an absurd `Retry-After` does not stop the service."""


class Searcher:
    """Embed queries through the API and search a catalog, without blocking the event loop.

    The vectors of recent queries are cached, and equal queries that arrive at the same time are sent once.
    Create a new searcher in each forked process.

    Args:
        catalog: The catalog, which may follow published versions. The searcher does not close it.
        embed: Address and model of the API, as in the catalog.
        prepare: Limits and formats of the catalog.
        api_key: Key for the API. It does not appear in `repr` or in messages.
        cache_queries: Number of cached query vectors, 4 bytes per dimension each; 0 disables the cache.
        threads: Number of searches that run in parallel; absent: one per core.
        caller: Whose names messages use for settings.
    """

    def __init__(
        self,
        catalog: Catalog,
        embed: EmbedConfig,
        prepare: PrepareConfig,
        api_key: str,
        *,
        cache_queries: int = 1024,
        threads: int | None = None,
        caller: Caller = EMBED,
    ) -> None:
        _check_count("cache_queries", cache_queries, 0)
        if threads is not None:
            _check_count("threads", threads, 1)
        if not isinstance(catalog, Catalog):
            raise ArgumentError(f"catalog must be a catalog of `open_catalog`, got {type(catalog).__name__}.")
        self.catalog = catalog
        pause_s = min(embed.max_retry_after_s, LONGEST_PAUSE_S)
        self._embed = query_settings(embed).model_copy(update={"max_retry_after_s": pause_s})
        self._prepare = prepare
        self._api_key = api_key
        self._cache_queries = cache_queries
        self._caller = caller
        self._threads = threads or os.cpu_count() or 1
        self._remembered: OrderedDict[bytes, Vector] = OrderedDict()
        self._asked: dict[bytes, asyncio.Task[Vector]] = {}
        self._state: Literal["new", "open", "closed"] = "new"
        self._is_answered = True
        self._stopped: ApiError | None = None
        self._stopped_until = 0.0

    def __repr__(self) -> str:
        return f"Searcher({self.catalog!r}, {self._embed.base_url!r})"

    @classmethod
    @contextlib.asynccontextmanager
    async def from_catalog(
        cls,
        catalog: Catalog,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        cache_queries: int = 1024,
        threads: int | None = None,
        decode_pixels: int | None = None,
        caller: Caller = ARGUMENTS,
    ) -> AsyncIterator[Self]:
        """Open a searcher with the API named in the manifest; starts an emulator if an emulator embedded the catalog.

        Args:
            catalog: The catalog to search.
            base_url: Another address of the same model.
            api_key_env: Another environment variable with the key.
            cache_queries: As in the constructor.
            threads: As in the constructor.
            decode_pixels: Most pixels of a query image; the lower of this and the catalog's limit applies.
            caller: As in the constructor.

        Raises:
            CatalogError: When the model of the catalog is unknown, or the server has another model.
            ConfigError: When the environment variable of the key is not set.
            ApiError: When the server does not answer, refuses the key, or does not know the model.
        """
        if not isinstance(catalog, Catalog):
            raise ArgumentError(f"catalog must be a catalog of `open_catalog`, got {type(catalog).__name__}.")
        for name, value in (("base_url", base_url), ("api_key_env", api_key_env)):
            if not isinstance(value, (str, NoneType)):
                raise ArgumentError(f"{name} must be a str, got {value!r:.80}.")
        if decode_pixels is not None:
            _check_count("decode_pixels", decode_pixels, 1)
        address = ApiAddress(base_url=base_url, api_key_env=api_key_env, caller=caller)
        asked = open_query_endpoint(catalog.manifest, catalog.url, address)
        endpoint = await asyncio.to_thread(asked.__enter__)
        try:
            cap = endpoint.prepare.max_decode_pixels
            caps = {"max_decode_pixels": min(cap, decode_pixels or cap)}
            settings = (endpoint.embed, endpoint.prepare.model_copy(update=caps), endpoint.api_key)
            searcher = cls(catalog, *settings, cache_queries=cache_queries, threads=threads, caller=caller)
            async with searcher:
                yield searcher
        finally:
            await asyncio.to_thread(asked.__exit__, None, None, None)

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise ArgumentError("The searcher was opened before. Create a new one.")
        self._loop = asyncio.get_running_loop()
        self._client = Client(self._embed, self._api_key, caller=self._caller)
        self._old_client: Client | None = None
        self._searching = ThreadPoolExecutor(self._threads, thread_name_prefix="search")
        # A separate pool: large images take long to prepare and must not delay searches.
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="prepare")
        self._state = "open"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state = "closed"
        for task in list(self._asked.values()):
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        for client in (self._client, self._old_client):
            if client is not None:
                await client.__aexit__(None, None, None)
        for pool in (self._searching, self._preparing):
            await asyncio.to_thread(pool.shutdown)

    @property
    def is_answered(self) -> bool:
        """Whether the API answered the last request, or no request was sent yet."""
        return self._is_answered

    @property
    def rest_s(self) -> float:
        """Seconds until queries are sent again; until then they fail fast. 0: the next query is sent."""
        return 0.0 if self._stopped is None else max(0.0, self._stopped_until - time.monotonic())

    async def embed(self, query: str | bytes) -> Vector:
        """Return the vector of a text or of an image file: float32, (dimension,), unit norm, read-only.

        Cancelling one caller (`asyncio.timeout`) does not cancel others with the same query.

        Raises:
            QueryError: When the query cannot be embedded.
            ArgumentError: When the query is no text or image, or the searcher is closed.
            ApiError: When the API is not available; queries then fail fast for `rest_s`.
        """
        self._check_open()
        if not isinstance(query, (str, bytes)):
            raise ArgumentError(f"query must be a str or the bytes of an image, got {type(query).__name__}.")
        return await self._vector(await self._key_of(query), query)

    async def search(
        self,
        query: Query,
        k: int = 10,
        *,
        kinds: Sequence[AssetKind] | AssetKind | None = None,
        where: pc.Expression | None = None,
        merge: Merge = "score",
        query_kind: AssetKind | None = None,
        recall: float | None = None,
        exclude_self: bool = True,
        within: Catalog | None = None,
    ) -> list[Hit]:
        """Search for one query, as `Catalog.search` does; embed it first if it is a text or an image.

        Args:
            query: A text (str), an image file (bytes), a vector, or an asset of the catalog as (kind, id).
            k: As for `Catalog.search`.
            kinds: As for `Catalog.search`.
            where: As for `Catalog.search`.
            merge: As for `Catalog.search`.
            query_kind: The kind of a vector query; other queries have a known kind.
            recall: As for `Catalog.search`.
            exclude_self: Whether to omit the asset from its own hits, if the query is an asset.
            within: A version pinned by the caller; absent: the current version.

        Raises:
            QueryError: When the query cannot be embedded.
            ArgumentError: When an argument is invalid, or the searcher or the catalog is closed.
            UnknownAssetError: A ValueError: the searched version has no such asset.
            ApiError: When the API is not available.
        """
        self._check_open()
        if not isinstance(within, (Catalog, NoneType)):
            raise ArgumentError(f"within must be a catalog, as of `catalog.pinned()`, got {within!r:.80}.")
        catalog = self.catalog if within is None else within
        options: dict[str, Any] = {"kinds": kinds, "where": where, "merge": merge, "recall": recall}
        if isinstance(query, tuple):
            if [type(part) for part in query] != [str, str]:
                raise ArgumentError(f"query must be (kind, id) to search by an asset, got {query!r:.80}.")
            find: Callable[[], list[Hit]] = partial(_find_alike, catalog, *query, k, options, exclude_self)
            return await self._in(self._searching, find)
        if isinstance(query, (str, bytes)):
            query_kind = "text" if isinstance(query, str) else "image"
            options["query_kind"] = query_kind
            key = await self._key_of(query)
            if key not in self._remembered:  # do not embed a query whose search would be refused
                await self._in(self._searching, partial(_check, catalog, k, options))
            query = await self._vector(key, query)
        elif np.ndim(query) != 1:
            raise ArgumentError(
                "query must be a str, the bytes of an image, a (kind, id), or one vector of shape "
                f"({catalog.dimension},), got {type(query).__name__} of shape {np.shape(query)}."
            )
        options["query_kind"] = query_kind
        (hits,) = await self._in(self._searching, partial(catalog.search, query, k, **options))
        return hits

    async def _key_of(self, query: str | bytes) -> bytes:
        if isinstance(query, bytes) and len(query) > _HASHED_APART_BYTES:
            return await self._in(self._preparing, partial(_key_of, query))
        return _key_of(query)

    async def _vector(self, key: bytes, query: str | bytes) -> Vector:
        if (vector := self._remembered.get(key)) is not None:
            self._remembered.move_to_end(key)
            return vector
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = self._loop.create_task(self._ask(query))
            task.add_done_callback(partial(self._remember, key))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and not (caller and caller.cancelling()):
                self._check_open()  # closing cancels the requests that are under way
            raise

    def _check_open(self) -> None:
        if self._state != "open":
            raise ArgumentError(
                "The searcher is closed. Open another one."
                if self._state == "closed"
                else "The searcher is not open. Use `async with`."
            )

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], _T]) -> _T:
        self._check_open()  # it may have been closed since the query was embedded
        return await self._loop.run_in_executor(pool, work)

    async def _ask(self, query: str | bytes) -> Vector:
        if self._stopped is not None and self.rest_s:
            raise self._stopped
        client = self._client
        encode = partial(encode_query, client, query, self._prepare, name="The query")
        item = encode() if isinstance(query, str) else await self._in(self._preparing, encode)
        try:
            (result,) = await client.embed([item])
        except ApiError as error:
            await self._begin_anew(client, error)
            raise
        if client is self._client:  # an answer to a request from before the pause does not end the pause
            self._stopped = None
            self._is_answered = not (isinstance(result, Refusal) and result.reason is RefusalReason.RETRIES_EXHAUSTED)
        vector = vector_of(result, name="The query").copy()
        vector.flags.writeable = False  # it is shared
        return vector

    async def _begin_anew(self, client: Client, why: ApiError) -> None:
        """Replace a stopped client, which stays stopped, so that queries are sent again after a pause."""
        if self._client is not client:
            return
        rest_s = _PAUSE_S
        if isinstance(why, ApiPausedError):
            rest_s = min(max(_PAUSE_S, why.retry_after_s), _LONGEST_REST_S)
        self._is_answered = False
        self._stopped, self._stopped_until = why, time.monotonic() + rest_s
        older, self._old_client = self._old_client, client  # other queries may still wait for its answers
        self._client = Client(self._embed, self._api_key, rate_limiter=client.rate_limiter, caller=self._caller)
        if older is not None:
            await older.__aexit__(None, None, None)

    def _remember(self, key: bytes, task: asyncio.Task[Vector]) -> None:
        del self._asked[key]
        if task.cancelled() or task.exception() is not None:  # the callers get the error from the task
            return
        self._remembered[key] = task.result()
        while len(self._remembered) > self._cache_queries:
            self._remembered.popitem(last=False)


def _key_of(query: str | bytes) -> bytes:
    content = query.encode("utf-8", "surrogatepass") if isinstance(query, str) else query
    return (b"text " if isinstance(query, str) else b"image ") + hashlib.sha256(content).digest()


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ArgumentError(f"{name} must be a whole number, at least {least}, got {value!r:.80}.")


def _check(catalog: Catalog, k: int, options: dict[str, Any]) -> None:
    """Raise ArgumentError when the options of a search are invalid for any query."""
    catalog.search(np.empty((0, catalog.dimension), np.float32), k, **options)


def _find_alike(
    catalog: Catalog, kind: AssetKind, asset_id: str, k: int, options: dict[str, Any], exclude_self: bool
) -> list[Hit]:
    with catalog.pinned() as version:
        options = {**options, "query_kind": kind}
        _check(version, k, options)
        row = version.find_asset(kind, asset_id)
        if row is None:
            raise UnknownAssetError(f"Version {version.version} has no {kind} asset {asset_id!r:.200}.")
        (hits,) = version.search(version.vectors(kind, [row])[0], min(k + exclude_self, MAX_K), **options)
    if exclude_self:
        hits = [hit for hit in hits if (hit.kind, hit.row) != (kind, row)]
    return hits[:k]
