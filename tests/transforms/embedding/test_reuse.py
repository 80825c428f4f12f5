"""A picture's vector is taken over where the same would be sent, and with no more work than it takes to know."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from epithre_beam.configs import PrepareConfig
from epithre_beam.index.vectors.reusable import ReusableVector
from epithre_beam.transforms.embedding.reuse import reuse_or_prepare
from epithre_beam.transforms.sources.effective import written
from epithre_beam.transforms.sources.prepare import PreparedImage, prepare_image
from epithre_beam.transforms.sources.unpreparable import Unpreparable

from ..sources.drawn import rgb_profile

DEFAULTS = PrepareConfig()
COLOURS = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def jpeg(**options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "JPEG", **options)
    return file.getvalue()


def turned(**options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return jpeg(exif=exif, **options)


def reusable(prepared: str | None, settings: PrepareConfig | None = DEFAULTS, number: int = 0) -> ReusableVector:
    return ReusableVector(
        vector=np.full(4, number, np.float32),
        media_type="image/jpeg",
        width=60,
        height=40,
        prepared=prepared,
        settings=settings,
    )


def test_without_a_vector_it_is_prepared() -> None:
    assert reuse_or_prepare(jpeg(), [], DEFAULTS) == prepare_image(jpeg(), DEFAULTS)


@pytest.mark.parametrize("settings", [DEFAULTS, None], ids=["of a version", "of a unit"])
def test_what_was_sent_as_it_is_and_would_be_is_taken_over(settings: PrepareConfig | None) -> None:
    found = reuse_or_prepare(jpeg(), [reusable(None, settings)], DEFAULTS)
    assert isinstance(found, ReusableVector)
    assert found.prepared is None


def test_what_the_first_rules_sent_alike_is_taken_over_and_its_row_says_all() -> None:
    found = reuse_or_prepare(turned(), [reusable("upright;jpeg")], DEFAULTS)
    assert isinstance(found, ReusableVector)
    assert found.prepared == prepare_image(turned(), DEFAULTS).prepared


def test_nothing_is_decoded_where_the_header_says_enough() -> None:
    """The pixels are cut off here: who decodes them finds out."""
    data = turned()
    headed = data[: data.index(b"\xff\xda") + 40]
    with pytest.raises(Unpreparable):
        prepare_image(headed, DEFAULTS)
    assert isinstance(reuse_or_prepare(headed, [reusable("upright;jpeg")], DEFAULTS), ReusableVector)
    assert isinstance(reuse_or_prepare(headed, [reusable(written(["upright", "jpeg q92"]))], DEFAULTS), ReusableVector)


def test_what_the_first_rules_sent_otherwise_is_prepared() -> None:
    data = turned(icc_profile=rgb_profile("p3", 2.2))
    found = reuse_or_prepare(data, [reusable("upright;jpeg")], DEFAULTS)
    assert isinstance(found, PreparedImage)
    assert found.prepared == "upright;srgb;jpeg q92;rules 2"


def test_rows_of_units_say_themselves_what_they_were_sent_as() -> None:
    for prepared, is_same in {
        written(["upright", "jpeg q92"]): True, written(["upright", "jpeg q80"]): False, "upright;jpeg": False,
        None: False,
    }.items():  # fmt: skip
        assert isinstance(reuse_or_prepare(turned(), [reusable(prepared, None)], DEFAULTS), ReusableVector) == is_same


def test_of_several_the_one_that_was_sent_so_is_taken() -> None:
    low = PrepareConfig(jpeg_quality=50)
    known = [
        reusable("upright;jpeg", low, 1),
        reusable(written(["upright", "jpeg q80"]), None, 2),
        reusable("upright;jpeg", DEFAULTS, 3),
    ]
    found = reuse_or_prepare(turned(), known, DEFAULTS)
    assert isinstance(found, ReusableVector)
    assert found.vector[0] == 3
    found = reuse_or_prepare(turned(), known, low)
    assert isinstance(found, ReusableVector)
    assert (found.vector[0], found.prepared) == (1, "upright;jpeg q50;rules 2")


def test_a_thousand_copies_are_looked_at_once() -> None:
    tried = 0

    def copies() -> Any:
        nonlocal tried
        for _ in range(1000):
            tried += 1
            yield reusable(written(["upright", "jpeg q80"]), None)

    assert isinstance(reuse_or_prepare(turned(), copies(), DEFAULTS), PreparedImage)
    assert tried == 1000


def test_what_is_refused_now_has_no_vector_any_more() -> None:
    with pytest.raises(Unpreparable):
        reuse_or_prepare(jpeg(), [reusable(None)], PrepareConfig(max_side=10))
