"""A row and the settings show whether an image would be prepared in the same way today."""

from typing import Any

import pytest

from epithre_beam.configs import PrepareConfig
from epithre_beam.index.versions.layout import PREPARE_RULES, Reason
from epithre_beam.transforms.sources.effective import (
    Row,
    brought_up,
    is_same,
    is_smaller,
    why_again,
    why_again_dead,
    written,
)

DEFAULTS = PrepareConfig()
AS_IS = Row("image", "image/jpeg", 200_000, 1000, 800, None)
TODAY = written(["upright", "downscaled 500x400", "jpeg q92"])
LOWER = {"max_file_bytes": 100, "max_decode_pixels": 100, "max_side": 100, "max_pixels": 100, "max_image_bytes": 100}


def changed(**settings: Any) -> PrepareConfig:
    return DEFAULTS.model_copy(update=settings)


def test_rows_of_these_rules_are_not_read_again_with_equal_settings() -> None:
    for prepared in (None, TODAY, written(["png"]), written(["srgb", "png"])):
        assert why_again(AS_IS._replace(prepared=prepared), DEFAULTS, DEFAULTS) is None
    assert why_again(Row("text", "text/plain", 90_000, None, None, None), DEFAULTS, DEFAULTS) is None


@pytest.mark.parametrize("media_type", ["image/jpeg", "image/png", "image/webp", "image/tiff"])
def test_rows_that_the_first_rules_decoded_are_read_again(media_type: str) -> None:
    row = AS_IS._replace(media_type=media_type)
    assert why_again(row, DEFAULTS, DEFAULTS) is None
    for prepared in ("jpeg", "upright;png", "upright;downscaled 5x4;jpeg"):
        assert "as viewers show them" in (why_again(row._replace(prepared=prepared), DEFAULTS, DEFAULTS) or "")


@pytest.mark.parametrize("media_type", ["image/gif", "image/bmp"])
def test_rows_that_both_rules_prepare_equally_are_not_read_again(media_type: str) -> None:
    row = Row("image", media_type, 100, 5, 5, "jpeg")
    assert why_again(row, DEFAULTS, DEFAULTS) is None


@pytest.mark.parametrize("name", LOWER)
def test_a_lower_limit_reads_again_only_what_exceeds_it(name: str) -> None:
    lower = changed(**{name: LOWER[name]})
    sentence = f"prepare.{name} was {getattr(DEFAULTS, name)} and is 100"
    assert why_again(AS_IS, DEFAULTS, lower) == sentence
    within = Row("image", "image/jpeg", 90, 9, 9, None)
    assert why_again(within, DEFAULTS, lower) is None
    assert why_again(AS_IS, lower, lower) is None


def test_a_new_limit_at_its_default_does_not_affect_older_rows() -> None:
    """A new limit at its default does not count as a lower one."""
    assert why_again(AS_IS._replace(width=5_000_000, height=1), DEFAULTS, DEFAULTS) is None


@pytest.mark.parametrize(
    ("settings", "prepared", "is_again"),
    [
        ({"jpeg_quality": 80}, None, False),
        ({"jpeg_quality": 80}, TODAY, True),
        ({"jpeg_quality": 80}, written(["upright", "png"]), False),
        ({"send_formats": ("jpeg", "png")}, None, False),
        ({"send_formats": ("png", "webp")}, None, True),
        ({"send_formats": ("jpeg",)}, TODAY, True),
        ({"send_formats": ("jpeg", "png", "webp", "gif")}, TODAY, False),
        ({"max_pixels": 900_000}, None, False),
        ({"max_pixels": 700_000}, None, True),
        ({"max_pixels": 900_000}, TODAY, False),
        ({"max_pixels": 700_000}, TODAY, True),
        ({"max_image_bytes": 300_000}, None, False),
        ({"max_image_bytes": 300_000}, TODAY, True),
        ({"as_is": "plain"}, None, True),
        ({"check": "decode"}, None, True),
        ({"check": "decode"}, TODAY, False),
        ({"formats": ("jpeg",)}, None, False),
        ({"formats": ("png",)}, None, True),
        ({"decode_timeout_s": 1.0}, None, False),
        ({"max_text_chars": 1}, None, False),
    ],
    ids=str,
)
def test_a_changed_setting_reads_again_what_it_may_affect(
    settings: dict[str, Any], prepared: str | None, is_again: bool
) -> None:
    (name,) = settings
    found = why_again(AS_IS._replace(prepared=prepared), DEFAULTS, changed(**settings))
    assert (found is not None) == is_again
    if found is not None:
        assert found.startswith(f"prepare.{name} was ")
        assert why_again(AS_IS._replace(prepared=prepared), changed(**settings), changed(**settings)) is None


def test_an_image_that_may_now_be_sent_unchanged_is_read_again() -> None:
    row = AS_IS._replace(media_type="image/gif", prepared=written(["jpeg q92"]))
    assert why_again(row, DEFAULTS, changed(send_formats=("jpeg", "png", "webp", "gif"))) is not None
    row = row._replace(media_type="image/jpeg", prepared=written(["downscaled 5x4", "jpeg q92"]))
    assert why_again(row, changed(max_pixels=20), DEFAULTS) is not None
    assert why_again(row._replace(prepared=written(["srgb", "jpeg q92"])), changed(as_is="plain"), DEFAULTS) is not None


def test_only_texts_that_may_exceed_the_limit_are_read_again() -> None:
    row = Row("text", "text/plain", 500, None, None, None)
    assert why_again(row, DEFAULTS, changed(max_text_chars=499)) is not None
    assert why_again(row, DEFAULTS, changed(max_text_chars=500)) is None
    assert why_again(row, changed(max_text_chars=499), DEFAULTS) is None


def test_imported_vectors_are_never_read_again() -> None:
    for settings in (changed(jpeg_quality=5), changed(send_formats=("png",)), changed(max_pixels=1)):
        assert why_again(Row("image", None, None, None, None, None), DEFAULTS, settings) is None


@pytest.mark.parametrize(
    ("reason", "settings"),
    [
        (Reason.FORMAT_NOT_ALLOWED, {"formats": ("jpeg",)}),
        (Reason.FILE_TOO_LARGE, {"max_file_bytes": 1}),
        (Reason.TOO_MANY_PIXELS, {"max_side": 1}),
        (Reason.DECODE_TIMEOUT, {"decode_timeout_s": 1.0}),
        (Reason.UNDECODABLE, {"check": "decode"}),
        (Reason.TEXT_TOO_LONG, {"max_text_chars": 1}),
        (Reason.REFUSED, {"max_pixels": 1}),
        (Reason.TOO_LARGE_FOR_API, {"max_image_bytes": 1}),
    ],
)
def test_a_dead_letter_is_tried_again_when_its_setting_changes(reason: Reason, settings: dict[str, Any]) -> None:
    assert why_again_dead(reason, PREPARE_RULES, DEFAULTS, DEFAULTS) is None
    (name,) = settings
    assert (why_again_dead(reason, PREPARE_RULES, DEFAULTS, changed(**settings)) or "").startswith(f"prepare.{name} ")
    assert why_again_dead(reason, PREPARE_RULES, DEFAULTS, changed(jpeg_quality=5 if name != "max_pixels" else 92)) in {
        None,
        *(["prepare.jpeg_quality was 92 and is 5"] if reason is Reason.TOO_LARGE_FOR_API else []),
    }


def test_undecodable_assets_are_tried_once_with_new_rules() -> None:
    assert why_again_dead(Reason.UNDECODABLE, PREPARE_RULES - 1, DEFAULTS, DEFAULTS) is not None
    assert why_again_dead(Reason.UNDECODABLE, PREPARE_RULES, DEFAULTS, DEFAULTS) is None
    for reason in (Reason.EMPTY_FILE, Reason.NOT_AN_IMAGE, Reason.REFUSED, Reason.NOT_UTF8, Reason.EMPTY_TEXT):
        assert why_again_dead(reason, 1, DEFAULTS, DEFAULTS) is None


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (None, None, True),
        (None, TODAY, False),
        (TODAY, None, False),
        (TODAY, TODAY, True),
        (TODAY.replace("rules 2", "rules 3"), TODAY, True),
        (TODAY, TODAY.replace("q92", "q91"), False),
        (TODAY, TODAY.replace("500", "499"), False),
        ("upright;downscaled 500x400;jpeg", TODAY, True),
        ("upright;downscaled 500x400;jpeg", TODAY.replace("q92", "q80"), False),
        ("upright;downscaled 500x400;jpeg", TODAY.replace("jpeg", "srgb;jpeg"), False),
        ("downscaled 5x4;png", written(["downscaled 5x4", "smaller", "png"]), True),
    ],
)
def test_equal_steps_mean_equal_pixels_for_all_rules(old: str | None, new: str | None, same: bool) -> None:
    assert is_same(old, DEFAULTS, new) == same
    if old is not None and "rules" not in old:
        assert not is_same(old, None, new)  # its quality is not known


def test_steps_of_the_first_rules_are_rewritten_in_the_current_form() -> None:
    assert brought_up("upright;downscaled 500x400;jpeg", DEFAULTS) == TODAY
    assert brought_up("png", DEFAULTS) == written(["png"])


@pytest.mark.parametrize(
    ("prepared", "smaller"),
    [
        (None, False),
        ("jpeg", False),
        ("downscaled 500x400;jpeg", True),
        ("downscaled 800x700;jpeg", False),
        (written(["downscaled 500x400", "smaller", "jpeg q92"]), True),
        (written(["downscaled 500x400", "jpeg q92"]), False),
    ],
)
def test_a_row_shows_that_the_api_required_a_smaller_image(prepared: str | None, smaller: bool) -> None:
    assert is_smaller(AS_IS._replace(prepared=prepared), DEFAULTS) == smaller


NOT_OURS = ["", ";", " ", "downscaled ", "downscaled x", "downscaled 1e9x2", f"downscaled {'9' * 5000}x1;jpeg", "a;;\0"]


@pytest.mark.parametrize("prepared", NOT_OURS)
def test_unknown_steps_cause_no_error(prepared: str) -> None:
    row = AS_IS._replace(prepared=prepared)
    other = changed(jpeg_quality=1, max_pixels=7, as_is="plain")
    for before, now in ((DEFAULTS, DEFAULTS), (DEFAULTS, other), (other, DEFAULTS)):
        assert why_again(row, before, now) is None or isinstance(why_again(row, before, now), str)
        assert not is_smaller(row, before)
        assert is_same(prepared, before, TODAY) is False
