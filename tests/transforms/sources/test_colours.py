"""Sent and displayed images have the right colours, for every mode, depth and profile."""

import io
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from epithre_beam.configs import PrepareConfig
from epithre_beam.transforms.sources.colours import STEPS, eight_bits, expected_steps, to_srgb
from epithre_beam.transforms.sources.image_files import load, open_image
from epithre_beam.transforms.sources.prepare import draw_image, prepare_image
from epithre_beam.transforms.viewing.small_images import shrink

from .drawn import (
    PRIMARIES,
    Levels,
    chunk,
    encode_srgb,
    grey_profile,
    iccp,
    ink_profile,
    png,
    rgb_profile,
    seen_lab,
    seen_through,
    tiff,
)

SIDE = 16
RNG = np.random.default_rng(15)
COLOURS: Levels = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
GREYS: Levels = np.arange(256, dtype=np.uint8).reshape(SIDE, SIDE)
DEEP = (np.arange(256, dtype=np.uint16) * 257).reshape(SIDE, SIDE)
FLOAT = {"tag339": ("H", [3])}
SIGNED = {"tag339": ("H", [2])}
SENT_AS_PNG = PrepareConfig(send_formats=("png",), as_is="plain")
INKS = [(100, 0, 0), *((70 + 5 * (i % 4), 3 * (i % 5) - 6, 4 * (i % 3) - 4) for i in range(1, 15)), (0, 0, 0)]
"""Paper is white and all inks together are black, so that a perceptual conversion changes neither."""

Case = tuple[bytes, npt.NDArray[np.generic], tuple[str, ...]]


def saved(levels: Image.Image | Levels, kind: str, **options: object) -> bytes:
    image = levels if isinstance(levels, Image.Image) else Image.fromarray(levels)
    file = io.BytesIO()
    exact = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    image.save(file, kind, **exact.get(kind, {}) | options)
    return file.getvalue()


def over_white(levels: npt.NDArray[np.generic], alpha: npt.NDArray[np.generic]) -> Levels:
    share = alpha[..., None] / 255
    return (levels * share + 255 * (1 - share) + 0.5).astype(np.uint8)


def grey_tiff(levels: npt.NDArray[np.generic], photometric: int = 1, **tags: object) -> bytes:
    is_big = levels.dtype.byteorder == ">"
    bits = [levels.dtype.itemsize * 8]
    return tiff(SIDE, SIDE, bits, photometric, levels.tobytes(), big=is_big, **tags)


def twelve_bits(levels: npt.NDArray[np.uint16]) -> bytes:
    pairs = levels.reshape(-1, 2).astype(int)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())


def depths() -> Iterator[tuple[str, Case]]:
    eight, scaled = (), ("levels",)
    yield "png 1 bit", (png(16, 1, 1, 0, b"\x0f\xf0"), np.array([[0] * 4 + [255] * 8 + [0] * 4], np.uint8), eight)
    yield "png 2 bits", (png(4, 1, 2, 0, b"\x1b"), np.array([[0, 85, 170, 255]], np.uint8), eight)
    yield "png 4 bits", (png(4, 1, 4, 0, b"\x05\xaf"), np.array([[0, 85, 170, 255]], np.uint8), eight)
    yield "png 16 bits", (png(SIDE, SIDE, 16, 0, DEEP.astype(">u2").tobytes()), GREYS, eight)
    wide = np.repeat(DEEP[..., None], 3, axis=-1)
    yield "png 16 bits of rgb", (png(SIDE, SIDE, 16, 2, wide.astype(">u2").tobytes()), GREYS, eight)
    for order in "<>":
        yield f"tiff 16 bits {order}", (grey_tiff(DEEP.astype(f"{order}u2")), GREYS, eight)
        yield f"tiff float {order}", (grey_tiff((GREYS / 255).astype(f"{order}f4"), **FLOAT), GREYS, scaled)
        signed = (DEEP.astype(int) - 32_768).astype(f"{order}i2")
        yield f"tiff 16 bits signed {order}", (grey_tiff(signed, **SIGNED), GREYS, scaled)
    yield "tiff 16 bits white is 0", (grey_tiff(DEEP, 0), 255 - GREYS, scaled)
    yield "tiff 8 bits white is 0", (grey_tiff(255 - GREYS, 0), GREYS, eight)
    yield "tiff 8 bits signed", (grey_tiff((GREYS.astype(int) - 128).astype("i1"), **SIGNED), GREYS, scaled)
    yield "tiff 12 bits", (tiff(SIDE, SIDE, [12], 1, twelve_bits(DEEP >> 4)), GREYS, scaled)
    yield "tiff 12 of 16 bits", (grey_tiff(DEEP >> 4, tag281=("H", [4095])), GREYS, scaled)
    yield "tiff 12 of 16 bits, which is not so", (grey_tiff(DEEP, tag281=("H", [4095])), GREYS, eight)
    yield "tiff 32 bits", (grey_tiff(DEEP.astype("<u4") * 65_537), GREYS, scaled)
    yield "tiff 32 bits, 16 used", (grey_tiff(DEEP.astype("<u4")), GREYS, eight)
    yield "tiff 32 bits, 8 used", (grey_tiff(GREYS.astype("<u4")), GREYS, eight)
    negative = ((DEEP.astype(int) - 32_768) * 60_000).astype("<i4")
    yield "tiff 32 bits signed", (grey_tiff(negative, **SIGNED), GREYS, scaled)
    yield "tiff float white is 0", (grey_tiff((GREYS / 255).astype("<f4"), 0, **FLOAT), 255 - GREYS, scaled)
    for most in (255, 65_535, 1e6, 1e30):
        levels = (GREYS / 255 * most).astype("<f4")
        yield f"tiff float to {most:g}", (grey_tiff(levels, **FLOAT), GREYS, scaled if most > 255 else eight)
    dark = (GREYS / 1000).astype("<f4")
    yield "tiff float that is dark", (grey_tiff(dark, **FLOAT), (GREYS / 1000 * 255 + 0.5).astype(np.uint8), scaled)
    stated = {"tag340": ("f", [0.0]), "tag341": ("f", [1000.0]), **FLOAT}
    yield "tiff float with its range", (grey_tiff(GREYS.astype("<f4"), **stated), (GREYS * 0.255).round(), scaled)
    holes = (GREYS / 255).astype("<f4")
    holes[0, :3] = np.nan, np.inf, -np.inf
    seen = GREYS.copy()
    seen[0, :3] = 0, 255, 0
    yield "tiff float with holes", (grey_tiff(holes, **FLOAT), seen, scaled)
    for mode in ("1", "L", "P"):
        image = Image.fromarray(GREYS).convert(mode)
        for kind in ("GIF", "BMP", "TIFF", "PNG"):
            yield f"{kind} {mode}", (saved(image, kind), np.asarray(image.convert("RGB")), eight)


def transparent() -> Iterator[tuple[str, Case]]:
    alpha = np.tile(np.linspace(0, 255, SIDE).astype(np.uint8), (SIDE, 1))
    rgba, la = np.dstack([COLOURS, alpha]), np.dstack([GREYS, alpha])
    for kind in ("PNG", "WEBP", "TIFF"):
        yield f"{kind} rgba", (saved(rgba, kind), over_white(COLOURS, alpha), ())
    for kind in ("PNG", "TIFF"):
        yield f"{kind} la", (saved(la, kind), over_white(np.dstack([GREYS] * 3), alpha), ())
    deep = np.dstack([np.dstack([COLOURS] * 1), alpha]).astype(">u2") * 257
    yield "png 16 bits of rgba", (png(SIDE, SIDE, 16, 6, deep.tobytes()), over_white(COLOURS, alpha), ())
    keyed = {2: b"\x1b", 4: b"\x05\xaf", 8: bytes([0, 85, 170, 255]), 16: bytes([0, 0, 85, 85, 170, 170, 255, 255])}
    for bits, row in keyed.items():
        key = chunk(b"tRNS", struct.pack(">H", 85 * ((1 << bits) - 1) // 255))
        steps = () if bits == 8 else ("alpha",)
        yield f"png {bits} bits with a key", (png(4, 1, bits, 0, row, key), np.array([[0, 255, 170, 255]]), steps)
    rows = np.array([[[257, 514, 771], [257, 514, 9000]]], ">u2")
    key = chunk(b"tRNS", struct.pack(">HHH", 257, 514, 771))
    seen = np.array([[[255, 255, 255], [1, 2, 35]]])
    yield "png 16 bits of rgb with a key", (png(2, 1, 16, 2, rows.tobytes(), key), seen, ("alpha",))
    palette = chunk(b"PLTE", COLOURS[0].tobytes())
    entries = np.arange(SIDE, dtype=np.uint8)
    seen = over_white(COLOURS[:1], alpha[:1])
    yield "png palette", (png(SIDE, 1, 8, 3, entries.tobytes(), palette, chunk(b"tRNS", alpha[0].tobytes())), seen, ())
    premultiplied = (rgba * (np.dstack([alpha] * 3 + [np.full_like(alpha, 255)]) / 255)).astype(np.uint8)
    data = tiff(SIDE, SIDE, [8] * 4, 2, premultiplied.tobytes(), tag338=("H", [1]))
    yield "tiff premultiplied", (data, over_white(COLOURS, alpha), ())


def profiles() -> Iterator[tuple[str, Case]]:
    for name in PRIMARIES:
        for gamma in (1.0, 1.8, 2.2):
            profile, seen = rgb_profile(name, gamma), seen_through(COLOURS, name, gamma)
            yield f"tiff {name} {gamma}", (saved(COLOURS, "TIFF", icc_profile=profile), seen, ("srgb",))
    profile, seen = rgb_profile("p3", 2.2), seen_through(COLOURS, "p3", 2.2)
    for kind in ("PNG", "WEBP"):
        yield f"{kind} p3", (saved(COLOURS, kind, icc_profile=profile), seen, ("srgb",))
    flat = np.full((SIDE, SIDE, 3), (60, 200, 60), np.uint8)  # JPEG keeps a uniform colour
    yield "jpeg p3", (saved(flat, "JPEG", icc_profile=profile), seen_through(flat, "p3", 2.2), ("srgb",))
    alpha = np.full((SIDE, SIDE), 128, np.uint8)
    rgba = np.dstack([COLOURS, alpha])
    yield "png rgba p3", (saved(rgba, "PNG", icc_profile=profile), over_white(seen, alpha), ("srgb",))
    palette = Image.fromarray(GREYS).convert("P")
    palette.putpalette(COLOURS.reshape(-1, 3)[RNG.permutation(256)].tobytes())
    rgb = np.asarray(palette.convert("RGB"))
    yield "png palette p3", (saved(palette, "PNG", icc_profile=profile), seen_through(rgb, "p3", 2.2), ("srgb",))
    deep = COLOURS.astype(">u2") * 257
    yield "png 16 bits p3", (png(SIDE, SIDE, 16, 2, deep.tobytes(), iccp(profile)), seen, ("srgb",))
    for gamma in (1.0, 1.8, 3.0):
        seen = encode_srgb((GREYS / 255) ** gamma)
        options = {"icc_profile": grey_profile(gamma)}
        for kind in ("TIFF", "PNG"):
            yield f"{kind} grey {gamma}", (saved(GREYS, kind, **options), seen, ("srgb",))
        deep = png(SIDE, SIDE, 16, 0, DEEP.astype(">u2").tobytes(), iccp(options["icc_profile"]))
        yield f"png 16 bits grey {gamma}", (deep, seen, ("srgb",))
    grey_by_colours = saved(GREYS, "TIFF", icc_profile=rgb_profile("p3", 1.8))
    yield "tiff grey with a profile of colours", (grey_by_colours, encode_srgb((GREYS / 255) ** 1.8), ("srgb",))
    others = {
        "of grey": grey_profile(1.0),
        "of inks": ink_profile(INKS),
        "of nothing": b"no profile",
        "cut off": profile[:200],
        "none": b"",
    }
    for name, other in others.items():
        yield f"tiff with a profile {name}", (saved(COLOURS, "TIFF", icc_profile=other), COLOURS, ())
    for exponent in (100_000, 55_556):
        data = png(SIDE, SIDE, 8, 0, GREYS.tobytes(), chunk(b"gAMA", struct.pack(">I", exponent)))
        yield f"png gamma {exponent}", (data, 255 * (GREYS / 255) ** (100_000 / exponent / 2.2), ("srgb",))
    for name, extra in {
        "of sRGB": (chunk(b"gAMA", struct.pack(">I", 45_455)),),
        "beside sRGB": (chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000))),
        "of nothing": (chunk(b"gAMA", bytes(4)),),
    }.items():
        yield f"png gamma {name}", (png(SIDE, SIDE, 8, 0, GREYS.tobytes(), *extra), GREYS, ())


def inks() -> Iterator[tuple[str, Case]]:
    full = np.array([[[255 * (i >> bit & 1) for bit in (3, 2, 1, 0)] for i in range(16)]], np.uint8)
    seen = np.array([[seen_lab(*colour) for colour in INKS]])
    yield "tiff cmyk", (tiff(16, 1, [8] * 4, 5, full.tobytes(), tag34675=ink_profile(INKS)), seen, ("srgb",))
    deep = tiff(16, 1, [16] * 4, 5, (full.astype("<u2") * 257).tobytes(), tag34675=ink_profile(INKS))
    yield "tiff cmyk 16 bits", (deep, seen, ("srgb",))
    for number in (1, 6, 9):
        flat = Image.fromarray(np.full((SIDE, SIDE, 4), full[0, number], np.uint8), "CMYK")
        data = saved(flat, "JPEG", icc_profile=ink_profile(INKS))
        yield f"jpeg cmyk {number}", (data, np.broadcast_to(seen[0, number], (SIDE, SIDE, 3)), ("srgb",))
    mixed = np.asarray(Image.fromarray(full, "CMYK").convert("RGB"))
    yield "tiff cmyk without a profile", (tiff(16, 1, [8] * 4, 5, full.tobytes()), mixed, ())
    labs = np.array([[50, 20, -20], [80, -10, 30], [30, 10, 10], [95, 0, 0]], float)
    raw = np.stack([labs[:, 0] * 2.55, labs[:, 1], labs[:, 2]], -1).round().astype(int) & 255
    seen = np.array([[seen_lab(*lab) for lab in labs]])
    yield "tiff lab", (tiff(4, 1, [8] * 3, 8, raw.astype(np.uint8).tobytes()), seen, ())


CASES = dict(case for family in (depths, transparent, profiles, inks) for case in family())


def of_colours(levels: npt.NDArray[np.generic]) -> Levels:
    rounded = np.rint(levels.astype(float)).astype(np.uint8)
    return np.dstack([rounded] * 3) if rounded.ndim == 2 else rounded


def furthest(one: Levels, other: npt.NDArray[np.generic]) -> int:
    assert one.shape == of_colours(other).shape
    return int(np.abs(one.astype(int) - of_colours(other)).max())


@pytest.mark.parametrize("name", CASES)
def test_an_image_is_sent_as_viewers_show_it(name: str) -> None:
    data, seen, steps = CASES[name]
    prepared_image = prepare_image(data, SENT_AS_PNG)
    with Image.open(io.BytesIO(prepared_image.content)) as image:
        assert furthest(np.asarray(image.convert("RGB")), seen) <= 3
        if prepared_image.prepared is not None:
            assert image.info.get("icc_profile") is None
    done = (prepared_image.prepared or "").split(";")
    assert tuple(step for step in STEPS if step in done) == steps


@pytest.mark.parametrize("name", CASES)
def test_an_image_is_displayed_as_it_is_sent(name: str) -> None:
    data, seen, _ = CASES[name]
    assert furthest(np.asarray(draw_image(data, PrepareConfig(), 1 << 20)), seen) <= 3
    small = shrink(data, 64)
    assert small is not None
    assert furthest(np.asarray(small), seen) <= 3


@pytest.mark.parametrize("name", CASES)
def test_the_header_predicts_the_steps_or_leaves_them_open(name: str) -> None:
    data, _, steps = CASES[name]
    foreseen = expected_steps(open_image(data, PrepareConfig(), time.monotonic() + 60))
    assert foreseen in {None, steps}


@pytest.mark.parametrize("name", CASES)
def test_without_a_step_the_first_rules_sent_the_same_pixels(name: str) -> None:
    """Their vectors therefore stay valid. The first rules kept alpha unchanged too."""
    data, _, steps = CASES[name]
    image = as_first_sent(data)
    prepared_image = prepare_image(data, PrepareConfig(send_formats=("png",)), smaller=False)
    if prepared_image.prepared is None:
        return
    with Image.open(io.BytesIO(prepared_image.content)) as sent:
        levels = np.asarray(sent)
    if not steps:
        assert image is not None
        np.testing.assert_array_equal(levels, np.asarray(image))
    else:
        assert image is None or image.mode != sent.mode or (np.asarray(image) != levels).any()


def as_first_sent(data: bytes) -> Image.Image | None:
    """Return an image as the first rules converted it, before encoding; None if it became a dead letter."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode == "I" or image.mode.startswith("I;16"):
                levels = np.asarray(image)
                shift = 8 if image.mode != "I" or levels.max(initial=0) < 1 << 16 else 24
                if image.mode == "I" and levels.max(initial=0) < 1 << 8:
                    shift = 0
                image = Image.fromarray(np.clip(levels >> shift, 0, 255).astype(np.uint8))
            has_alpha = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
            return image.convert("RGBA" if has_alpha else "RGB")
    except ValueError:  # Pillow does not convert this mode
        return None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_rotated_image_with_a_profile_is_converted_correctly(kind: str, orientation: int) -> None:
    quarters = np.array([[[60, 200, 60], [200, 30, 30]], [[20, 40, 220], [240, 240, 240]]], np.uint8)
    upright = quarters.repeat(16, axis=0).repeat(32, axis=1)
    turns: dict[int, Callable[[Levels], Levels]] = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: a.swapaxes(0, 1)[::-1], 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: a.swapaxes(0, 1)[:, ::-1],
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(turns[orientation](upright))
    data = saved(stored, kind, exif=exif, icc_profile=rgb_profile("p3", 2.2))
    seen = seen_through(upright, "p3", 2.2)
    for image in (
        Image.open(io.BytesIO(prepare_image(data, SENT_AS_PNG).content)),
        draw_image(data, PrepareConfig(), 1 << 20),
    ):
        middle = np.abs(np.asarray(image.convert("RGB"))[8::16, 8::16].astype(int) - seen[8::16, 8::16])
        assert middle.max() <= 3
    assert prepare_image(data, SENT_AS_PNG).width == 64


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("tiff", "TIFF", "GIF", "BMP"))])
def test_only_conversions_change_the_bytes_unless_as_is_is_plain(name: str) -> None:
    data, _, steps = CASES[name]
    assert prepare_image(data, PrepareConfig()).content == data
    prepared_image = prepare_image(data, PrepareConfig(as_is="plain"))
    if steps or "rgba" in name or " la" in name or "16 bits" in name or "cmyk" in name:
        assert prepared_image.content != data


def test_a_plain_image_is_sent_byte_for_byte_with_any_setting() -> None:
    for data in (
        saved(COLOURS, "JPEG"), saved(COLOURS, "PNG"), saved(GREYS, "PNG"), saved(COLOURS, "WEBP"),
        saved(Image.fromarray(COLOURS).quantize(8), "PNG"), saved(COLOURS, "PNG", icc_profile=b"none"),
    ):  # fmt: skip
        assert prepare_image(data, PrepareConfig(as_is="plain")).content == data


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_its_first_frame_if_as_is_is_plain(kind: str) -> None:
    frames = [Image.fromarray(np.roll(COLOURS, i, axis=0)) for i in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    prepared_image = prepare_image(data, PrepareConfig(as_is="plain", send_formats=("png", "webp")))
    with Image.open(io.BytesIO(prepared_image.content)) as image:
        assert getattr(image, "n_frames", 1) == 1
        assert furthest(np.asarray(image.convert("RGB")), COLOURS) <= 3


def test_a_large_image_is_converted_whole_in_strips() -> None:
    levels = np.tile(np.linspace(0, 1, 5000, dtype="<f4"), (1700, 1))
    data = tiff(5000, 1700, [32], 1, levels.tobytes(), **FLOAT)
    file = open_image(data, PrepareConfig(), time.monotonic() + 60)
    load(file.image, time.monotonic() + 60)
    image, steps = eight_bits(file.image, file)
    assert steps == ["levels"]
    assert np.abs(np.asarray(image).astype(float) - levels * 255).max() <= 1
    assert to_srgb(image, file)[1] == []


def test_many_grey_images_with_one_profile_need_one_table() -> None:
    """A profile is read once, not once for each image."""
    data = saved(GREYS, "PNG", icc_profile=grey_profile(1.4))
    first = prepare_image(data, SENT_AS_PNG).content
    assert {prepare_image(data, SENT_AS_PNG).content for _ in range(3)} == {first}
    assert zlib.crc32(first) == zlib.crc32(prepare_image(data, SENT_AS_PNG).content)
