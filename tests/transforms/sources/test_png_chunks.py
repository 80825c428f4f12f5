"""The decoder gets only the chunks that pixels need; large compressed metadata is not decompressed."""

import random
import struct
import zlib

import pytest

from epithre_beam.transforms.sources.png_chunks import PngParts, png_parts

from .drawn import chunk, iccp, png

GREYS = bytes(range(64))
MOST = 4_000_000


def parts_of(*extra: bytes) -> PngParts:
    return png_parts(png(8, 8, 8, 0, GREYS, *extra), MOST)


def names(stream: bytes) -> list[bytes]:
    found, at = [], 8
    while at < len(stream):
        found.append(stream[at + 4 : at + 8])
        at += 12 + int.from_bytes(stream[at : at + 4], "big")
    return found


def test_without_removed_chunks_the_decoder_gets_the_same_bytes() -> None:
    data = png(8, 8, 8, 0, GREYS, chunk(b"tRNS", b"\0\7"))
    assert png_parts(data, MOST).stream is data


@pytest.mark.parametrize("size", [10, 1 << 20, 1 << 24])
@pytest.mark.parametrize(
    "text",
    [
        lambda size: chunk(b"tEXt", b"prompt\0" + b"x" * size),
        lambda size: chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * size)),
        lambda size: chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(b"x" * size)),
        lambda size: chunk(b"acTL", b"x" * size),
        lambda size: chunk(b"prVt", b"x" * size),
    ],
    ids=["tEXt", "zTXt", "iTXt", "acTL", "private"],
)
def test_chunks_that_change_no_pixel_are_removed(text: object, size: int) -> None:
    assert names(parts_of(text(size)).stream) == [b"IHDR", b"IDAT", b"IEND"]  # type: ignore[operator]


@pytest.mark.parametrize(("size", "is_kept"), [(100, True), ((1 << 20) - 1, True), (1 << 20, False), (1 << 25, False)])
def test_a_text_with_an_orientation_is_kept_up_to_the_limit(size: int, is_kept: bool) -> None:
    for extra in (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"x" * size)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * size)),
    ):
        parts = parts_of(extra)
        assert parts.is_oriented == is_kept
        assert (len(names(parts.stream)) == 4) == is_kept


def test_heavy_metadata_is_detected_without_decompressing_all_of_it() -> None:
    """Pillow accepts 1 MB of a text or profile, and 64 MB of all texts."""
    packed = zlib.compress(b"x" * 900_000)
    assert not parts_of().is_heavy
    assert not parts_of(chunk(b"tEXt", b"a\0" + b"x" * (1 << 21)), chunk(b"zTXt", b"a\0\0" + packed)).is_heavy
    for extra in (
        chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (1 << 21))),
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"x" * (1 << 26))),
        chunk(b"zTXt", b"a\0\0" + packed) * 80,
        iccp(b"x" * (1 << 20)),
    ):
        assert parts_of(extra).is_heavy


def test_a_profile_is_read_up_to_its_limit_and_removed() -> None:
    for size in (1, 3_000_000, MOST):
        parts = parts_of(iccp(b"p" * size))
        assert parts.profile == b"p" * size
        assert names(parts.stream) == [b"IHDR", b"IDAT", b"IEND"]
    assert parts_of(iccp(b"p" * (MOST + 1))).profile is None
    assert parts_of(chunk(b"iCCP", b"x\0\0no deflated bytes")).profile is None


def test_gamma_applies_without_a_profile_or_srgb_chunk() -> None:
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    assert parts_of(gamma).gamma == 1.0
    assert parts_of(gamma, chunk(b"sRGB", b"\0")).gamma is None
    assert parts_of(iccp(b"p"), gamma).gamma is None
    assert parts_of().gamma is None


def test_truncated_chunks_and_trailing_bytes_are_kept() -> None:
    data = png(8, 8, 8, 0, GREYS, chunk(b"tEXt", b"a\0b"))
    plain = png(8, 8, 8, 0, GREYS)
    assert png_parts(data + b"behind", MOST).stream == plain + b"behind"
    for cut in range(8, len(plain)):
        assert png_parts(plain[:cut], MOST).stream == plain[:cut]


def test_no_input_raises() -> None:
    draw = random.Random(3)
    whole = png(8, 8, 8, 0, GREYS, iccp(b"p" * 500), chunk(b"tEXt", b"a\0b"), chunk(b"gAMA", bytes(4)))
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(8, len(data))] = draw.randrange(256)
        png_parts(bytes(data[: draw.randrange(8, len(data) + 1)]), MOST)
