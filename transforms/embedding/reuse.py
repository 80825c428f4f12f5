"""Whether a picture's content was sent before just as it would be sent today: then its vector is paid for."""

import functools
from collections.abc import Iterable
from dataclasses import replace

from ...configs import PrepareConfig
from ...index.vectors.paid import PaidVector
from ..sources.effective import Row, brought_up, is_of_first_rules, is_same, is_smaller, why_again
from ..sources.prepare import Picture, is_sent_as_ever, prepare_picture


def reuse_or_prepare(data: bytes, paid: Iterable[PaidVector], settings: PrepareConfig) -> PaidVector | Picture:
    """A vector that was paid for what would be sent today, or what is to be sent.

    A row often says enough; else the header does; else the picture is prepared, and what was done to it compared.

    Args:
        data: A picture file.
        paid: Vectors of this content, however it was prepared.
        settings: Of today.

    Raises:
        Unpreparable: When it must be prepared and cannot be.
    """
    prepare = functools.cache(lambda smaller: prepare_picture(data, settings, smaller=smaller))
    seen = set()
    for found in paid:
        before = found.settings
        if (found.prepared, before) in seen:  # of many copies one is enough
            continue
        seen.add((found.prepared, before))
        row = Row("image", found.media_type, len(data), found.width, found.height, found.prepared)
        if before is not None and why_again(row, before, settings) is None:
            return found
        if before == settings and is_of_first_rules(found.prepared) and is_sent_as_ever(data, settings):
            return replace(found, prepared=brought_up(found.prepared or "", settings))
        picture = prepare(is_smaller(row, before))
        if is_same(found.prepared, before, picture.prepared):
            return replace(found, prepared=picture.prepared)
    return prepare(False)
