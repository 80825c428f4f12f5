"""LATEST.json never holds the same content twice, shows damage, and a fence keeps out who read it before."""

import json
from pathlib import Path

import pytest

from epithre_beam.index import CatalogError, Manifest, Store, read_latest
from epithre_beam.index.layout import LATEST, manifest_name
from epithre_beam.index.manifest import Counts, condemned_in, fence, how_it_ended, publish
from epithre_beam.index.store import SwapConflictError


def make_manifest(store: Store, version: str, previous: str | None) -> Manifest:
    """Writes the manifest of a version that holds nothing."""
    manifest = Manifest(
        version=version,
        previous=previous,
        created_at="2026-11-22T00:00:00Z",
        software="test",
        nonce=version,
        model="m",
        model_fingerprint=None,
        dimension=4,
        faiss_version="1",
        metadata_types={},
        counts=Counts(assets=0, per_kind={}, embedded=0, reused=0, deduplicated=0, dead=0),
        files=(),
        indexes=(),
        config={},
        timings_s={},
    )
    store.write(manifest_name(version), manifest.to_bytes())
    return manifest


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def latest_of(store: Store) -> bytes:
    latest = read_latest(store)
    assert latest is not None
    return latest[0]


def publish_new(store: Store, version: str, previous: str | None) -> bytes:
    """What LATEST.json holds after it."""
    expected = None if previous is None else latest_of(store)
    publish(store, make_manifest(store, version, previous), expected)
    return latest_of(store)


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


def test_a_pointer_of_an_earlier_release_is_read_and_swapped(store: Store) -> None:
    old = b'{\n  "version": "1-a",\n  "manifest_sha256": "00"\n}\n'
    store.write(LATEST, old)
    assert read_latest(store) == (old, "1-a", "00")
    publish(store, make_manifest(store, "2-b", "1-a"), old)
    assert json.loads(latest_of(store))["version"] == "2-b"


def test_a_pointer_with_a_field_missing_or_changed_is_damaged(store: Store) -> None:
    latest = json.loads(publish_new(store, "1-a", None))
    for name in latest:
        for value in (None, "other", ["other"]):
            changed = {k: v for k, v in latest.items() if k != name} | ({} if value is None else {name: value})
            store.write(LATEST, json.dumps(changed).encode())
            with pytest.raises(CatalogError, match=r"LATEST\.json must hold a version and a manifest_sha256"):
                read_latest(store)


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
