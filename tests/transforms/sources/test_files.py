"""Every matching file is listed, for any name and file system, or the run stops."""

import itertools
import os
import random
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from epithre_beam.configs import SourceConfig
from epithre_beam.configs.errors import ConfigError, SourceError, UnreadableSourceError
from epithre_beam.transforms.sources.files import PassedOver, match_files
from epithre_beam.transforms.sources.list_sources import list_references

from .listing import TREE, contents, files, grow, ids, listed, write


def test_a_file_has_one_uri_and_fingerprint_for_all_patterns(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg")
    literal, folder, glob = files(tmp_path / "a.jpg"), files(tmp_path), files(tmp_path / "*.jpg")
    assert literal == folder == glob
    assert literal[0]["size_bytes"] == 5
    assert literal[0]["uri"] == f"{tmp_path}/a.jpg"


def test_a_fingerprint_depends_on_size_and_time_only(tmp_path: Path) -> None:
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


def test_hidden_files_and_folders_are_skipped(tmp_path: Path, memory: Any) -> None:
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
def test_unusual_names_are_listed_and_read_back(tmp_path: Path) -> None:
    grow(tmp_path, *NAMES)
    source = SourceConfig(kind="image", files=f"{tmp_path}/**/*.jpg")
    rows = listed(source)
    assert {row["asset_id"] for row in rows} == set(NAMES)
    assert contents(rows, source) == [row["asset_id"].encode() for row in rows]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows forbids most of these names")
@pytest.mark.parametrize("name", [name for name in NAMES if "::" not in name and not name.startswith("~")])
def test_a_file_of_any_name_can_be_given_directly(tmp_path: Path, name: str) -> None:
    grow(tmp_path, name)
    source = SourceConfig(kind="image", files=f"{tmp_path}/{name}")
    assert contents(listed(source), source) == [name.encode()]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps names that are no UTF-8")
@given(st.sets(st.binary(min_size=1, max_size=12).filter(lambda b: not {0, 47} & set(b)), min_size=1, max_size=20))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_names_that_are_not_utf8_are_listed_with_distinct_ids(
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


def test_the_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = [f"{a}{b}/{c}.jpg" for a, b, c in itertools.product("aB", "0-_", "xÿ猫")]
    orders = []
    for seed in range(3):
        random.Random(seed).shuffle(names)
        orders.append(ids(grow(tmp_path / str(seed), *names)))
    assert orders[0] == orders[1] == orders[2]
    assert sorted(orders[0]) == sorted(names)


@pytest.mark.parametrize(
    ("files_", "words"),
    [
        ("{0}/nothing/*.jpg", "the folder '{0}/nothing' does not exist. Is its disk mounted?"),
        ("{0}/nothing/a.jpg", "the folder '{0}/nothing' does not exist. Is its disk mounted?"),
        ("{0}/nothing", "the folder '{0}/nothing' does not exist. Is its disk mounted?"),
        ("{0}/*.gif", "no file in the folder '{0}' matches the pattern '{0}/*.gif'. Correct the pattern."),
        ("{0}/b.jpg", "the file '{0}/b.jpg' does not exist."),
        ("{0}/texts", ".jpeg, .png, .webp, .gif, .bmp, .tif, .tiff; it has 1 file (.txt)."),
        ("{0}/empty", "no file is in the folder '{0}/empty'. Is its disk mounted?"),
        ("{0}/a.jpg/*.jpg", "no file in the folder '{0}/a.jpg' matches the pattern"),
    ],
)
def test_a_pattern_without_a_match_is_reported_with_its_place(tmp_path: Path, files_: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    grow(tmp_path, "a.jpg", "texts/a.txt")
    url = files_.format(tmp_path)
    source = SourceConfig(kind="image", files=url)
    with pytest.raises(ConfigError) as caught:
        list(list_references(source, 3, {}))
    message = str(caught.value)
    assert message.startswith("sources[3].files: ")
    assert repr(url) in message
    assert message.endswith(".")
    assert words.format(tmp_path) in message


def test_a_missing_folder_of_a_bucket_is_reported(memory: Any) -> None:
    memory.pipe("/bucket/a.jpg", b"x")
    with pytest.raises(ConfigError, match=r"the folder '/bucket/none' does not exist\. Check the path"):
        ids("memory://bucket/none/*.jpg")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_listing_opens_no_file_and_skips_pipes(tmp_path: Path) -> None:
    """Opening a pipe without a writer would block for ever. Files without read permission are listed."""
    grow(tmp_path, "closed.jpg", "open.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "closed.jpg").chmod(0)
    before = (tmp_path / "open.jpg").stat().st_atime_ns
    assert ids(tmp_path) == ids(tmp_path / "*.jpg") == ["closed.jpg", "open.jpg"]
    assert (tmp_path / "open.jpg").stat().st_atime_ns == before


def test_links_to_files_are_followed_and_cycles_are_not(tmp_path: Path) -> None:
    grow(tmp_path, "in/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "in/self").symlink_to(tmp_path / "in")
    (tmp_path / "in/one").symlink_to(tmp_path / "in/two")
    (tmp_path / "in/two").symlink_to(tmp_path / "in/one")
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    assert ids(tmp_path / "in") == ids(tmp_path / "in/**/*.jpg") == ["a.jpg", "link.jpg"]


def test_links_to_nothing_are_listed_so_that_they_become_dead_letters(tmp_path: Path) -> None:
    """The disk of their targets may not be mounted: their assets must not count as deleted."""
    grow(tmp_path, "in/a.jpg")
    (tmp_path / "in/own.jpg").symlink_to(tmp_path / "in/own.jpg")
    (tmp_path / "in/nowhere.jpg").symlink_to(tmp_path / "nowhere")
    assert ids(tmp_path / "in") == ids(tmp_path / "in/**/*.jpg") == ["a.jpg", "nowhere.jpg", "own.jpg"]


def test_a_source_that_is_a_link_to_nothing_matches_no_file(tmp_path: Path) -> None:
    """All assets of the source would count as deleted."""
    for name in ("photos", "photo.jpg"):
        (tmp_path / name).symlink_to(tmp_path / "not-mounted")
        with pytest.raises(ConfigError, match=r"no file matches .* is a link to .*not-mounted.*mounted\?"):
            ids(tmp_path / name)


def test_a_table_that_is_a_link_to_nothing_stops_the_run(tmp_path: Path) -> None:
    grow(tmp_path, "a.csv")
    (tmp_path / "b.csv").symlink_to(tmp_path / "not-mounted")
    found = match_files(str(tmp_path / "*.csv"), {}, "sources[0].table", None).files
    assert next(found).id == "a.csv"
    with pytest.raises(UnreadableSourceError, match=r"b\.csv is a link to a table that does not exist"):
        next(found)


def test_the_first_linked_folder_is_named(tmp_path: Path) -> None:
    grow(tmp_path, "in/a.jpg", "other/b.jpg")
    for name in ("one", "two"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "other")
    passed_over = PassedOver()
    list(match_files(str(tmp_path / "in"), {}, "sources[0].files", (".jpg",), passed_over).files)
    assert str(passed_over) == f"2 linked folders ({tmp_path}/in/one, …)"


def deep(folder: Path, depth: int) -> int:
    """Make nested folders until one path cannot name them. Return how many."""
    handle = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 200, dir_fd=handle)
        handle, old = os.open("d" * 200, os.O_RDONLY, dir_fd=handle), handle
        os.close(old)
    os.close(handle)
    return depth


@pytest.mark.skipif(sys.platform == "win32", reason="folders are made relative to an open one")
def test_a_folder_that_cannot_be_listed_stops_the_run(tmp_path: Path) -> None:
    """If it were skipped, its assets would count as deleted."""
    grow(tmp_path, "a.jpg")
    deep(tmp_path, 25)
    with pytest.raises(SourceError, match=r"cannot be listed: .*too long"):
        ids(tmp_path)


def test_folders_may_be_a_thousand_levels_deep(tmp_path: Path) -> None:
    """This is deeper than the recursion limit, so the folders are created and removed one by one."""
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
