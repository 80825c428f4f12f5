"""Detects the format of an image by its first bytes, never by its name."""

import re
from collections.abc import Iterable

from ...index.versions.layout import Reason
from .unpreparable import Unpreparable

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
_NEVER_DECODED = (
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "jpeg2000"),
    (b"\xff\x4f\xff\x51", "jpeg2000"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "jpeg-xl"),
    (b"\xff\x0a", "jpeg-xl"),
    (b"\x00\x00\x01\x00", "ico"),
    (b"8BPS", "psd"),
    (b"v/1\x01", "openexr"),
    (b"#?RADIANCE", "radiance"),
    (b"#?RGBE", "radiance"),
    (b"DDS ", "dds"),
    (b"qoif", "qoi"),
    (b"icns", "icns"),
    (b"gimp xcf", "xcf"),
    (b"SIMPLE  =", "fits"),
    (b"\x0a\x05\x01", "pcx"),
    *((b"\x01\xda" + bytes([packed, wide]), "sgi") for packed in (0, 1) for wide in (1, 2)),
    (b"II\xbc\x01", "jpeg-xr"),
    (b"farbfeld", "farbfeld"),
)
_TGA_END = b"TRUEVISION-XFILE.\x00"
_PNM = re.compile(rb"P[1-6]\s+[\d#]|P7\n")


def image_format(data: bytes, allowed: Iterable[str]) -> str:
    """Return the format of an image if it is allowed.

    Raises:
        Unpreparable: If the format is not allowed, or the bytes are not an image.
    """
    name = next((name for magic, name in _MAGIC if data.startswith(magic)), None)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        name = "webp"
    if name is not None and name in allowed:
        return name
    if name is None:
        name = _known_by_name(data)
    if name is not None:
        raise Unpreparable(Reason.FORMAT_NOT_ALLOWED, f"prepare.formats allows {', '.join(allowed)}, got {name}")
    raise Unpreparable(Reason.NOT_AN_IMAGE, f"the file begins with {_shown(data[:8])} and is not an image")


def _known_by_name(data: bytes) -> str | None:
    """Return the name of a format that is never decoded, so that the error can name it."""
    if data[4:8] == b"ftyp":
        return data[8:12].decode("ascii", "replace").strip()
    found = next((name for magic, name in _NEVER_DECODED if data.startswith(magic)), None)
    if found is None and _PNM.match(data):
        return "pnm"
    if found is None and data.endswith(_TGA_END):
        return "tga"
    return found


def _shown(data: bytes) -> str:
    """Format bytes for a message: quoted if they are printable ASCII, else in hex."""
    text = data.decode("ascii", "replace")
    return f"“{text.strip()}”" if text.replace("\n", " ").isprintable() and text.isascii() else data.hex(" ")
