"""Small pictures of the catalog's own assets, read from where the job found them and from nowhere else."""

import asyncio
import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image
from pydantic import ValidationError

from ...configs import PrepareConfig, SourceConfig
from ...index.catalog import Asset, Catalog
from ...index.layout import Reason
from ...transforms.prepare import Unpreparable, prepare_picture
from ...transforms.reading import Reader
from ...transforms.references import Reference
from ...transforms.small_pictures import picture_folders
from ...transforms.sources import allowed_prefixes, is_within
from .faults import Fault
from .metrics import Metrics

SIZES = (160, 320, 640, 1024)
"""The side of a square with as many pixels as the thumbnail has."""
_THREADS = 2
_MOST_WAITING = 256
_DECODE_S = 10.0
_READ_S = 20.0
_QUALITY = 82
_CELL = re.compile(r"#row=\d{1,12}&column=")
"""Of a picture that stands in a table."""


class Thumbnails:
    """Makes thumbnails and remembers the last of them; for one event loop.

    A picture is shown if its uri lies within the sources that the manifest names, links resolved, and if its bytes are
    those that were embedded: their sha256 says so. Nothing else on the disk can be asked for.
    """

    def __init__(self, cache_bytes: int, metrics: Metrics) -> None:
        self._most_bytes = cache_bytes
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(_THREADS, "thumbnail")
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[str, asyncio.Future[bytes]] = {}
        self._sources: tuple[str, PictureSources] | None = None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._sources is not None:
            self._sources[1].close()

    def sources(self, catalog: Catalog) -> "PictureSources":
        """Where the pictures of a version are."""
        manifest = catalog.manifest
        if self._sources is None or self._sources[0] != manifest.version:
            self._sources = manifest.version, PictureSources(manifest.config)
        return self._sources[1]

    async def make(self, catalog: Catalog, asset: Asset, size: int) -> bytes:
        """A JPEG.

        Raises:
            Fault: When the asset has no picture that may be shown.
        """
        key = tag(asset, size)
        if key in self._kept:
            self._kept.move_to_end(key)
            self._metrics.thumbnails.labels("kept").inc()
            return self._kept[key]
        if key not in self._under_way:
            if len(self._under_way) >= _MOST_WAITING:
                message = "Too many thumbnails are being made; come back in a second."
                raise Fault(503, "busy", message, {"Retry-After": "1"})
            making = asyncio.ensure_future(self._make(self.sources(catalog), asset, size, key))
            self._under_way[key] = making
            making.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(self._under_way[key])

    async def _make(self, sources: "PictureSources", asset: Asset, size: int, key: str) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_READ_S):
                content = await loop.run_in_executor(self._pool, sources.thumbnail, asset, size)
        except (Unpreparable, TimeoutError) as error:
            self._metrics.thumbnails.labels("refused").inc()
            why = error.detail if isinstance(error, Unpreparable) else "it took too long to read"
            raise Fault(404, "no_thumbnail", f"The picture cannot be shown: {why}.") from None
        self._metrics.thumbnails.labels("made").inc()
        self._kept[key] = content
        self._kept_bytes += len(content)
        while self._kept_bytes > self._most_bytes:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])
        return content


class PictureSources:
    """The sources of pictures of the job that made a version; any thread may read from them."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._sources: list[SourceConfig] = []
        for raw in config.get("sources", ()):
            try:
                source = SourceConfig.model_validate(raw)
            except ValidationError:
                continue  # of another release: its pictures are not shown
            if source.kind == "image":
                self._sources.append(source)
        prepare = PrepareConfig.model_validate(config.get("prepare", {}))
        self._prepare = prepare.model_copy(
            update={
                "check": "decode",
                "send_formats": ("jpeg",),
                "jpeg_quality": _QUALITY,
                "decode_timeout_s": min(prepare.decode_timeout_s, _DECODE_S),
            }
        )
        self._reader = Reader(self._sources, self._prepare)

    def __bool__(self) -> bool:
        return bool(self._sources)

    def close(self) -> None:
        self._reader.close()

    def thumbnail(self, asset: Asset, size: int) -> bytes:
        """A JPEG of about size² pixels, or of as many as the picture has.

        Raises:
            Unpreparable: When the picture may not be read, is another one by now, or cannot be decoded.
        """
        place = _place_of(asset.uri or "", self._sources)
        if place is None:
            raise Unpreparable(Reason.URI_NOT_ALLOWED, "its place is not among the sources of the catalog's job")
        data = self._reader.read(
            Reference(
                asset_id=asset.asset_id,
                kind="image",
                uri=asset.uri,
                text=None,
                fingerprint="",
                size_bytes=asset.size_bytes,
                source=place,
            )
        )
        if hashlib.sha256(data).hexdigest() != asset.content_sha256:
            raise Unpreparable(Reason.MISSING, "the file has changed since the version was made")
        picture = prepare_picture(data, self._prepare.model_copy(update={"max_pixels": size * size}))
        if picture.prepared is not None:
            return picture.content
        buffer = io.BytesIO()  # what was written beside the pixels, such as where they were taken, stays here
        with Image.open(io.BytesIO(picture.content), formats=("JPEG",)) as image:
            image.convert("RGB").save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()


def tag(asset: Asset, size: int) -> str:
    """The thumbnail's ETag: it is a function of the picture's content."""
    return f'"{asset.content_sha256[:32]}-{size}"'


def _place_of(uri: str, sources: Sequence[SourceConfig]) -> int | None:
    """The number of the source that `uri` lies in."""
    for number, source in enumerate(sources):
        if source.bytes is not None:
            if _CELL.search(uri) and is_within(uri.rpartition("#")[0], allowed_prefixes(source)):
                return number
        elif is_within(uri, picture_folders({"sources": [source.model_dump()]})):
            return number
    return None
