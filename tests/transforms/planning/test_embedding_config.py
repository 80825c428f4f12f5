"""A unit gets another name exactly when something that determines its vectors changes."""

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.configs import CatalogConfig, EmbedConfig, PrepareConfig
from epithre_beam.index import Manifest, Store
from epithre_beam.transforms.planning.embedding_config import (
    differences,
    embedding_config_hash,
    first_embedding_config_hash,
)
from epithre_beam.transforms.planning.plan import unit_name
from epithre_beam.transforms.versions.setup import public_settings

from ...index.manifests import make_manifest
from .rows import Row, as_table, image_row, text_row


def example_rows() -> list[Row]:
    return [text_row(0, "a"), text_row(1, "b"), image_row(2, 10, "f"), image_row(3, 10, "g")]


def named(
    rows: Sequence[Row], *, server: str | None = None, types: dict[str, str] | None = None, **settings: Any
) -> str:
    prepare = PrepareConfig(**{k: v for k, v in settings.items() if k in PrepareConfig.model_fields})
    embed = EmbedConfig(**{k: v for k, v in settings.items() if k in EmbedConfig.model_fields})
    return unit_name(as_table(rows, types), embedding_config_hash(embed, prepare, server))


def test_same_inputs_have_same_name() -> None:
    names = {named(example_rows()) for _ in range(3)}
    assert len(names) == 1
    assert len(names.pop()) == 40


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", ["asset_id", "uri", "fingerprint", "kind"])
def test_change_of_any_asset_changes_name(row: int, column: str) -> None:
    rows = example_rows()
    rows[row] = rows[row] | {column: "other"}
    assert named(rows) != named(example_rows())


FIRST_HASH = "77a3ae05820fb5d59e0d5b01584b3ea8f13550c24a5bbbdd0106f9a233e489a3"
"""Hash of the default settings."""

OTHER_PREPARATION: dict[str, Any] = {
    "as_is": "plain",
    "max_side": 1,
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


def test_every_prepare_setting_is_covered_below() -> None:
    assert set(OTHER_PREPARATION) == set(PrepareConfig.model_fields)


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"dimension": 8}, {"server": "emulator"}, *({k: v} for k, v in OTHER_PREPARATION.items())],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_determine_vectors_change_name(change: dict[str, Any]) -> None:
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
def test_address_and_rate_settings_do_not_change_name(change: dict[str, Any]) -> None:
    assert named(example_rows(), **change) == named(example_rows())


def test_metadata_and_source_position_do_not_change_name() -> None:
    rows = [row | {"metadata": {"lang": "id"}, "source": 5} for row in example_rows()]
    assert named(rows, types={"lang": "string"}) == named(example_rows())


@given(st.lists(st.text(max_size=3), min_size=2, max_size=4), st.lists(st.text(max_size=3), min_size=2, max_size=4))
def test_adjacent_values_are_hashed_separately(one: list[str], other: list[str]) -> None:
    rows = [[image_row(0, 1, "f") | {"asset_id": value} for value in values] for values in (one, other)]
    assert (named(rows[0]) == named(rows[1])) == (one == other)


# Whether the vectors of a version may be reused


def made_with(config: CatalogConfig, fingerprint: str | None = None) -> Manifest:
    """Return the manifest of a version made with a config."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    made_by = {"model": config.embed.model, "model_fingerprint": fingerprint, "dimension": config.embed.dimension}
    update = {**made_by, "config": public_settings(config)}
    return make_manifest(store, "1-a", None).model_copy(update=update)


def job(**sections: dict[str, Any]) -> CatalogConfig:
    return CatalogConfig.model_validate({"catalog": "unused", **sections})


def test_equal_settings_have_no_differences() -> None:
    for fingerprint in (None, "emulator"):
        assert differences(made_with(job(), fingerprint), job(), fingerprint) == []


@pytest.mark.parametrize(
    "change",
    [
        {"embed": {"model": "other"}},
        {"embed": {"dimension": 8}},
    ],
    ids=str,
)
def test_each_difference_names_both_values(change: dict[str, Any]) -> None:
    ((section, values),) = change.items()
    ((name, value),) = values.items()
    (sentence,) = differences(made_with(job()), job(**change), None)
    assert sentence.startswith(f"{section}.{name} was ")
    assert sentence.endswith(f" and is {list(value) if isinstance(value, tuple) else value!r}")


def test_default_values_are_not_hashed() -> None:
    """A setting that a later release adds does not invalidate vectors."""
    stated = PrepareConfig().model_dump()
    assert embedding_config_hash(EmbedConfig(), PrepareConfig(**stated), None) == embedding_config_hash(
        EmbedConfig(), PrepareConfig(), None
    )


@pytest.mark.parametrize("change", [{name: value} for name, value in OTHER_PREPARATION.items()], ids=str)
def test_prepare_settings_are_not_among_differences(change: dict[str, Any]) -> None:
    assert differences(made_with(job()), job(prepare=change), None) == []


def test_unreadable_prepare_settings_are_a_difference() -> None:
    strange = made_with(job()).model_copy(update={"config": {"prepare": {"max_pixels": "many"}}})
    assert "the version's prepare settings cannot be read" in differences(strange, job(), None)


def test_hash_of_first_rules_covers_all_settings() -> None:
    """As written by releases that hashed all of `prepare`."""
    assert first_embedding_config_hash(EmbedConfig(), PrepareConfig(), None) == FIRST_HASH
    assert first_embedding_config_hash(EmbedConfig(), PrepareConfig(jpeg_quality=80), None) != FIRST_HASH
    assert first_embedding_config_hash(EmbedConfig(), PrepareConfig(max_side=5), None) == FIRST_HASH


def test_dialect_and_input_type_are_among_differences() -> None:
    own = {"base_url": "https://a.example/v1", "model": "m", "api_key_env": "KEY"}
    cohere, voyage = (job(embed={**own, "dialect": dialect}) for dialect in ("cohere", "voyage"))
    assert differences(made_with(cohere), voyage, None) == ["embed.dialect was 'cohere' and is 'voyage'"]
    asking = job(embed={**own, "dialect": "voyage", "input_type": "document"})
    assert differences(made_with(voyage), asking, None) == ["embed.input_type was None and is 'document'"]


def test_emulator_vectors_are_never_reused_for_the_api() -> None:
    assert differences(made_with(job(), "emulator"), job(), None) == [
        "the vectors are from emulator, and the run uses the API itself"
    ]


@pytest.mark.parametrize("change", [{"base_url": "https://elsewhere.example"}, {"batch_items": 1}, {"lanes": 1}])
def test_address_and_rate_settings_keep_vectors(change: dict[str, Any]) -> None:
    assert differences(made_with(job()), job(embed=change), None) == []


def test_vector_type_may_only_lose_precision() -> None:
    short, long = (job(index={"vector_type": kind}) for kind in ("float16", "float32"))
    assert differences(made_with(long), short, None) == []
    assert differences(made_with(short), long, None) == [
        "index.vector_type was float16 and is float32, which needs more bits"
    ]
