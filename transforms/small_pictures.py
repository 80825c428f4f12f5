"""Small copies of pictures for pages and sheets: of local files that lie inside a job's sources, of no other."""

import base64
import io
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..configs import SourceConfig
from .references import local_path
from .sources import allowed_prefixes, is_within

_MAX_BYTES = 64 << 20
_MAX_PIXELS = 100_000_000


def picture_folders(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The folders that the pictures of a catalog came from, by its config; none if it was imported."""
    folders: list[str] = []
    for raw in settings.get("sources", ()):
        source = SourceConfig.model_validate(raw)
        if source.kind == "image" and source.files is not None:
            folders.append(_folder_of(source.files))
        elif source.kind == "image" and source.uri is not None:
            folders += allowed_prefixes(source)
    return tuple(folders)


def _folder_of(pattern: str) -> str:
    """What is fixed of a pattern: itself if it is a folder, else the folders before the first wildcard."""
    fixed = re.split(r"[*?\[{]", pattern, maxsplit=1)[0]
    is_folder = fixed == pattern and (local_path(pattern) is None or Path(pattern).is_dir())
    return pattern if is_folder else fixed.rpartition("/")[0] or "/"


def read_small(uri: str | None, folders: Sequence[str], pixels: int) -> Image.Image | None:
    """A picture as RGB, upright, no side longer than `pixels`.

    None when it is not at hand: it is no local file, lies outside of `folders`, is too large or no picture any more.
    """
    path = None if uri is None or "#row=" in uri else local_path(uri)
    if uri is None or path is None or not is_within(uri, tuple(folders)):
        return None
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                return None
            return shrink(file.read(_MAX_BYTES), pixels)
    except OSError:
        return None


def _open_at_once(path: str, flags: int) -> int:
    """A pipe that stands where a picture was would be waited for for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def shrink(data: bytes, pixels: int) -> Image.Image | None:
    """The picture in a file's bytes, as RGB, upright, no side longer than `pixels`; None when it is none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            image.draft("RGB", (pixels, pixels))
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((pixels, pixels))
            return small
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def data_url(image: Image.Image, quality: int = 70) -> str:
    """The picture as a JPEG that stands in a page."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def data_urls(uris: Iterable[str | None], folders: Sequence[str], pixels: int, max_bytes: int) -> list[str | None]:
    """Small pictures for a page, in the order of their uris, until they take `max_bytes`; None for the others."""
    found: list[str | None] = []
    left = max_bytes
    for uri in uris:
        image = read_small(uri, folders, pixels) if left > 0 else None
        url = None if image is None else data_url(image)
        found.append(url)
        left -= len(url or "")
    return found
