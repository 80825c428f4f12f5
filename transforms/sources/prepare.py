"""Prepares assets to be sent: pictures upright, within the caps and in a format that is sent; texts checked.

Inputs are hostile until looked at. A picture is judged by its bytes and never by its name; its header is read
before a pixel is decoded; what is too large is refused before memory is spent on it.
"""

import contextlib
import io
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ...configs import PrepareConfig
from ...index.versions.layout import Reason

# Called by name rather than through `Image.open`: its own cap on pixels is one for the whole process.
_DECODERS: Mapping[str, Callable[[io.BytesIO, str], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.jpeg_factory,  # also MPO: what many phones write, a JPEG with a second picture behind it
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_LONGEST_JPEG_SIDE = 65_500
_LARGE_PIXELS = 24_000_000
_LARGE_TURN = threading.Lock()
"""Large pictures are decoded one at a time: a dozen readers with 120 million pixels each would fill any memory."""
_SHRINK = 0.8
_JPEG_BLOCK_BYTES = 4096
"""Read at once: a JPEG of many scans takes long over few bytes, and the time is only looked at between reads."""


class Unpreparable(Exception):  # noqa: N818 - not an error of ours: it becomes a dead letter
    """The asset cannot be sent."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture ready to be sent."""

    content: bytes
    media_type: str
    """Of the original."""
    width: int
    height: int
    """Of the original as it is meant to be seen, after its EXIF orientation."""
    prepared: str | None
    """What was done, such as `upright;downscaled 2048x1536;jpeg`; None when it is sent as it came."""


def prepare_text(data: bytes | str, settings: PrepareConfig) -> str:
    """A text that may be sent.

    Raises:
        Unpreparable: When it is no UTF-8, empty, or longer than the cap.
    """
    try:
        data = data.encode() if isinstance(data, str) else data
        text = data.decode("utf-8-sig")
    except UnicodeEncodeError as error:
        raise Unpreparable(
            Reason.NOT_UTF8, f"a text must be UTF-8, got half of a surrogate pair at {error.start}"
        ) from None
    except UnicodeDecodeError as error:
        raise Unpreparable(
            Reason.NOT_UTF8, f"a text must be UTF-8, got byte 0x{error.object[error.start]:02x} at {error.start}"
        ) from None
    if not text.strip():
        raise Unpreparable(Reason.EMPTY_TEXT, "a text must not be empty")
    if len(text) > settings.max_text_chars:
        raise Unpreparable(
            Reason.TEXT_TOO_LONG,
            f"prepare.max_text_chars allows {settings.max_text_chars} characters, got {len(text)}",
        )
    return text


def prepare_picture(data: bytes, settings: PrepareConfig, *, smaller: bool = False) -> Picture:
    """Checks a picture and makes it fit to be sent, touching it only when something demands it.

    Args:
        data: A picture file.
        settings: Formats, caps, quality.
        smaller: The API found it too large: downscale it once more than the caps ask.

    Raises:
        Unpreparable: When it is empty, no picture, broken, too large, or of a format that is not allowed.
    """
    if not data:
        raise Unpreparable(Reason.EMPTY_FILE, "the file is empty")
    deadline = time.monotonic() + settings.decode_timeout_s
    name = _format(data, settings)
    image = _open(data, name, deadline, settings)
    media_type = f"image/{name}"
    orientation = 1 if name == "png" and not any(key in data for key in _PNG_EXIF) else _orientation(image)
    # Pillow turns a TIFF by itself while it loads it, and says its upright size before.
    width, height = image.size[::-1] if orientation >= 5 and name != "tiff" else image.size
    actions = [
        *(["upright"] if orientation > 1 else []),
        *(["reformatted"] if name not in settings.send_formats else []),
        *(["downscaled"] if width * height > settings.max_pixels or smaller else []),
        *(["recompressed"] if len(data) > settings.max_image_bytes else []),
    ]
    if not actions and settings.check == "structure":
        _check_structure(data, name)
        return Picture(content=data, media_type=media_type, width=width, height=height, prepared=None)
    with _LARGE_TURN if width * height > _LARGE_PIXELS else contextlib.nullcontext():
        if width * height > _LARGE_PIXELS:  # opened anew: waiting for a turn is not the picture's fault
            deadline = time.monotonic() + settings.decode_timeout_s
            image = _open(data, name, deadline, settings)
        if not actions:
            _load(image, deadline)
            return Picture(content=data, media_type=media_type, width=width, height=height, prepared=None)
        pixels = min(settings.max_pixels, width * height // 4 if smaller else settings.max_pixels)
        try:
            content, done = _re_encode(image, name, pixels, deadline, settings)
        except Unpreparable:
            raise
        except Exception as error:  # a decoder may find a mode or a size that no encoder takes
            raise Unpreparable(Reason.UNDECODABLE, f"the picture cannot be converted: {_words(error)}") from None
    steps = [*(["upright"] if orientation > 1 else []), *done]
    return Picture(content=content, media_type=media_type, width=width, height=height, prepared=";".join(steps))


class _TimedFile(io.BytesIO):
    """Bytes that a slow decoder cannot read on from once the time is over."""

    def __init__(self, data: bytes, deadline: float) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        _check_time(self._deadline)
        return super().read(size)


def _format(data: bytes, settings: PrepareConfig) -> str:
    """The picture's format by its first bytes, when it is allowed."""
    name = next((name for magic, name in _MAGIC if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        name = "webp"
    if name is not None and name in settings.formats:
        return name
    if name is not None or data[4:8] == b"ftyp":
        found = name or data[8:12].decode("ascii", "replace").strip()
        raise Unpreparable(
            Reason.FORMAT_NOT_ALLOWED, f"prepare.formats allows {', '.join(settings.formats)}, got {found}"
        )
    raise Unpreparable(Reason.NOT_A_PICTURE, f"the file is no picture, it begins with {_shown(data[:8])}")


def _shown(data: bytes) -> str:
    """Bytes for a person: in quotes where they are letters, else in hex."""
    text = data.decode("ascii", "replace")
    return f"“{text.strip()}”" if text.replace("\n", " ").isprintable() and text.isascii() else data.hex(" ")


def _open(data: bytes, name: str, deadline: float, settings: PrepareConfig) -> ImageFile.ImageFile:
    """Reads the header alone, with the one decoder at work, and checks what it claims."""
    try:
        image = _DECODERS[name](_TimedFile(data, deadline), "")
    except Unpreparable:
        raise
    except Image.DecompressionBombError as error:  # Pillow 13's WebP decoder has a bound of its own, before the size
        raise Unpreparable(
            Reason.TOO_MANY_PIXELS, f"the {name} decoder refuses the picture's size: {_words(error)}"
        ) from None
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise Unpreparable(Reason.UNDECODABLE, f"the {name}'s header is broken: {_words(error)}") from None
    pixels = image.size[0] * image.size[1]
    if pixels > settings.max_decode_pixels:
        raise Unpreparable(
            Reason.TOO_MANY_PIXELS,
            f"prepare.max_decode_pixels allows {settings.max_decode_pixels} pixels, "
            f"got {image.size[0]}x{image.size[1]}",
        )
    # Pillow's raw decoder wants a whole line at once, and copies what it has with every block that it is short of.
    image.decodermaxblock = _JPEG_BLOCK_BYTES if name == "jpeg" else max(ImageFile.MAXBLOCK, image.size[0] * 4)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_structure(data: bytes, name: str) -> None:
    """Whether the file has its end: a cut-off download is the commonest broken picture."""
    match name:
        case "jpeg":
            is_whole = data.rfind(b"\xff\xd9") >= _first_scan(data)  # from behind: it is nearly always the last
        case "png":
            is_whole = b"IEND" in data
        case "webp":
            is_whole = len(data) >= 8 + int.from_bytes(data[4:8], "little") - 1
        case "gif":
            is_whole = b";" in data[-64:]
        case _:
            is_whole = True
    if not is_whole:
        raise Unpreparable(Reason.UNDECODABLE, f"the {name} is cut off: its end is missing")


def _first_scan(data: bytes) -> int:
    """Where a JPEG's pixels begin, behind the thumbnails that have ends of their own.

    What stands behind the picture's end is nobody's business: phones append whole films.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        is_fill = data[at + 1 : at + 2] == b"\xff"
        at += 1 if is_fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at


def _load(image: Image.Image, deadline: float) -> None:
    try:
        image.load()
    except Unpreparable:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise Unpreparable(Reason.UNDECODABLE, f"the picture is broken: {_words(error)}") from None
    _check_time(deadline)


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Unpreparable(Reason.DECODE_TIMEOUT, "the picture took longer than prepare.decode_timeout_s")


def _re_encode(
    image: Image.Image, name: str, max_pixels: int, deadline: float, settings: PrepareConfig
) -> tuple[bytes, list[str]]:
    """Decodes, turns upright, downscales as far as the caps demand, and encodes."""
    done = []
    width, height = image.size
    if name == "jpeg" and width * height > max_pixels:
        scale = math.sqrt(max_pixels / (width * height))
        wanted = (max(1, int(width * scale)), max(1, int(height * scale)))
        image.draft(None, wanted)  # decodes at a power of two less
    _load(image, deadline)
    turn = _UPRIGHT.get(_orientation(image))
    image = _eight_bit(image if turn is None else image.transpose(turn))
    has_alpha = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
    image = image.convert("RGBA" if has_alpha else "RGB")
    keep_png = (has_alpha or name == "png") and "png" in settings.send_formats
    target = "png" if keep_png or "jpeg" not in settings.send_formats else "jpeg"
    if target == "jpeg" and has_alpha:  # JPEG has no alpha: what shows through is white
        image = _on_white(image)
    scale = math.sqrt(max_pixels / (image.size[0] * image.size[1]))
    if target == "jpeg":
        scale = min(scale, _LONGEST_JPEG_SIDE / max(image.size))
    if scale < 1:
        image = _resized(image, scale, max_pixels)
    content = _encoded(image, target, settings)
    if len(content) > settings.max_image_bytes and target == "png" and "jpeg" in settings.send_formats:
        target = "jpeg"
        image = _on_white(image) if has_alpha else image
        if max(image.size) > _LONGEST_JPEG_SIDE:
            image = _resized(image, _LONGEST_JPEG_SIDE / max(image.size))
        content = _encoded(image, target, settings)
    while len(content) > settings.max_image_bytes:
        _check_time(deadline)
        if max(image.size) <= 16:
            raise Unpreparable(
                Reason.FILE_TOO_LARGE, f"prepare.max_image_bytes is {settings.max_image_bytes}, too few for a picture"
            )
        image = _resized(image, min(_SHRINK, math.sqrt(settings.max_image_bytes / len(content))))
        content = _encoded(image, target, settings)
    _check_time(deadline)
    if image.size[0] * image.size[1] < width * height:
        done.append(f"downscaled {image.size[0]}x{image.size[1]}")
    done.append(target)
    return content, done


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey levels of 16 and 32 bits as 8: Pillow's own conversion makes all above 255 white."""
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    levels = np.asarray(image)
    shift = 8 if image.mode != "I" or levels.max(initial=0) < 1 << 16 else 24
    if image.mode == "I" and levels.max(initial=0) < 1 << 8:
        shift = 0
    return Image.fromarray(np.clip(levels >> shift, 0, 255).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _resized(image: Image.Image, scale: float, max_pixels: int | None = None) -> Image.Image:
    width, height = (max(1, int(side * scale)) for side in image.size)
    if max_pixels is not None:  # one so thin that a side cannot shrink as far as the scale asks
        width, height = max(1, min(width, max_pixels // height)), max(1, min(height, max_pixels // width))
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _encoded(image: Image.Image, target: str, settings: PrepareConfig) -> bytes:
    buffer = io.BytesIO()
    if target == "jpeg":
        image.save(buffer, "JPEG", quality=settings.jpeg_quality)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
