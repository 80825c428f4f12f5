"""Prepares assets to be sent: pictures upright, within the caps and in a format that is sent; texts checked.

Inputs are hostile until looked at. A picture is judged by its bytes and never by its name; its header is read
before a pixel is decoded; what is too large is refused before memory is spent on it.
"""

import io
import math
import time
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from ..configs import PrepareConfig
from ..index.layout import Reason

_PILLOW = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
_NAMES = {pillow: name for name, pillow in _PILLOW.items()} | {"MPO": "jpeg"}
_MAGIC = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
)
_ORIENTATION = 0x0112
_SHRINK = 0.8
_TRAILER_BYTES = 4096


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
    if isinstance(data, bytes):
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unpreparable(
                Reason.NOT_UTF8, f"a text must be UTF-8, got byte 0x{data[error.start]:02x} at {error.start}"
            ) from None
    else:
        text = data
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
    image = _open(data, settings)
    name = _NAMES[str(image.format)]
    media_type = f"image/{name}"
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation in {5, 6, 7, 8} else image.size
    actions = [
        *(["upright"] if orientation > 1 else []),
        *(["reformatted"] if name not in settings.send_formats else []),
        *(["downscaled"] if width * height > settings.max_pixels or smaller else []),
        *(["recompressed"] if len(data) > settings.max_image_bytes else []),
    ]
    if not actions:
        if settings.check == "decode":
            _load(image, deadline)
        else:
            _check_structure(data, name)
        return Picture(content=data, media_type=media_type, width=width, height=height, prepared=None)
    pixels = min(settings.max_pixels, width * height // 4 if smaller else settings.max_pixels)
    content, done = _re_encode(image, name, pixels, deadline, settings)
    steps = [*(["upright"] if orientation > 1 else []), *done]
    return Picture(content=content, media_type=media_type, width=width, height=height, prepared=";".join(steps))


def _open(data: bytes, settings: PrepareConfig) -> Image.Image:
    """Reads the header alone, with only the allowed decoders at work, and checks what it claims."""
    allowed = [pillow for name, pillow in _PILLOW.items() if name in settings.formats]
    if "jpeg" in settings.formats:
        allowed.append("MPO")  # what many phones write: a JPEG with a second picture behind it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of many pixels; ours is a rule
            image = Image.open(io.BytesIO(data), formats=allowed)
    except UnidentifiedImageError:
        raise _not_a_picture(data, settings) from None
    except Image.DecompressionBombError:
        raise Unpreparable(
            Reason.TOO_MANY_PIXELS,
            f"prepare.max_decode_pixels allows {settings.max_decode_pixels} pixels, and this claims many more",
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise Unpreparable(Reason.UNDECODABLE, f"the header is broken: {_words(error)}") from None
    pixels = image.size[0] * image.size[1]
    if pixels > settings.max_decode_pixels:
        raise Unpreparable(
            Reason.TOO_MANY_PIXELS,
            f"prepare.max_decode_pixels allows {settings.max_decode_pixels} pixels, "
            f"got {image.size[0]}x{image.size[1]}",
        )
    return image


def _not_a_picture(data: bytes, settings: PrepareConfig) -> Unpreparable:
    name = next((name for magic, name in _MAGIC if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        name = "webp"
    if name in settings.formats:
        return Unpreparable(Reason.UNDECODABLE, f"the file begins like a {name} and is none")
    if name is not None or data[4:8] == b"ftyp":
        found = name or data[8:12].decode("ascii", "replace").strip()
        return Unpreparable(
            Reason.FORMAT_NOT_ALLOWED, f"prepare.formats allows {', '.join(settings.formats)}, got {found}"
        )
    return Unpreparable(Reason.NOT_A_PICTURE, f"the file is no picture, it begins with {data[:8]!r}")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _check_structure(data: bytes, name: str) -> None:
    """Whether the file has its end: a cut-off download is the commonest broken picture."""
    tail = data[-_TRAILER_BYTES:]
    whole = {
        "jpeg": b"\xff\xd9" in tail,
        "png": b"IEND" in tail,
        "webp": len(data) >= 8 and len(data) >= 8 + int.from_bytes(data[4:8], "little") - 1,
        "gif": b";" in tail[-64:],
    }
    if not whole.get(name, True):
        raise Unpreparable(Reason.UNDECODABLE, f"the {name} is cut off: its end is missing")


def _load(image: Image.Image, deadline: float) -> None:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError, Image.DecompressionBombError) as error:
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
        image.draft(None, (int(width * scale), int(height * scale)))  # decodes at a power of two less
    _load(image, deadline)
    image = ImageOps.exif_transpose(image)
    has_alpha = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
    image = image.convert("RGBA" if has_alpha else "RGB")
    keep_png = (has_alpha or name == "png") and "png" in settings.send_formats
    target = "png" if keep_png or "jpeg" not in settings.send_formats else "jpeg"
    if target == "jpeg" and has_alpha:  # JPEG has no alpha: what shows through is white
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image)
        image = ground.convert("RGB")
    full = image.size
    if full[0] * full[1] > max_pixels:
        scale = math.sqrt(max_pixels / (full[0] * full[1]))
        image = _resized(image, scale)
    content = _encoded(image, target, settings)
    if len(content) > settings.max_image_bytes and target == "png" and "jpeg" in settings.send_formats:
        target = "jpeg"
        image = image.convert("RGB")
        content = _encoded(image, target, settings)
    while len(content) > settings.max_image_bytes:
        _check_time(deadline)
        if min(image.size) <= 16:
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


def _resized(image: Image.Image, scale: float) -> Image.Image:
    size = (max(1, int(image.size[0] * scale)), max(1, int(image.size[1] * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)


def _encoded(image: Image.Image, target: str, settings: PrepareConfig) -> bytes:
    buffer = io.BytesIO()
    if target == "jpeg":
        image.save(buffer, "JPEG", quality=settings.jpeg_quality)
    else:
        image.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
