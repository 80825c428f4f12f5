"""LATEST.json is read, also from earlier releases, and any changed field is detected."""

import json
from pathlib import Path

import pytest

from epithre_beam.configs.errors import CatalogError, NoCatalogError
from epithre_beam.index import Store, read_latest
from epithre_beam.index.publish.publish import publish
from epithre_beam.index.versions.latest import nothing_published
from epithre_beam.index.versions.layout import LATEST

from ..manifests import latest_of, make_manifest, publish_new


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_latest_json_of_an_earlier_release_is_read_and_swapped(store: Store) -> None:
    old = b'{\n  "version": "1-a",\n  "manifest_sha256": "%s"\n}\n' % (b"0" * 64)
    store.write(LATEST, old)
    assert read_latest(store) == (old, "1-a", "0" * 64)
    publish(store, make_manifest(store, "2-b", "1-a"), old)
    assert json.loads(latest_of(store))["version"] == "2-b"


def test_what_an_interrupted_first_run_left_is_no_catalog_yet(store: Store) -> None:
    store.write("units/a.parquet", b"x")
    with pytest.raises(NoCatalogError, match=r"no version is published yet.*Run the job again to continue"):
        raise nothing_published(store)


def test_missing_or_changed_field_in_latest_json_raises(store: Store) -> None:
    latest = json.loads(publish_new(store, "1-a", None))
    for name in latest:
        for value in (None, "other", ["other"]):
            changed = {k: v for k, v in latest.items() if k != name} | ({} if value is None else {name: value})
            store.write(LATEST, json.dumps(changed).encode())
            with pytest.raises(CatalogError, match=r"LATEST\.json must have a version and a manifest_sha256"):
                read_latest(store)
