"""Small copies of pictures for pages and sheets."""

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
"""Times the wanted side that a picture is drawn at, before it is made to fit."""
_READERS = 8
_AT_ONCE = 64

Read = Callable[[], bytes]
"""Gives a picture's bytes; raises Unpreparable or OSError when it is not at hand."""


def shrink(data: bytes, pixels: int) -> Image.Image | None:
    """The picture in a file's bytes as it looks, as RGB, no side longer than `pixels`; None when it is none."""
    try:
        small = draw_image(data, _CAPS, (_DRAWN * pixels) ** 2)
    except Unpreparable:
        return None
    small.thumbnail((pixels, pixels))
    return small


def small_images(reads: Sequence[Read | None], pixels: int) -> Iterator[Image.Image | None]:
    """`shrink` of each, in order; None where there is nothing to read, or it is not at hand. Several are read at once.

    Who takes no more of them ends the reading.
    """
    with ThreadPoolExecutor(_READERS, "image") as pool:  # what takes time is a bucket's answer
        for first in range(0, len(reads), _AT_ONCE):
            yield from pool.map(partial(_small, pixels=pixels), reads[first : first + _AT_ONCE])


def _small(read: Read | None, pixels: int) -> Image.Image | None:
    try:
        return None if read is None else shrink(read(), pixels)
    except (Unpreparable, OSError):
        return None


def data_url(image: Image.Image, quality: int = 70) -> str:
    """The picture as a JPEG that stands in a page."""
    return "data:image/jpeg;base64," + base64.b64encode(encoded_jpeg(image, quality)).decode()


def data_urls(reads: Sequence[Read | None], pixels: int, max_bytes: int) -> list[str | None]:
    """`data_url` of `small_images`, until they take `max_bytes`; None for the others."""
    found: list[str | None] = []
    left = max_bytes
    for image in small_images(reads, pixels):
        url = None if image is None else data_url(image)
        found.append(url)
        left -= len(url or "")
        if left <= 0:
            break
    return found + [None] * (len(reads) - len(found))
