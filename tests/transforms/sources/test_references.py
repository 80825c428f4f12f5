"""Names of references can be stored, and fingerprints change when the content may have changed."""

import datetime
import hashlib
import os
import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.transforms.sources.references import (
    Reference,
    file_fingerprint,
    local_path,
    local_uri,
    printable,
    reference_schema,
    references_of,
    text_fingerprint,
)

PART = st.binary(min_size=1, max_size=20).filter(lambda part: not {0, 47} & set(part))
PATH = st.lists(PART, min_size=1, max_size=4).map(lambda parts: os.fsdecode(b"/" + b"/".join(parts)))
LETTERS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\x00"), min_size=1)

posix = pytest.mark.skipif(sys.platform == "win32", reason="names are bytes on POSIX alone")


@posix
@given(PATH)
def test_a_local_uri_is_text_and_gives_back_its_path(path: str) -> None:
    uri = local_uri(path)
    uri.encode()  # it can be stored
    assert local_path(uri) == path


@given(LETTERS)
def test_a_valid_name_is_kept_unchanged(name: str) -> None:
    assert printable(name) == name
    assert local_uri(f"/{name}") == f"/{name}"
    assert local_path(f"/{name}") == f"/{name}"


@posix
@given(st.sets(PATH, max_size=30))
def test_names_that_are_not_utf8_stay_distinct(paths: set[str]) -> None:
    broken = {path for path in paths if not is_text(path)}
    assert len({printable(path) for path in broken}) == len(broken)
    assert all(is_text(printable(path)) for path in broken)


def is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("url", ["s3://b/x.jpg", "memory:///x", "https://h/x%20y", "FILE:///x", "local:///x"])
def test_other_urls_are_not_local_paths(url: str) -> None:
    assert local_path(url) is None


@given(LETTERS, LETTERS)
def test_a_texts_fingerprint_is_the_hash_of_its_content(one: str, other: str) -> None:
    assert text_fingerprint(one) == "sha256:" + hashlib.sha256(one.encode()).hexdigest()
    assert (text_fingerprint(one) == text_fingerprint(other)) == (one == other)


def test_half_a_surrogate_pair_has_a_fingerprint() -> None:
    assert len({text_fingerprint(text) for text in ("\ud83d", "\ude00", "\ud83d?", "?")}) == 4


@pytest.mark.parametrize("name", ["ETag", "etag", "md5Hash", "content_md5", "checksum"])
def test_a_stores_checksum_is_the_fingerprint_for_any_time(name: str) -> None:
    info = {name: '"abc"', "size": 3, "mtime": 1.5}
    assert file_fingerprint(info) == "etag:abc" == file_fingerprint(info | {"mtime": 2.5, "size": 4})
    assert file_fingerprint(info) != file_fingerprint(info | {name: '"abd"'})


@pytest.mark.parametrize("name", ["mtime", "last_modified", "LastModified", "updated"])
def test_without_a_checksum_size_and_time_are_the_fingerprint(name: str) -> None:
    early, late = (datetime.datetime(2024, 1, day, tzinfo=datetime.UTC) for day in (1, 2))
    prints = {file_fingerprint({"size": size, name: time}) for size in (3, 4) for time in (early, late)}
    assert len(prints) == 4
    assert file_fingerprint({"size": 3, name: early, "atime": 1}) == file_fingerprint({"size": 3, name: early})
    assert all(fingerprint.startswith("mtime:") for fingerprint in prints)


def test_an_empty_checksum_is_ignored() -> None:
    assert file_fingerprint({"ETag": None, "size": 3, "mtime": "5"}) == "mtime:3:5"


def test_a_tables_rows_are_references_without_metadata() -> None:
    references = [
        Reference(asset_id="a", kind="image", uri="/a", text=None, fingerprint="f", size_bytes=None, source=0),
        Reference(asset_id="b", kind="text", uri=None, text="x", fingerprint="g", size_bytes=1, source=1),
    ]
    rows = [vars(reference) | {"metadata": {"lang": "id"}} for reference in references]
    table = pa.Table.from_pylist(rows, schema=reference_schema({"lang": "string"}))
    assert references_of(table) == references
    assert references_of(table.drop_columns("metadata")) == references


def test_the_schema_has_metadata_only_if_declared() -> None:
    assert "metadata" not in reference_schema({}).names
    schema = reference_schema({"d": "date", "w": "timestamp"})
    assert schema.field("metadata").type == pa.struct([("d", pa.date32()), ("w", pa.timestamp("us", "UTC"))])
