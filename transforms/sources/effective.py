"""Compares how an image was prepared for the API with how the current settings would prepare it.

A row's `prepared` is None for an image that was sent unchanged. Otherwise it lists the steps, such as
`upright;downscaled 2048x1536;srgb;jpeg q92;rules 2`. Content and steps together determine what was sent. `rules` is the
newest version of the rules for which the steps were checked. Rows without it follow the first rules, which did not
record the quality. A rule that changes pixels also changes the name of a step, so equal content and equal steps mean
equal pixels, whatever the rules.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from ...configs import PrepareConfig
from ...index.versions.layout import PREPARE_RULES, Reason

UPRIGHT = "upright"
SMALLER = "smaller"
"""The step of an image that the API found too large: it was made smaller than the limits require."""
_RULES = f"rules {PREPARE_RULES}"
_DOWNSCALED = re.compile(r"downscaled (\d{1,9})x(\d{1,9})")
_AFFECTED = {"image/jpeg", "image/png", "image/webp", "image/tiff"}
"""Formats that the second rules may prepare differently. The other decoders have no profiles and only eight bits."""
_NEW_RULES = "this release converts colours and levels as viewers show them"

_CAPS = {"max_file_bytes": "size", "max_decode_pixels": "pixels", "max_side": "side"}


class Row(NamedTuple):
    """The columns of a catalog that describe how an asset was prepared."""

    kind: str
    media_type: str | None
    size_bytes: int | None
    width: int | None
    height: int | None
    prepared: str | None


def is_of_today() -> str:
    """Return how the `prepared` of a row ends if the row was checked with the current rules."""
    return _RULES


def is_of_first_rules(prepared: str | None) -> bool:
    """Whether a row has the steps of an image, but neither settings nor rules."""
    return _is_old(_steps(prepared))


def written(steps: Sequence[str]) -> str:
    """Join steps as they are stored in a row."""
    return ";".join((*steps, _RULES))


def is_smaller(row: Row, before: PrepareConfig | None) -> bool:
    """Whether the API required a smaller image. The first rules did not record it; then a quarter size implies it."""
    steps = _steps(row.prepared)
    if _is_old(steps):
        size = next((found for step in steps if (found := _DOWNSCALED.fullmatch(step))), None)
        if size is None or row.width is None or row.height is None:
            return False
        settings = before or PrepareConfig()
        pixels = row.width * row.height
        return pixels <= settings.max_pixels and int(size[1]) * int(size[2]) <= pixels // 4
    return SMALLER in steps


def is_same(old: str | None, before: PrepareConfig | None, new: str | None) -> bool:
    """Whether equal content with the old and the new steps was sent as the same bytes.

    Args:
        old: `prepared` of a row.
        before: The settings of the row's version. None if the row is complete without them.
        new: `prepared` as this release would write it.
    """
    if old is None or new is None:
        return old is new
    then, now = _steps(old), _steps(new)
    if _is_old(then):
        if before is None:
            return False
        then, now = _with_quality(then, before), [step for step in now if step != SMALLER]
    return [step for step in then if not step.startswith("rules ")] == [
        step for step in now if not step.startswith("rules ")
    ]


def brought_up(old: str, before: PrepareConfig) -> str:
    """Write steps of the first rules as the current rules write them, if they are the same."""
    return written(_with_quality(_steps(old), before))


def why_again(row: Row, before: PrepareConfig, now: PrepareConfig) -> str | None:
    """Return why an asset must be read and sent again, or None if it would be sent as before.

    Args:
        row: The asset's row in a version.
        before: The settings of that version; all its rows agree with them.
        now: The current settings.
    """
    if row.kind == "text":
        if (row.size_bytes or 0) <= now.max_text_chars or not _is_lower(before, now, "max_text_chars"):
            return None
        return _changed(before, now, "max_text_chars")
    steps = _steps(row.prepared)
    is_of_other_rules = bool(steps) and _RULES not in steps and row.media_type in _AFFECTED
    if before == now or row.media_type is None or row.size_bytes is None or row.width is None or row.height is None:
        return _NEW_RULES if is_of_other_rules else None
    name = row.media_type.removeprefix("image/")
    sizes = {"size": row.size_bytes, "pixels": row.width * row.height, "side": max(row.width, row.height)}
    reasons = [cap for cap, of in _CAPS.items() if _is_lower(before, now, cap) and sizes[of] > getattr(now, cap)]
    if name in before.formats and name not in now.formats:
        reasons.append("formats")
    if not steps and now.check == "decode":
        reasons.append("check")
    if not steps and now.as_is == "plain":
        reasons.append("as_is")
    reasons += _sending(row, steps, before, now)
    found = [sentence for name in dict.fromkeys(reasons) if (sentence := _changed(before, now, name)) is not None]
    if found:
        return "; ".join(found)
    return _NEW_RULES if is_of_other_rules else None


def why_again_dead(reason: Reason, rules: int, before: PrepareConfig, now: PrepareConfig) -> str | None:
    """Return why an asset that got no vector is tried again, or None if the result would be the same.

    Args:
        reason: The reason of the dead letter.
        rules: The rules of the version that has the dead letter.
        before: The settings of that version.
        now: The current settings.
    """
    if reason is Reason.UNDECODABLE and rules < PREPARE_RULES:
        return "this release decodes more images"
    names = {
        Reason.FORMAT_NOT_ALLOWED: ("formats",),
        Reason.FILE_TOO_LARGE: ("max_file_bytes", "max_image_bytes"),
        Reason.TOO_MANY_PIXELS: ("max_decode_pixels", "max_side"),
        Reason.DECODE_TIMEOUT: ("decode_timeout_s", "max_decode_pixels"),
        Reason.UNDECODABLE: ("check", "send_formats", "as_is"),
        Reason.TEXT_TOO_LONG: ("max_text_chars",),
        Reason.REFUSED: _SENDING,
        Reason.TOO_LARGE_FOR_API: _SENDING,
        Reason.BROKEN_VECTOR: _SENDING,
    }.get(reason, ())
    found = [sentence for name in names if (sentence := _changed(before, now, name)) is not None]
    return "; ".join(found) or None


_SENDING = ("send_formats", "as_is", "max_pixels", "max_image_bytes", "jpeg_quality")


def triggers(name: str, size_bytes: int, pixels: int, settings: PrepareConfig) -> list[str]:
    """Return the settings that prevent an image of this format and size from being sent unchanged."""
    return [
        *(["send_formats"] if name not in settings.send_formats else []),
        *(["max_pixels"] if pixels > settings.max_pixels else []),
        *(["max_image_bytes"] if size_bytes > settings.max_image_bytes else []),
    ]


def _sending(row: Row, steps: Sequence[str], before: PrepareConfig, now: PrepareConfig) -> list[str]:
    """Return the settings that affect how this image is sent."""
    name, pixels = (row.media_type or "").removeprefix("image/"), (row.width or 0) * (row.height or 0)
    found = triggers(name, row.size_bytes or 0, pixels, now)
    if not steps:
        return found
    if not found and UPRIGHT not in steps and not is_smaller(row, before):
        return list(_SENDING)  # it may be sent unchanged
    found = ["max_image_bytes", "as_is"]
    if {"png", "jpeg"} & set(before.send_formats) != {"png", "jpeg"} & set(now.send_formats):
        found.append("send_formats")
    if pixels > min(before.max_pixels, now.max_pixels):
        found.append("max_pixels")
    if any(step.partition(" ")[0] == "jpeg" for step in steps):
        found.append("jpeg_quality")
    return found


def _is_lower(before: PrepareConfig, now: PrepareConfig, name: str) -> bool:
    return bool(getattr(now, name) < getattr(before, name))


def _changed(before: PrepareConfig, now: PrepareConfig, name: str) -> str | None:
    then, today = (settings.model_dump(mode="json")[name] for settings in (before, now))
    return None if then == today else f"prepare.{name} was {then!r} and is {today!r}"


def _steps(prepared: str | None) -> list[str]:
    return prepared.split(";") if prepared else []


def _is_old(steps: Sequence[str]) -> bool:
    return bool(steps) and not any(step.startswith("rules ") for step in steps)


def _with_quality(steps: Sequence[str], before: PrepareConfig) -> list[str]:
    return [f"jpeg q{before.jpeg_quality}" if step == "jpeg" else step for step in steps]
