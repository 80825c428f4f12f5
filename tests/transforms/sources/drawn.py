"""Image files and colour profiles that no library writes, made byte by byte, with their expected colours."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.uint8]

_D50 = (0.9642, 1.0, 0.8249)
PRIMARIES = {  # XYZ for a D50 white; one column each for red, green and blue
    "srgb": ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410)),
    "p3": ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407)),
    "adobe": ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457)),
    "swapped": ((0.14307, 0.43607, 0.38515), (0.06061, 0.22249, 0.71687), (0.71410, 0.01392, 0.09708)),
}


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65_536)) for value in values)


def _profile(space: bytes, pcs: bytes, kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_D50),
    } | tags
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, kind, space, pcs) + bytes(12)
    header += b"acsp" + bytes(28) + _fixed(*_D50)
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + table + body


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def rgb_profile(primaries: str, gamma: float) -> bytes:
    """Make an RGB profile with three primaries (`PRIMARIES`) and one exponent."""
    columns = zip(*PRIMARIES[primaries], strict=True)
    tags = {
        name: b"XYZ \0\0\0\0" + _fixed(*xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)
    }
    return _profile(b"RGB ", b"XYZ ", b"mntr", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", b"XYZ ", b"mntr", {b"kTRC": _curve(gamma)})


def ink_profile(colours: Sequence[tuple[float, float, float]]) -> bytes:
    """Make a CMYK profile from the CIELAB colours of all 16 combinations of inks, each at 0 or 100 %."""
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    ramp = bytes(range(256))
    grid = b"".join(bytes([round(light * 2.55), round(a + 128), round(b + 128)]) for light, a, b in colours)
    return _profile(b"CMYK", b"Lab ", b"prtr", {b"A2B0": lut + ramp * 4 + grid + ramp * 3})


def encode_srgb(linear: npt.NDArray[np.float64]) -> Levels:
    """Convert linear light from 0 to 1 to sRGB levels."""
    light = np.clip(linear, 0, 1)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (curve * 255 + 0.5).astype(np.uint8)


def seen_through(levels: Levels, primaries: str, gamma: float) -> Levels:
    """Convert levels of a profile to sRGB by the definitions of both: uint8, (…, 3)."""
    xyz = (levels / 255) ** gamma @ np.array(PRIMARIES[primaries]).T
    return encode_srgb(xyz @ np.linalg.inv(np.array(PRIMARIES["srgb"])).T)


def seen_lab(light: float, a: float, b: float) -> Levels:
    """Convert a CIELAB colour under D50 to sRGB."""
    y = (light + 16) / 116
    f = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * np.array(_D50)
    return encode_srgb(xyz @ np.linalg.inv(np.array(PRIMARIES["srgb"])).T)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """Make a PNG from rows without filter bytes; `extra` are chunks before the pixels."""
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


_TYPES = {"H": 3, "I": 4, "f": 11, "d": 12, "h": 8, "i": 9, "B": 1}


def tiff(
    width: int, height: int, bits: Sequence[int], photometric: int, rows: bytes, *, big: bool = False, **tags: object
) -> bytes:
    """Make an uncompressed TIFF in one strip. `tags` are `tag339=("H", [3])`, or bytes."""
    order = ">" if big else "<"
    entries: dict[int, tuple[int, int, bytes]] = {}

    def add(number: int, kind: str, values: Sequence[float]) -> None:
        entries[number] = _TYPES[kind], len(values), struct.pack(f"{order}{len(values)}{kind}", *values)

    add(256, "I", [width])
    add(257, "I", [height])
    add(258, "H", bits)
    add(259, "H", [1])
    add(262, "H", [photometric])
    add(273, "I", [8])
    add(277, "H", [len(bits)])
    add(278, "I", [height])
    add(279, "I", [len(rows)])
    for name, value in tags.items():
        if isinstance(value, bytes):
            entries[int(name[3:])] = 7, len(value), value
        else:
            add(int(name[3:]), *value)  # type: ignore[misc]
    rows += bytes(len(rows) % 2)
    at = 8 + len(rows)
    spilled = at + 2 + 12 * len(entries) + 4
    table, body = struct.pack(f"{order}H", len(entries)), b""
    for number, (kind, count, data) in sorted(entries.items()):
        table += struct.pack(f"{order}HHI", number, kind, count)
        if len(data) <= 4:
            table += data + bytes(4 - len(data))
        else:
            table += struct.pack(f"{order}I", spilled + len(body))
            body += data + bytes(len(data) % 2)
    magic = b"MM\0*" if big else b"II*\0"
    return magic + struct.pack(f"{order}I", at) + rows + table + bytes(4) + body
