"""Listing: every file that a pattern means and no other, every row of a table, and a sentence where that cannot be."""

import datetime
import fnmatch
import hashlib
import itertools
import json
import os
import random
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from epithre_beam.configs import ConfigError, PrepareConfig, RunConfig, SourceConfig
from epithre_beam.index.layout import Reason
from epithre_beam.transforms.compare import Comparison
from epithre_beam.transforms.plan import iterate_references
from epithre_beam.transforms.prepare import Unpreparable
from epithre_beam.transforms.reading import Reader
from epithre_beam.transforms.references import Reference, reference_schema, references_of
from epithre_beam.transforms.sources import (
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    SourceError,
    allowed_prefixes,
    is_within,
    list_references,
)

Row = dict[str, Any]


def listed(source: SourceConfig, position: int = 0) -> list[Row]:
    types = dict(sorted(source.metadata.items()))
    tables = list(list_references(source, position, types))
    assert all(table.schema == reference_schema(types) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def files(pattern: Path | str, kind: str = "image") -> list[Row]:
    return listed(SourceConfig.model_validate({"kind": kind, "files": str(pattern)}))


def ids(pattern: Path | str, kind: str = "image") -> list[str]:
    return [row["asset_id"] for row in files(pattern, kind)]


def table(path: Path | str, **columns: Any) -> list[Row]:
    return listed(SourceConfig.model_validate({"kind": "text", "table": str(path), "id": "id", "text": "t"} | columns))


def grow(folder: Path, *names: str) -> Path:
    """Makes files, each with its own name as its content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def contents(rows: list[Row], source: SourceConfig) -> list[bytes]:
    """The bytes that a reader finds for listed rows."""
    reader = Reader([source], PrepareConfig())
    names = Reference.__dataclass_fields__
    return [reader.read(Reference(**{name: row[name] for name in names})) for row in rows]


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


# Globs

TREE = ("a.jpg", "b.JPG", "c.png", "IMG_1.Jpeg", "sub/d.jpg", "sub/deep/e.jpg", "sub2/f.webp", "notes.txt", "x1y.jpg")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", {"a.jpg", "b.JPG", "x1y.jpg"}),
        ("**/*.jpg", {"a.jpg", "b.JPG", "x1y.jpg", "sub/d.jpg", "sub/deep/e.jpg"}),
        ("**/*.JPG", {"a.jpg", "b.JPG", "x1y.jpg", "sub/d.jpg", "sub/deep/e.jpg"}),
        ("?.jpg", {"a.jpg", "b.JPG"}),
        ("[ab].jpg", {"a.jpg", "b.JPG"}),
        ("[!a].jpg", {"b.JPG"}),
        ("x[0-9]y.jpg", {"x1y.jpg"}),
        ("*.{jpg,png}", {"a.jpg", "b.JPG", "x1y.jpg", "c.png"}),
        ("{a,c}.*", {"a.jpg", "c.png"}),
        ("{a,sub/{d,deep/e}}.jpg", {"a.jpg", "sub/d.jpg", "sub/deep/e.jpg"}),
        ("sub*/*", {"sub/d.jpg", "sub2/f.webp"}),
        ("*/**/e.jpg", {"sub/deep/e.jpg"}),
        ("**", set(TREE)),
        ("**/*", set(TREE)),
        ("*1*", {"IMG_1.Jpeg", "x1y.jpg"}),
        ("img_1.jpeg", set()),
        ("*/a.jpg", set()),
        ("sub?d.jpg", set()),
        ("sub[!x]d.jpg", set()),
        ("sub*d.jpg", set()),
    ],
)
def test_a_glob_means_these_files(tmp_path: Path, pattern: str, expected: set[str]) -> None:
    grow(tmp_path, *TREE)
    if not expected:
        with pytest.raises(ConfigError, match="matches nothing"):
            ids(tmp_path / pattern)
        return
    assert ids(tmp_path / pattern) == sorted(expected, key=lambda name: name.split("/"))


@pytest.mark.parametrize("pattern", ["sub/*.jpg", "sub/**/*.jpg"])
def test_the_id_is_the_path_below_the_fixed_part_of_the_pattern(tmp_path: Path, pattern: str) -> None:
    grow(tmp_path, *TREE)
    assert ids(tmp_path / pattern)[0] == "d.jpg"


def test_a_folder_is_all_its_pictures_and_a_file_is_itself(tmp_path: Path) -> None:
    names = [f"at{suffix}" for suffix in IMAGE_SUFFIXES] + [f"below/UP{suffix.upper()}" for suffix in IMAGE_SUFFIXES]
    grow(tmp_path, *names, "readme.txt", "page.md", "clip.mp4", "jpg")
    assert set(ids(tmp_path)) == set(ids(f"{tmp_path}/")) == set(names)
    assert set(ids(tmp_path, "text")) == {"readme.txt", "page.md"}
    assert set(TEXT_SUFFIXES) == {".txt", ".md"}
    assert ids(tmp_path / "clip.mp4") == ["clip.mp4"]  # named outright: its suffix does not matter


def test_a_file_has_one_uri_and_fingerprint_however_it_is_named(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg")
    literal, folder, glob = files(tmp_path / "a.jpg"), files(tmp_path), files(tmp_path / "*.jpg")
    assert literal == folder == glob
    assert literal[0]["size_bytes"] == 5
    assert literal[0]["uri"] == f"{tmp_path}/a.jpg"


def test_a_fingerprint_changes_with_size_and_time_and_with_nothing_else(tmp_path: Path) -> None:
    path = grow(tmp_path, "a.jpg") / "a.jpg"
    os.utime(path, ns=(1, 1_700_000_000_123_456_789))
    before = files(path)[0]["fingerprint"]
    os.utime(path, ns=(2, 1_700_000_000_123_456_789))
    assert files(path)[0]["fingerprint"] == before
    os.utime(path, ns=(2, 1_700_000_000_123_456_790))
    later = files(path)[0]["fingerprint"]
    path.write_bytes(b"longer than it was")
    os.utime(path, ns=(2, 1_700_000_000_123_456_790))
    assert len({before, later, files(path)[0]["fingerprint"]}) == 3


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path, memory: Any) -> None:
    names = ("seen.jpg", ".hidden.jpg", ".git/x.jpg", "sub/.thumbs/y.jpg", "sub/._z.jpg", "sub/seen too.jpg")
    grow(tmp_path, *names)
    for name in names:
        memory.pipe(f"/hidden/{name}", b"x")
    for folder in (f"{tmp_path}", "memory://hidden"):
        for pattern in (folder, f"{folder}/**", f"{folder}/**/*.jpg"):
            assert ids(pattern) == ["seen.jpg", "sub/seen too.jpg"]


NAMES = (
    "صورة.jpg",
    "猫と犬.jpg",
    "🐈‍⬛.jpg",
    unicodedata.normalize("NFD", "Café crème.jpg"),
    unicodedata.normalize("NFC", "Café crème.jpg"),
    "two  spaces .jpg",
    "a[1].jpg",
    "a{b,c}.jpg",
    "100%.jpg",
    "caf%E9.jpg",
    "%2e%2e%2fetc.jpg",
    "a#row=3&column=x.jpg",
    "why?.jpg",
    "star*.jpg",
    "back\\slash.jpg",
    "quote'\".jpg",
    "line\nbreak.jpg",
    "~tilde.jpg",
    "$HOME.jpg",
    "a::b.jpg",
    "-rf.jpg",
    "folder with 空間 [x]%20#/p.jpg",
)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows forbids most of these names")
def test_names_of_every_kind_are_listed_and_read_back(tmp_path: Path) -> None:
    grow(tmp_path, *NAMES)
    source = SourceConfig(kind="image", files=f"{tmp_path}/**/*.jpg")
    rows = listed(source)
    assert {row["asset_id"] for row in rows} == set(NAMES)
    assert contents(rows, source) == [row["asset_id"].encode() for row in rows]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows forbids most of these names")
@pytest.mark.parametrize("name", [name for name in NAMES if "::" not in name and not name.startswith("~")])
def test_a_file_of_any_name_can_be_named_outright(tmp_path: Path, name: str) -> None:
    grow(tmp_path, name)
    source = SourceConfig(kind="image", files=f"{tmp_path}/{name}")
    assert contents(listed(source), source) == [name.encode()]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps names that are no UTF-8")
@given(st.sets(st.binary(min_size=1, max_size=12).filter(lambda b: not {0, 47} & set(b)), min_size=1, max_size=20))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_names_that_are_no_text_are_listed_with_ids_of_their_own_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, stems: set[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    inner = os.fsencode(folder) + b"/f\xff"
    Path(os.fsdecode(inner)).mkdir()
    for stem in stems:
        Path(os.fsdecode(inner + b"/n\xe9" + stem + b".jpg")).write_bytes(stem)
    source = SourceConfig(kind="image", files=f"{folder}/**/*.jpg")
    rows = listed(source)
    assert len({row["asset_id"] for row in rows}) == len(stems)
    assert sorted(contents(rows, source)) == sorted(stems)
    for row in rows:
        assert (row["asset_id"] + row["uri"]).encode().isascii()


def test_the_order_is_the_same_whatever_the_order_of_making(tmp_path: Path) -> None:
    names = [f"{a}{b}/{c}.jpg" for a, b, c in itertools.product("aB", "0-_", "xÿ猫")]
    orders = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        orders.append(ids(grow(tmp_path / str(seed), *names)))
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == sorted(names)


@given(
    st.lists(st.text("ab.-", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("ab.-*?[]!", min_size=1, max_size=5), min_size=1, max_size=3),
)
@settings(max_examples=400, deadline=None)
def test_a_pattern_of_plain_wildcards_means_what_a_shell_means(names: list[str], patterns: list[str]) -> None:
    from epithre_beam.transforms.sources import _glob_regex

    path, pattern = "/".join(names), "/".join(patterns)
    if "**" in patterns or any("[" in p.replace("[", "", 1) for p in patterns):
        assume(False)  # `**` has a meaning of its own here, and a shell's nested brackets are nobody's guide
    expected = len(names) == len(patterns) and all(map(fnmatch.fnmatchcase, names, patterns))
    assert (re.fullmatch(_glob_regex(pattern), path, re.DOTALL) is not None) == expected


@pytest.mark.parametrize(
    ("files_", "words"),
    [
        ("{0}/nothing/*.jpg", ["there is no folder '{0}/nothing'"]),
        ("{0}/nothing/a.jpg", ["there is no folder '{0}/nothing'"]),
        ("{0}/*.gif", ["a file matches it"]),
        ("{0}/b.jpg", ["a file matches it"]),
        ("{0}/texts", [".jpg, .jpeg"]),
        ("{0}/a.jpg/*.jpg", ["a file matches it"]),
    ],
)
def test_what_matches_nothing_is_said_with_place_rule_and_value(tmp_path: Path, files_: str, words: list[str]) -> None:
    grow(tmp_path, "a.jpg", "texts/a.txt")
    url = files_.format(tmp_path)
    source = SourceConfig(kind="image", files=url)
    with pytest.raises(ConfigError) as caught:
        list(list_references(source, 3, {}))
    message = str(caught.value)
    assert message.startswith("sources[3].files must ")
    assert repr(url) in message
    assert message.endswith(".")
    for word in words:
        assert word.format(tmp_path) in message


def test_a_missing_folder_of_a_bucket_is_said(memory: Any) -> None:
    memory.pipe("/bucket/a.jpg", b"x")
    with pytest.raises(ConfigError, match="there is no folder '/bucket/none'"):
        ids("memory://bucket/none/*.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_listing_opens_no_picture_and_takes_none_for_a_pipe(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever; what may not be read is listed all the same."""
    grow(tmp_path, "closed.jpg", "open.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "closed.jpg").chmod(0)
    before = (tmp_path / "open.jpg").stat().st_atime_ns
    assert ids(tmp_path) == ids(tmp_path / "*.jpg") == ["closed.jpg", "open.jpg"]
    assert (tmp_path / "open.jpg").stat().st_atime_ns == before


def test_links_to_files_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    grow(tmp_path, "in/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "in/self").symlink_to(tmp_path / "in")
    (tmp_path / "in/one").symlink_to(tmp_path / "in/two")
    (tmp_path / "in/two").symlink_to(tmp_path / "in/one")
    (tmp_path / "in/own.jpg").symlink_to(tmp_path / "in/own.jpg")
    (tmp_path / "in/nowhere.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    assert ids(tmp_path / "in") == ids(tmp_path / "in/**/*.jpg") == ["a.jpg", "link.jpg"]


def deep(folder: Path, depth: int) -> int:
    """Makes folders in folders, beyond what one path can name; returns how many."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=handle)
        handle, old = os.open("d" * 200, os.O_RDONLY, dir_fd=handle), handle
        os.close(old)
    os.close(handle)
    return depth


@pytest.mark.skipif(sys.platform == "win32", reason="folders are made relative to an open one")
def test_a_folder_that_cannot_be_listed_stops_the_run(tmp_path: Path) -> None:
    """Were it passed over, its assets would be taken for deleted."""
    grow(tmp_path, "a.jpg")
    deep(tmp_path, 25)
    with pytest.raises(SourceError, match=r"cannot be listed: .*too long"):
        ids(tmp_path)


def test_folders_may_stand_a_thousand_deep(tmp_path: Path) -> None:
    """Deeper than functions may call each other; each is made and removed one by one for the same reason."""
    folders = [f"{tmp_path}{'/d' * depth}" for depth in range(1, 1100)]
    for folder in folders:
        os.mkdir(folder)  # noqa: PTH102
    last = write(Path(folders[-1]) / "a.jpg", b"x")
    assert ids(tmp_path) == ["d/" * 1099 + "a.jpg"]
    last.unlink()
    for folder in reversed(folders):
        os.rmdir(folder)  # noqa: PTH106


def test_a_bucket_is_listed_like_a_disk(tmp_path: Path, memory: Any) -> None:
    for name in TREE:
        memory.pipe(f"/bucket/{name}", name.encode())
    grow(tmp_path, *TREE)
    for pattern in ("*.jpg", "**/*.jpg", "{a,c}.*", "", "sub", "sub/d.jpg"):
        source = SourceConfig(kind="image", files=f"memory://bucket/{pattern}".rstrip("/"))
        rows = listed(source)
        assert {row["asset_id"] for row in rows} == set(ids(f"{tmp_path}/{pattern}".rstrip("/")))
        assert all(row["uri"].startswith("memory://") for row in rows)
        for row, content in zip(rows, contents(rows, source), strict=True):
            assert content.decode().endswith(row["asset_id"])


# Tables


def text_tables(folder: Path, rows: list[tuple[str, str]]) -> Mapping[str, Path]:
    """The same rows as csv, jsonl and parquet."""
    quoted = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)
    pq.write_table(pa.table({"id": [i for i, _ in rows], "t": [t for _, t in rows]}), folder / "t.parquet")
    return {
        "csv": write(folder / "t.csv", "id,t\n" + quoted),
        "jsonl": json_lines(folder / "t.jsonl", *({"id": i, "t": t} for i, t in rows)),
        "parquet": folder / "t.parquet",
    }


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=30)


@given(st.lists(CELL, min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_text_is_the_same_out_of_every_format(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("tables")
    rows = [(f"{i:03d}", text) for i, text in enumerate(texts)]
    for path in text_tables(folder, rows).values():
        found = table(path)
        assert [(row["asset_id"], row["text"]) for row in found] == rows
        for row in found:
            data = row["text"].encode()
            assert row["fingerprint"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert row["size_bytes"] == len(data)
            assert row["uri"] is None


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("strange", ["007", "1e5", "2024-01-31", "null", "NA", "true", " padded ", "-0", "١٢٣"])
def test_an_id_stays_the_text_that_it_is(tmp_path: Path, name: str, strange: str) -> None:
    assert table(text_tables(tmp_path, [(strange, "x")])[name])[0]["asset_id"] == strange


def test_a_csv_may_begin_with_a_mark_and_hold_quoted_lines_commas_and_quotes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '\ufeffid,t\n007,"one\ntwo, ""three"""\n\n8,\n')
    assert [(r["asset_id"], r["text"]) for r in table(path)] == [("007", 'one\ntwo, "three"'), ("8", "")]


def test_tables_larger_than_a_block_keep_every_row(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [(f"{i:06d}", "line\n\n,\n" * draw.randrange(40)) for i in range(30_000)]
    rows.insert(777, ("one long row", "x" * 2_000_000))
    for path in text_tables(tmp_path, rows).values():
        found = table(path)
        assert [(row["asset_id"], row["text"]) for row in found] == rows


def test_an_empty_cell_of_text_is_an_asset_without_text(tmp_path: Path) -> None:
    """It becomes a dead letter when it is prepared: assets in are vectors and dead letters."""
    pq.write_table(pa.table({"id": ["1", "2"], "t": ["", None]}), tmp_path / "t.parquet")
    paths = [tmp_path / "t.parquet", write(tmp_path / "t.csv", 'id,t\n1,\n2,""\n')]
    paths.append(json_lines(tmp_path / "t.jsonl", {"id": "1", "t": None}, {"id": "2"}, {"id": "3", "t": "x"}))
    for path in paths:
        assert [row["text"] for row in table(path)][:2] == ["", ""]


TYPED = {"b": "bool", "d": "date", "f": "double", "i": "int", "s": "string", "w": "timestamp"}
TYPED_CELLS = {
    "b": (True, "true", "perhaps"),
    "d": (datetime.date(2024, 2, 29), "2024-02-29", "2023-02-29"),
    "f": (-1.5e3, "-1500.0", "1,5"),
    "i": (-(2**62), str(-(2**62)), "1.5"),
    "s": ("007", "007", None),
    "w": (datetime.datetime(2024, 1, 31, 5, 0, 0, 250_000, tzinfo=datetime.UTC), "2024-01-31T12:00:00.25+0700", "noon"),
}


def typed_tables(folder: Path, cells: Mapping[str, str | None]) -> list[Path]:
    """A row with these cells as a csv and as JSON, behind one with none."""
    columns = sorted(cells)
    texts = ["" if cells[c] is None else str(cells[c]) for c in columns]
    first = write(folder / "m.csv", "\n".join([",".join(["id", "t", *columns]), "1,x" + "," * len(columns), ""]))
    first.write_text(first.read_text() + ",".join(["2", "y", *(f'"{t}"' for t in texts)]) + "\n")
    second = json_lines(folder / "m.jsonl", {"id": "1", "t": "x"}, {"id": "2", "t": "y"} | dict(cells))
    return [first, second]


def test_metadata_has_the_types_that_the_config_says(tmp_path: Path) -> None:
    for path in typed_tables(tmp_path, {name: text for name, (_, text, _) in TYPED_CELLS.items()}):
        first, second = (row["metadata"] for row in table(path, metadata=TYPED))
        assert second == {name: value for name, (value, _, _) in TYPED_CELLS.items()}
        assert {first[name] for name in TYPED if name != "s"} == {None}
    own = {name: pa.array([value, None]) for name, (value, _, _) in TYPED_CELLS.items()}
    pq.write_table(pa.table({"id": ["1", "2"], "t": ["x", "y"]} | own), tmp_path / "m.parquet")
    first, second = (row["metadata"] for row in table(tmp_path / "m.parquet", metadata=TYPED))
    assert first == {name: value for name, (value, _, _) in TYPED_CELLS.items()}
    assert set(second.values()) == {None}


def test_json_has_types_of_its_own(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "m.jsonl", {"id": 7, "t": "x", "b": False, "f": 2, "i": 3.0, "s": 4})
    row = table(path, metadata={"b": "bool", "f": "double", "i": "int", "s": "string"})[0]
    assert (row["asset_id"], row["metadata"]) == ("7", {"b": False, "f": 2.0, "i": 3, "s": "4"})


@pytest.mark.parametrize(
    ("cell", "utc"),
    [
        ("2024-01-31", "2024-01-31T00:00:00+00:00"),
        ("2024-01-31 12:00:00", "2024-01-31T12:00:00+00:00"),
        ("2024-01-31T12:00:00.123456", "2024-01-31T12:00:00.123456+00:00"),
        ("2024-01-31T12:00:00Z", "2024-01-31T12:00:00+00:00"),
        ("2024-01-31T12:00:00-05:30", "2024-01-31T17:30:00+00:00"),
    ],
)
def test_a_time_without_a_zone_is_utc(tmp_path: Path, cell: str, utc: str) -> None:
    for path in typed_tables(tmp_path, {"w": cell}):
        found = table(path, metadata={"w": "timestamp"})[1]["metadata"]["w"]
        assert found == datetime.datetime.fromisoformat(utc)


def test_nanoseconds_are_cut_to_microseconds(tmp_path: Path) -> None:
    stamps = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    pq.write_table(pa.table({"id": ["1"], "t": ["x"], "w": stamps}), tmp_path / "t.parquet")
    found = table(tmp_path / "t.parquet", metadata={"w": "timestamp"})[0]["metadata"]["w"]
    assert found == datetime.datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=datetime.UTC)


@pytest.mark.parametrize("name", [name for name, (_, _, bad) in TYPED_CELLS.items() if bad is not None])
def test_a_cell_that_does_not_fit_is_named_by_place_column_and_value(tmp_path: Path, name: str) -> None:
    bad = TYPED_CELLS[name][2]
    for path in typed_tables(tmp_path, {name: bad}):
        with pytest.raises(SourceError) as caught:
            table(path, metadata={name: TYPED[name]})
        assert f"sources[0].metadata.{name} must be " in str(caught.value)
        place = {".csv": "line 3", ".jsonl": "line 2", ".parquet": "row 2"}[path.suffix]
        assert f"got {bad!r} in {place} of {path}." in str(caught.value)


def test_a_cell_far_down_is_named_by_its_line(tmp_path: Path) -> None:
    rows = [{"id": str(i), "t": "x", "p": "twelve" if i == 20_123 else 12.5} for i in range(25_000)]
    with pytest.raises(SourceError, match="got 'twelve' in line 20124 of"):
        table(json_lines(tmp_path / "t.jsonl", *rows), metadata={"p": "double"})


@pytest.mark.parametrize("name", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("key", ["id", "text", "metadata.price"])
def test_a_missing_column_is_named_with_what_is_there(tmp_path: Path, name: str, key: str) -> None:
    path = text_tables(tmp_path, [("1", "x"), ("2", "y")])[name]
    wrong = {"metadata": {"price": "double"}} if key == "metadata.price" else {key: "price"}
    with pytest.raises(ConfigError) as caught:
        table(path, **wrong)
    assert f"sources[0].{key} must name a column of {path}, got 'price'; it has id, t." in str(caught.value)


def test_a_column_that_stands_twice_is_refused_if_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "id,x,t,id,x\n1,a,b,2,c\n")
    with pytest.raises(ConfigError, match="must have each column once, got 'id' twice"):
        table(path)
    assert table(write(tmp_path / "u.csv", "id,x,t,x\n1,a,b,c\n"))[0]["text"] == "b"


def test_a_column_that_only_a_late_row_has_is_there(tmp_path: Path) -> None:
    rows = [{"id": str(i), "t": "x"} for i in range(9000)] + [{"id": "last", "t": "x", "p": 1.5}]
    found = table(json_lines(tmp_path / "t.jsonl", *rows), metadata={"p": "double"})
    assert [row["metadata"]["p"] for row in found] == [None] * 9000 + [1.5]


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", "id,t\n"])
def test_an_empty_table_is_an_error_with_a_sentence(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError, match=r"sources\[0\]\.table must have at least one row, got .*, which"):
        table(write(tmp_path / "t.csv", content))
    with pytest.raises(ConfigError, match=r"sources\[0\]\.table must have at least one row"):
        table(write(tmp_path / "t.jsonl", content.replace("id,t", "  ")))
    pq.write_table(pa.table({"id": pa.array([], pa.string()), "t": pa.array([], pa.string())}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"sources\[0\]\.table must have at least one row"):
        table(tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"must have at least one row, got .*, which is empty"):
        table(write(tmp_path / "none.parquet", b""))


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"line 5: Expected 2 columns, got 3"):
        table(write(tmp_path / "t.csv", 'id,t\n\n1,"two\nlines"\n1,2,3\n'))
    with pytest.raises(SourceError, match=r"line 3 is no JSON: .*, at its character \d+\.$"):
        table(write(tmp_path / "t.jsonl", '{"id": 1, "t": "x"}\n\n{"id": 2, "t": \n'))
    with pytest.raises(SourceError, match=r"line 2 is '\[1\]'"):
        table(write(tmp_path / "t.jsonl", "\n[1]\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"id,t\n1,2,3\n"),
        ("t.csv", b"id,t\n1,caf\xe9\n"),
        ("t.jsonl", b'{"id": "1", "t": "x"}\n{"id": "2", "t"\n'),
        ("t.jsonl", b'[{"id": "1", "t": "x"}]\n'),
        ("t.jsonl", b'{"id": "1", "t": "\\ud800"}\n'),
        ("t.jsonl", b'{"id": "1", "t": "caf\xe9"}\n'),
        ("t.jsonl", b'{"id": "1", "t": {"deep": 1}}\n'),
        ("t.jsonl", b'{"id": 123456789012345678901234, "t": "x"}\n'),
        ("t.parquet", b"PAR1 and no more"),
    ],
)
def test_a_broken_table_is_a_source_error_that_names_the_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(SourceError) as caught:
        table(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_parquet_text_that_is_no_utf8_is_a_source_error(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pq.write_table(pa.table({"id": ["1"], "t": bad}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="UTF8"):
        table(tmp_path / "t.parquet")


def test_an_unknown_suffix_asks_for_a_format(tmp_path: Path) -> None:
    path = write(tmp_path / "t.dat", "id,t\n1,x\n")
    with pytest.raises(ConfigError, match=r"sources\[0\]\.format must be csv, jsonl or parquet"):
        table(path)
    assert table(path, format="csv")[0]["text"] == "x"


@pytest.mark.parametrize(("name", "place"), [("csv", "line 9125"), ("jsonl", "line 9124"), ("parquet", "row 9124")])
def test_an_empty_id_is_named_by_its_place(tmp_path: Path, name: str, place: str) -> None:
    rows = [(str(i), "x") for i in range(10_000)]
    rows[9123] = ("", "x")
    path = text_tables(tmp_path, rows)[name]
    with pytest.raises(SourceError, match=rf"sources\[0\]\.id must not be empty, got an empty one in {place} of"):
        table(path)


@pytest.mark.parametrize("missing", [None, "absent"])
def test_a_null_id_is_named_by_its_place(tmp_path: Path, missing: str | None) -> None:
    rows: list[Row] = [{"id": "1", "t": "x"}, {"t": "y"} if missing else {"id": None, "t": "y"}]
    with pytest.raises(SourceError, match="an empty one in line 2 of"):
        table(json_lines(tmp_path / "t.jsonl", *rows))
    pq.write_table(pa.table({"id": ["1", None], "t": ["x", "y"]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="an empty one in row 2 of"):
        table(tmp_path / "t.parquet")


def test_a_glob_of_tables_is_one_source(tmp_path: Path) -> None:
    for part in range(3):
        write(tmp_path / f"part-{part}.csv", f"id,t\n{part}-a,x\n{part}-b,y\n")
    assert [row["asset_id"] for row in table(tmp_path / "part-*.csv")] == ["0-a", "0-b", "1-a", "1-b", "2-a", "2-b"]


def run(*sources: Mapping[str, Any]) -> pa.Table:
    config = RunConfig.model_validate({"catalog": "unused", "sources": sources})
    with Comparison(config.metadata_types) as comparison:
        tables = []
        for table in iterate_references(config):
            comparison.add_references(table)
            tables.append(table)
        comparison.check_ids(config)
    return pa.concat_tables(tables)


def test_an_id_that_stands_twice_is_named_with_two_of_its_places(tmp_path: Path) -> None:
    write(tmp_path / "one.csv", "id,t\n1,x\n2,x\n")
    write(tmp_path / "two.csv", "id,t\n2,y\n3,y\n")
    first = {"kind": "text", "table": f"{tmp_path}/one.csv", "id": "id", "text": "t"}
    both = first | {"table": f"{tmp_path}/*.csv"}
    one, two = f"{tmp_path}/one.csv", f"{tmp_path}/two.csv"
    cases = [
        ((both,), f"'2' stands 2 times, in sources[0] (line 3 of {one}) and sources[0] (line 2 of {two}); 1 id is"),
        ((first, both), f"'1' stands 2 times, in sources[0] (line 2 of {one}) and sources[1] (line 2 of {one}); 2 ids"),
    ]
    for sources, places in cases:
        with pytest.raises(SourceError) as caught:
            run(*sources)
        assert f"but text {places}" in str(caught.value)
    grow(tmp_path, "a/p.jpg", "b/p.jpg")
    with pytest.raises(SourceError) as caught:
        run({"kind": "image", "files": f"{tmp_path}/a"}, {"kind": "image", "files": f"{tmp_path}/b"})
    for word in ("image 'p.jpg'", f"sources[0] ({tmp_path}/a/p.jpg)", f"sources[1] ({tmp_path}/b/p.jpg)"):
        assert word in str(caught.value)


def test_a_picture_and_its_text_may_share_an_id(tmp_path: Path) -> None:
    grow(tmp_path, "p.jpg")
    write(tmp_path / "t.csv", "id,t\np.jpg,a caption\n")
    found = run(
        {"kind": "image", "files": f"{tmp_path}/*.jpg"},
        {"kind": "text", "table": f"{tmp_path}/t.csv", "id": "id", "text": "t", "metadata": {"t": "string"}},
    )
    rows = [(row["kind"], row["asset_id"], row["source"], row["metadata"]) for row in found.to_pylist()]
    assert rows == [("image", "p.jpg", 0, None), ("text", "p.jpg", 1, {"t": "a caption"})]


# Tables of pictures


def uri_source(path: Path | str, *within: Path | str) -> SourceConfig:
    return SourceConfig(kind="image", table=str(path), id="id", uri="u", within=tuple(map(str, within)))


def uri_table(path: Path, *uris: str | None) -> Path:
    pq.write_table(pa.table({"id": list(map(str, range(len(uris)))), "u": pa.array(uris, pa.string())}), path)
    return path


def outcome(reader: Reader, reference: Reference) -> bytes | Reason:
    try:
        return reader.read(reference)
    except Unpreparable as failure:
        return failure.reason


def outcomes(source: SourceConfig) -> list[bytes | Reason]:
    reader = Reader([source], PrepareConfig())
    return [outcome(reader, r) for t in list_references(source, 0, {}) for r in references_of(t)]


def test_relative_absolute_and_file_uris_are_read(tmp_path: Path) -> None:
    grow(tmp_path, "shop/p/a b.jpg", "shop/50%.jpg", "shop/b.jpg", "shop/a::b.jpg")
    uris = ["p/a b.jpg", "50%.jpg", f"{tmp_path}/shop/b.jpg", f"file://{tmp_path}/shop/p/a%20b.jpg", "p/../b.jpg"]
    source = uri_source(uri_table(tmp_path / "shop/t.parquet", *uris, "./b.jpg", "a::b.jpg"))
    a, b = b"shop/p/a b.jpg", b"shop/b.jpg"
    assert outcomes(source) == [a, b"shop/50%.jpg", b, a, b, b, b"shop/a::b.jpg"]
    rows = listed(source)
    assert all(row["size_bytes"] is not None and row["fingerprint"].startswith("mtime:") for row in rows)


def test_a_uri_to_nothing_is_found_out_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    source = uri_source(uri_table(tmp_path / "t.parquet", "gone.jpg", "folder", None, ""))
    assert outcomes(source) == [Reason.MISSING, Reason.UNREADABLE, Reason.MISSING, Reason.MISSING]
    assert {row["fingerprint"] for row in listed(source)} == {"unknown"}


@pytest.mark.skipif(sys.platform == "win32", reason="paths of another system")
def test_a_uri_that_leads_out_of_its_folders_is_never_read(tmp_path: Path) -> None:
    secret = grow(tmp_path, "secret/s.jpg", "shopping/x.jpg", "shop/in.jpg") / "secret/s.jpg"
    (tmp_path / "shop/link.jpg").symlink_to(secret)
    (tmp_path / "shop/linked").symlink_to(tmp_path / "secret")
    uris = [
        "/etc/passwd",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "../secret/s.jpg",
        "../../../../../../../../etc/passwd",
        "../shopping/x.jpg",
        str(secret),
        f"file://{secret}",
        f"file://{tmp_path}/shop/../secret/s.jpg",
        f"file://{tmp_path}/shop/..%2fsecret%2fs.jpg",
        f"file://{tmp_path}/shop/%2e%2e/secret/s.jpg",
        f"local://{tmp_path}/shop/../secret/s.jpg",
        f"simplecache::file://{secret}",
        f"simplecache::file://{tmp_path}/shop/in.jpg",
        f"dir://s.jpg::file://{tmp_path}/secret",
        "link.jpg",
        "linked/s.jpg",
        "memory://shop/x.jpg",
        "http://127.0.0.1:9/x.jpg",
        "sftp://127.0.0.1:9/x.jpg",
        "github://owner:repo@main/x.jpg",
        "data:///,x",
        "nosuch://x",
        "in.jpg\x00",
        ".",
        "..",
    ]
    source = uri_source(uri_table(tmp_path / "shop/t.parquet", *uris))
    assert dict(zip(uris, outcomes(source), strict=True)) == dict.fromkeys(uris, Reason.URI_NOT_ALLOWED)
    assert {row["size_bytes"] for row in listed(source)} == {None}  # nor asked about
    # What the config allows is read.
    allowed = uri_source(uri_table(tmp_path / "shop/t.parquet", "../secret/s.jpg", "in.jpg"), tmp_path / "secret")
    assert outcomes(allowed) == [b"secret/s.jpg", Reason.URI_NOT_ALLOWED]


@pytest.mark.parametrize(
    ("uri", "within", "expected"),
    [
        ("s3://bucket/a/x.jpg", "s3://bucket/a", True),
        ("s3://bucket/a/x.jpg", "s3://bucket/a/", True),
        ("s3://bucket/ab/x.jpg", "s3://bucket/a", False),
        ("s3://other/a/x.jpg", "s3://bucket/a", False),
        ("s3://bucket/a/../b/x.jpg", "s3://bucket/a", False),
        ("gs://bucket/a/x.jpg", "s3://bucket/a", False),
        ("https://shop.example/p/x.jpg", "https://shop.example/p", True),
        ("https://shop.example/p/%2e%2e/x.jpg", "https://shop.example/p", False),
        ("https://shop.example.evil/p/x.jpg", "https://shop.example", False),
        ("https://shop.example@evil/p/x.jpg", "https://shop.example", False),
        ("http://shop.example/p/x.jpg", "https://shop.example/p", False),
        ("ftp://evil/p/x.jpg", "ftp://shop.example/p", False),
        ("ftp://shop.example/p/x.jpg", "ftp://shop.example/p", True),
        ("memory://b/x.jpg", "memory:///b", True),
        ("memory://b/x.jpg", "memory://", True),
        ("/b/x.jpg", "memory:///b", False),
    ],
)
def test_within_compares_protocol_host_and_whole_folders_and_connects_to_nothing(
    uri: str, within: str, expected: bool
) -> None:
    needed = uri.split("://", maxsplit=1)[0]
    try:
        fsspec.get_filesystem_class(needed if "://" in uri else "file")
    except ImportError:
        expected = False  # a store whose package is not there is never within
    assert is_within(uri, (within,)) is expected


def test_uris_of_a_bucket_start_at_its_table(memory: Any) -> None:
    for name in ("shop/p/a.jpg", "pictures/b.jpg"):
        memory.pipe(f"/bucket/{name}", name.encode())
    lines = [{"id": "1", "u": "p/a.jpg"}, {"id": "2", "u": "../pictures/b.jpg"}, {"id": "3", "u": "/etc/passwd"}]
    memory.pipe("/bucket/shop/t.jsonl", "\n".join(map(json.dumps, lines)).encode())
    table_ = "memory://bucket/shop/t.jsonl"
    assert outcomes(uri_source(table_)) == [b"shop/p/a.jpg", Reason.URI_NOT_ALLOWED, Reason.URI_NOT_ALLOWED]
    both = uri_source(table_, "memory://bucket/shop", "memory://bucket/pictures")
    assert outcomes(both) == [b"shop/p/a.jpg", b"pictures/b.jpg", Reason.URI_NOT_ALLOWED]
    memory.pipe("/t.jsonl", b'{"id": "1", "u": "bucket/shop/p/a.jpg"}\n')
    assert allowed_prefixes(uri_source("memory://t.jsonl")) == ("memory://",)
    assert outcomes(uri_source("memory://t.jsonl")) == [b"shop/p/a.jpg"]


def test_bytes_need_a_parquet_column_of_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "b": pa.array([{"bytes": b"x"}])}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"sources\[0\]\.bytes must name a column of bytes"):
        listed(SourceConfig(kind="image", table=f"{tmp_path}/t.parquet", id="id", bytes="b"))
    write(tmp_path / "t.csv", "id,b\n1,x\n")
    with pytest.raises(ConfigError, match=r"sources\[0\]\.bytes must be a column of a parquet table"):
        listed(SourceConfig(kind="image", table=f"{tmp_path}/t.csv", id="id", bytes="b"))


def test_rows_of_bytes_sort_in_the_order_of_their_table(tmp_path: Path) -> None:
    """So that a unit's rows stand together in the file and are read at once."""
    count = 12_345
    pq.write_table(
        pa.table({"id": [f"{i * 7919 % count}" for i in range(count)], "b": [b""] * count}), tmp_path / "t.parquet"
    )
    rows = listed(SourceConfig(kind="image", table=f"{tmp_path}/t.parquet", id="id", bytes="b"))
    assert sorted(rows, key=lambda row: row["fingerprint"]) == rows
    assert len({row["uri"] for row in rows}) == count
