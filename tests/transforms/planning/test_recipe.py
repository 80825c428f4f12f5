"""A unit has a new name when anything that decides its vectors changes, and for nothing else."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.configs import EmbedConfig, PrepareConfig
from epithre_beam.transforms.planning.plan import (
    unit_name,
)
from epithre_beam.transforms.planning.recipe import recipe

from .rows import Row, as_table, image_row, text_row


def example_rows() -> list[Row]:
    return [text_row(0, "a"), text_row(1, "b"), image_row(2, 10, "f"), image_row(3, 10, "g")]


def named(
    rows: Sequence[Row], *, server: str | None = None, types: dict[str, str] | None = None, **settings: Any
) -> str:
    prepare = PrepareConfig(**{k: v for k, v in settings.items() if k in PrepareConfig.model_fields})
    embed = EmbedConfig(**{k: v for k, v in settings.items() if k in EmbedConfig.model_fields})
    return unit_name(as_table(rows, types), recipe(embed, prepare, server))


def test_the_same_inputs_have_the_same_name() -> None:
    names = {named(example_rows()) for _ in range(3)}
    assert len(names) == 1
    assert len(names.pop()) == 40


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", ["asset_id", "uri", "fingerprint", "kind"])
def test_a_change_of_any_asset_changes_the_name(row: int, column: str) -> None:
    rows = example_rows()
    rows[row] = rows[row] | {column: "other"}
    assert named(rows) != named(example_rows())


OTHER_PREPARATION: dict[str, Any] = {
    "formats": ("jpeg", "png"),
    "send_formats": ("jpeg",),
    "check": "decode",
    "max_file_bytes": 1,
    "max_decode_pixels": 1,
    "decode_timeout_s": 1.0,
    "max_pixels": 1,
    "max_image_bytes": 1,
    "jpeg_quality": 1,
    "max_text_chars": 1,
}


def test_every_setting_of_the_preparation_is_tried_below() -> None:
    assert set(OTHER_PREPARATION) == set(PrepareConfig.model_fields)


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"dimension": 8}, {"server": "emulator"}, *({k: v} for k, v in OTHER_PREPARATION.items())],
    ids=lambda change: next(iter(change)),
)
def test_what_decides_the_vectors_is_in_the_name(change: dict[str, Any]) -> None:
    assert named(example_rows(), **change) != named(example_rows())


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": "https://elsewhere.example/v2"},
        {"api_key_env": "OTHER"},
        {"batch_items": 1},
        {"batch_bytes": 2048},
        {"batch_tokens": 5},
        {"requests_per_minute": 1},
        {"items_per_minute": 1},
        {"tokens_per_minute": 1},
        {"max_concurrency": 1},
        {"timeout_s": 1.0},
        {"max_sends": 1},
        {"retry_share": 0.0},
        {"memory_mb": 1},
        {"readers": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_where_the_api_is_and_how_fast_is_not_in_the_name(change: dict[str, Any]) -> None:
    assert named(example_rows(), **change) == named(example_rows())


def test_metadata_and_the_position_of_a_source_are_not_in_the_name() -> None:
    rows = [row | {"metadata": {"lang": "id"}, "source": 5} for row in example_rows()]
    assert named(rows, types={"lang": "string"}) == named(example_rows())


@given(st.lists(st.text(max_size=3), min_size=2, max_size=4), st.lists(st.text(max_size=3), min_size=2, max_size=4))
def test_values_do_not_run_into_each_other(one: list[str], other: list[str]) -> None:
    rows = [[image_row(0, 1, "f") | {"asset_id": value} for value in values] for values in (one, other)]
    assert (named(rows[0]) == named(rows[1])) == (one == other)
