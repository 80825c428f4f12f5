"""Reuse the vector of an image that was sent before exactly as it would be sent now."""

import functools
from collections.abc import Iterable
from dataclasses import replace

from ...configs import PrepareConfig
from ...index.vectors.reusable import ReusableVector
from ..sources.effective import Row, brought_up, is_of_first_rules, is_same, is_smaller, why_again
from ..sources.prepare import PreparedImage, is_sent_as_ever, prepare_image


def reuse_or_prepare(
    data: bytes, reusable: Iterable[ReusableVector], settings: PrepareConfig
) -> ReusableVector | PreparedImage:
    """Return a reusable vector of an image, or the prepared image to send.

    The stored row often suffices to decide; otherwise the header of the image; otherwise the image is prepared and the
    preparation compared.

    Args:
        data: An image file.
        reusable: Vectors of the same content, prepared in any way.
        settings: The current settings.

    Raises:
        Unpreparable: When the image must be prepared and cannot be.
    """
    prepare = functools.cache(lambda smaller: prepare_image(data, settings, smaller=smaller))
    seen = set()
    for found in reusable:
        before = found.settings
        if (found.prepared, before) in seen:  # one of several copies is enough
            continue
        seen.add((found.prepared, before))
        row = Row("image", found.media_type, len(data), found.width, found.height, found.prepared)
        if before is not None and why_again(row, before, settings) is None:
            return found
        if before == settings and is_of_first_rules(found.prepared) and is_sent_as_ever(data, settings):
            return replace(found, prepared=brought_up(found.prepared or "", settings))
        image = prepare(is_smaller(row, before))
        if is_same(found.prepared, before, image.prepared):
            return replace(found, prepared=image.prepared)
    return prepare(False)
