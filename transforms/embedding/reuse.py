"""Whether a picture's content was sent before just as it would be sent today: then its vector is paid for."""

import functools
from collections.abc import Iterable
from dataclasses import replace

from ...configs import PrepareConfig
from ...index.vectors.reusable import ReusableVector
from ..sources.effective import Row, brought_up, is_of_first_rules, is_same, is_smaller, why_again
from ..sources.prepare import PreparedImage, is_sent_as_ever, prepare_image


def reuse_or_prepare(data: bytes, reusable: Iterable[ReusableVector], settings: PrepareConfig) -> ReusableVector | PreparedImage:
    """A vector that was paid for what would be sent today, or what is to be sent.

    A row often says enough; else the header does; else the picture is prepared, and what was done to it compared.

    Args:
        data: A picture file.
        reusable: Vectors of this content, however it was prepared.
        settings: Of today.

    Raises:
        Unpreparable: When it must be prepared and cannot be.
    """
    prepare = functools.cache(lambda smaller: prepare_image(data, settings, smaller=smaller))
    seen = set()
    for found in reusable:
        before = found.settings
        if (found.prepared, before) in seen:  # of many copies one is enough
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
