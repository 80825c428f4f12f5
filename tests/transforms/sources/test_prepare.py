"""A prepared image is upright, within the limits and in an accepted format; others get a reason."""

import contextlib
import functools
import io
import json
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from epithre_beam.configs import PrepareConfig
from epithre_beam.index.versions.layout import Reason
from epithre_beam.transforms.sources.prepare import PreparedImage, prepare_image, prepare_text
from epithre_beam.transforms.sources.unpreparable import Unpreparable

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says what it finds odd, and goes on

Pixels = npt.NDArray[np.uint8]

PHOTOS = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "photos"
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
DEFAULTS = PrepareConfig()
EVERY_FORMAT_IS_SENT = PrepareConfig(send_formats=("jpeg", "png", "webp", "gif", "bmp", "tiff"))
ORIENTATION = 0x0112
TO_STORED = {  # transposes an upright image so that its EXIF orientation restores it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def smooth(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    """Make a seeded image without symmetries that JPEG changes little."""
    levels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def noise(seed: int, width: int, height: int, channels: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8))


def encoded(prepared_image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    prepared_image.save(file, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}) | options)
    return file.getvalue()


def turned(prepared_image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = prepared_image.transpose(TO_STORED[orientation]) if orientation in TO_STORED else prepared_image
    return encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def opened(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def pixels(content: bytes) -> Pixels:
    return np.asarray(opened(content).convert("RGB"))


def distance(one: Pixels, other: Pixels) -> float:
    """Return the mean difference of the levels of two images."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def refusal(data: bytes, settings: PrepareConfig = DEFAULTS) -> Unpreparable:
    with pytest.raises(Unpreparable) as caught:
        prepare_image(data, settings)
    assert caught.value.detail
    assert len(caught.value.detail) <= 200
    assert "\n" not in caught.value.detail
    return caught.value


def png(width: int, height: int, body: bytes = b"", *, extra: bytes = b"") -> bytes:
    """Make a PNG that claims a size, from pixels before compression."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + png_chunk(b"IDAT", zlib.compress(body)) + png_chunk(b"IEND", b"")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


# Upright


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_same_upright_image(kind: str, orientation: int) -> None:
    upright = smooth(orientation)
    prepared_image = prepare_image(turned(upright, orientation, kind), DEFAULTS)
    assert (prepared_image.width, prepared_image.height) == upright.size
    assert prepared_image.media_type == f"image/{kind.lower()}"
    assert distance(pixels(prepared_image.content), np.asarray(upright)) < 4
    assert ("upright" in (prepared_image.prepared or "").split(";")) == (orientation > 1)
    assert opened(prepared_image.content).getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_downscaling_applies_to_the_upright_sides(orientation: int) -> None:
    upright = smooth(3, 400, 200)
    prepared_image = prepare_image(turned(upright, orientation, "JPEG"), PrepareConfig(max_pixels=20_000))
    assert (prepared_image.width, prepared_image.height) == (400, 200)
    assert opened(prepared_image.content).size == (200, 100)
    assert (
        distance(pixels(prepared_image.content), np.asarray(upright.resize((200, 100), Image.Resampling.LANCZOS))) < 6
    )


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind the pixels"])
def test_a_png_may_have_its_orientation_before_or_after_the_pixels(behind: bool) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\x00\x00"))
    data = encoded(smooth(1).transpose(TO_STORED[6]), "PNG")
    at = data.index(b"IEND" if behind else b"IDAT") - 4
    prepared_image = prepare_image(data[:at] + chunk + data[at:], DEFAULTS)
    assert distance(pixels(prepared_image.content), np.asarray(smooth(1))) == 0
    assert (prepared_image.width, prepared_image.height) == (96, 64)


@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
def test_real_photographs_in_all_orientations_give_one_image(shape: str) -> None:
    if not PHOTOS.is_dir():
        pytest.skip(f"Landscape_1.jpg … of github.com/recurser/exif-orientation-examples are not in {PHOTOS}")
    settings = PrepareConfig(max_pixels=120_000)
    images = [prepare_image((PHOTOS / f"{shape}_{i}.jpg").read_bytes(), settings) for i in range(1, 9)]
    assert len({(p.width, p.height) for p in images}) == 1
    assert (images[0].width > images[0].height) == (shape == "Landscape")
    upright = pixels(images[0].content)
    for prepared_image in images:
        # Each photograph shows the number of its orientation: nearly all pixels are equal.
        assert distance(pixels(prepared_image.content), upright) < 12
        assert np.corrcoef(pixels(prepared_image.content).ravel(), upright.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00" + bytes(40),
        b"Exif\x00\x00MM\x00*\xff\xff\xff\xff",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\xff\xff\xff\xff\x06\x00\x00\x00",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x02\x00\x01\x00\x00\x00\x06\x00\x00\x00\x00\x00",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x03\x00\x01\x00\x00\x00\x63\x00\x00\x00\x00\x00",
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + b"\x12\x01\x04\x00" * 300,
    ],
    ids=["zeros", "far offset", "huge count", "text", "orientation 99", "65,535 entries"],
)
def test_hostile_exif_is_ignored(exif: bytes) -> None:
    data = encoded(smooth(0), "JPEG", exif=exif)
    assert prepare_image(data, DEFAULTS).content == data
    smaller = prepare_image(data, DEFAULTS, smaller=True)
    assert (smaller.width, smaller.height) == (96, 64)


@pytest.mark.parametrize("seed", range(4))
def test_random_exif_never_crashes(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(50):
        tail = draw.randbytes(draw.randrange(200))
        exif = b"Exif\x00\x00" + draw.choice([b"II*\x00\x08\x00\x00\x00", b"MM\x00*\x00\x00\x00\x08"]) + tail
        for smaller in (False, True):
            prepared_image = prepare_image(encoded(smooth(0, 24, 16), "JPEG", exif=exif), DEFAULTS, smaller=smaller)
            assert sorted((prepared_image.width, prepared_image.height)) == [16, 24]


# Unchanged or re-encoded


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_that_needs_no_change_is_sent_byte_for_byte(kind: str) -> None:
    data = encoded(smooth(0), kind)
    for settings in (EVERY_FORMAT_IS_SENT, EVERY_FORMAT_IS_SENT.model_copy(update={"check": "decode"})):
        prepared_image = prepare_image(data, settings)
        assert prepared_image.content == data
        assert prepared_image.prepared is None
        assert (prepared_image.media_type, prepared_image.width, prepared_image.height) == (
            f"image/{kind.lower()}",
            96,
            64,
        )


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("wanted", ["jpeg", "png"])
def test_a_format_outside_send_formats_is_re_encoded(kind: str, wanted: str) -> None:
    settings = PrepareConfig(send_formats=("jpeg",) if wanted == "jpeg" else ("png",))
    prepared_image = prepare_image(encoded(smooth(0), kind), settings)
    assert opened(prepared_image.content).format == wanted.upper()
    assert prepared_image.media_type == f"image/{kind.lower()}"  # the media type of the original
    assert (prepared_image.prepared is None) == (kind.lower() == wanted)
    assert distance(pixels(prepared_image.content), np.asarray(smooth(0))) < 8


@pytest.mark.parametrize("seed", range(12))
def test_the_result_is_within_any_limits_and_looks_alike(seed: int) -> None:
    draw = random.Random(seed)
    width, height = draw.randrange(30, 500), draw.randrange(30, 500)
    settings = PrepareConfig(max_pixels=draw.randrange(500, 100_000), max_image_bytes=draw.randrange(3_000, 60_000))
    original = smooth(seed, width, height) if seed % 2 else noise(seed, width, height)
    kind = draw.choice(FORMATS)
    prepared_image = prepare_image(encoded(original, kind), settings)
    small = opened(prepared_image.content)
    assert len(prepared_image.content) <= settings.max_image_bytes
    assert small.size[0] * small.size[1] <= settings.max_pixels
    assert (prepared_image.width, prepared_image.height) == original.size
    assert abs(small.size[0] / small.size[1] / (width / height) - 1) < 0.2
    if small.size != original.size:
        assert f"downscaled {small.size[0]}x{small.size[1]}" in (prepared_image.prepared or "").split(";")
    again = prepare_image(prepared_image.content, settings)
    assert again.content == prepared_image.content  # a prepared image needs no change


def test_smaller_quarters_the_pixels_of_an_image() -> None:
    prepared_image = prepare_image(encoded(smooth(0), "PNG"), DEFAULTS, smaller=True)
    assert opened(prepared_image.content).size == (48, 32)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1000, 1), (1, 3000), (17, 2000)])
@pytest.mark.parametrize("kind", FORMATS)
def test_thin_images_keep_at_least_one_pixel(kind: str, size: tuple[int, int]) -> None:
    data = encoded(noise(0, *size), kind)
    assert min(opened(prepare_image(data, DEFAULTS, smaller=True).content).size) >= 1
    assert min(opened(prepare_image(data, PrepareConfig(max_pixels=50)).content).size) >= 1


def test_an_image_too_long_for_a_jpeg_is_scaled_down() -> None:
    prepared_image = prepare_image(encoded(Image.new("RGB", (70_000, 10), "red"), "BMP"), DEFAULTS)
    assert prepared_image.width == 70_000
    assert opened(prepared_image.content).size[0] <= 65_500


def test_a_too_small_byte_limit_is_reported() -> None:
    failure = refusal(encoded(noise(0, 100, 100), "PNG"), PrepareConfig(max_image_bytes=100))
    assert failure.reason is Reason.FILE_TOO_LARGE
    assert "prepare.max_image_bytes" in failure.detail


# Modes, alpha, several images in a file


def half_transparent() -> Image.Image:
    """Make opaque noise on the left and transparent, nearly black noise on the right."""
    levels = np.random.default_rng(0).integers(0, 256, (80, 80, 4), dtype=np.uint8)
    levels[:, :40, 3] = 255
    levels[:, 40:, 3] = 0
    levels[:, 40:, :3] //= 8
    return Image.fromarray(levels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_kept_if_png_is_sent(mode: str) -> None:
    image = half_transparent().convert(mode) if mode != "P" else half_transparent().quantize(64)
    prepared_image = prepare_image(encoded(image, "TIFF" if mode != "P" else "PNG"), DEFAULTS, smaller=True)
    alpha = np.asarray(opened(prepared_image.content).convert("RGBA"))[:, :, 3]
    assert alpha.shape == (40, 40)
    assert alpha[:, :16].mean() > 240
    assert alpha[:, 24:].mean() < 5


@pytest.mark.parametrize(
    "settings",
    [PrepareConfig(send_formats=("jpeg",)), PrepareConfig(max_image_bytes=12_000)],
    ids=["png is not sent", "png is too large"],
)
def test_without_alpha_the_background_is_white(settings: PrepareConfig) -> None:
    prepared_image = prepare_image(encoded(half_transparent(), "PNG"), settings)
    image = opened(prepared_image.content)
    assert image.format == "JPEG"
    assert np.asarray(image)[:, image.size[0] // 2 + 4 :].min() > 200


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I")])
def test_sixteen_bit_grey_becomes_eight_bit_and_keeps_its_steps(kind: str, mode: str) -> None:
    ramp = np.linspace(0, 65_535, 64 * 64).astype(np.uint16).reshape(64, 64)
    image = Image.fromarray(ramp if mode == "I;16" else ramp.astype(np.int32))
    prepared_image = prepare_image(encoded(image, kind), PrepareConfig(send_formats=("jpeg",)))
    assert distance(pixels(prepared_image.content)[:, :, 0], (ramp >> 8).astype(np.uint8)) < 2


STORED_MODES = {
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("1", "L", "P"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"),
}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in STORED_MODES.items() for mode in modes])
def test_every_mode_of_a_format_can_become_a_jpeg(kind: str, mode: str) -> None:
    data = encoded(as_mode(smooth(0), mode), kind)
    prepared_image = prepare_image(data, PrepareConfig(send_formats=("jpeg",), max_pixels=2000))
    result = opened(prepared_image.content)
    assert (result.format, result.mode) == ("JPEG", "RGB")
    if mode != "LAB":
        grey = np.asarray(smooth(0).convert("L").resize(result.size))
        assert np.corrcoef(grey.ravel(), np.asarray(result.convert("L")).ravel())[0, 1] > (0.6 if mode == "1" else 0.9)


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    match mode:
        case "LAB":
            return Image.frombytes("LAB", image.size, image.tobytes())
        case "I;16" | "I":
            return Image.fromarray(
                np.asarray(image.convert("L")).astype(np.uint16 if mode == "I;16" else np.int32) * 257
            )
        case _:
            return image.convert("L").convert(mode) if mode == "F" else image.convert(mode)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    frames = [smooth(seed) for seed in range(4)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **({} if kind == "TIFF" else {"loop": 0}))
    prepared_image = prepare_image(data, PrepareConfig(send_formats=("jpeg",)))
    assert distance(pixels(prepared_image.content), np.asarray(frames[0])) < 10
    assert prepare_image(data, EVERY_FORMAT_IS_SENT).content == data


def test_a_jpeg_followed_by_a_second_image_is_a_jpeg() -> None:
    data = encoded(smooth(0), "MPO", save_all=True, append_images=[smooth(1)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    prepared_image = prepare_image(data, DEFAULTS)
    assert (prepared_image.media_type, prepared_image.content) == ("image/jpeg", data)
    smaller = prepare_image(data, DEFAULTS, smaller=True)
    assert distance(pixels(smaller.content), np.asarray(smooth(0).resize((48, 32)))) < 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_after_a_complete_image_do_not_matter(kind: str) -> None:
    data = encoded(smooth(0), kind) + random.Random(0).randbytes(100_000).replace(b"\xff\xd9", b"")
    assert prepare_image(data, DEFAULTS).content == data


# Hostile and broken


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (b"", Reason.EMPTY_FILE, "empty"),
        (b"\x00\x01", Reason.NOT_AN_IMAGE, "the file begins with 00 01 and is not an image"),
        (b"hello, I am a text and called photo.jpg", Reason.NOT_AN_IMAGE, "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', Reason.NOT_AN_IMAGE, "not an image"),
        (b"%PDF-1.7\n", Reason.NOT_AN_IMAGE, "the file begins with “%PDF-1.7” and is not an image"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", Reason.FORMAT_NOT_ALLOWED, "heic"),
        (b"\x00\x00\x00\x1cftypavif" + bytes(40), Reason.FORMAT_NOT_ALLOWED, "avif"),
        (b"\xff\xd8\xff", Reason.UNDECODABLE, "jpeg"),
        (b"\xff\xd8\xff\xe0" + bytes(300), Reason.UNDECODABLE, "jpeg"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, Reason.UNDECODABLE, "png"),
        (b"GIF89a" + bytes(40), Reason.UNDECODABLE, "gif"),
        (b"BM" + bytes(100), Reason.UNDECODABLE, "bmp"),
        (b"II*\x00" + b"\xff" * 100, Reason.UNDECODABLE, "tiff"),
        (b"RIFF\x10\x00\x00\x00WEBPVP8 " + bytes(30), Reason.UNDECODABLE, "webp"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else None,
)
def test_invalid_images_get_the_matching_reason(data: bytes, reason: Reason, words: str) -> None:
    failure = refusal(data)
    assert failure.reason is reason
    assert words in failure.detail


@pytest.mark.parametrize("kind", FORMATS)
def test_a_format_outside_the_allow_list_is_refused_by_content(kind: str) -> None:
    others = tuple(name.lower() for name in FORMATS if name != kind)
    failure = refusal(encoded(smooth(0), kind), PrepareConfig.model_validate({"formats": others}))
    assert failure.reason is Reason.FORMAT_NOT_ALLOWED
    assert kind.lower() in failure.detail


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.97])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_image_that_is_decoded_is_undecodable(kind: str, share: float) -> None:
    data = encoded(noise(0, 90, 60), kind)
    failure = refusal(data[: int(len(data) * share)], PrepareConfig(check="decode"))
    assert failure.reason is Reason.UNDECODABLE


@pytest.mark.parametrize("thumbnail", [False, True], ids=["plain", "with a thumbnail"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_truncated_image_is_detected_without_decoding(kind: str, thumbnail: bool) -> None:
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00" + encoded(smooth(9, 16, 16), "JPEG")
    data = encoded(noise(0, 40, 30), kind, **({"exif": exif} if thumbnail else {}))
    for cut in (12, 100, 500):
        failure = refusal(data[:-cut])
        assert failure.reason is Reason.UNDECODABLE
        assert "its end is missing" in failure.detail or kind == "WEBP"  # its decoder checks the length first


def test_decoding_finds_damage_that_the_structure_hides() -> None:
    data = bytearray(encoded(noise(0, 60, 60), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert prepare_image(bytes(data), DEFAULTS).prepared is None
    assert refusal(bytes(data), PrepareConfig(check="decode")).reason is Reason.UNDECODABLE


@functools.cache
def bombs() -> Mapping[str, bytes]:
    """Yield small files that claim, or decompress to, far more than allowed."""
    gif = bytearray(encoded(smooth(0, 8, 8), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    bmp = bytearray(encoded(smooth(0, 8, 8), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    webp = bytearray(encoded(smooth(0, 8, 8), "WEBP", save_all=True, append_images=[smooth(1, 8, 8)]))
    webp[24:30] = (16_382).to_bytes(3, "little") * 2  # the canvas of the small frames
    jpeg = bytearray(encoded(smooth(0, 8, 8), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65_500, 65_500)
    tiff = encoded(smooth(0, 8, 8), "TIFF")
    for tag in (256, 257):
        tiff = tiff.replace(struct.pack("<HHIHH", tag, 3, 1, 8, 0), struct.pack("<HHII", tag, 4, 1, 60_000))
        tiff = tiff.replace(struct.pack("<HHII", tag, 4, 1, 8), struct.pack("<HHII", tag, 4, 1, 60_000))
    packed = zlib.compress(bytes(200_000_000), 9)
    return {
        "png": png(60_000, 60_000),
        "png that unpacks": png(60_000, 60_000, bytes(60_001 * 200)),
        "png with a packed profile": png(8, 8, bytes(200), extra=png_chunk(b"iCCP", b"p\x00\x00" + packed)),
        "png with a packed text": png(8, 8, bytes(200), extra=png_chunk(b"zTXt", b"t\x00\x00" + packed)),
        "png with more pixels than it says": png(8, 8, bytes(200_000_000)),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "webp": bytes(webp),
        "jpeg": bytes(jpeg),
        "tiff": tiff,
    }


_CHILD = """
import json, resource, sys, time
from epithre_beam.configs import PrepareConfig
from epithre_beam.transforms.sources.prepare import prepare_image
from epithre_beam.transforms.sources.unpreparable import Unpreparable
from PIL import Image
Image.init()
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
try:
    reason = str(prepare_image(data, PrepareConfig(check="decode")).prepared)
except Unpreparable as failure:
    reason = failure.reason.value
seconds = time.perf_counter() - start
print(json.dumps([reason, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process's peak memory is read with the resource module")
@pytest.mark.parametrize("name", list(bombs()))
@pytest.mark.alone
def test_a_bomb_is_refused_quickly_and_in_little_memory(name: str) -> None:
    data = bombs()[name]
    assert len(data) < 400_000
    answer = subprocess.run([sys.executable, "-c", _CHILD], input=data, capture_output=True, check=True, timeout=60)
    reason, seconds, megabytes = json.loads(answer.stdout)
    assert megabytes < 60
    assert seconds < 2
    if " " not in name or "unpacks" in name:
        assert reason == "too_many_pixels"


def test_the_limit_on_pixels_is_the_configured_one() -> None:
    """Pillow's own limit for the whole process, 179 million, does not apply."""
    data = encoded(Image.new("1", (14_000, 13_500)), "PNG")  # 189 million
    assert prepare_image(data, PrepareConfig(max_decode_pixels=200_000_000)).width == 14_000
    small = encoded(smooth(0, 30, 20), "PNG")
    assert prepare_image(small, PrepareConfig(max_decode_pixels=600)).content == small
    assert refusal(small, PrepareConfig(max_decode_pixels=599)).reason is Reason.TOO_MANY_PIXELS


def test_an_image_that_takes_too_long_is_a_decode_timeout() -> None:
    settings = PrepareConfig(decode_timeout_s=0.02, max_pixels=1000)
    data = encoded(noise(0, 3000, 2000), "PNG", compress_level=1)
    start = time.process_time()
    assert refusal(data, settings).reason is Reason.DECODE_TIMEOUT
    assert time.process_time() - start < 1


def test_a_canvas_of_one_long_line_is_decoded_in_linear_time() -> None:
    """Three lines of ten million pixels, of which the file draws eight: Pillow by itself copies them repeatedly."""
    data = bytearray(encoded(smooth(0, 8, 2), "WEBP", save_all=True, append_images=[smooth(1, 8, 2)]))
    data[24:30] = (10_000_000 - 1).to_bytes(3, "little") + (3 - 1).to_bytes(3, "little")
    start = time.process_time()
    settings = PrepareConfig(check="decode", max_pixels=50_000_000, max_side=10_000_000)
    assert prepare_image(bytes(data), settings).width == 10_000_000
    assert time.process_time() - start < 2


def test_a_jpeg_of_a_thousand_scans_times_out_in_the_middle() -> None:
    """Each scan covers all pixels in 100 bytes, so a limit on bytes would not help."""
    data = encoded(Image.new("RGB", (3000, 3000)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    start = time.process_time()
    failure = refusal(data[:-2] + scan * 1000 + b"\xff\xd9", PrepareConfig(decode_timeout_s=0.2, send_formats=("png",)))
    assert failure.reason is Reason.DECODE_TIMEOUT
    assert time.process_time() - start < 2


def small_files() -> Mapping[str, bytes]:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    rgb, palette = smooth(0, 24, 16), smooth(1, 24, 16).quantize(16)
    frames = {"save_all": True, "append_images": [smooth(2, 24, 16)]}
    return {
        "jpeg": encoded(rgb, "JPEG", exif=exif),
        "progressive jpeg": encoded(rgb, "JPEG", progressive=True),
        "mpo": encoded(rgb, "MPO", **frames),
        "png": encoded(rgb, "PNG", exif=exif),
        "palette png": encoded(palette, "PNG", transparency=3),
        "apng": encoded(rgb, "PNG", **frames),
        "webp": encoded(rgb, "WEBP", exif=exif),
        "animated webp": encoded(rgb, "WEBP", **frames),
        "gif": encoded(palette, "GIF", transparency=2),
        "animated gif": encoded(palette, "GIF", **frames),
        "bmp": encoded(rgb, "BMP"),
        "palette bmp": encoded(palette, "BMP"),
        "tiff": encoded(rgb, "TIFF", exif=exif),
        "lzw tiff": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg tiff": encoded(rgb, "TIFF", compression="jpeg"),
        "fax tiff": encoded(rgb.convert("1"), "TIFF", compression="group4"),
    }


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Change one to eight bytes, mostly near the start; sometimes cut the end or duplicate a piece."""
    damage = bytearray(data)
    for _ in range(draw.randrange(1, 9)):
        damage[draw.randrange(draw.choice([60, 200, len(damage)])) % len(damage)] = draw.choice(
            [0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)]
        )
    match draw.randrange(6):
        case 0:
            del damage[draw.randrange(len(damage)) :]
        case 1:
            at = draw.randrange(len(damage))
            damage[at:at] = damage[at : at + draw.randrange(64)]
    return bytes(damage)


@pytest.mark.parametrize("name", list(small_files()))
def test_damaged_files_are_prepared_or_refused(name: str) -> None:
    draw = random.Random(name)
    data = small_files()[name]
    # A low limit on pixels keeps thousands of trials quick; the bombs above test the default.
    choices = [
        PrepareConfig(max_decode_pixels=1_000_000),
        PrepareConfig(max_decode_pixels=1_000_000, check="decode"),
        PrepareConfig(max_decode_pixels=1_000_000, send_formats=("jpeg",), max_pixels=200),
        PrepareConfig(max_decode_pixels=1_000_000, send_formats=("png",), max_image_bytes=700),
    ]
    for _ in range(400):
        damage = damaged(data, draw)
        settings, smaller = draw.choice(choices), draw.random() < 0.2
        start = time.process_time()
        with contextlib.suppress(Unpreparable):
            assert_sound(prepare_image(damage, settings, smaller=smaller), settings)
        assert time.process_time() - start < 5


def assert_sound(prepared_image: PreparedImage, settings: PrepareConfig) -> None:
    assert prepared_image.width >= 1
    assert prepared_image.height >= 1
    if prepared_image.prepared is not None:
        assert len(prepared_image.content) <= settings.max_image_bytes
        image = ImageOps.exif_transpose(opened(prepared_image.content))
        assert image.size[0] * image.size[1] <= settings.max_pixels


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data: bytes) -> None:
    refusal(data)


# Texts


@given(st.text(min_size=1).filter(lambda text: text.strip() and not text.startswith("\ufeff")))
def test_a_text_is_equal_from_bytes_bom_and_str(text: str) -> None:
    assert prepare_text(text, DEFAULTS) == text
    assert prepare_text(text.encode(), DEFAULTS) == text
    assert prepare_text(text.encode("utf-8-sig"), DEFAULTS) == text
    assert prepare_text("\ufeff" + text, DEFAULTS) == text


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"caf\xe9", Reason.NOT_UTF8),
        ("caf\u00e9".encode("utf-16"), Reason.NOT_UTF8),
        (b"abc\xed\xa0\x80", Reason.NOT_UTF8),
        ("half a pair \ud83d", Reason.NOT_UTF8),
        ("\udc80", Reason.NOT_UTF8),
        ("", Reason.EMPTY_TEXT),
        (b"", Reason.EMPTY_TEXT),
        (b"\xef\xbb\xbf", Reason.EMPTY_TEXT),
        (" \t\r\n\u3000\u00a0", Reason.EMPTY_TEXT),
        ("x" * 32_001, Reason.TEXT_TOO_LONG),
        ("貓" * 32_001, Reason.TEXT_TOO_LONG),
    ],
    ids=str,
)
def test_invalid_texts_get_the_matching_reason(data: str | bytes, reason: Reason) -> None:
    with pytest.raises(Unpreparable) as caught:
        prepare_text(data, DEFAULTS)
    assert caught.value.reason is reason
    assert len(caught.value.detail) < 120


def test_the_text_limit_counts_characters_and_is_inclusive() -> None:
    assert prepare_text("貓" * 32_000, DEFAULTS) == "貓" * 32_000
    assert prepare_text(" padded ", PrepareConfig(max_text_chars=8)) == " padded "


@pytest.mark.parametrize("share", [1, 2, 3, 4, 7, 8, 16])
def test_a_jpeg_decoded_at_a_fraction_records_the_downscaling(share: int) -> None:
    data = encoded(smooth(3, 320, 160), "JPEG")
    prepared_image = prepare_image(data, PrepareConfig(max_pixels=320 * 160 // share**2))
    assert (prepared_image.width, prepared_image.height) == (320, 160)
    width, height = opened(prepared_image.content).size
    assert (prepared_image.prepared or "").startswith(f"downscaled {width}x{height};") == (share > 1)
