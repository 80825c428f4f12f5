"""An image's vector is reused if the same bytes would be sent, with as little decoding as possible."""

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


def test_image_without_vector_is_prepared() -> None:
    assert reuse_or_prepare(jpeg(), [], DEFAULTS) == prepare_image(jpeg(), DEFAULTS)


@pytest.mark.parametrize("settings", [DEFAULTS, None], ids=["of a version", "of a unit"])
def test_image_sent_unchanged_before_and_now_is_reused(settings: PrepareConfig | None) -> None:
    found = reuse_or_prepare(jpeg(), [reusable(None, settings)], DEFAULTS)
    assert isinstance(found, ReusableVector)
    assert found.prepared is None


def test_image_of_first_rules_is_reused_and_its_row_updated() -> None:
    found = reuse_or_prepare(turned(), [reusable("upright;jpeg")], DEFAULTS)
    assert isinstance(found, ReusableVector)
    assert found.prepared == prepare_image(turned(), DEFAULTS).prepared


def test_image_is_not_decoded_if_header_suffices() -> None:
    """The pixels are cut off here, so decoding would fail."""
    data = turned()
    headed = data[: data.index(b"\xff\xda") + 40]
    with pytest.raises(Unpreparable):
        prepare_image(headed, DEFAULTS)
    assert isinstance(reuse_or_prepare(headed, [reusable("upright;jpeg")], DEFAULTS), ReusableVector)
    assert isinstance(reuse_or_prepare(headed, [reusable(written(["upright", "jpeg q92"]))], DEFAULTS), ReusableVector)


def test_image_of_first_rules_sent_differently_is_prepared() -> None:
    data = turned(icc_profile=rgb_profile("p3", 2.2))
    found = reuse_or_prepare(data, [reusable("upright;jpeg")], DEFAULTS)
    assert isinstance(found, PreparedImage)
    assert found.prepared == "upright;srgb;jpeg q92;rules 2"


def test_rows_of_units_are_reused_by_their_preparation() -> None:
    for prepared, is_same in {
        written(["upright", "jpeg q92"]): True, written(["upright", "jpeg q80"]): False, "upright;jpeg": False,
        None: False,
    }.items():  # fmt: skip
        assert isinstance(reuse_or_prepare(turned(), [reusable(prepared, None)], DEFAULTS), ReusableVector) == is_same


def test_vector_with_matching_preparation_is_chosen_among_several() -> None:
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


def test_equal_reusable_vectors_are_checked_once() -> None:
    tried = 0

    def copies() -> Any:
        nonlocal tried
        for _ in range(1000):
            tried += 1
            yield reusable(written(["upright", "jpeg q80"]), None)

    assert isinstance(reuse_or_prepare(turned(), copies(), DEFAULTS), PreparedImage)
    assert tried == 1000


def test_image_refused_by_current_settings_is_not_reused() -> None:
    with pytest.raises(Unpreparable):
        reuse_or_prepare(jpeg(), [reusable(None)], PrepareConfig(max_side=10))
