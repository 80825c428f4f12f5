"""A table's URIs are read where they stay within its folders, and nothing is connected to where they do not."""

import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs import PrepareConfig, SourceConfig
from epithre_beam.configs.errors import ConfigError
from epithre_beam.index.versions.layout import Reason
from epithre_beam.transforms.sources.list_sources import list_references
from epithre_beam.transforms.sources.reading import Reader
from epithre_beam.transforms.sources.references import Reference, references_of
from epithre_beam.transforms.sources.unpreparable import Unpreparable
from epithre_beam.transforms.sources.uri_safety import allowed_prefixes, is_within

from .listing import grow, listed


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


NAMES = ["data [v1]", "data {a,b}", "what?", "star*", "[", "a[!b]", "{x", "plain"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_whose_name_looks_like_a_glob_is_itself(tmp_path: Path, name: str) -> None:
    grow(tmp_path, f"{name}/in.jpg", f"{name}/sub/in.jpg", "private/s.jpg", "in.jpg")
    source = uri_source(
        uri_table(tmp_path / name / "t.parquet", "../private/s.jpg", "../in.jpg", "in.jpg", "sub/in.jpg")
    )
    refused = [Reason.URI_NOT_ALLOWED] * 2
    assert outcomes(source) == [*refused, f"{name}/in.jpg".encode(), f"{name}/sub/in.jpg".encode()]
    rows = listed(source)
    assert [row["size_bytes"] is None for row in rows] == [True, True, False, False]


def test_the_folders_of_a_glob_of_tables_are_what_is_fixed_of_it(tmp_path: Path) -> None:
    grow(tmp_path, "shop/a/in.jpg", "shop/b/in.jpg", "secret.jpg")
    for name in "ab":
        uri_table(tmp_path / "shop" / name / "t.parquet", "in.jpg", "../b/in.jpg", "../../secret.jpg")
    source = uri_source(tmp_path / "shop/[ab]/t.parquet")
    b = b"shop/b/in.jpg"
    assert outcomes(source) == [b"shop/a/in.jpg", b, Reason.URI_NOT_ALLOWED, b, b, Reason.URI_NOT_ALLOWED]


@pytest.mark.parametrize("rest", ["a", "", "a:b@c/x.jpg", "/", "a::file:///etc/passwd", "\x00", "[::1", "a/%00/é?#"])
def test_no_protocol_in_a_row_is_more_than_a_uri_that_is_not_allowed(rest: str) -> None:
    prefixes = ("/shop", "memory://shop", "http://shop.example", "nosuch://x")
    for protocol in (*fsspec.available_protocols(), "nosuch", "a+b", ""):
        assert is_within(f"{protocol}://{rest}", prefixes) is False, protocol


def test_a_driver_that_only_a_row_names_is_not_imported(tmp_path: Path) -> None:
    for name in list(sys.modules):
        if name.startswith("fsspec.implementations.sftp"):
            del sys.modules[name]
    assert not is_within("sftp://host/x", (str(tmp_path), "memory://x"))
    assert "fsspec.implementations.sftp" not in sys.modules


def test_hostile_uris_are_dead_letters_and_the_run_goes_on(tmp_path: Path) -> None:
    grow(tmp_path, "ok.jpg")
    hostile = [
        "generic://a",
        "gs://a/b",
        "hf://x",
        "dask://x",
        "jupyter://h/x",
        "reference://",
        "abfs://c/x",
        "nosuch://",
    ]
    source = uri_source(uri_table(tmp_path / "t.parquet", *hostile, "ok.jpg"))
    assert outcomes(source) == [Reason.URI_NOT_ALLOWED] * len(hostile) + [b"ok.jpg"]


@pytest.mark.parametrize("within", ["nosuch://x", "generic://a", "smb://host/share"])
def test_a_folder_that_nothing_can_be_compared_with_is_an_error_of_the_job(tmp_path: Path, within: str) -> None:
    source = uri_source(uri_table(tmp_path / "t.parquet", "a.jpg"), within)
    with pytest.raises(ConfigError, match=r"^sources\[0\]\.within"):
        listed(source)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://Shop.Example/p/x.jpg", True),
        ("http://shop.example:80/p/x.jpg", True),
        ("http://shop.example:81/p/x.jpg", False),
        ("http://me@shop.example/p/x.jpg", False),
        ("http://shop.example\\@evil/p/x.jpg", False),
        ("http://evil\\.shop.example/p/x.jpg", False),
        ("http://shop.example/p/x.jpg\r\nHost: evil", False),
        ("http://shop.example#@evil/p/x.jpg", False),
        ("http://evil/?http://shop.example/p/x.jpg", False),
        ("http://shop.example/q?x=/p/x.jpg", False),
        ("http://[::1]/p/x.jpg", False),
    ],
)
def test_a_host_is_compared_as_clients_read_it(uri: str, expected: bool) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed: pip install aiohttp")
    assert is_within(uri, ("http://shop.example/p",)) is expected
