"""The advice for a catalog without LATEST.json names the version and the whole command."""

from pathlib import Path

import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import Store, open_catalog
from epithre_beam.index.versions.complete import existing_versions
from epithre_beam.index.versions.history import read_base
from epithre_beam.index.versions.layout import LATEST, manifest_name
from epithre_beam.index.versions.manifest import Manifest

from ..manifests import make_manifest


def make(store: Store, version: str, previous: str | None, *held: str) -> Manifest:
    manifest = make_manifest(store, version, previous).model_copy(update={"gate_failures": held})
    store.write(manifest_name(version), manifest.to_bytes())
    return manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "my catalog"))


def advice(store: Store) -> str:
    with pytest.raises(CatalogError) as caught:
        open_catalog(store.url)
    return str(caught.value)


def test_the_newest_version_that_no_gate_holds_is_named_with_its_command(store: Store) -> None:
    make(store, "1-a", None)
    make(store, "2-b", "1-a")
    make(store, "3-c", "2-b", "half of the rows are gone")
    assert existing_versions(store) == ["1-a", "2-b", "3-c"]
    command = f"`epithre-beam versions publish '{store.url}' 2-b`"
    newest = f"{LATEST} is missing. The newest version that no gate holds back is 2-b. To publish it: {command}."
    assert advice(store).endswith(newest)
    with pytest.raises(CatalogError, match=r"LATEST\.json is missing, but 2-b was written after") as caught:
        read_base(store)
    assert command in str(caught.value)
    store.write(LATEST, b"{}")
    assert command in advice(store)


def test_a_damaged_version_is_not_advised(store: Store) -> None:
    make(store, "1-a", None)
    store.write(manifest_name("2-b"), b"{")
    assert f"'{store.url}' 1-a`" in advice(store)


def test_only_held_versions_are_named_with_the_gate(store: Store) -> None:
    make(store, "1-a", None, "half of the rows are gone")
    assert "1-a is held back by a gate (half of the rows are gone). Check it, then publish it" in advice(store)
