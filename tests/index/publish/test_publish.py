"""A version is published once, over what its run saw, and never when it was condemned in the meantime."""

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


def test_a_version_is_published_only_over_what_was_there_when_its_run_began(own_copy: Any) -> None:
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
        with pytest.raises(SwapConflictError, match=r"LATEST\.json was changed by another run"):
            publish(own_copy.store, other, expected)
    latest = read_latest(own_copy.store)
    assert latest is not None
    assert latest.version == "000002-a"


def test_the_pointer_never_holds_the_same_content_twice(store: Store) -> None:
    """To B and back to A: who read the first A is refused all the same."""
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


def test_a_damaged_pointer_is_mended_by_publishing(store: Store) -> None:
    publish_new(store, "1-a", None)
    store.write(LATEST, b"{")
    publish(store, make_manifest(store, "1-a", None), b"{")
    assert json.loads(latest_of(store))["version"] == "1-a"


# ---------------------------------------------------------------------------------------------------- how it ended


def test_an_attempt_is_judged_by_what_is_in_force_and_what_came_before_it(store: Store) -> None:
    first = publish_new(store, "1-a", None)
    assert how_it_ended(store, "2-b", first) == "unknown"  # it may be under way
    second = publish_new(store, "2-b", "1-a")
    assert how_it_ended(store, "2-b", first) == "published"
    publish_new(store, "3-c", "2-b")
    assert how_it_ended(store, "2-b", first) == "published"
    assert how_it_ended(store, "2-x", first) == "conflict"
    assert how_it_ended(store, "1-a", second) == "conflict"  # a way back to 1-a that came too late
    store.delete(manifest_name("2-b"))
    assert how_it_ended(store, "2-b", first) == "published"  # still named by what follows it
    assert how_it_ended(store, "2-x", first) == "unknown"  # it may have come before what was pruned
    store.write(LATEST, b"{")
    assert how_it_ended(store, "2-b", first) == "unknown"


def test_a_way_back_that_loses_its_race_is_not_taken_for_done(store: Store) -> None:
    """The version that it leads to is an ancestor of whatever won."""
    publish_new(store, "1-a", None)
    second = publish_new(store, "2-b", "1-a")
    publish_new(store, "3-c", "2-b")
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "1-a", None), second)


def test_a_refusal_stays_a_refusal_where_the_past_was_pruned(store: Store) -> None:
    """Nothing was sent, so that nothing can be unknown."""
    first = publish_new(store, "1-a", None)
    publish_new(store, "2-b", "1-a")
    publish_new(store, "3-c", "2-b")
    store.delete(manifest_name("2-b"))
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "2-x", "1-a"), first)


# ---------------------------------------------------------------------------------------------------- the fence


def test_where_nothing_is_published_there_is_no_fence(store: Store) -> None:
    assert fence(store) is None
    assert store.names("") == []


def test_a_fence_changes_nothing_but_keeps_out_who_read_before_it(store: Store) -> None:
    before = publish_new(store, "1-a", None)
    after = fence(store)
    assert after == latest_of(store) != before
    found = read_latest(store)
    assert found is not None
    assert found[1] == "1-a"
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "2-b", "1-a"), before)
    publish(store, make_manifest(store, "2-b", "1-a"), after)


def test_a_condemned_version_is_never_published_again_whatever_is_published_meanwhile(store: Store) -> None:
    publish_new(store, "1-a", None)
    publish_new(store, "2-b", "1-a")
    fence(store, ["1-a"])
    publish_new(store, "3-c", "2-b")
    fence(store, ["2-b"])
    assert condemned_in(latest_of(store)) == ("1-a", "2-b")
    for version in ("1-a", "2-b"):
        with pytest.raises(SwapConflictError, match=f"has condemned version {version}"):
            publish(store, make_manifest(store, version, None), latest_of(store))


def test_names_of_what_is_gone_are_forgotten(store: Store) -> None:
    publish_new(store, "1-a", None)
    publish_new(store, "2-b", "1-a")
    fence(store, ["1-a"])
    store.delete(manifest_name("1-a"))
    assert condemned_in(fence(store)) == ()


def test_the_version_in_force_cannot_be_condemned(store: Store) -> None:
    before = publish_new(store, "1-a", None)
    with pytest.raises(SwapConflictError, match="must not be deleted"):
        fence(store, ["1-a"])
    assert latest_of(store) == before
