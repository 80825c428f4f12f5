"""All versions of a catalog are listed, oldest first, including damaged ones and ones held by a gate."""

from pathlib import Path
from typing import Any

import pytest

from epithre_beam.configs.errors import CatalogError, NoCatalogError, UnknownVersionError
from epithre_beam.index import Store, read_latest
from epithre_beam.index.versions.complete import existing_versions
from epithre_beam.index.versions.history import find_version, list_versions, version_before
from epithre_beam.index.versions.layout import manifest_name, version_folder

from ..manifests import make_manifest, publish_new


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_empty_catalog_has_no_versions(store: Store) -> None:
    assert existing_versions(store) == []
    assert list_versions(store, None) == []


def test_folders_with_a_manifest_are_versions(store: Store) -> None:
    publish_new(store, "2-b", None)
    make_manifest(store, "3-held-by-gate", "2-b")
    make_manifest(store, "1-a", None)
    store.write(f"{version_folder('4-unfinished')}/vectors/text.parquet", b"x")
    assert existing_versions(store) == ["1-a", "2-b", "3-held-by-gate"]
    found = list_versions(store, read_latest(store))
    assert [(info.version, info.is_published) for info in found] == [
        ("1-a", False),
        ("2-b", True),
        ("3-held-by-gate", False),
    ]
    assert [info.manifest and info.manifest.version for info in found] == ["1-a", "2-b", "3-held-by-gate"]


def test_a_name_or_its_beginning_names_a_version_and_the_newest_are_listed_where_it_does_not(store: Store) -> None:
    for number in range(12):
        make_manifest(store, f"{number:03d}-x", None)
    store.write(f"{version_folder('020-damaged')}/vectors/text.parquet", b"x")
    assert find_version(store, "003-x") == find_version(store, "003") == "003-x"
    assert find_version(store, "020-damaged") == "020-damaged"
    named = ", ".join(f"{number:03d}-x" for number in range(2, 12))
    for wrong in ("12", "", "../003-x", "020"):
        with pytest.raises(UnknownVersionError, match=f"has no version '{wrong}'. It has {named} and 2 older"):
            find_version(store, wrong)
    with pytest.raises(UnknownVersionError, match=r"3 versions fit '01': 001-x, 010-x, 011-x\. Give more"):
        find_version(store, "01")


def test_leading_zeros_of_a_number_may_be_left_out(store: Store) -> None:
    for name in ("000008-x", "000009-y", "000010-a", "000010-b", "900000-z"):
        make_manifest(store, name, None)
    assert find_version(store, "8") == find_version(store, "008") == "000008-x"
    assert find_version(store, "000009") == "000009-y"
    with pytest.raises(UnknownVersionError, match=r"2 versions fit '9': 000009-y, 900000-z\. Give more"):
        find_version(store, "9")
    with pytest.raises(UnknownVersionError, match=r"2 versions fit '10': 000010-a, 000010-b\. Give more"):
        find_version(store, "10")
    for wrong in ("80", "²", "9" * 5_000):
        with pytest.raises(UnknownVersionError, match="has no version"):
            find_version(store, wrong)


def test_where_there_is_no_catalog_no_version_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(NoCatalogError, match="there is no catalog here"):
            find_version(Store(str(folder)), "1")


def test_damaged_version_is_listed_with_the_reason(store: Store) -> None:
    publish_new(store, "1-a", None)
    publish_new(store, "2-b", "1-a")
    store.write(manifest_name("1-a"), b"{")
    latest = read_latest(store)
    store.write(
        manifest_name("2-b"), make_manifest(store, "2-b", None).to_bytes()
    )  # valid, but not the published manifest
    older, newer = list_versions(store, latest)
    assert (older.manifest, newer.manifest) == (None, None)
    assert "is not a valid manifest" in (older.damage or "")
    assert "must have sha256" in (newer.damage or "")


def test_missing_published_version_is_listed(store: Store) -> None:
    publish_new(store, "1-a", None)
    store.delete(version_folder("1-a"))
    (found,) = list_versions(store, read_latest(store))
    assert (found.version, found.is_published, found.size_bytes, found.manifest) == ("1-a", True, 0, None)
    assert "is missing" in (found.damage or "")


def test_size_of_a_version_includes_all_its_files(own_copy: Any) -> None:
    version = own_copy.manifest.version
    files = [path for path in (own_copy.folder / "versions" / version).rglob("*") if path.is_file()]
    (found,) = list_versions(own_copy.store, read_latest(own_copy.store))
    assert found.size_bytes == sum(path.stat().st_size for path in files)
    assert found.modified_s == pytest.approx(max(path.stat().st_mtime for path in files))


def test_version_before_is_the_previous_of_the_published(store: Store) -> None:
    publish_new(store, "1-a", None)
    with pytest.raises(CatalogError, match="has no version before 1-a, its first version"):
        version_before(store)
    publish_new(store, "2-b", "1-a")
    make_manifest(store, "3-held-by-gate", "2-b")
    assert version_before(store) == "1-a"
