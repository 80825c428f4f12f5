"""References describe assets before they are read. A pipeline passes references, never bytes."""

import hashlib
import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, fields

import pyarrow as pa

from ...index.versions.layout import metadata_type


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The name, place and fingerprint of an asset.

    `uri` is where the asset is read from: a path, an fsspec URL, or `TABLE#row=N&column=NAME` (N from 0) for bytes in a
    table. An inline text has `text` instead of `uri`. `fingerprint` changes when the content may have changed.
    """

    asset_id: str
    kind: str
    uri: str | None
    text: str | None
    fingerprint: str
    size_bytes: int | None
    source: int
    """Position in the config's sources."""


def reference_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """Return the columns of a plan: one reference in each row, with its typed metadata."""
    struct = metadata_type(metadata)
    return pa.schema(
        [
            pa.field("asset_id", pa.string(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("uri", pa.string()),
            pa.field("text", pa.string()),
            pa.field("fingerprint", pa.string(), nullable=False),
            pa.field("size_bytes", pa.int64()),
            pa.field("source", pa.int32(), nullable=False),
            *([] if struct is None else [pa.field("metadata", struct)]),
        ]
    )


def references_of(table: pa.Table) -> list[Reference]:
    """Convert rows of a plan to references, without metadata and other columns."""
    names = [field.name for field in fields(Reference)]
    return [Reference(**row) for row in table.select(names).to_pylist()]


def text_fingerprint(text: str) -> str:
    """Return the fingerprint of an inline text: the hash of its content."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_fingerprint(info: Mapping[str, object]) -> str:
    """Return the fingerprint of a listed file: the store's checksum if there is one, else size and time."""
    for name in ("ETag", "etag", "md5Hash", "content_md5", "checksum"):
        if info.get(name):
            return f"etag:{str(info[name]).strip(chr(34))}"
    names = ("mtime", "last_modified", "LastModified", "updated", "created")
    modified = next((info[name] for name in names if info.get(name)), None)
    if modified is None:
        return UNKNOWN  # a changed file may have the same size
    text = f"{modified:.6f}" if isinstance(modified, float) else str(modified)
    return f"mtime:{info.get('size')}:{text}"


BATCH_ROWS = 8192
"""Rows of a source that are in memory at a time."""
UNKNOWN = "unknown"
"""The fingerprint of a file without known checksum or time. Such a file is always read again."""


def printable(name: str) -> str:
    """Return a file name as text that can be stored: bytes that are not UTF-8 become %XX."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return urllib.parse.quote(os.fsencode(name), safe="/ !'()*+,;=@&$:[]~")
    return name


def local_uri(path: str) -> str:
    """Return the uri of a local file: its path, or a `file://` URL if the path is not valid text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "file://" + urllib.parse.quote(os.fsencode(path))
    return path


def local_path(uri: str) -> str | None:
    """Return the path of a local uri; None for any other URL."""
    if uri.startswith("file://"):
        return os.fsdecode(urllib.parse.unquote_to_bytes(uri.removeprefix("file://")))
    return None if "://" in uri else uri
