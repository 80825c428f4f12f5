"""Reads the chunks of a PNG: removes those that the decoder does not need, and finds those that affect colours.

Pillow decompresses every text and colour profile, and refuses a file with more than a megabyte of them. Texts do not
change pixels, so they are removed, except texts that may hold an orientation.
"""

import zlib
from dataclasses import dataclass

_SIGNATURE_BYTES = 8
_FRAME_BYTES = 12
"""Bytes of a chunk in addition to its data: length, name, checksum."""
_KEPT = {b"tRNS", b"eXIf"}
"""Ancillary chunks that the decoder needs. The names of ancillary chunks begin with a lower-case letter."""
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_ORIENTING = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
_MOST_TEXT = 1 << 20
"""Bytes of a text or a profile that Pillow decompresses before it refuses the file."""
_MOST_TEXTS = 1 << 26
"""The same for all texts together."""


@dataclass(frozen=True, kw_only=True)
class PngParts:
    """The facts that the chunks of a PNG state."""

    stream: bytes
    """The file for the decoder: the same object if no chunk is removed."""
    profile: bytes | None
    """ICC profile."""
    gamma: float | None
    """Encoding exponent; None if the file has none, or a profile or an sRGB chunk, which take precedence."""
    bits: int
    """Bits of a sample: 1, 2, 4, 8 or 16; 0 if the header is broken."""
    is_animated: bool
    is_oriented: bool
    """Whether a chunk may hold an orientation."""
    is_heavy: bool
    """Whether it has more text, or a larger profile, than other decoders accept."""


def png_parts(data: bytes, most_profile_bytes: int) -> PngParts:
    """Read the chunks of a file that begins like a PNG. It never raises.

    Args:
        data: Content of the file.
        most_profile_bytes: A profile with more decompressed bytes is ignored.
    """
    kept: list[tuple[int, int]] = []
    profile, gamma = None, None
    is_srgb = is_animated = is_oriented = is_heavy = False
    texts = 0
    at = _SIGNATURE_BYTES
    while at + _FRAME_BYTES <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        end = at + _FRAME_BYTES + length
        if end > len(data) or name == b"IEND":
            break
        match name:
            case b"iCCP" if profile is None:
                found = _unpacked(data[at + 8 : end - 4].partition(b"\0")[2][1:], most_profile_bytes + 1)
                is_heavy |= len(found) >= _MOST_TEXT
                profile = found if 0 < len(found) <= most_profile_bytes else None
            case b"gAMA" if length == 4:
                gamma = int.from_bytes(data[at + 8 : end - 4], "big") / 100_000
            case b"sRGB":
                is_srgb = True
            case b"acTL":
                is_animated = True
            case b"eXIf":
                is_oriented = True
        is_text = False
        if name in _TEXTS and texts <= _MOST_TEXTS:
            size = _text_size(name, data[at + 8 : end - 4])
            texts += size
            is_heavy |= texts > _MOST_TEXTS or (size >= _MOST_TEXT and name != b"tEXt")
            is_text = size < _MOST_TEXT and data.startswith(_ORIENTING, at + 8)
            is_oriented |= is_text
        if not name[0] & 0x20 or name in _KEPT or is_text:
            if kept and kept[-1][1] == at:
                kept[-1] = kept[-1][0], end
            else:
                kept.append((at, end))
        at = end
    # The decoder gets truncated chunks and bytes after the end, and decides what to do with them.
    if kept and kept[-1][1] == at:
        kept[-1] = kept[-1][0], len(data)
    else:
        kept.append((at, len(data)))
    whole = kept[0] == (_SIGNATURE_BYTES, len(data))
    return PngParts(
        stream=data if whole else b"".join((data[:_SIGNATURE_BYTES], *(data[start:stop] for start, stop in kept))),
        profile=profile,
        gamma=None if is_srgb or profile is not None else gamma,
        bits=data[24] if data[12:16] == b"IHDR" and len(data) > 24 else 0,
        is_animated=is_animated,
        is_oriented=is_oriented,
        is_heavy=is_heavy,
    )


def _text_size(name: bytes, body: bytes) -> int:
    """Return the decompressed size of a text, up to the decoder's limit; 0 if it is broken."""
    rest = body.partition(b"\0")[2]
    packed = rest[1:] if name == b"zTXt" else b""
    if name == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    return len(_unpacked(packed, _MOST_TEXT)) if packed else len(body)


def _unpacked(packed: bytes, most: int) -> bytes:
    """Decompress at most `most` bytes. Return b"" if the data is broken."""
    try:
        return zlib.decompressobj().decompress(packed, most)
    except zlib.error:
        return b""
