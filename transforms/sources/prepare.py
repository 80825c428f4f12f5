"""Prepares assets for the API: images upright, within the limits and in an accepted format; texts checked.

Inputs are untrusted. The format of an image follows from its bytes, never from its name. The header is read before
pixels are decoded, and an image that is too large is refused before memory is allocated for it.
"""

import contextlib
import io
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from ...configs import PrepareConfig
from ...index.versions.layout import Reason
from .colours import SRGB, eight_bits, expected_steps, on_white, to_srgb
from .effective import SMALLER, UPRIGHT, triggers, written
from .image_files import OpenedImage, check_structure, check_time, load, open_image
from .unpreparable import Unpreparable

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LONGEST_JPEG_SIDE = 65_500
_LARGE_PIXELS = 24_000_000
_LARGE_TURN = threading.Lock()
"""Large images are decoded one at a time: a dozen readers with 120 million pixels each would fill the memory."""
_SHRINK = 0.8
_PLAIN_MODES = {"1", "L", "P", "RGB"}


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image that is ready to be sent."""

    content: bytes
    """Content of the file to send."""
    media_type: str
    """Media type of the original."""
    width: int
    """Width of the original in pixels, after its EXIF orientation is applied."""
    height: int
    """Height of the original in pixels, likewise."""
    prepared: str | None
    """The steps, such as `upright;downscaled 2048x1536;jpeg q92;rules 2`; None if the image is sent unchanged."""


def prepare_text(data: bytes | str, settings: PrepareConfig) -> str:
    """Check a text and return it as it may be sent.

    Raises:
        Unpreparable: If the text is not UTF-8, is empty, or exceeds `max_text_chars`.
    """
    try:
        data = data.encode() if isinstance(data, str) else data
        text = data.decode("utf-8-sig")
    except UnicodeEncodeError as error:
        raise Unpreparable(
            Reason.NOT_UTF8, f"the text is not UTF-8: half of a surrogate pair at character {error.start}"
        ) from None
    except UnicodeDecodeError as error:
        raise Unpreparable(
            Reason.NOT_UTF8, f"the text is not UTF-8: 0x{error.object[error.start]:02x} at byte {error.start}"
        ) from None
    if not text.strip():
        raise Unpreparable(Reason.EMPTY_TEXT, "the text is empty")
    if len(text) > settings.max_text_chars:
        raise Unpreparable(
            Reason.TEXT_TOO_LONG,
            f"prepare.max_text_chars allows {settings.max_text_chars} characters, got {len(text)}",
        )
    return text


def prepare_image(data: bytes, settings: PrepareConfig, *, smaller: bool = False) -> PreparedImage:
    """Check an image and re-encode it only if a rule requires it.

    Args:
        data: Content of an image file.
        settings: Formats, limits and quality.
        smaller: Whether the API found the image too large. It is then reduced to at most a quarter of its pixels.

    Raises:
        Unpreparable: If the file is empty, not an image, broken, too large, or has a format that is not allowed.
    """
    file, deadline = _opened(data, settings)
    width, height = file.upright_size
    content, prepared = data, None
    if smaller or _must_be_re_encoded(file, len(data), settings):
        pixels = min(settings.max_pixels, width * height // 4) if smaller else settings.max_pixels
        with _turn(file, deadline, data, settings) as (file, deadline):
            content, done = _re_encoded(file, pixels, deadline, settings)
        first = [UPRIGHT] if file.orientation > 1 else []
        prepared = written([*first, *done[:-1], *([SMALLER] if smaller else []), done[-1]])
    elif settings.check == "decode":
        with _turn(file, deadline, data, settings) as (file, deadline):
            load(file.image, deadline)
    else:
        check_structure(data, file.name)
    return PreparedImage(
        content=content, media_type=f"image/{file.name}", width=width, height=height, prepared=prepared
    )


def is_sent_as_ever(data: bytes, settings: PrepareConfig) -> bool:
    """Whether the second rules send the same bytes as the first, judging by the header alone.

    Raises:
        Unpreparable: As in `prepare_image`, for errors that the header shows.
    """
    file, _ = _opened(data, settings)
    return expected_steps(file) == ()


def draw_image(data: bytes, settings: PrepareConfig, max_pixels: int) -> Image.Image:
    """Decode an image for display, with the same conversions as for the API: upright, sRGB, on white.

    The result has at most `max_pixels` pixels, and its sides fit into a JPEG.

    Raises:
        Unpreparable: If the image cannot be decoded, or exceeds a limit.
    """
    file, deadline = _opened(data, settings)
    with _turn(file, deadline, data, settings) as (file, deadline):
        image, _ = _decoded(file, max_pixels, deadline)
    return _for_jpeg(image)


def encoded_jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _opened(data: bytes, settings: PrepareConfig) -> tuple[OpenedImage, float]:
    if not data:
        raise Unpreparable(Reason.EMPTY_FILE, "the file is empty")
    deadline = time.monotonic() + settings.decode_timeout_s
    return open_image(data, settings, deadline), deadline


def _must_be_re_encoded(file: OpenedImage, size_bytes: int, settings: PrepareConfig) -> bool:
    """Whether the image must be re-encoded."""
    width, height = file.upright_size
    if file.orientation > 1 or file.is_heavy or triggers(file.name, size_bytes, width * height, settings):
        return True
    if settings.as_is == "any":
        return False
    is_plain = file.image.mode in _PLAIN_MODES and file.bits < 16 and "transparency" not in file.image.info
    return not is_plain or file.is_animated or expected_steps(file) != ()


@contextlib.contextmanager
def _turn(
    file: OpenedImage, deadline: float, data: bytes, settings: PrepareConfig
) -> Iterator[tuple[OpenedImage, float]]:
    """Wait until the image may be decoded. Open a large one again afterwards: waiting must not count as decoding."""
    width, height = file.image.size
    if width * height <= _LARGE_PIXELS:
        yield file, deadline
        return
    with _LARGE_TURN:
        yield _opened(data, settings)


def _re_encoded(
    file: OpenedImage, max_pixels: int, deadline: float, settings: PrepareConfig
) -> tuple[bytes, list[str]]:
    """Return the image within the limits in an accepted format, and the steps."""
    full = file.upright_size  # read first: it changes if a JPEG is decoded at a fraction of its size
    try:
        image, steps = _decoded(file, max_pixels, deadline)
        content, done = _encoded_within(image, file, deadline, settings)
    except Unpreparable:
        raise
    except Exception:  # an encoder may refuse the mode or the size
        raise Unpreparable(Reason.UNDECODABLE, f"the image cannot be converted ({_kind(file)})") from None
    width, height, target = done
    if width * height < full[0] * full[1]:
        steps = [f"downscaled {width}x{height}", *steps]
    return content, [*steps, f"jpeg q{settings.jpeg_quality}" if target == "jpeg" else target]


def _kind(file: OpenedImage) -> str:
    """The format and the mode of an image, for messages."""
    return f"{file.name}, mode {file.image.mode}"


def _decoded(file: OpenedImage, max_pixels: int, deadline: float) -> tuple[Image.Image, list[str]]:
    """Return the upright image as `RGB` or `RGBA` with at most `max_pixels` pixels, and the steps of its colours.

    Raises:
        Unpreparable: If the image is broken, or takes too long.
    """
    width, height = file.image.size
    if file.name == "jpeg" and width * height > max_pixels:
        scale = math.sqrt(max_pixels / (width * height))
        wanted = (max(1, int(width * scale)), max(1, int(height * scale)))
        file.image.draft(None, wanted)  # decodes at 1/2, 1/4 or 1/8 of the size
    load(file.image, deadline)
    try:
        image, steps = eight_bits(file.image, file)
        if image.mode in {"CMYK", "LAB"}:  # resizing these would mix colours wrongly
            image, more = to_srgb(image, file)
            steps += more
        check_time(deadline)
        image = _within(image, max_pixels)
        if SRGB not in steps:
            image, more = to_srgb(image, file)
            steps += more
        turn = None if file.name == "tiff" else _UPRIGHT.get(file.orientation)
        if turn is not None:
            image = image.transpose(turn)
    except Unpreparable:
        raise
    except Exception:  # there may be no conversion for the mode
        raise Unpreparable(Reason.UNDECODABLE, f"the image cannot be converted ({_kind(file)})") from None
    check_time(deadline)
    image.info = {}  # metadata is applied to the pixels, or must not be sent
    return image, steps


def _encoded_within(
    image: Image.Image, file: OpenedImage, deadline: float, settings: PrepareConfig
) -> tuple[bytes, tuple[int, int, str]]:
    """Encode an upright image within the limits. Return the file, and its width, height and format."""
    if settings.as_is == "plain":
        image = on_white(image)
    keep_png = (image.mode == "RGBA" or file.name == "png") and "png" in settings.send_formats
    target = "png" if keep_png or "jpeg" not in settings.send_formats else "jpeg"
    if target == "jpeg":
        image = _for_jpeg(image)
    content = _encoded(image, target, settings)
    if len(content) > settings.max_image_bytes and target == "png" and "jpeg" in settings.send_formats:
        target = "jpeg"
        image = _for_jpeg(image)
        content = _encoded(image, target, settings)
    while len(content) > settings.max_image_bytes:
        check_time(deadline)
        if max(image.size) <= 16:
            raise Unpreparable(
                Reason.FILE_TOO_LARGE, f"prepare.max_image_bytes ({settings.max_image_bytes}) is too small for an image"
            )
        image = _resized(image, min(_SHRINK, math.sqrt(settings.max_image_bytes / len(content))))
        content = _encoded(image, target, settings)
    check_time(deadline)
    return content, (*image.size, target)


def _within(image: Image.Image, max_pixels: int) -> Image.Image:
    scale = math.sqrt(max_pixels / (image.size[0] * image.size[1]))
    return _resized(image, scale, max_pixels) if scale < 1 else image


def _for_jpeg(image: Image.Image) -> Image.Image:
    """Make an image fit into a JPEG, which has no alpha and a maximum length of a side."""
    image = on_white(image)
    scale = _LONGEST_JPEG_SIDE / max(image.size)
    return _resized(image, scale) if scale < 1 else image


def _resized(image: Image.Image, scale: float, max_pixels: int | None = None) -> Image.Image:
    width, height = (max(1, int(side * scale)) for side in image.size)
    if max_pixels is not None:  # for a thin image whose short side is already 1
        width, height = max(1, min(width, max_pixels // height)), max(1, min(height, max_pixels // width))
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _encoded(image: Image.Image, target: str, settings: PrepareConfig) -> bytes:
    if target == "jpeg":
        return encoded_jpeg(image, settings.jpeg_quality)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()
