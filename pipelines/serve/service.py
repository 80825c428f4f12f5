"""The state of a running server: the catalog that it follows, the query embedder and the threads."""

import asyncio
import contextlib
import logging
import math
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import orjson
import pyarrow.compute as pc

from ...configs import AssetKind, PrepareConfig
from ...configs.errors import (
    ApiError,
    ApiRefusedError,
    ArgumentError,
    CatalogError,
    ConfigError,
    QueryError,
    SpentQuotaError,
)
from ...configs.schema import UNKNOWN_MODEL
from ...index.search.catalog import Catalog
from ...index.search.following import FollowingCatalog
from ...index.search.hits import Asset, Hit
from ...index.search.opening import open_catalog
from ...index.search.where import parse_where
from ...index.versions.layout import Reason, assets_schema
from ...transforms.epithre.client import RefusalReason
from ...transforms.query.searcher import Searcher
from .batches import Asked, Batches, Vector, no_asset
from .events import ApiEvents, report_disabled, report_unsearchable
from .faults import Fault
from .metrics import Metrics
from .models import AssetName, SearchOptions
from .settings import ServeSettings
from .thumbnails import Thumbnails

_log = logging.getLogger(__name__)
_SETTING = re.compile(r"prepare\.[a-z_]+ allows ")
"""How messages name a setting of the catalog's job, which a client does not know."""

_FAILING = ("fails", "refuses")
_ASK_AGAIN_S = 5.0
_ASK_REFUSED_S = 60.0
_TRIAL = "is the API back?"
"""Pause between attempts to reach an embedding API that did not answer at the start."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The hits of a search, and the duration of its stages."""

    catalog: Catalog
    query_kind: AssetKind | None
    hits: list[Hit]
    embed_s: float
    search_s: float


class Service:
    """Answers searches. Use one instance per event loop."""

    def __init__(
        self, settings: ServeSettings, catalog: FollowingCatalog, searcher: Searcher | None, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.metrics = metrics
        self.thumbnails = Thumbnails(settings.thumbnail_cache_bytes, metrics)
        self._searcher = searcher
        self._batches = Batches(metrics)
        self._logged: ApiError | None = None
        self.api_events = ApiEvents()
        self._asks_again_at: float | None = None
        self._refused: ApiRefusedError | None = None

    @property
    def can_embed(self) -> bool:
        """Whether queries are embedded, now or as soon as the API answers."""
        return self._searcher is not None or self._asks_again_at is not None

    @property
    def embedding_api(self) -> Literal["answers", "fails", "refuses", "none"]:
        """State of the API that embeds queries; 'none' when this server does not embed."""
        if self._refused is not None:
            return "refuses"
        if self._searcher is None:
            return "fails" if self.can_embed else "none"
        return "answers" if self._searcher.is_answered else "fails"

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until the next request to the API; 0: the next query is sent."""
        if self._searcher is not None:
            return math.ceil(self._searcher.rest_s)
        return 0 if self._asks_again_at is None else max(0, math.ceil(self._asks_again_at - time.monotonic()))

    @property
    def shown_url(self) -> str:
        """The catalog's address, without a user or password."""
        return re.sub(r"(?<=://)[^/@]*@", "", self.settings.catalog)

    def thumbnail_of(self, version: Catalog, asset: Hit | Asset, prefix: str = "") -> str | None:
        """Return the path of an asset's thumbnail on this server, with the prefix; None when it has none."""
        if asset.kind != "image" or not asset.uri or not self.thumbnails.sources(version):
            return None
        return f"{prefix}/api/thumbnails/image?id={urllib.parse.quote(asset.asset_id, safe='')}"

    async def watch_api(self, open_searcher: Callable[[], Awaitable[Searcher]]) -> None:
        """Ask the embedding API again while it fails or refuses, so that health and metrics recover without a query."""
        await self.ask_again(open_searcher)
        while self._searcher is not None:
            await asyncio.sleep(_ASK_REFUSED_S if self._refused is not None else _ASK_AGAIN_S)
            if self.embedding_api in _FAILING and not self.retry_after_s:
                with contextlib.suppress(Fault):
                    await self._embed(_TRIAL)

    async def ask_again(self, open_searcher: Callable[[], Awaitable[Searcher]]) -> None:
        """Call `open_searcher` until the embedding API answers; until then, searches by text or image get 503."""
        while self._searcher is None:
            self._asks_again_at = time.monotonic() + _ASK_AGAIN_S
            await asyncio.sleep(_ASK_AGAIN_S)
            try:
                self._searcher = await open_searcher()
                self.api_events.answered()
            except (ApiRefusedError, CatalogError, ConfigError) as error:  # no retry helps
                report_disabled(error, logging.ERROR)
                self._refused = error if isinstance(error, ApiRefusedError) else None
                break
            except ApiError as error:
                _log.debug("the embedding API still fails: %s", error)
        self._asks_again_at = None

    def close(self) -> None:
        self._batches.close()
        self.thumbnails.close()

    async def search(
        self,
        query: str | bytes | Vector | AssetName,
        options: SearchOptions,
        *,
        query_kind: AssetKind | None = None,
        exclude_self: bool = True,
    ) -> Found:
        """Search the current version.

        Raises:
            Fault: When the query or an option is invalid, or a search cannot be answered.
        """
        with self.catalog.pinned() as version:
            if isinstance(query, (str, bytes)):
                query_kind = "text" if isinstance(query, str) else "image"
            elif isinstance(query, AssetName):
                query_kind = query.kind
            where = self._where(options, version)  # validate before the query is sent to the API
            if options.merge == "standardised" and query_kind is None:
                raise Fault(
                    422, "invalid", "query_kind is missing. Set it, because merge 'standardised' depends on it."
                )
            self._check_kinds(options, version)
            started = time.perf_counter()
            vector = await self._embed(query) if isinstance(query, (str, bytes)) else query
            embedded = time.perf_counter()
            hits = await self._search(version, vector, options, where, query_kind, exclude_self=exclude_self)
            found = time.perf_counter()
        names: dict[type, str] = {str: "text", bytes: "image", AssetName: "asset"}
        self.metrics.queries.labels(names.get(type(query), "vector")).inc()
        self.metrics.hits.inc(len(hits))
        self.metrics.search_seconds.observe(found - embedded)
        return Found(
            catalog=version,
            query_kind=query_kind,
            hits=hits,
            embed_s=embedded - started if isinstance(query, (str, bytes)) else 0.0,
            search_s=found - embedded,
        )

    async def asset(self, kind: AssetKind, asset_id: str) -> tuple[Catalog, Asset]:
        """Find an asset. Raises Fault when the current version does not have it."""
        with self.catalog.pinned() as version:
            row = await asyncio.to_thread(version.find_asset, kind, asset_id) if kind in version.kinds else None
            if row is None:
                raise no_asset(kind)
            return version, version.asset(kind, row)

    def exposition(self) -> bytes:
        """Return the metrics, with the current state of the catalog."""
        manifest = self.catalog.manifest
        self.metrics.report_catalog(
            manifest.version,
            manifest.created_at,
            manifest.made_by.name,
            manifest.counts.per_kind,
            is_failing=self.catalog.last_refresh_error is not None,
        )
        self.metrics.report_embedding_api(is_failing=self.embedding_api in _FAILING, can_embed=self.can_embed)
        return self.metrics.exposition()

    async def _search(
        self,
        version: Catalog,
        query: Vector | AssetName,
        options: SearchOptions,
        where: pc.Expression | None,
        query_kind: AssetKind | None,
        *,
        exclude_self: bool,
    ) -> list[Hit]:
        own = (query.kind, query.id) if isinstance(query, AssetName) else None
        is_excluded = own is not None and exclude_self
        asked = Asked(
            version=version.version,
            k=options.k + is_excluded,
            kinds=None if options.kinds is None else tuple(options.kinds),
            where_json=None if options.where is None else orjson.dumps(options.where, option=orjson.OPT_SORT_KEYS),
            merge=options.merge,
            query_kind=query_kind if options.merge == "standardised" else None,
            recall=options.recall,
        )
        vector = (query.kind, query.id) if isinstance(query, AssetName) else query
        try:
            hits = await self._batches.search(version, asked, where, vector)
        except ArgumentError as error:
            raise Fault(422, "invalid", str(error)) from None
        except CatalogError as error:
            report_unsearchable(version.version, error)
            raise Fault(503, "catalog", "The catalog cannot be searched at the moment. Try again later.") from None
        if is_excluded:
            hits = [hit for hit in hits if (hit.kind, hit.asset_id) != own]
        return hits[: options.k]

    async def _embed(self, query: str | bytes) -> Vector:
        if self._searcher is None and self.can_embed:
            raise self._unanswered()
        if self._searcher is None and self._refused is not None:
            raise _refusal(self._refused)
        if self._searcher is None:
            raise Fault(503, "cannot_embed", "This server does not embed queries. Search by vector or by asset.")
        started = time.perf_counter()
        result = "failed"
        try:
            vector = await self._searcher.embed(query)
            result = "done"
            if self._searcher.is_answered:
                self._refused = None
                self.api_events.answered()
        except QueryError as error:
            if error.reason == RefusalReason.RETRIES_EXHAUSTED:
                self.api_events.failed(error, self.retry_after_s)
                raise self._unanswered() from None
            result = "refused"
            raise Fault(422, "query", self._refused_query(error, query)) from None
        except ApiError as error:
            if error is not self._logged:  # all queries during a pause raise the same error
                self._logged = error
                self.api_events.failed(error, self.retry_after_s)
            self._refused = error if isinstance(error, ApiRefusedError) else None
            raise (self._unanswered() if self._refused is None else _refusal(self._refused)) from None
        finally:
            self.metrics.embeds.labels(result).inc()
            self.metrics.embed_seconds.observe(time.perf_counter() - started)
        return vector

    def _unanswered(self) -> Fault:
        wait_s = max(1, self.retry_after_s)
        message = f"The embedding API is unavailable. Try again in {wait_s} s. Searches by vector or asset still work."
        return Fault(503, "embedding_api", message, {"Retry-After": str(wait_s)})

    def _refused_query(self, error: QueryError, query: str | bytes) -> str:
        """The message for a client, who does not know the settings of the job."""
        if error.reason == Reason.TEXT_TOO_LONG:
            most = self.catalog.manifest.config.get("prepare", {}).get("max_text_chars", PrepareConfig().max_text_chars)
            return f"The text has {len(query):,} characters, the maximum is {most:,}."
        return _SETTING.sub("the server allows ", str(error))

    def _where(self, options: SearchOptions, version: Catalog) -> pc.Expression | None:
        if options.where is None:
            return None
        try:
            return parse_where(options.where, assets_schema(version.metadata_types))
        except ArgumentError as error:
            raise Fault(422, "where", str(error)) from None

    def _check_kinds(self, options: SearchOptions, version: Catalog) -> None:
        for kind in options.kinds or ():
            if kind not in version.kinds:
                has = " and ".join(version.kinds) or "no assets"
                raise Fault(422, "invalid", f"kinds must be among those of the catalog, {has}, got {kind!r}.")


def _refusal(error: ApiRefusedError) -> Fault:
    """The answer while the API refuses every query. The reason is in the log only: it is the operator's."""
    what = "the quota of this server is used up" if isinstance(error, SpentQuotaError) else "it refuses this server"
    message = f"The embedding API answers no queries: {what}. The operator has to fix it. "
    return Fault(503, "embedding_api_refused", f"{message}Searches by vector or asset still work.")


@contextlib.asynccontextmanager
async def open_service(settings: ServeSettings, metrics: Metrics) -> AsyncIterator[Service]:
    """Open the catalog and, if queries can be embedded, the connection to the embedding API.

    If the API does not answer, the service starts without it and asks it again.

    Raises:
        CatalogError: When the catalog cannot be opened, or the API's model did not make its vectors.
        ApiRefusedError: When the API refuses the key or does not know the model.
        ConfigError: When `require_embedding` is set and queries cannot be embedded.
    """
    catalog = await asyncio.to_thread(
        open_catalog, settings.catalog, follow=True, follow_every_s=settings.follow_every_s
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(catalog.close)
        searcher: Searcher | None = None
        unanswered: ApiError | None = None

        async def open_searcher() -> Searcher:
            asked = Searcher.from_catalog(
                catalog,
                base_url=settings.base_url,
                api_key_env=settings.api_key_env,
                decode_pixels=settings.max_image_pixels,
                caller=settings.caller,
            )
            return await stack.enter_async_context(asked)

        if catalog.manifest.model == UNKNOWN_MODEL:
            if settings.require_embedding:
                place = settings.caller.name("require_embedding")
                raise ConfigError(
                    f"{place}: the model of the vectors is unknown, so no query can be embedded. "
                    f"Import them with their model (`index --from … --model NAME`), or omit {place}."
                )
            report_disabled("the model of the vectors is unknown", logging.WARNING)
        else:
            try:
                searcher = await open_searcher()
            except ConfigError as error:  # no key: searches by vector or asset still work
                if settings.require_embedding:
                    raise
                report_disabled(error, logging.WARNING)
            except ApiRefusedError:
                raise
            except ApiError as error:
                unanswered = error
        service = Service(settings, catalog, searcher, metrics)
        if unanswered is not None:
            service.api_events.failed_at_start(unanswered)
        stack.callback(service.close)
        if searcher is None and unanswered is None:
            yield service
            return
        asking = asyncio.create_task(service.watch_api(open_searcher))
        await asyncio.sleep(0)  # the task sets the state of the API
        try:
            yield service
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
