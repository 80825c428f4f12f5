"""Empty versions for tests of publishing."""

from epithre_beam.index import Manifest, Store, read_latest
from epithre_beam.index.publish.publish import publish
from epithre_beam.index.versions.layout import manifest_name
from epithre_beam.index.versions.manifest import Counts


def make_manifest(store: Store, version: str, previous: str | None) -> Manifest:
    """Writes the manifest of an empty version."""
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


def latest_of(store: Store) -> bytes:
    latest = read_latest(store)
    assert latest is not None
    return latest.data


def publish_new(store: Store, version: str, previous: str | None) -> bytes:
    """Publishes a new version and returns the content of LATEST.json."""
    expected = None if previous is None else latest_of(store)
    publish(store, make_manifest(store, version, previous), expected)
    return latest_of(store)
