"""Opens image files. The header is checked before pixels are decoded and before memory is allocated for them."""

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
from .image_formats import image_format
from .png_chunks import png_parts
from .unpreparable import Unpreparable, undecodable

# Called by name, not through `Image.open`: the pixel limit of `Image.open` applies to the whole process.
_DECODERS: Mapping[str, Callable[[io.BytesIO, str], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.jpeg_factory,  # also MPO, which many phones write: a JPEG followed by a second image
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
_ORIENTATION = 0x0112
_PHOTOMETRIC, _YCBCR = 262, 6
_JPEG_BLOCK_BYTES = 4096
"""Bytes per read. A JPEG of many scans takes long for few bytes, and the deadline is only checked between reads."""
_MOST_PROFILE_BYTES = 4_000_000
"""Maximum size of a colour profile. The largest profiles of printers have about 3 MB."""


@dataclass(frozen=True, kw_only=True)
class OpenedImage:
    """An image whose header was read, with the facts that its colours depend on."""

    image: ImageFile.ImageFile
    """Not decoded yet."""
    name: str
    """Name of the format."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    profile: bytes | None
    """ICC profile."""
    gamma: float | None
    """Encoding exponent of a PNG without a profile."""
    bits: int
    """Bits of a sample of a PNG; 0 for other formats."""
    has_frames: bool
    """Whether it is a PNG with frames."""
    is_heavy: bool
    """Whether it is a PNG with more metadata than other decoders accept."""

    @property
    def is_animated(self) -> bool:
        """Whether a viewer shows it as an animation."""
        if self.name not in {"gif", "webp"}:
            return self.has_frames
        try:
            return bool(getattr(self.image, "is_animated", False))  # for a GIF this searches for the second frame
        except Exception:  # decoders raise errors of any type on hostile bytes
            return False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the EXIF orientation is applied."""
        # Pillow rotates a TIFF while it loads it, and reports the upright size before that.
        width, height = self.image.size
        return (height, width) if self.orientation >= 5 and self.name != "tiff" else (width, height)

    def tag(self, number: int) -> object:
        """Return a tag of a TIFF; None if it is absent or unreadable."""
        if not isinstance(self.image, TiffImagePlugin.TiffImageFile):
            return None
        try:
            found: object = self.image.tag_v2.get(number)
        except Exception:  # a hostile tag raises errors of any type
            return None
        return found[0] if isinstance(found, tuple) and found else found


def open_image(data: bytes, settings: PrepareConfig, deadline: float) -> OpenedImage:
    """Read the header of an image with the decoder of its format, and check it.

    Args:
        data: Content of the file.
        settings: Allowed formats and limits.
        deadline: Time limit of decoding, as a value of time.monotonic().

    Raises:
        Unpreparable: If the file is not an image, has a format that is not allowed, is broken, or exceeds a limit.
    """
    name = image_format(data, settings.formats)
    parts = png_parts(data, _MOST_PROFILE_BYTES) if name == "png" else None
    try:
        image = _DECODERS[name](_TimedFile(data if parts is None else parts.stream, deadline), "")
    except Unpreparable:
        raise
    except Image.DecompressionBombError:  # Pillow 13's WebP decoder has a limit of its own, before the size is known
        raise Unpreparable(
            Reason.TOO_MANY_PIXELS, f"the image has more pixels than the {name} decoder allows"
        ) from None
    except Exception as error:  # decoders raise errors of any type on hostile bytes
        raise undecodable(error, name, len(data)) from None
    width, height = image.size
    if width * height > settings.max_decode_pixels:
        raise Unpreparable(
            Reason.TOO_MANY_PIXELS,
            f"prepare.max_decode_pixels allows {settings.max_decode_pixels} pixels, got {width}x{height}",
        )
    if max(width, height) > settings.max_side:
        raise Unpreparable(
            Reason.TOO_MANY_PIXELS, f"prepare.max_side allows {settings.max_side} pixels, got {width}x{height}"
        )
    if _has_raw_ycbcr(image):
        raise Unpreparable(Reason.UNDECODABLE, "the tiff has uncompressed YCbCr pixels, which are not supported")
    # Pillow's raw decoder needs a whole line; with smaller blocks it copies what it has for each block.
    image.decodermaxblock = _JPEG_BLOCK_BYTES if name == "jpeg" else max(ImageFile.MAXBLOCK, width * 4)
    profile = image.info.get("icc_profile") if parts is None else parts.profile
    return OpenedImage(
        image=image,
        name=name,
        orientation=1 if parts is not None and not parts.is_oriented else _orientation(image),
        profile=profile if isinstance(profile, bytes) and 0 < len(profile) <= _MOST_PROFILE_BYTES else None,
        gamma=None if parts is None else parts.gamma,
        bits=0 if parts is None else parts.bits,
        has_frames=parts is not None and parts.is_animated,
        is_heavy=parts is not None and parts.is_heavy,
    )


def load(image: Image.Image, deadline: float) -> None:
    """Decode the pixels.

    Raises:
        Unpreparable: If the image is broken or the deadline has passed.
    """
    try:
        image.load()
    except Unpreparable:
        raise
    except Exception as error:  # decoders raise errors of any type on hostile bytes
        raise undecodable(error, (image.format or "image").lower()) from None
    check_time(deadline)


def check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Unpreparable(Reason.DECODE_TIMEOUT, "the image took longer than prepare.decode_timeout_s")


def check_structure(data: bytes, name: str) -> None:
    """Check that the file is complete: most broken images are truncated downloads.

    Raises:
        Unpreparable: If the end is missing.
    """
    match name:
        case "jpeg":
            is_whole = data.rfind(b"\xff\xd9") >= _first_scan(data)  # search from the end, where it nearly always is
        case "png":
            is_whole = b"IEND" in data
        case "webp":
            is_whole = len(data) >= 8 + int.from_bytes(data[4:8], "little") - 1
        case "gif":
            is_whole = b";" in data[-64:]
        case _:
            is_whole = True
    if not is_whole:
        raise Unpreparable(Reason.UNDECODABLE, f"the {name} is truncated: its end is missing")


class _TimedFile(io.BytesIO):
    """A file in memory whose reads fail after the deadline, which stops a slow decoder."""

    def __init__(self, data: bytes, deadline: float) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        check_time(self._deadline)
        return super().read(size)


def _has_raw_ycbcr(image: Image.Image) -> bool:
    """Whether Pillow would read the YCbCr pixels of a TIFF as RGB with padding."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    try:
        return image.tag_v2.get(_PHOTOMETRIC) == _YCBCR and image.info.get("compression") == "raw"
    except Exception:  # a hostile tag raises errors of any type
        return False


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _first_scan(data: bytes) -> int:
    """Return where the pixels of a JPEG begin: after its thumbnails, which have end markers of their own.

    Bytes after the end of the image are allowed: phones append videos.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        is_fill = data[at + 1 : at + 2] == b"\xff"
        at += 1 if is_fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at
