"""Small copies of images for pages and sheets."""

import base64
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from PIL import Image

from ...configs import PrepareConfig
from ..sources.prepare import draw_image, encoded_jpeg
from ..sources.unpreparable import Unpreparable

_CAPS = PrepareConfig()
_DRAWN = 2
"""An image is drawn at this multiple of the wanted side before it is resized to fit."""
_READERS = 8
_AT_ONCE = 64

Read = Callable[[], bytes]
"""Returns the bytes of an image; raises Unpreparable or OSError when the image is not available."""


def shrink(data: bytes, pixels: int) -> Image.Image | None:
    """Decode an image file as RGB, no side longer than `pixels`; None if it is not a valid image."""
    try:
        small = draw_image(data, _CAPS, (_DRAWN * pixels) ** 2)
    except Unpreparable:
        return None
    small.thumbnail((pixels, pixels))
    return small


def small_images(reads: Sequence[Read | None], pixels: int) -> Iterator[Image.Image | None]:
    """Yield `shrink` of each image in order; None for an image that is not available. Several are read in parallel.

    Reading stops when the caller stops iterating.
    """
    with ThreadPoolExecutor(_READERS, "image") as pool:  # most of the time is spent waiting for remote storage
        for first in range(0, len(reads), _AT_ONCE):
            yield from pool.map(partial(_small, pixels=pixels), reads[first : first + _AT_ONCE])


def _small(read: Read | None, pixels: int) -> Image.Image | None:
    try:
        return None if read is None else shrink(read(), pixels)
    except (Unpreparable, OSError):
        return None


def data_url(image: Image.Image, quality: int = 70) -> str:
    """Return the image as a JPEG in a data URL."""
    return "data:image/jpeg;base64," + base64.b64encode(encoded_jpeg(image, quality)).decode()


def data_urls(reads: Sequence[Read | None], pixels: int, max_bytes: int) -> list[str | None]:
    """Return `data_url` of `small_images` until the URLs reach `max_bytes`; None for the others."""
    found: list[str | None] = []
    left = max_bytes
    for image in small_images(reads, pixels):
        url = None if image is None else data_url(image)
        found.append(url)
        left -= len(url or "")
        if left <= 0:
            break
    return found + [None] * (len(reads) - len(found))
