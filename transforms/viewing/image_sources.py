"""Read the images of a catalog, only from the sources of its job."""

import hashlib
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from ...configs import PrepareConfig, SourceConfig
from ...index.local.trust import Trust, allowed_prepare, asks_for_images, image_sources
from ...index.search.hits import Asset
from ...index.versions.layout import Reason
from ..sources.prepare import draw_image, encoded_jpeg
from ..sources.reading import Reader
from ..sources.references import Reference, local_path
from ..sources.unpreparable import Unpreparable
from ..sources.uri_safety import allowed_prefixes, is_within

_DECODE_S = 10.0
_QUALITY = 82
_CELL = re.compile(r"#row=\d{1,12}&column=")
"""Matches the fragment of an image stored in a table."""

_log = logging.getLogger(__name__)


class ImageSources:
    """The image sources of the job that made a version. Thread-safe.

    An image is returned only if its URI, with links resolved, is within the sources in the manifest, and if the SHA-256
    of its bytes is that of the embedded image. No other file on a disk or in a bucket can be read.
    """

    def __init__(self, config: Mapping[str, Any], catalog: str) -> None:
        """Select the sources that this user has allowed, and log a warning for each other one. Opens nothing.

        Args:
            config: The config in the manifest.
            catalog: The URL of the catalog.
        """
        self._sources: list[SourceConfig] = []
        for raw in image_sources(config):
            if refused := Trust().refused(asks_for_images(raw), catalog):
                _log.warning("%s", _not_shown(catalog, refused))
                continue
            try:
                source = SourceConfig.model_validate({**raw, "storage_options": {}})
            except ValidationError:
                continue  # a source of another release: its images are not shown
            self._sources.append(source)
        prepare = PrepareConfig.model_validate(allowed_prepare(config, catalog))
        self._prepare = prepare.model_copy(update={"decode_timeout_s": min(prepare.decode_timeout_s, _DECODE_S)})
        self._reader = Reader(self._sources, self._prepare)

    def __bool__(self) -> bool:
        return bool(self._sources)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    def read(self, asset: Asset) -> bytes:
        """Return the bytes that were embedded.

        Raises:
            Unpreparable: When the image may not be read, does not exist, or has changed.
        """
        place = _place_of(asset.uri or "", self._sources)
        if place is None:
            raise Unpreparable(Reason.URI_NOT_ALLOWED, "its URI is not within the sources of the catalog's job")
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
            raise Unpreparable(Reason.MISSING, "the file has changed since the version was created")
        return data

    def thumbnail(self, asset: Asset, size: int) -> bytes:
        """Return a JPEG of about size² pixels, or fewer if the image is smaller.

        Raises:
            Unpreparable: As for `read`, and when the image cannot be decoded.
        """
        # The JPEG has no metadata such as the location of a photo.
        return encoded_jpeg(draw_image(self.read(asset), self._prepare, size * size), _QUALITY)


def _not_shown(catalog: str, refused: Sequence[str]) -> str:
    return (
        f"{catalog}: the catalog asks to {' and to '.join(refused)}, which you have not allowed, so these images are "
        f"not shown. To allow it: epithre-beam trust {shlex.quote(catalog)}."
    )


def _place_of(uri: str, sources: Sequence[SourceConfig]) -> int | None:
    """Return the position of the source that contains `uri`; None if there is none."""
    for number, source in enumerate(sources):
        if source.bytes is not None:
            if _CELL.search(uri) and is_within(uri.rpartition("#")[0], allowed_prefixes(source)):
                return number
        elif is_within(uri, _folders_of(source)):
            return number
    return None


def _folders_of(source: SourceConfig) -> tuple[str, ...]:
    """Return the folders that contain the images of a source."""
    if source.files is not None:
        return (_folder_of(source.files),)
    return allowed_prefixes(source) if source.uri is not None else ()


def _folder_of(pattern: str) -> str:
    """Return the folder of a pattern: the pattern itself if it is a folder, else the part before the first wildcard."""
    if (path := local_path(pattern)) is not None and Path(path).exists():  # a file name may look like a pattern
        return pattern if Path(path).is_dir() else str(Path(path).parent)
    fixed = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    is_folder = fixed == pattern and (local_path(pattern) is None or Path(pattern).is_dir())
    return pattern if is_folder else fixed.rpartition("/")[0] or "/"
