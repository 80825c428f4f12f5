"""Opens picture files: what a header claims is checked before a pixel is decoded, and before memory is spent on it."""

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
from .unpreparable import Unpreparable, words_of

# Called by name rather than through `Image.open`: its own cap on pixels is one for the whole process.
_DECODERS: Mapping[str, Callable[[io.BytesIO, str], ImageFile.ImageFile]] = {
    "jpeg": JpegImagePlugin.jpeg_factory,  # also MPO: what many phones write, a JPEG with a second picture behind it
    "png": PngImagePlugin.PngImageFile,
    "webp": WebPImagePlugin.WebPImageFile,
    "gif": GifImagePlugin.GifImageFile,
    "bmp": BmpImagePlugin.BmpImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
}
_ORIENTATION = 0x0112
_PHOTOMETRIC, _YCBCR = 262, 6
_JPEG_BLOCK_BYTES = 4096
"""Read at once: a JPEG of many scans takes long over few bytes, and the time is only looked at between reads."""
_MOST_PROFILE_BYTES = 4_000_000
"""Of a colour profile. The largest that printers have are about 3 MB."""


@dataclass(frozen=True, kw_only=True)
class OpenedImage:
    """A picture whose header was read, with what the header says of how its levels are meant."""

    image: ImageFile.ImageFile
    """Not decoded yet."""
    name: str
    """Of the format."""
    orientation: int
    """1 to 8, as EXIF counts."""
    profile: bytes | None
    """An ICC profile."""
    gamma: float | None
    """Of a PNG without a profile: the exponent that made its levels of light."""
    bits: int
    """Of a PNG's sample; 0 for other formats."""
    has_frames: bool
    """Whether it is a PNG with frames."""
    is_heavy: bool
    """Whether it is a PNG with more beside its pixels than other decoders take."""

    @property
    def is_animated(self) -> bool:
        """Whether a viewer shows it moving."""
        if self.name not in {"gif", "webp"}:
            return self.has_frames
        try:
            return bool(getattr(self.image, "is_animated", False))  # of a GIF, its second frame is looked for
        except Exception:  # decoders raise nearly anything on hostile bytes
            return False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as the picture is meant to be seen."""
        # Pillow turns a TIFF by itself while it loads it, and says its upright size before.
        width, height = self.image.size
        return (height, width) if self.orientation >= 5 and self.name != "tiff" else (width, height)

    def tag(self, number: int) -> object:
        """A TIFF's tag; None where it is not there, or cannot be read."""
        if not isinstance(self.image, TiffImagePlugin.TiffImageFile):
            return None
        try:
            found: object = self.image.tag_v2.get(number)
        except Exception:  # what a hostile tag raises is not foreseen
            return None
        return found[0] if isinstance(found, tuple) and found else found


def open_image(data: bytes, settings: PrepareConfig, deadline: float) -> OpenedImage:
    """Reads the header alone, with the one decoder at work, and checks what it claims.

    Args:
        data: The file.
        settings: Formats and caps.
        deadline: When decoding is given up, as time.monotonic() counts.

    Raises:
        Unpreparable: When it is no picture, of a format that is not allowed, broken, or larger than the caps.
    """
    name = image_format(data, settings.formats)
    parts = png_parts(data, _MOST_PROFILE_BYTES) if name == "png" else None
    try:
        image = _DECODERS[name](_TimedFile(data if parts is None else parts.stream, deadline), "")
    except Unpreparable:
        raise
    except Image.DecompressionBombError as error:  # Pillow 13's WebP decoder has a bound of its own, before the size
        raise Unpreparable(
            Reason.TOO_MANY_PIXELS, f"the {name} decoder refuses the picture's size: {words_of(error)}"
        ) from None
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise Unpreparable(Reason.UNDECODABLE, f"the {name}'s header is broken: {words_of(error)}") from None
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
        raise Unpreparable(
            Reason.UNDECODABLE, "the tiff has YCbCr pixels that are not compressed, which no decoder here reads"
        )
    # Pillow's raw decoder wants a whole line at once, and copies what it has with every block that it is short of.
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
    """Decodes.

    Raises:
        Unpreparable: When it is broken, or takes longer than it may.
    """
    try:
        image.load()
    except Unpreparable:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile bytes
        raise Unpreparable(Reason.UNDECODABLE, f"the picture is broken: {words_of(error)}") from None
    check_time(deadline)


def check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Unpreparable(Reason.DECODE_TIMEOUT, "the picture took longer than prepare.decode_timeout_s")


def check_structure(data: bytes, name: str) -> None:
    """Whether the file has its end: a cut-off download is the commonest broken picture.

    Raises:
        Unpreparable: When it has not.
    """
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


class _TimedFile(io.BytesIO):
    """Bytes that a slow decoder cannot read on from once the time is over."""

    def __init__(self, data: bytes, deadline: float) -> None:
        super().__init__(data)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        check_time(self._deadline)
        return super().read(size)


def _has_raw_ycbcr(image: Image.Image) -> bool:
    """A TIFF whose pixels Pillow would read as if they were red, green, blue and nothing."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    try:
        return image.tag_v2.get(_PHOTOMETRIC) == _YCBCR and image.info.get("compression") == "raw"
    except Exception:  # what a hostile tag raises is not foreseen
        return False


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _first_scan(data: bytes) -> int:
    """Where a JPEG's pixels begin, behind the thumbnails that have ends of their own.

    What stands behind the picture's end is nobody's business: phones append whole films.
    """
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        is_fill = data[at + 1 : at + 2] == b"\xff"
        at += 1 if is_fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at
