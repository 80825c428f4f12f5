"""The pictures of a catalog, read from where its job found them and from nowhere else."""

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
"""Of a picture that stands in a table."""

_log = logging.getLogger(__name__)


class ImageSources:
    """The sources of pictures of the job that made a version; any thread may read from them.

    A picture is given if its uri lies within the sources that the manifest names, links resolved, and if its bytes are
    those that were embedded: their sha256 says so. Nothing else on a disk or in a bucket can be asked for.
    """

    def __init__(self, config: Mapping[str, Any], catalog: str) -> None:
        """Opens nothing yet; places that this user has not allowed are left out, and a warning says so.

        Args:
            config: Of the manifest.
            catalog: Its address.
        """
        self._sources: list[SourceConfig] = []
        for raw in image_sources(config):
            if refused := Trust().refused(asks_for_images(raw), catalog):
                _log.warning("%s", _not_shown(catalog, refused))
                continue
            try:
                source = SourceConfig.model_validate({**raw, "storage_options": {}})
            except ValidationError:
                continue  # of another release: its pictures are not shown
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
        """The bytes that were embedded.

        Raises:
            Unpreparable: When the picture may not be read, is not there, or is another one by now.
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
        return data

    def thumbnail(self, asset: Asset, size: int) -> bytes:
        """A JPEG of about size² pixels, or of as many as the picture has.

        Raises:
            Unpreparable: As `read`, and when the picture cannot be decoded.
        """
        # What is written beside the pixels, such as where they were taken, stays here.
        return encoded_jpeg(draw_image(self.read(asset), self._prepare, size * size), _QUALITY)


def _not_shown(catalog: str, refused: Sequence[str]) -> str:
    return (
        f"{catalog} asks to {' and to '.join(refused)}, which nobody here has allowed: those pictures are not shown. "
        f"If that is right: epithre-beam trust {shlex.quote(catalog)}."
    )


def _place_of(uri: str, sources: Sequence[SourceConfig]) -> int | None:
    """The number of the source that `uri` lies in."""
    for number, source in enumerate(sources):
        if source.bytes is not None:
            if _CELL.search(uri) and is_within(uri.rpartition("#")[0], allowed_prefixes(source)):
                return number
        elif is_within(uri, _folders_of(source)):
            return number
    return None


def _folders_of(source: SourceConfig) -> tuple[str, ...]:
    """The folders that a source's pictures come from."""
    if source.files is not None:
        return (_folder_of(source.files),)
    return allowed_prefixes(source) if source.uri is not None else ()


def _folder_of(pattern: str) -> str:
    """What is fixed of a pattern: itself if it is a folder, else the folders before the first wildcard."""
    if (path := local_path(pattern)) is not None and Path(path).exists():  # a name may look like a pattern
        return pattern if Path(path).is_dir() else str(Path(path).parent)
    fixed = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    is_folder = fixed == pattern and (local_path(pattern) is None or Path(pattern).is_dir())
    return pattern if is_folder else fixed.rpartition("/")[0] or "/"
