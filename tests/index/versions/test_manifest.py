"""A manifest is read unchanged, and reports how the vectors of two versions differ."""

from typing import Any

import orjson
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import read_manifest
from epithre_beam.index.versions.layout import manifest_name
from epithre_beam.index.versions.manifest import MadeBy


def test_manifest_is_read_unchanged_and_unknown_keys_are_ignored(own_copy: Any) -> None:
    version = own_copy.manifest.version
    assert read_manifest(own_copy.store, version) == own_copy.manifest
    raw = {**orjson.loads(own_copy.manifest.to_bytes()), "added_later": 1}
    own_copy.store.write(manifest_name(version), orjson.dumps(raw))
    assert read_manifest(own_copy.store, version) == own_copy.manifest


def test_manifest_without_prepare_rules_has_version_1(
    own_copy: Any,
) -> None:
    version, raw = own_copy.manifest.version, orjson.loads(own_copy.manifest.to_bytes())

    def rules_of(change: dict[str, Any]) -> int:
        stated = {name: value for name, value in raw.items() if name != "prepare_rules"}
        own_copy.store.write(manifest_name(version), orjson.dumps({**stated, **change}))
        return read_manifest(own_copy.store, version).prepare_rules

    assert [rules_of({}), rules_of({"prepare_rules": 7})] == [1, 7]
    for wrong in (0, -1, True, "2", 2.0, None, 10**9, [2]):
        with pytest.raises(CatalogError, match="prepare_rules"):
            rules_of({"prepare_rules": wrong})


def test_differences_lists_model_fingerprint_and_dimension() -> None:
    made_by = MadeBy("m", None, 64)
    assert made_by.differences(MadeBy("m", None, 64)) == []
    assert made_by.differences(MadeBy("m", "emulator", 64)) == [("model_fingerprint", None, "emulator")]
    assert MadeBy("m", "emulator", 64).differences(MadeBy("n", None, 32)) == [
        ("model", "m", "n"),
        ("model_fingerprint", "emulator", None),
        ("dimension", 64, 32),
    ]


def test_made_by_names_the_emulator_or_the_model(own_copy: Any) -> None:
    assert own_copy.manifest.made_by == MadeBy("a model", None, 8)
    assert own_copy.manifest.made_by.name == "a model"
    assert own_copy.manifest.model_copy(update={"model_fingerprint": "emulator"}).made_by.name == "emulator"
