"""A comparison gives the same states as brute force, every row once, and no row of a damaged file."""

import datetime
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import SourceConfig
from epithre_beam.configs.errors import SourceError
from epithre_beam.index import Manifest, Reason, Store
from epithre_beam.index.publish.write_manifest import write_manifest
from epithre_beam.index.vectors.shards import write_tables
from epithre_beam.index.versions.layout import (
    DEAD_LETTER_SCHEMA,
    asset_fields,
    dead_letters_name,
    vector_schema,
    vectors_name,
)
from epithre_beam.index.versions.manifest import Counts, FileEntry, ManifestDraft
from epithre_beam.transforms.planning.compare import Comparison
from epithre_beam.transforms.sources.references import UNKNOWN, reference_schema

Row = dict[str, Any]
VERSION = "000001-20250102T030405Z-abcdef"
TYPES = {"at": "timestamp", "day": "date", "lang": "string", "ok": "bool", "price": "double", "stock": "int"}


def write_version(
    store: Store, rows: list[Row], dead: list[Row], types: dict[str, str], rows_per_file: int, rows_per_group: int
) -> Manifest:
    """Write a version with the given assets, one-dimensional vectors and no index."""
    schema = vector_schema(1, types)
    files: list[FileEntry] = []
    for kind in ("image", "text"):
        own = [row for row in rows if row["kind"] == kind]
        parts = [own[i : i + rows_per_file] for i in range(0, len(own), rows_per_file)]
        for shard, part in enumerate(parts):
            blank = {field.name: None for field in asset_fields()}
            table = pa.Table.from_pylist([{**blank, "embedding": [1.0], **row} for row in part], schema=schema)
            name = vectors_name(VERSION, kind, shard, len(parts))
            files.append(write_tables(store, name, [table], schema, rows_per_group))
    if dead:
        name = dead_letters_name(VERSION)
        with store.open_write(name) as file:
            pq.write_table(pa.Table.from_pylist(dead, schema=DEAD_LETTER_SCHEMA), pa.PythonFile(file, mode="w"))
        files.append(FileEntry(name=name, size_bytes=file.size_bytes, sha256=file.sha256, rows=len(dead)))
    counts = Counts(assets=len(rows) + len(dead), per_kind={}, embedded=0, reused=0, deduplicated=0, dead=len(dead))
    draft = ManifestDraft(
        version=VERSION, previous=None, software="tests", model="m", model_fingerprint=None, dimension=1,
        metadata_types=types, counts=counts, files=files, indexes=[], gate_failures=(), config={}, timings_s={},
    )  # fmt: skip
    return write_manifest(store, draft)


def stored(row: Row) -> Row:
    """Return a reference as a row of a version."""
    names = ("asset_id", "kind", "uri", "text", "fingerprint", "metadata")
    return {name: row[name] for name in names if name in row} | {"content_sha256": row["content"]}


def letter(row: Row, reason: Reason) -> Row:
    names = ("asset_id", "kind", "uri", "fingerprint")
    return {name: row[name] for name in names} | {"stage": "s", "reason": reason.value, "detail": "d", "attempts": 1}


def listed(rows: list[Row], types: dict[str, str]) -> pa.Table:
    schema = reference_schema(types)
    blank = {"source": 0, **dict.fromkeys(schema.names)}
    return pa.Table.from_pylist([{**blank, **row, "source": 0} for row in rows], schema=schema)


@st.composite
def days(draw: st.DrawFn) -> tuple[list[Row], list[Row], list[Row]]:
    """Draw (rows of a version, its dead letters, current references)."""
    before, dead, today = [], [], []
    for number in range(draw(st.integers(0, 60))):
        kind = draw(st.sampled_from(["image", "text"]))
        print_ = draw(st.sampled_from(["a", "b", UNKNOWN]))
        row = {"asset_id": f"{number}", "kind": kind, "uri": draw(st.sampled_from([None, "x", "y"]))}
        row |= {"fingerprint": print_, "content": f"{number % 9}", "size_bytes": number % 5}
        fate = draw(st.sampled_from(["row", "row", "row", "dead", "transient", "absent"]))
        if fate == "row":
            before.append(stored(row))
        elif fate != "absent":
            dead.append(letter(row, Reason.UNDECODABLE if fate == "dead" else Reason.UNREADABLE))
        change = draw(st.sampled_from(["same", "same", "fingerprint", "uri", "gone"]))
        if change == "fingerprint":
            row["fingerprint"] = "c"
        if change == "uri":
            row["uri"] = "z"
        if change != "gone":
            today.append(row)
    return before, dead, draw(st.permutations(today))


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(days(), st.integers(1, 30), st.integers(1, 9), st.booleans())
def test_states_match_brute_force_and_rows_are_kept_once_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[Row], list[Row], list[Row]],
    rows_per_file: int,
    rows_per_group: int,
    retry_dead: bool,
) -> None:
    before, dead, today = drawn
    store = Store(str(tmp_path_factory.mktemp("c")))
    manifest = write_version(store, before, dead, {}, rows_per_file, rows_per_group)
    old = {(row["kind"], row["asset_id"]): row for row in before}
    failed = {} if retry_dead else {(row["kind"], row["asset_id"]): row for row in dead}

    def is_same(row: Row, other: Row | None) -> bool:
        return (
            other is not None
            and row["fingerprint"] != UNKNOWN
            and all(row[name] == other[name] for name in ("uri", "fingerprint"))
        )

    unchanged = [row for row in today if is_same(row, old.get((row["kind"], row["asset_id"])))]
    resolved = [
        row
        for row in today
        if is_same(row, failed.get((row["kind"], row["asset_id"])))
        and not Reason(failed[row["kind"], row["asset_id"]]["reason"]).is_transient
    ]
    rest = [row for row in today if row not in unchanged and row not in resolved]
    new = [row for row in rest if (row["kind"], row["asset_id"]) not in {**old, **failed}]
    with Comparison({}) as comparison:
        comparison.add_references(listed(today, {}))
        assert comparison.set_base(store, manifest, retry_dead=retry_dead) == []
        changes = comparison.changes()
        kept = list(comparison.kept())
        todo = [row for table in comparison.todo() for row in table.to_pylist()]
        letters = [row for table in comparison.dead_letters() for row in table.to_pylist()]
        gone = [row for table in comparison.deleted_contents() for row in table.to_pylist()]
    assert sum(changes.assets.values()) == len(today)
    assert sum(changes.unchanged.values()) == len(unchanged)
    assert sum(changes.new.values()) == len(new)
    assert changes.todo == len(rest) == len(todo)
    assert {(row["kind"], row["asset_id"]) for row in todo} == {(row["kind"], row["asset_id"]) for row in rest}
    for row in todo:
        assert row["previous_sha256"] == old.get((row["kind"], row["asset_id"]), {}).get("content_sha256")
    assert letters == [failed[key] for key in sorted((row["kind"], row["asset_id"]) for row in resolved)]
    listed_ids = {(row["kind"], row["asset_id"]) for row in today}
    deleted = [row for key, row in old.items() if key not in listed_ids]
    assert sum(changes.deleted.values()) == len(deleted)
    assert {(row["kind"], row["content_sha256"]) for row in gone} == {(r["kind"], r["content_sha256"]) for r in deleted}
    # In the order of the version, each row at its stored position.
    found = []
    for group in kept:
        table = pq.ParquetFile(store.local_path(group.file)).read_row_group(group.group)
        ids = table.column("asset_id").take(group.rows.column("position")).to_pylist()
        assert ids == group.rows.column("asset_id").to_pylist()
        assert group.rows.column("position").to_pylist() == sorted(group.rows.column("position").to_pylist())
        found += [(group.kind, name) for name in ids]
    assert len({(group.file, group.group) for group in kept}) == len(kept)
    same = {(row["kind"], row["asset_id"]) for row in unchanged}
    order = [(r["kind"], r["asset_id"]) for kind in ("image", "text") for r in before if r["kind"] == kind]
    assert found == [key for key in order if key in same]
    assert changes.is_nothing == (not rest and not deleted)


def metadata(number: int) -> Row:
    return {
        "at": datetime.datetime(2026, 1, 1 + number % 28, 3, 4, 5, 678, tzinfo=datetime.UTC),
        "day": datetime.date(1960, 1, 1 + number % 28),
        "lang": ["id", "en", None, 'o"\n'][number % 4],
        "ok": [True, False, None][number % 3],
        "price": [0.1, math.nan, None, -math.inf, 1e300][number % 5],
        "stock": [2**62, -1, None][number % 3],
    }


def test_metadata_of_every_type_is_kept_and_compared(tmp_path: Path) -> None:
    rows = [
        {"asset_id": f"{i:03d}", "kind": "text", "uri": None, "text": f"{i}", "fingerprint": "f", "content": "c",
         "size_bytes": 1, "metadata": metadata(i)}
        for i in range(60)
    ]  # fmt: skip
    store = Store(str(tmp_path))
    manifest = write_version(store, [stored(row) for row in rows], [], TYPES, 100, 25)
    today = listed(rows, TYPES)
    with Comparison(TYPES) as comparison:
        comparison.add_references(today)
        comparison.set_base(store, manifest, retry_dead=False)
        assert comparison.changes().is_nothing
        kept = pa.concat_tables([group.rows for group in comparison.kept()])
        assert str(kept.column("metadata").to_pylist()) == str(today.column("metadata").to_pylist())
        assert kept.schema.field("metadata").type == today.schema.field("metadata").type
    for name in TYPES:
        rows[7]["metadata"] = metadata(7) | {name: metadata(6)[name]}
        with Comparison(TYPES) as comparison:
            comparison.add_references(listed(rows, TYPES))
            comparison.set_base(store, manifest, retry_dead=False)
            changes = comparison.changes()
        assert (changes.other_metadata, changes.todo, changes.is_nothing) == (1, 0, False), name


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "longer", "foreign"])
def test_rows_of_damaged_file_are_not_kept(tmp_path: Path, damage: str) -> None:
    rows = [
        {"asset_id": f"{i:03d}", "kind": "text", "uri": None, "fingerprint": "f", "content": "c" * 64, "size_bytes": 1}
        for i in range(90)
    ]
    store = Store(str(tmp_path))
    manifest = write_version(store, [stored(row) for row in rows], [], {}, 30, 10)
    name = vectors_name(VERSION, "text", 1, 3)
    path = store.local_path(name)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 3] ^= 1
    path.write_bytes(
        {"flipped": data, "cut": data[:50], "longer": data + b"x", "foreign": bytes(len(data))}.get(damage, b"")
    )
    if damage == "missing":
        path.unlink()
    with Comparison({}) as comparison:
        comparison.add_references(listed(rows, {}))
        bad = comparison.set_base(store, manifest, retry_dead=False)
        changes = comparison.changes()
        kept = [name for group in comparison.kept() for name in group.rows.column("asset_id").to_pylist()]
    if damage == "flipped" and not bad:  # the damage is in a column that is read later, with every page checked
        assert len(kept) == 90
        return
    assert bad == [name]
    assert kept == [row["asset_id"] for row in rows[:30] + rows[60:]]
    assert changes.new == {"text": 30}
    assert changes.deleted == {}


def test_dead_letters_of_older_release_are_retried(tmp_path: Path) -> None:
    row = {"asset_id": "a", "kind": "text", "uri": None, "fingerprint": "f", "content": "c", "size_bytes": 1}
    store = Store(str(tmp_path))
    manifest = write_version(store, [], [letter(row, Reason.EMPTY_TEXT)], {}, 30, 10)
    path = store.local_path(dead_letters_name(VERSION))
    pq.write_table(pq.read_table(path).drop_columns(["fingerprint"]), path)
    with Comparison({}) as comparison:
        comparison.add_references(listed([row], {}))
        comparison.set_base(store, manifest, retry_dead=False)
        assert comparison.changes().todo == 1


def test_duplicate_id_error_names_both_places() -> None:
    rows = [
        {"asset_id": "a", "kind": "image", "uri": f"/pictures/{i}.jpg", "fingerprint": "f", "size_bytes": 1}
        for i in range(3)
    ]
    sources = [SourceConfig(kind="image", files="pictures")]
    with Comparison({}) as comparison:
        comparison.add_references(listed(rows, {}))
        with pytest.raises(SourceError, match=r"image 'a' occurs 3 times, in sources\[0\] \(/pictures/0.jpg\) and"):
            comparison.check_ids(sources)


def test_temporary_files_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Comparison({}) as comparison:
        comparison.add_references(listed([{"asset_id": "a", "kind": "text", "fingerprint": "f"}], {}))
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


_COMPARE = """
import hashlib, sys
import numpy as np
import pyarrow as pa
from epithre_beam.index import Store
from epithre_beam.index.vectors.shards import write_tables
from epithre_beam.index.versions.layout import asset_fields, vector_schema, vectors_name
from epithre_beam.index.versions.manifest import Counts
from epithre_beam.index.publish.write_manifest import write_manifest
from epithre_beam.index.versions.manifest import ManifestDraft
from epithre_beam.transforms.planning.compare import Comparison
from epithre_beam.transforms.sources.references import reference_schema

rows, store = int(sys.argv[1]), Store(sys.argv[2])

def columns(start, changed):
    numbers = range(start, min(start + 8000, rows))
    texts = [f"{i} {'word ' * 20}{'!' if changed and i % 100 == 0 else ''}" for i in numbers]
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    count = len(texts)
    return {"asset_id": [f"{i:09d}" for i in numbers], "kind": ["text"] * count, "text": texts,
            "content_sha256": hashes, "fingerprint": [f"sha256:{h}" for h in hashes], "source": [0] * count,
            "size_bytes": [len(t) for t in texts], "embedding": [[1.0]] * count}

def table(schema, start, changed):
    found = columns(start, changed)
    return pa.Table.from_pydict(
        {f.name: found.get(f.name, [None] * len(found["kind"])) for f in schema}, schema=schema)

schema = vector_schema(1, {})
name = vectors_name("000001-x", "text", 0, 1)
entry = write_tables(store, name, (table(schema, i, False) for i in range(0, rows, 8000)), schema)
counts = Counts(assets=rows, per_kind={}, embedded=0, reused=0, deduplicated=0, dead=0)
manifest = write_manifest(store, ManifestDraft(
    version="000001-x", previous=None, software="", model="", model_fingerprint=None, dimension=1, metadata_types={},
    counts=counts, files=[entry], indexes=[], gate_failures=(), config={}, timings_s={}))
with Comparison({}) as comparison:
    for start in range(0, rows, 8000):
        comparison.add_references(table(reference_schema({}), start, True))
    comparison.set_base(store, manifest, retry_dead=False)
    changes = comparison.changes()
    assert changes.todo == sum(map(len, comparison.todo())) == len(range(0, rows, 100))
    assert sum(len(group.rows) for group in comparison.kept()) == rows - changes.todo
# Not ru_maxrss: it starts with the value of the parent process.
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: peak memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_references(tmp_path: Path) -> None:
    """Measured with more references than fit into the memory limit."""

    def peak_mb(rows: int) -> int:
        command = [sys.executable, "-c", _COMPARE, str(rows), str(tmp_path / str(rows))]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    small, large = peak_mb(100_000), peak_mb(400_000)
    assert large < 500
    assert large - small < 120, (small, large)  # four times the references; their texts alone are 40 MB more


@settings(max_examples=30, deadline=None)
@given(days(), st.booleans(), st.data())
def test_overlap_and_replaced_rows_match_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[Row], list[Row], list[Row]],
    is_reusable: bool,
    data: st.DataObject,
) -> None:
    before, dead, today = drawn
    for row in before:
        row["size_bytes"] = data.draw(st.sampled_from([None, 1, 2]))
    for row in today:
        row["size_bytes"] = data.draw(st.sampled_from([None, 1, 2]))
        if row["kind"] == "text":
            row["fingerprint"] = f"sha256:{data.draw(st.sampled_from([row['content'], 'other']))}"
    store = Store(str(tmp_path_factory.mktemp("c")))
    manifest = write_version(store, before, dead, {}, 7, 3)
    old = {(row["kind"], row["asset_id"]): row for row in before}
    certain, possible, shared = dict.fromkeys(("image", "text"), 0), dict.fromkeys(("image", "text"), 0), 0
    for row in today:
        was = old.get((row["kind"], row["asset_id"]))
        if was is None:
            continue
        is_other = was["size_bytes"] is not None and row["fingerprint"] != was["fingerprint"]
        if row["kind"] == "text":
            is_other = is_other and row["fingerprint"] != f"sha256:{was['content_sha256']}"
            is_open = False
        else:
            is_other = is_other and row["size_bytes"] is not None and row["size_bytes"] != was["size_bytes"]
            is_same = row["fingerprint"] == was["fingerprint"] != UNKNOWN and row["uri"] == was["uri"]
            is_open = was["size_bytes"] is not None and not is_other and not is_same
        shared += not is_other
        certain[row["kind"]] += is_other
        possible[row["kind"]] += is_open
    listed_ids = {(row["kind"], row["asset_id"]) for row in today}
    with Comparison({}) as comparison:
        comparison.add_references(listed(today, {}))
        comparison.set_base(store, manifest, is_reusable=is_reusable)
        assert comparison.overlap() == (len(today), len(before), shared)
        found = comparison.replaced()
        changes = comparison.changes()
    for kind in ("image", "text"):
        assert found.get(kind, (0, 0)) == (certain[kind], possible[kind])
        assert changes.gone.get(kind, 0) == sum(key[0] == kind and key not in listed_ids for key in old)
    assert changes.deleted == (changes.gone if is_reusable else {})
    assert is_reusable or sum(changes.new.values()) == len(today)
