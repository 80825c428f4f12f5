"""Converts the levels of an image to eight bits and its colours to sRGB.

Images for the API and for the reports both pass through here, so that they look as in a viewer:

- grey levels of more than eight bits are scaled from the range that the file states. Floats are scaled from 0 to 1. If
  neither applies, levels are scaled from the smallest to the largest one, as viewers do;
- a colour profile that fits the image's mode is applied with the perceptual intent; so is the gamma of a PNG. Pillow
  converts CMYK without a profile, and CIELAB;
- the transparent level of a PNG has the depth of the file.

Each conversion that Pillow would not do by itself has a step. **A change of pixels needs a new step name**: a run
compares the names in the rows of a catalog to find the vectors that it would make differently (sources/effective.py).
"""

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from .image_files import OpenedImage

SRGB = "srgb"
"""The step that converts colours to sRGB."""
LEVELS = "levels"
"""The step that scales levels to eight bits; dropping the lower bits is not a step."""
ALPHA = "alpha"
"""The step that compares the transparent level at the depth of the file."""
STEPS = (LEVELS, ALPHA, SRGB)

_BITS, _PHOTOMETRIC, _MAX_LEVEL, _SAMPLE_FORMAT = 258, 262, 281, 339  # tags of a TIFF
_SMIN, _SMAX = 340, 341
_SIGNED = 2
_MODES = {("L", "GRAY"): "L", ("L", "RGB"): "RGB", ("RGB", "RGB"): "RGB", ("CMYK", "CMYK"): "CMYK"}
"""From the levels of the image and of the profile to the mode of the conversion. Other pairs do not fit."""
_SAME = 2
"""Largest difference in levels at which a profile counts as sRGB: many files describe sRGB."""
_STRIP_PIXELS = 4_000_000
_PLAIN_GAMMA = 0.05
_SCREEN_GAMMA = 2.2
_OVERSHOOT = 0.5
"""How far floats may exceed 0 to 1 and still be read as 0 to 1: resampling and highlights overshoot."""

_Levels = npt.NDArray[Any]
_Dtype = type[np.integer[Any]]


def expected_steps(file: OpenedImage) -> tuple[str, ...] | None:
    """Return the steps of `eight_bits` and `to_srgb` from the header alone; None if they depend on the pixels."""
    image = file.image
    if image.mode in {"I", "F"} or _is_signed(file):
        return None
    steps = []
    if image.mode.startswith("I;16") and _sixteen_bit_range(file) != (0, 0xFFFF):
        return None  # the levels may exceed the range that the file states
    if _key_has_other_depth(file):
        steps.append(ALPHA)
    if _conversion(file, _colours_of(image.mode)) is not None:
        steps.append(SRGB)
    return tuple(steps)


def eight_bits(image: Image.Image, file: OpenedImage) -> tuple[Image.Image, list[str]]:
    """Convert a decoded image to eight bits: `L`, `LA`, `RGB`, `RGBA`, `CMYK` or `LAB`. Return it with the steps.

    Args:
        image: The decoded image; it may be rotated already.
        file: The header of its file.
    """
    steps: list[str] = []
    key = image.info.get("transparency")
    alpha: Image.Image | None = None
    if image.mode in {"I", "F"} or image.mode.startswith("I;16") or _is_signed(file):
        deep = image
        image, is_scaled = _scaled(deep, file)
        steps += [LEVELS] * is_scaled
        if file.name == "png" and isinstance(key, int):
            alpha = _by_strips(deep, lambda levels: np.where(levels == key, 0, 255).astype(np.uint8))
            steps.append(ALPHA)
    elif _key_has_other_depth(file):
        image, steps = _with_depth_of_key(image, file), [ALPHA]
    if alpha is not None:
        image = Image.merge("LA", (image, alpha))
    has_alpha = image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info
    match image.mode:
        case "CMYK" | "LAB" | "L" | "LA" | "RGB" | "RGBA" if has_alpha == image.mode.endswith("A"):
            return image, steps
        case "1" | "L":
            return image.convert("LA" if has_alpha else "L"), steps
        case _:
            return image.convert("RGBA" if has_alpha else "RGB"), steps


def to_srgb(image: Image.Image, file: OpenedImage) -> tuple[Image.Image, list[str]]:
    """Convert the result of `eight_bits`, or a smaller copy, to sRGB in `RGB` or `RGBA`. Return it with the steps."""
    alpha = image.getchannel("A") if image.mode in {"LA", "RGBA"} else None
    convert = _conversion(file, _colours_of(image.mode))
    if convert is None:
        return image.convert("RGB" if alpha is None else "RGBA"), []
    if alpha is not None:
        image = image.convert("L" if image.mode == "LA" else "RGB")
    image = convert(image)
    if alpha is not None:
        image.putalpha(alpha)
    return image, [SRGB]


def on_white(image: Image.Image) -> Image.Image:
    """Put a transparent image on a white background."""
    if image.mode != "RGBA":
        return image
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _colours_of(mode: str) -> str:
    """Return the colour space of a mode: `L`, `RGB`, `CMYK` or `LAB`."""
    if mode in {"CMYK", "LAB"}:
        return mode
    return "L" if mode in {"1", "L", "LA", "La", "I", "F"} or mode.startswith("I;16") else "RGB"


# Depth


def _is_signed(file: OpenedImage) -> bool:
    return file.image.mode == "L" and file.tag(_SAMPLE_FORMAT) == _SIGNED


def _sixteen_bit_range(file: OpenedImage) -> tuple[int, int]:
    """Return the levels of black and white: 0 and 65,535 unless the file states others. Black is above if inverted."""
    bits = file.tag(_BITS)
    white = (1 << bits) - 1 if isinstance(bits, int) and 8 < bits < 16 else 0xFFFF
    stated = file.tag(_SMAX) or file.tag(_MAX_LEVEL)
    if isinstance(stated, int) and 0xFF < stated < white:
        white = stated
    return (white, 0) if _is_inverted(file) else (0, white)


def _is_inverted(file: OpenedImage) -> bool:
    """Whether 0 is white. Pillow inverts levels of up to eight bits by itself."""
    return file.name == "tiff" and file.tag(_PHOTOMETRIC) == 0


def _scaled(image: Image.Image, file: OpenedImage) -> tuple[Image.Image, bool]:
    """Scale grey levels to `L`. Return the image and whether that did more than drop the lower bits."""
    if image.mode.startswith("I;16"):
        black, white = _sixteen_bit_range(file)
        if max(black, white) < 0xFFFF and _extremes(image)[1] > max(black, white):
            black, white = (0xFFFF, 0) if black else (0, 0xFFFF)  # the stated range is wrong
        if (black, white) == (0, 0xFFFF):
            return _by_strips(image, lambda levels: (levels >> 8).astype(np.uint8)), False
        return _stretched(image, black, white), True
    if image.mode == "L":
        lowest, highest = _extremes(image, np.int8)
        return _stretched(image, lowest, highest, np.int8), True
    whole = np.uint32 if image.mode == "I" and file.tag(_SAMPLE_FORMAT) != _SIGNED else None
    lowest, highest = _extremes(image, whole)
    if image.mode == "I" and file.tag(_BITS) != 16 and lowest >= 0 and highest <= 0xFFFF and not _is_inverted(file):
        shift = 8 if highest > 0xFF else 0
        return _by_strips(image, lambda levels: (levels >> shift).astype(np.uint8)), False
    least, most = file.tag(_SMIN), file.tag(_SMAX)
    if isinstance(least, (int, float)) and isinstance(most, (int, float)) and least <= lowest <= highest <= most:
        lowest, highest = float(least), float(most)
    elif image.mode == "F" and lowest >= -_OVERSHOOT and highest <= 1 + _OVERSHOOT:
        lowest, highest = 0.0, 1.0
    if _is_inverted(file):
        lowest, highest = highest, lowest
    elif (lowest, highest) == (0, 0xFF):
        return _stretched(image, lowest, highest, whole), False
    return _stretched(image, lowest, highest, whole), True


def _extremes(image: Image.Image, dtype: _Dtype | None = None) -> tuple[float, float]:
    """Return the smallest and the largest level. Ignore floats that are not finite."""
    lowest, highest = np.inf, -np.inf
    for levels in _strips(image, dtype):
        if np.issubdtype(levels.dtype, np.floating):
            levels = levels[np.isfinite(levels)]  # noqa: PLW2901
        if levels.size:
            lowest, highest = min(lowest, float(levels.min())), max(highest, float(levels.max()))
    return (0.0, 0.0) if lowest > highest else (lowest, highest)


def _stretched(image: Image.Image, black: float, white: float, dtype: _Dtype | None = None) -> Image.Image:
    """Scale levels between `black` and `white` to 0 to 255. NaN becomes black."""
    span = float(white) - float(black)

    def scale(levels: _Levels) -> npt.NDArray[np.uint8]:
        values = levels.astype(np.float64)
        if not span:
            return np.where(values > 0, 255, 0).astype(np.uint8)
        values = np.nan_to_num((values - black) / span, nan=0.0, posinf=1.0, neginf=0.0)
        return (np.clip(values, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)

    return _by_strips(image, scale, dtype)


def _strips(image: Image.Image, dtype: _Dtype | None = None) -> Iterator[_Levels]:
    """Yield the levels a few rows at a time: intermediate arrays take several times the memory of the levels."""
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        levels: _Levels = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        yield levels if dtype is None else levels.view(dtype)


def _by_strips(
    image: Image.Image, function: Callable[[Any], npt.NDArray[np.uint8]], dtype: _Dtype | None = None
) -> Image.Image:
    result, top = Image.new("L", image.size), 0
    for levels in _strips(image, dtype):
        result.paste(Image.fromarray(function(levels)), (0, top))
        top += len(levels)
    return result


def _key_has_other_depth(file: OpenedImage) -> bool:
    """Whether the transparent level of a PNG has the depth of the file while the decoded levels have another."""
    if file.name != "png" or "transparency" not in file.image.info:
        return False
    mode = file.image.mode
    return mode.startswith("I;16") or (mode == "L" and file.bits in {2, 4}) or (mode == "RGB" and file.bits == 16)


def _with_depth_of_key(image: Image.Image, file: OpenedImage) -> Image.Image:
    key = image.info["transparency"]
    if image.mode == "L":
        image.info["transparency"] = key * 0xFF // ((1 << file.bits) - 1)
        return image.convert("LA")
    image.info["transparency"] = tuple(level >> 8 for level in key)
    return image.convert("RGBA")


# Colour


def _conversion(file: OpenedImage, colours: str) -> Callable[[Image.Image], Image.Image] | None:
    """Return the conversion from `colours` to sRGB; None if the levels are sRGB or count as it."""
    convert = None if file.profile is None else _from_profile(file.profile, colours)
    if convert is not None or file.gamma is None or not 0.01 <= file.gamma <= 100 or colours not in {"L", "RGB"}:
        return convert
    exponent = 1 / (file.gamma * _SCREEN_GAMMA)
    if abs(exponent - 1) < _PLAIN_GAMMA:
        return None
    return functools.partial(_looked_up, table=[round(255 * (level / 255) ** exponent) for level in range(256)] * 3)


def _looked_up(image: Image.Image, table: Sequence[int]) -> Image.Image:
    return image.convert("RGB").point(table)


@functools.lru_cache(32)
def _from_profile(profile: bytes, colours: str) -> Callable[[Image.Image], Image.Image] | None:
    """Return the conversion from a profile to sRGB; None if it is sRGB, unreadable, or does not fit the image."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get((colours, source.profile.xcolor_space.strip()))
        if mode is None:
            return None
        # Convert each grey level by itself, which is exact: lcms' tables are off by 10 levels for a linear profile.
        flags = ImageCms.Flags.NOOPTIMIZE if colours == "L" else ImageCms.Flags.NONE
        transform = ImageCms.ImageCmsTransform(source, _srgb(), mode, "RGB", flags=flags)
        if colours == "CMYK":
            return transform.apply
        probe = _probe(is_grey=colours == "L")
        after = np.asarray(transform.apply(probe.convert(mode)))
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):  # lcms refuses invalid profiles
        return None
    if np.abs(after.astype(np.int16) - np.asarray(probe.convert("RGB"))).max() <= _SAME:
        return None
    return transform.apply if colours == "RGB" else functools.partial(_looked_up, table=after[0].T.ravel().tolist())


def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _probe(*, is_grey: bool) -> Image.Image:
    """Return levels to compare two profiles with: all greys, or colours in steps of 15."""
    if is_grey:
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    return Image.fromarray(grid.reshape(len(steps), -1, 3))
