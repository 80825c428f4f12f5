"""What a server has open while it runs: the catalog it follows, the way to embed queries, and its threads."""

import asyncio
import contextlib
import logging
import math
import re
import time
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import orjson
import pyarrow.compute as pc

from ...configs import AssetKind
from ...configs.errors import ApiError, ArgumentError, CatalogError, ConfigError, QueryError
from ...configs.schema import UNKNOWN_MODEL
from ...index.search.catalog import Catalog
from ...index.search.following import FollowingCatalog
from ...index.search.hits import Asset, Hit
from ...index.search.opening import open_catalog
from ...index.search.where import parse_where
from ...index.versions.layout import assets_schema
from ...transforms.epithre.client import RefusalReason
from ...transforms.query.searcher import Searcher
from .batches import Asked, Batches, Vector, no_asset
from .faults import Fault
from .metrics import Metrics
from .models import AssetName, SearchOptions
from .settings import ServeSettings
from .thumbnails import Thumbnails

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search gave, and how long its stages took."""

    catalog: Catalog
    query_kind: AssetKind | None
    hits: list[Hit]
    embed_s: float
    search_s: float


class Service:
    """Answers searches, whatever asks for them; for one event loop."""

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

    @property
    def can_embed(self) -> bool:
        return self._searcher is not None

    @property
    def embedding_api(self) -> Literal["answers", "fails", "none"]:
        """What is known of the API that embeds queries."""
        if self._searcher is None:
            return "none"
        return "answers" if self._searcher.is_answered else "fails"

    @property
    def retry_after_s(self) -> int:
        """Whole seconds until the API is asked again; 0: with the next query."""
        return 0 if self._searcher is None else math.ceil(self._searcher.rest_s)

    @property
    def shown_url(self) -> str:
        """The catalog's address, without a user or password."""
        return re.sub(r"(?<=://)[^/@]*@", "", self.settings.catalog)

    def thumbnail_of(self, version: Catalog, asset: Hit | Asset, prefix: str = "") -> str | None:
        """Where the thumbnail of an asset is on this server, below a prefix, if it can have one."""
        if asset.kind != "image" or not asset.uri or not self.thumbnails.sources(version):
            return None
        return f"{prefix}/api/thumbnails/image?id={urllib.parse.quote(asset.asset_id, safe='')}"

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
        """Searches the version in force.

        Raises:
            Fault: With what is wrong, or missing.
        """
        with self.catalog.pinned() as version:
            if isinstance(query, (str, bytes)):
                query_kind = "text" if isinstance(query, str) else "image"
            elif isinstance(query, AssetName):
                query_kind = query.kind
            where = self._where(options, version)  # nothing is paid for a search that would be refused
            if options.merge == "standardised" and query_kind is None:
                raise Fault(422, "invalid", "merge 'standardised' needs query_kind: the gap depends on it.")
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
        """Raises Fault when the version in force has no such asset."""
        with self.catalog.pinned() as version:
            row = await asyncio.to_thread(version.find_asset, kind, asset_id) if kind in version.kinds else None
            if row is None:
                raise no_asset(kind)
            return version, version.asset(kind, row)

    def exposition(self) -> bytes:
        """The counters, with what the catalog is at the moment."""
        manifest = self.catalog.manifest
        self.metrics.report_catalog(
            manifest.version,
            manifest.made_by.name,
            manifest.counts.per_kind,
            is_failing=self.catalog.last_refresh_error is not None,
        )
        self.metrics.report_embedding_api(is_failing=self.embedding_api == "fails")
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
            _log.error("the catalog fails: %s", error)
            raise Fault(503, "catalog", "The catalog cannot be searched at the moment.") from None
        if is_excluded:
            hits = [hit for hit in hits if (hit.kind, hit.asset_id) != own]
        return hits[: options.k]

    async def _embed(self, query: str | bytes) -> Vector:
        if self._searcher is None:
            raise Fault(422, "cannot_embed", "This server embeds no queries; search by a vector or by an asset.")
        started = time.perf_counter()
        result = "failed"
        try:
            vector = await self._searcher.embed(query)
            result = "done"
        except QueryError as error:
            if error.reason == RefusalReason.RETRIES_EXHAUSTED:
                _log.error("the embedding API fails: %s", error)
                raise self._unanswered() from None
            result = "refused"
            raise Fault(422, "query", str(error)) from None
        except ApiError as error:
            if error is not self._logged:  # all who ask in a pause are told the same
                self._logged = error
                _log.error("the embedding API fails: %s", error)
            raise self._unanswered() from None
        finally:
            self.metrics.embeds.labels(result).inc()
            self.metrics.embed_seconds.observe(time.perf_counter() - started)
        return vector

    def _unanswered(self) -> Fault:
        wait_s = max(1, self.retry_after_s)
        message = (
            f"The embedding API answers nobody at the moment; it is asked again in {wait_s} s. Searches by vectors and "
            "assets are answered."
        )
        return Fault(503, "embedding_api", message, {"Retry-After": str(wait_s)})

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
                raise Fault(422, "invalid", f"kinds must be among those that the catalog has, {has}, got {kind!r}.")


@contextlib.asynccontextmanager
async def open_service(settings: ServeSettings, metrics: Metrics) -> AsyncIterator[Service]:
    """Opens the catalog and, where queries can be embedded, the way to its API.

    Raises:
        CatalogError: When the catalog cannot be opened, or the API's model is not the one that made it.
        ApiError: When the API is not there, or refuses the key.
    """
    catalog = await asyncio.to_thread(
        open_catalog, settings.catalog, follow=True, follow_every_s=settings.follow_every_s
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(catalog.close)
        searcher = None
        if catalog.manifest.model == UNKNOWN_MODEL:
            _log.warning("it is not known what made the vectors: sentences and pictures cannot be searched by")
        else:
            asked = Searcher.from_catalog(
                catalog,
                base_url=settings.base_url,
                api_key_env=settings.api_key_env,
                decode_pixels=settings.max_image_pixels,
            )
            try:
                searcher = await stack.enter_async_context(asked)
            except ConfigError as error:  # no key: vectors and assets can be searched by all the same
                _log.warning("sentences and pictures cannot be searched by: %s", error)
        service = Service(settings, catalog, searcher, metrics)
        stack.callback(service.close)
        yield service
