"""A header that exceeds the limits is refused before memory is allocated, and its colour facts are read."""

import io
import json
import re
import struct
import subprocess
import sys
import time
import zlib

import pytest
from PIL import Image

from epithre_beam.configs import PrepareConfig
from epithre_beam.index.versions.layout import Reason
from epithre_beam.transforms.sources.image_files import open_image
from epithre_beam.transforms.sources.prepare import prepare_image
from epithre_beam.transforms.sources.unpreparable import Unpreparable

from .drawn import chunk, iccp, png, rgb_profile, tiff

DEFAULTS = PrepareConfig()
GREYS = bytes(range(64))
CHILD = """
import json, resource, sys, time
from epithre_beam.configs import PrepareConfig
from epithre_beam.transforms.sources import prepare
from epithre_beam.transforms.sources.unpreparable import Unpreparable
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
try:
    said = str(prepare.prepare_image(data, PrepareConfig(send_formats=("jpeg",), max_pixels=1000)).prepared)
except Unpreparable as failure:
    said = failure.reason.value
megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps([said, time.process_time() - start, megabytes]))
"""


def costs(data: bytes) -> tuple[str, float, float]:
    """Prepare an image in a process. Return the outcome, the CPU seconds and the megabytes that it took."""
    done = subprocess.run([sys.executable, "-c", CHILD], input=data, capture_output=True, check=True)
    said, seconds, megabytes = json.loads(done.stdout)
    return said, seconds, megabytes


def claims(width: int, height: int, kind: str) -> bytes:
    """Make a file that claims a size, with its pixels compressed as small as possible, or without pixels."""
    match kind:
        case "png":
            packer = zlib.compressobj(1)
            row = bytes(min(1 + 3 * width, 1 << 20))
            left, parts = (1 + 3 * width) * height, []
            while left > 0:
                parts.append(packer.compress(row[: min(left, len(row))]))
                left -= len(row)
            header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            pixels = chunk(b"IDAT", b"".join(parts) + packer.flush())
            return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
        case "tiff":
            return tiff(width, height, [8, 8, 8], 2, b"")
        case "bmp":
            size = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
            return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + size
    raise AssertionError(kind)


@pytest.mark.parametrize(("width", "height"), [(100_000_000, 1), (1, 100_000_000), (100_001, 3), (2, 100_001)])
@pytest.mark.parametrize("kind", ["png", "tiff", "bmp"])
def test_a_side_above_the_limit_is_refused_by_the_header(kind: str, width: int, height: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    nothing = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    data = nothing if kind == "png" else claims(width, height, kind)
    with pytest.raises(Unpreparable, match=r"prepare\.max_side allows 100000 pixels, got") as caught:
        prepare_image(data, DEFAULTS)
    assert caught.value.reason is Reason.TOO_MANY_PIXELS


def test_a_thin_decompression_bomb_is_refused_cheaply() -> None:
    """Without the limit, a few hundred kB took 3 GB and 20 seconds."""
    said, seconds, megabytes = costs(claims(100_000_000, 1, "png"))
    assert said == "too_many_pixels"
    assert seconds < 2
    assert megabytes < 30


def test_the_largest_allowed_image_is_decoded_within_limits() -> None:
    said, _, megabytes = costs(claims(100_000, 300, "png"))
    assert said.startswith("downscaled")
    assert megabytes < 400


def test_large_compressed_metadata_is_not_decompressed() -> None:
    text = chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(40_000_000)))
    profile = iccp(bytes(40_000_000))
    said, _, megabytes = costs(png(8, 8, 8, 0, GREYS, *[text] * 5, profile))
    assert said == "jpeg q92;rules 2"
    assert megabytes < 40


@pytest.mark.parametrize("send", [("png", "jpeg"), ("jpeg",)], ids=["as it is", "re-encoded"])
def test_an_image_with_much_text_or_a_strange_profile_is_sent(send: tuple[str, ...]) -> None:
    """Every viewer opens these files."""
    much = b"x" * (1 << 21)
    for extra in (
        chunk(b"zTXt", b"prompt\0\0" + zlib.compress(much)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x/>" * (1 << 19))),
        iccp(bytes(1 << 21)),
        iccp(rgb_profile("p3", 2.2) + bytes(1 << 21)),
        iccp(bytes(5_000_000)),
    ):
        for settings in (PrepareConfig.model_validate({"send_formats": send, "check": check}) for check in CHECKS):
            data = png(8, 8, 8, 0, GREYS, extra)
            opened_image = prepare_image(data, settings)
            assert len(opened_image.content) < 1000  # other decoders would refuse to decompress it
            with Image.open(io.BytesIO(prepare_image(data, PrepareConfig(send_formats=("jpeg",))).content)) as image:
                assert image.size == (8, 8)


CHECKS = ("structure", "decode")


def test_a_tiff_with_uncompressed_ycbcr_is_a_dead_letter() -> None:
    """Pillow would decode it to wrong colours without an error."""
    with pytest.raises(Unpreparable, match="YCbCr") as caught:
        prepare_image(tiff(2, 2, [8, 8, 8], 6, bytes([200, 128, 128] * 4), tag530=("H", [1, 1])), DEFAULTS)
    assert caught.value.reason is Reason.UNDECODABLE


@pytest.mark.parametrize("number", [34675, 258, 262, 339, 340, 341, 281])
def test_a_tag_of_a_wrong_type_causes_no_other_error(number: int) -> None:
    for value in (("d", [float("nan")]), ("I", [0] * 50), b"", bytes(300)):
        data = tiff(8, 8, [16], 1, bytes(128), **{f"tag{number}": value})
        try:
            prepare_image(data, DEFAULTS)
        except Unpreparable as failure:
            assert failure.reason in {Reason.UNDECODABLE, Reason.TOO_MANY_PIXELS}  # noqa: PT017


def test_the_header_gives_gamma_bits_and_profile() -> None:
    deadline = time.monotonic() + 60
    profile = rgb_profile("p3", 2.2)
    file = open_image(png(8, 8, 8, 0, GREYS, iccp(profile)), DEFAULTS, deadline)
    assert (file.name, file.bits, file.profile, file.gamma, file.has_frames) == ("png", 8, profile, None, False)
    deep = tiff(8, 8, [16], 0, bytes(128), tag281=("H", [4095]), tag34675=profile)
    file = open_image(deep, DEFAULTS, deadline)
    assert (file.tag(262), file.tag(281), file.profile) == (0, 4095, profile)
    assert file.tag(60_000) is None


def test_a_png_with_a_broken_profile_or_text_is_sent_unchanged() -> None:
    for extra in (chunk(b"iCCP", b"x\0\0no deflated bytes"), chunk(b"zTXt", b"a\0\0none"), chunk(b"iTXt", b"a\0\1")):
        data = png(8, 8, 8, 0, GREYS, extra)
        assert prepare_image(data, DEFAULTS).content == data


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_broken_images_are_described_without_internals_of_the_decoder(form: str) -> None:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (9, 9), bytes(243)).save(buffer, form)
    whole = buffer.getvalue()
    plain = re.compile(
        rf"the file is cut off \({form.lower()}(, \d+ bytes?)?\)|the image cannot be decoded \({form.lower()}\)"
        r"|the \w+ is truncated: its end is missing|the file begins with .* and is not an image"
    )
    broken = [whole[:size] for size in range(1, len(whole))] + [whole[:12] + b"\xff" * 12 + whole[24:]]
    seen = set()
    for data in broken:
        try:
            prepare_image(data, PrepareConfig(send_formats=("jpeg",), max_pixels=16))
        except Unpreparable as failure:
            if failure.reason is Reason.UNDECODABLE:
                seen.add(failure.detail)
    assert seen
    assert [detail for detail in seen if not plain.fullmatch(detail)] == []


def test_a_header_of_two_bytes_is_cut_off() -> None:
    with pytest.raises(Unpreparable, match=r"^the file is cut off \(bmp, 2 bytes\)$"):
        open_image(b"BM", DEFAULTS, time.monotonic() + 9)
