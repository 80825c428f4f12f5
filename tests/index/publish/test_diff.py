"""A diff reports exactly the changed assets and settings, regardless of row order."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import Manifest, Store
from epithre_beam.index.publish.diff import CHANGES, KindDiff, diff_versions
from epithre_beam.index.versions.layout import assets_name, assets_schema
from epithre_beam.index.versions.manifest import Counts, FileEntry, IndexEntry

TYPES = {"lang": "string", "price": "double"}


@dataclass(frozen=True)
class Asset:
    asset_id: str
    content: str
    lang: str | None = "id"
    price: float | None = 1.0
    uri: str | None = None

    def row(self, kind: str) -> dict[str, Any]:
        return {
            "asset_id": self.asset_id,
            "kind": kind,
            "uri": self.uri,
            "content_sha256": hashlib.sha256(self.content.encode()).hexdigest(),
            "fingerprint": self.asset_id + self.content,
            "metadata": {"lang": self.lang, "price": self.price},
        }


def write_version(
    store: Store,
    version: str,
    assets: dict[str, Sequence[Asset]],
    *,
    batch_rows: int = 7,
    types: dict[str, str] | None = None,
    **settings: Any,
) -> Manifest:
    """Write a version with tables of assets only, since a diff reads nothing else."""
    types = TYPES if types is None else types
    schema, files, indexes = assets_schema(types), [], []
    for kind, rows in assets.items():
        name = assets_name(version, kind)
        with store.open_write(name) as file, pa.ipc.new_file(pa.PythonFile(file, mode="w"), schema) as writer:
            for first in range(0, len(rows), batch_rows):
                values = [asset.row(kind) for asset in rows[first : first + batch_rows]]
                writer.write_table(pa.Table.from_pylist(values, schema=schema))
        entry = FileEntry(name=f"index/{kind}-assets.arrow", size_bytes=file.size_bytes, sha256=file.sha256)
        files.append(entry)
        figures: dict[str, Any] = {"recall_k": 1, "recall": {}, "scores": {}, "resident_bytes": 0, "factory": "x"}
        indexes.append(IndexEntry(kind=kind, files=("x",), assets=entry.name, rows=len(rows), **figures))
    fields: dict[str, Any] = {
        "model": "m",
        "model_fingerprint": None,
        "dimension": 4,
        "config": {},
        "previous": None,
        **settings,
    }
    return Manifest(
        version=version,
        created_at="2026-11-22T00:00:00Z",
        software="test",
        nonce="",
        faiss_version="1",
        metadata_types=types,
        counts=Counts(assets=0, per_kind={}, embedded=0, reused=0, deduplicated=0, dead=0),
        files=tuple(files),
        indexes=tuple(indexes),
        timings_s={},
        **fields,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "c"))


def compare(store: Store, old: Sequence[Asset], new: Sequence[Asset], **options: int) -> KindDiff:
    before = write_version(store, "v1", {"text": old})
    after = write_version(store, "v2", {"text": new}, batch_rows=5)
    (kind,) = diff_versions(store, before, after, **options).kinds
    return kind


def counted(kind: KindDiff) -> dict[str, int]:
    return {change: count for change, count in kind.counts.items() if count}


A, B, C = (Asset(name, f"content of {name}") for name in "abc")


@pytest.mark.parametrize(
    ("old", "new", "counts", "samples"),
    [
        ([A, B], [B, A], {}, {}),
        ([A], [A, B], {"added": 1}, {"added": ("b",)}),
        ([A, B], [B], {"removed": 1}, {"removed": ("a",)}),
        ([A, B], [A, replace(B, content="other")], {"changed": 1}, {"changed": ("b",)}),
        ([A, B], [replace(A, asset_id="z"), B], {"moved": 1}, {"moved": ("a → z",)}),
        ([A, B], [A, replace(B, price=2.0)], {"metadata": 1}, {"metadata": ("b",)}),
        ([A, B], [A, replace(B, lang=None)], {"metadata": 1}, {"metadata": ("b",)}),
        ([A, B], [A, replace(B, uri="/elsewhere")], {"relocated": 1}, {"relocated": ("b",)}),
        ([A, B], [A, replace(B, uri="/x", price=2.0, content="c")], {"changed": 1}, {"changed": ("b",)}),
        # A copy counts as added while the original exists; a swap counts as two changes.
        ([A], [A, replace(A, asset_id="z")], {"added": 1}, {"added": ("z",)}),
        (
            [A, B],
            [replace(A, content=B.content), replace(B, content=A.content)],
            {"changed": 2},
            {"changed": ("a", "b")},
        ),
        # Two of three copies are paired with new names.
        (
            [replace(A, asset_id=f"a{i}") for i in range(3)],
            [replace(A, asset_id=f"z{i}") for i in range(2)],
            {"moved": 2, "removed": 1},
            None,
        ),
        ([], [A, B], {"added": 2}, {"added": ("a", "b")}),
        ([A, B], [], {"removed": 2}, {"removed": ("a", "b")}),
        ([], [], {}, {}),
    ],
)
def test_each_change_is_classified(
    store: Store, old: list[Asset], new: list[Asset], counts: dict[str, int], samples: dict[str, tuple[str, ...]] | None
) -> None:
    found = compare(store, old, new)
    assert counted(found) == counts
    assert (found.old_rows, found.new_rows) == (len(old), len(new))
    if samples is not None:
        assert {change: tuple(sorted(names)) for change, names in found.samples.items() if names} == samples


@pytest.mark.parametrize("seed", range(8))
def test_random_changes_match_a_plain_python_diff(store: Store, seed: int) -> None:
    rng = np.random.default_rng(seed)
    old = [Asset(f"é{i}", f"{rng.integers(60)}", price=float(rng.integers(3))) for i in range(100)]
    new = [
        replace(
            asset,
            asset_id=asset.asset_id + ("x" if rng.random() < 0.2 else ""),
            content=asset.content if rng.random() < 0.8 else f"{rng.integers(60)}",
            price=float(rng.integers(3)) if rng.random() < 0.3 else asset.price,
        )
        for asset in old
        if rng.random() < 0.9
    ]
    new = [new[i] for i in rng.permutation(len(new))]
    found = compare(store, old, new, samples=1000)
    before, after = {a.asset_id: a for a in old}, {a.asset_id: a for a in new}
    both = before.keys() & after.keys()
    changed = {i for i in both if before[i].content != after[i].content}
    metadata = {i for i in both - changed if before[i].price != after[i].price}
    gone = [before[i].content for i in before.keys() - both]
    come = [after[i].content for i in after.keys() - both]
    moved = sum(min(gone.count(content), come.count(content)) for content in set(gone))
    assert counted(found) == {
        change: count
        for change, count in {
            "added": len(come) - moved,
            "removed": len(gone) - moved,
            "moved": moved,
            "changed": len(changed),
            "metadata": len(metadata),
        }.items()
        if count
    }
    assert found.new_rows == found.old_rows + found.counts["added"] - found.counts["removed"]
    assert set(found.samples["changed"]) == changed
    assert set(found.samples["metadata"]) == metadata
    for sample in found.samples["moved"]:
        was, now = sample.split(" → ")
        assert before[was].content == after[now].content
        assert {was, now}.isdisjoint(both)
    shuffled = compare(store, [old[i] for i in rng.permutation(len(old))], new[::-1], samples=3)
    assert shuffled.counts == found.counts
    assert compare(store, old, new, samples=3).samples == shuffled.samples


def test_samples_are_limited_but_counts_are_not(store: Store) -> None:
    found = compare(store, [], [Asset(f"t{i:02d}", "same") for i in range(50)], samples=4)
    assert found.counts["added"] == 50
    assert len(found.samples["added"]) == 4
    assert compare(store, [], [A], samples=0).samples == dict.fromkeys(CHANGES, ())


def test_kinds_are_compared_separately_and_may_be_new(store: Store) -> None:
    old = write_version(store, "v1", {"image": [A, B]})
    new = write_version(store, "v2", {"image": [B], "text": [A]})
    image, text = diff_versions(store, old, new).kinds
    assert (image.kind, counted(image)) == ("image", {"removed": 1})
    assert (text.kind, counted(text), text.old_rows) == ("text", {"added": 1}, 0)


def test_new_metadata_column_changes_only_rows_with_a_value(store: Store) -> None:
    old = write_version(store, "v1", {"text": [A, replace(B, price=None)]}, types={"lang": "string"})
    new = write_version(store, "v2", {"text": [A, replace(B, price=None)]})
    found = diff_versions(store, old, new)
    assert counted(found.kinds[0]) == {"metadata": 1}
    assert found.settings == {"metadata.price": (None, "double")}
    bare = write_version(store, "v3", {"text": [replace(A, lang=None, price=None)]}, types={})
    full = write_version(store, "v4", {"text": [replace(A, lang=None, price=None)]})
    assert counted(diff_versions(store, bare, full).kinds[0]) == {}


def test_changed_settings_are_reported_with_both_values(store: Store) -> None:
    config = {"prepare": {"max_pixels": 10, "formats": ["png"]}, "index": {"seed": 0}, "embed": {"batch_items": 3}}
    other = {"prepare": {"max_pixels": 20, "formats": ["png"]}, "index": {"seed": 1}, "embed": {"batch_items": 4}}
    old = write_version(store, "v1", {"text": [A]}, config=config)
    new = write_version(store, "v2", {"text": [A]}, config=other, model="n", dimension=8, model_fingerprint="f")
    assert diff_versions(store, old, old).settings == {}
    assert diff_versions(store, old, new).settings == {
        "dimension": (4, 8),
        "index.seed": (0, 1),
        "model": ("m", "n"),
        "model_fingerprint": (None, "f"),
        "prepare.max_pixels": (10, 20),
    }


def test_damaged_table_raises(store: Store) -> None:
    old = write_version(store, "v1", {"text": [A, B]})
    name = assets_name("v1", "text")
    whole = store.read(name)
    for damaged in (whole[:-1], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]):
        store.write(name, damaged)
        with pytest.raises(CatalogError, match=r"text-assets\.arrow must have"):
            diff_versions(store, old, old)
    store.delete(name)
    with pytest.raises(CatalogError, match=r"text-assets\.arrow is missing"):
        diff_versions(store, old, old)


@pytest.mark.parametrize("rows", [1, 3])
def test_table_with_a_wrong_row_count_raises(store: Store, rows: int) -> None:
    old = write_version(store, "v1", {"text": [A, B]})
    wrong = old.model_copy(update={"indexes": (old.indexes[0].model_copy(update={"rows": rows}),)})
    with pytest.raises(CatalogError, match=rf"must have {rows} rows, got"):
        diff_versions(store, wrong, old)


def test_catalog_does_not_differ_from_itself(small: Any) -> None:
    found = diff_versions(small.store, small.manifest, small.manifest)
    assert [(kind.kind, kind.old_rows, counted(kind)) for kind in found.kinds] == [("image", 61, {}), ("text", 45, {})]
