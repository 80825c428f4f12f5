"""A format is detected by its bytes, and unsupported formats are named."""

import io

import pytest
from PIL import Image

from epithre_beam.index.versions.layout import Reason
from epithre_beam.transforms.sources.image_formats import image_format
from epithre_beam.transforms.sources.unpreparable import Unpreparable

ALL = ("jpeg", "png", "webp", "gif", "bmp", "tiff")


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("name", ALL)
def test_a_supported_format_is_detected(name: str) -> None:
    assert image_format(saved(name.upper()), ALL) == name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("JPEG2000", "jpeg2000"), ("ICO", "ico"), ("PPM", "pnm"), ("TGA", "tga"), ("AVIF", "avif"), ("DDS", "dds"),
        ("PCX", "pcx"), ("SGI", "sgi"), ("ICNS", "icns"),
    ],
)  # fmt: skip
def test_an_unsupported_format_is_refused_by_its_name(kind: str, name: str) -> None:
    with pytest.raises(Unpreparable, match=f"got {name}$") as caught:
        image_format(saved(kind), ALL)
    assert caught.value.reason is Reason.FORMAT_NOT_ALLOWED


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x4f\xff\x51\x00", "jpeg2000"), (b"\xff\x0a\x00", "jpeg-xl"), (b"8BPS\0\1", "psd"),
        (b"v/1\x01\2", "openexr"), (b"#?RADIANCE\n", "radiance"), (b"qoif\0", "qoi"), (b"gimp xcf v011\0", "xcf"),
        (b"P5\n16 16\n255\n", "pnm"), (b"P4 # a comment", "pnm"), (b"P7\nWIDTH 3", "pnm"),
        (b"\x00\x00\x00\x20ftypheic\x00\x00", "heic"),
    ],
)  # fmt: skip
def test_an_unsupported_format_is_detected_by_its_first_bytes(data: bytes, name: str) -> None:
    with pytest.raises(Unpreparable, match=f"got {name}$"):
        image_format(data, ALL)


@pytest.mark.parametrize("data", [b"P5", b"P5 of a chapter", b"PNG", b"BNM", b"\x00\x00\x01\x01", b"%PDF-1.7"])
def test_other_files_are_not_detected_as_images(data: bytes) -> None:
    with pytest.raises(Unpreparable) as caught:
        image_format(data, ALL)
    assert caught.value.reason is Reason.NOT_AN_IMAGE


def test_a_format_that_the_job_excludes_is_refused() -> None:
    with pytest.raises(Unpreparable, match=r"prepare\.formats allows jpeg, got png"):
        image_format(saved("PNG"), ("jpeg",))
