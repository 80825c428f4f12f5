"""A version is published only over the LATEST.json that its run read, and never if it is condemned."""

import json
from pathlib import Path
from typing import Any

import pytest

from epithre_beam.configs.errors import SwapConflictError
from epithre_beam.index import Store, read_latest
from epithre_beam.index.publish.publish import fence, how_it_ended, publish
from epithre_beam.index.versions.latest import condemned_in
from epithre_beam.index.versions.layout import LATEST, manifest_name

from ..manifests import latest_of, make_manifest, publish_new


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def test_publish_needs_the_latest_json_that_the_run_read(own_copy: Any) -> None:
    latest = read_latest(own_copy.store)
    assert latest is not None
    began, version, _ = latest
    assert version == own_copy.manifest.version
    next_one = own_copy.manifest.model_copy(update={"version": "000002-a"})
    other = own_copy.manifest.model_copy(update={"version": "000002-b"})
    for manifest in (next_one, other):
        own_copy.store.write(manifest_name(manifest.version), manifest.to_bytes())
    publish(own_copy.store, next_one, began)
    for expected in (began, None):
        with pytest.raises(SwapConflictError, match=r"LATEST\.json: another run changed it"):
            publish(own_copy.store, other, expected)
    latest = read_latest(own_copy.store)
    assert latest is not None
    assert latest.version == "000002-a"


def test_latest_json_never_has_the_same_content_twice(store: Store) -> None:
    """From A to B and back to A: a run that read the first A is refused."""
    first = publish_new(store, "1-a", None)
    publish_new(store, "2-b", "1-a")
    again = make_manifest(store, "1-a", None)
    publish(store, again, latest_of(store))
    found = read_latest(store)
    assert found is not None
    assert found[1] == "1-a"
    assert found[0] != first
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "3-c", "1-a"), first)


def test_publishing_repairs_a_damaged_latest_json(store: Store) -> None:
    publish_new(store, "1-a", None)
    store.write(LATEST, b"{")
    publish(store, make_manifest(store, "1-a", None), b"{")
    assert json.loads(latest_of(store))["version"] == "1-a"


# ---------------------------------------------------------------------------------------------------- outcome


def test_outcome_is_read_from_the_current_version_and_its_ancestors(store: Store) -> None:
    first = publish_new(store, "1-a", None)
    assert how_it_ended(store, "2-b", first) == "unknown"  # the request may be pending
    second = publish_new(store, "2-b", "1-a")
    assert how_it_ended(store, "2-b", first) == "published"
    publish_new(store, "3-c", "2-b")
    assert how_it_ended(store, "2-b", first) == "published"
    assert how_it_ended(store, "2-x", first) == "conflict"
    assert how_it_ended(store, "1-a", second) == "conflict"  # a rollback to 1-a that came too late
    store.delete(manifest_name("2-b"))
    assert how_it_ended(store, "2-b", first) == "published"  # still the previous version of 3-c
    assert how_it_ended(store, "2-x", first) == "unknown"  # it may be older than the pruned version
    store.write(LATEST, b"{")
    assert how_it_ended(store, "2-b", first) == "unknown"


def test_rollback_that_loses_the_race_raises(store: Store) -> None:
    """The target of the rollback is an ancestor of the version that won."""
    publish_new(store, "1-a", None)
    second = publish_new(store, "2-b", "1-a")
    publish_new(store, "3-c", "2-b")
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "1-a", None), second)


def test_refusal_is_certain_even_if_ancestors_are_pruned(store: Store) -> None:
    """Nothing was sent, so the outcome cannot be unknown."""
    first = publish_new(store, "1-a", None)
    publish_new(store, "2-b", "1-a")
    publish_new(store, "3-c", "2-b")
    store.delete(manifest_name("2-b"))
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "2-x", "1-a"), first)


# ---------------------------------------------------------------------------------------------------- the fence


def test_fence_does_nothing_if_nothing_is_published(store: Store) -> None:
    assert fence(store) is None
    assert store.names("") == []


def test_fence_refuses_runs_that_read_before_it(store: Store) -> None:
    before = publish_new(store, "1-a", None)
    after = fence(store)
    assert after == latest_of(store) != before
    found = read_latest(store)
    assert found is not None
    assert found[1] == "1-a"
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "2-b", "1-a"), before)
    publish(store, make_manifest(store, "2-b", "1-a"), after)


def test_condemned_version_is_never_published_again(store: Store) -> None:
    publish_new(store, "1-a", None)
    publish_new(store, "2-b", "1-a")
    fence(store, ["1-a"])
    publish_new(store, "3-c", "2-b")
    fence(store, ["2-b"])
    assert condemned_in(latest_of(store)) == ("1-a", "2-b")
    for version in ("1-a", "2-b"):
        with pytest.raises(SwapConflictError, match=f"prune is deleting version {version}"):
            publish(store, make_manifest(store, version, None), latest_of(store))


def test_fence_drops_names_of_deleted_versions(store: Store) -> None:
    publish_new(store, "1-a", None)
    publish_new(store, "2-b", "1-a")
    fence(store, ["1-a"])
    store.delete(manifest_name("1-a"))
    assert condemned_in(fence(store)) == ()


def test_current_version_cannot_be_condemned(store: Store) -> None:
    before = publish_new(store, "1-a", None)
    with pytest.raises(SwapConflictError, match="was published in the meantime"):
        fence(store, ["1-a"])
    assert latest_of(store) == before
