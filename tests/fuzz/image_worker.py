"""A process that prepares images with changed bytes, so that its parent notices if a decoder crashes.

    python -m tests.fuzz.image_worker SECONDS SEED NOTE

Every image is written to the file NOTE before it is prepared, so that the file has the image of a crash. The prepared
image is compared with the result of Pillow and lcms. The last line of the output has the number of tried images.
"""

import contextlib
import io
import json
import random
import resource
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from epithre_beam.configs import PrepareConfig
from epithre_beam.index.versions.layout import Reason
from epithre_beam.transforms.sources.prepare import draw_image, prepare_image
from epithre_beam.transforms.sources.unpreparable import Unpreparable

from ..transforms.sources.test_colours import CASES

_MEMORY_BYTES = 500_000_000
"""Memory that preparing may add to the process: enough for a valid image with the limits below."""
_LONGEST_S = 3.0
_OTHER_LEVELS = {"levels", "alpha"}
SETTINGS = [
    PrepareConfig.model_validate({"max_decode_pixels": 4_000_000, "decode_timeout_s": _LONGEST_S, **settings})
    for settings in (
        {"send_formats": ["png"], "as_is": "plain"},
        {"send_formats": ["jpeg"]},
        {"check": "decode"},
        {"max_pixels": 50},
        {"max_image_bytes": 700},
    )
]
_NUMBERS = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\1\0", b"\1\0", b"\0\1", b"\xff\xd9", b"IEND")


def changed(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Flip bits, insert numbers, and cut, duplicate, move or copy pieces from another image."""
    new = bytearray(data)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(new)) if draw.random() < 0.5 else draw.randrange(min(len(new), 300))
        match draw.randrange(6):
            case 0:
                new[at] ^= 1 << draw.randrange(8)
            case 1:
                new[at] = draw.choice((0, 1, 255, draw.randrange(256)))
            case 2:
                number = draw.choice(_NUMBERS)
                new[at : at + len(number)] = number
            case 3:
                del new[at : at + draw.choice((1, 4, 30, len(new)))]
            case 4:
                new[at:at] = new[at : at + draw.randrange(1, 60)]
            case 5:
                other = draw.choice(others)
                start = draw.randrange(len(other))
                new[at : at + 40] = other[start : start + draw.randrange(1, 200)]
        if not new:
            return b"\0"
    return bytes(new)


def reference(data: bytes) -> np.ndarray | None:
    """Decode an image with Pillow and lcms, on white; None if they cannot decode it or do not render it correctly."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF")) as image:
            if image.width * image.height > 1_000_000:
                return None
            profile = image.info.get("icc_profile")
            image.load()
            image = ImageOps.exif_transpose(image)
            if image.mode == "I;16":
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "LAB"}:
                return None
            if image.mode == "CMYK" and profile:
                converted = _by_profile(image, profile, "CMYK")
            else:
                has_alpha = image.mode in {"LA", "PA", "RGBA"} or "transparency" in image.info
                alpha = image.convert("RGBA").getchannel("A") if has_alpha else None
                is_grey = image.mode in {"1", "L", "LA"}
                flat = image.convert("RGBA").convert("RGB") if has_alpha else image.convert("RGB")
                converted = _by_profile(flat.convert("L") if is_grey else flat, profile, "L" if is_grey else "RGB")
                if alpha is not None:
                    converted.putalpha(alpha)
            ground = Image.new("RGBA", converted.size, "white")
            ground.alpha_composite(converted.convert("RGBA"))
            return np.asarray(ground.convert("RGB"), np.int16)
    except (Exception, Image.DecompressionBombError):
        return None


def _by_profile(image: Image.Image, profile: bytes | None, mode: str) -> Image.Image:
    plain = image.convert("RGB")
    if not profile:
        return plain
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if (mode, space) == ("L", "RGB"):
            image, mode = plain, "RGB"
        if (mode, space) in {("L", "GRAY"), ("RGB", "RGB"), ("CMYK", "CMYK")}:
            srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            flags = ImageCms.Flags.NOOPTIMIZE
            return ImageCms.ImageCmsTransform(source, srgb, mode, "RGB", flags=flags).apply(image)
    return plain


def check(data: bytes) -> str:
    """Prepare an image with all settings and return the outcomes; raise AssertionError if one is wrong."""
    said = []
    for settings in SETTINGS:
        start = time.process_time()
        try:
            prepared_image = prepare_image(data, settings)
            small = draw_image(data, settings, 10_000)
        except Unpreparable as failure:
            check_refusal(failure)
            said.append(failure.reason.value)
        else:
            said.append("sent")
            assert small.mode == "RGB"
            assert small.width * small.height <= 10_000
            if prepared_image.prepared is None:
                assert prepared_image.content == data
            else:
                with Image.open(io.BytesIO(prepared_image.content)) as image:
                    image.load()
                    assert image.format in {"PNG", "JPEG"}
                    assert image.mode in {"RGB", "RGBA"}
                    assert image.width * image.height <= settings.max_pixels
                    assert len(prepared_image.content) <= settings.max_image_bytes
        assert time.process_time() - start < 4 * _LONGEST_S, "it took too long"
    compare(data)
    return "/".join(said)


def check_refusal(failure: Unpreparable, *, of_good_image: bool = False) -> None:
    """Check that a refusal is one short line; a good image may be refused only for reasons the reference ignores."""
    assert 0 < len(failure.detail) <= 200
    if of_good_image and failure.reason is Reason.UNDECODABLE:
        assert "YCbCr" in failure.detail or "its end is missing" in failure.detail, failure.detail
    elif of_good_image:
        assert failure.reason in {Reason.DECODE_TIMEOUT, Reason.FORMAT_NOT_ALLOWED}, failure.detail


def compare(data: bytes) -> None:
    """Compare with the reference, except for images with other bit depths or gamma, which it renders differently."""
    seen = reference(data)
    if seen is None or b"gAMA" in data or b"acTL" in data:
        return
    try:
        prepared_image = prepare_image(data, SETTINGS[0])
        drawn = np.asarray(draw_image(data, SETTINGS[0], 1_000_000), np.int16)
    except Unpreparable as failure:
        check_refusal(failure, of_good_image=True)
        return
    if set((prepared_image.prepared or "").split(";")) & _OTHER_LEVELS:
        return
    assert drawn.shape == seen.shape, (drawn.shape, seen.shape)
    with Image.open(io.BytesIO(prepared_image.content)) as image:
        sent = np.asarray(image.convert("RGB"), np.int16)
    for ours in (drawn, sent):
        furthest = np.abs(ours - seen).max()
        assert furthest <= 4, f"{furthest} levels from the reference, {prepared_image.prepared}"


def main(seconds: float, seed: int, note: Path) -> None:
    warnings.simplefilter("ignore")
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.init()
    draw = random.Random(seed)
    whole = [data for data, _, _ in CASES.values()]
    for data in whole:  # load all decoders before measuring memory
        check(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends, outcomes = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < ends:
        data = changed(draw.choice(whole), whole, draw)
        note.write_bytes(data)
        outcomes[check(data)] += 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < _MEMORY_BYTES, f"it took {grown} bytes"
    sent = sum(count for said, count in outcomes.items() if "sent" in said)
    sys.stdout.write(json.dumps({"tried": outcomes.total(), "sent": sent}) + "\n")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
