"""Thumbnails of the catalog's image assets, read only from the sources of the catalog's job."""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from ...index.search.catalog import Catalog
from ...index.search.hits import Asset
from ...transforms.sources.unpreparable import Unpreparable
from ...transforms.viewing.image_sources import ImageSources
from .faults import Fault
from .metrics import Metrics

SIZES = (160, 320, 640, 1024)
"""Allowed sizes: the side of a square with as many pixels as the thumbnail."""
_THREADS = 2
_MOST_WAITING = 256
_READ_S = 20.0


class Thumbnails:
    """Makes thumbnails from `ImageSources` and caches the latest. Use one instance per event loop."""

    def __init__(self, cache_bytes: int, metrics: Metrics) -> None:
        self._most_bytes = cache_bytes
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(_THREADS, "thumbnail")
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[str, asyncio.Future[bytes]] = {}
        self._sources: tuple[str, ImageSources] | None = None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._sources is not None:
            self._sources[1].close()

    def sources(self, catalog: Catalog) -> ImageSources:
        """Return the image sources of a version."""
        manifest = catalog.manifest
        if self._sources is None or self._sources[0] != manifest.version:
            self._sources = manifest.version, ImageSources(manifest.config, catalog.url)
        return self._sources[1]

    async def make(self, catalog: Catalog, asset: Asset, size: int) -> bytes:
        """Return a thumbnail as JPEG.

        Raises:
            Fault: When the asset's image cannot be shown.
        """
        key = tag(asset, size)
        if key in self._kept:
            self._kept.move_to_end(key)
            self._metrics.thumbnails.labels("kept").inc()
            return self._kept[key]
        if key not in self._under_way:
            if len(self._under_way) >= _MOST_WAITING:
                message = "Too many thumbnails are being made. Try again in a second."
                raise Fault(503, "busy", message, {"Retry-After": "1"})
            making = asyncio.ensure_future(self._make(self.sources(catalog), asset, size, key))
            self._under_way[key] = making
            making.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(self._under_way[key])

    async def _make(self, sources: ImageSources, asset: Asset, size: int, key: str) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_READ_S):
                content = await loop.run_in_executor(self._pool, sources.thumbnail, asset, size)
        except (Unpreparable, TimeoutError) as error:
            self._metrics.thumbnails.labels("refused").inc()
            why = error.detail if isinstance(error, Unpreparable) else "it took too long to read"
            raise Fault(404, "no_thumbnail", f"The image cannot be shown: {why}.") from None
        self._metrics.thumbnails.labels("made").inc()
        self._kept[key] = content
        self._kept_bytes += len(content)
        while self._kept_bytes > self._most_bytes:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return content


def tag(asset: Asset, size: int) -> str:
    """Return the thumbnail's ETag, a function of the image's content."""
    return f'"{asset.content_sha256[:32]}-{size}"'
