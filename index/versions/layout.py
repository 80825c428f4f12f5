"""The catalog on disk: file names, and the columns of its Parquet and Arrow tables.

```
LATEST.json                                       {"version", "manifest_sha256", "condemned", "left", "nonce", "check"}
.lease.json                                       the process that holds the catalog; absent if none does
versions/<version>/manifest.json
versions/<version>/vectors/image-00000-of-00004.parquet
versions/<version>/index/image-00000-of-00001.faiss         all vectors as fp16, for exact scores
versions/<version>/index/image-00000-of-00001.codes.faiss   4-bit codes that propose candidates; absent in small sets
versions/<version>/index/image-assets.arrow
versions/<version>/dead_letters/dead-00000-of-00001.parquet
versions/<version>/report.json, report.html
units/<unit>.parquet, units/<unit>.dead.parquet   embedded, and not yet in a published version
runs/<version>/                                   the plan and progress of an active run; removed at its end
readers/<version>.<nonce>.json                    a version that an open reader holds, with the expiry time
```
"""

import datetime
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

import pyarrow as pa

FORMAT_VERSION = 2
PREPARE_RULES = 2
"""Version of the image preparation rules (transforms/sources/effective.py). 1 used Pillow's own conversions."""
LATEST = "LATEST.json"
RUNS = "runs"
UNITS = "units"
READERS = "readers"
KINDS = ("image", "text")
REPAIR = (
    "Run the job again, restore the file from a backup, or publish an older version "
    "(`epithre-beam versions rollback CATALOG`)."
)
DAMAGED = f"The file is damaged. {REPAIR}"
_DEAD_SUFFIX = ".dead.parquet"

_METADATA_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


class Reason(StrEnum):
    """Why an asset has no vector. The list is closed, since reports count by it."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    URI_NOT_ALLOWED = "uri_not_allowed"
    FILE_TOO_LARGE = "file_too_large"
    EMPTY_FILE = "empty_file"
    NOT_AN_IMAGE = "not_a_picture"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    UNDECODABLE = "undecodable"
    TOO_MANY_PIXELS = "too_many_pixels"
    DECODE_TIMEOUT = "decode_timeout"
    EMPTY_TEXT = "empty_text"
    TEXT_TOO_LONG = "text_too_long"
    NOT_UTF8 = "not_utf8"
    REFUSED = "refused"
    TOO_LARGE_FOR_API = "too_large_for_api"
    BROKEN_ANSWER = "broken_answer"
    BROKEN_VECTOR = "broken_vector"
    RETRIES_EXHAUSTED = "retries_exhausted"
    NOT_SENT = "not_sent"

    @property
    def is_transient(self) -> bool:
        """Whether the next run retries the asset, since the asset itself may be fine."""
        return self in {
            Reason.MISSING,
            Reason.UNREADABLE,
            Reason.BROKEN_ANSWER,
            Reason.RETRIES_EXHAUSTED,
            Reason.NOT_SENT,
        }


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """An asset without a vector, and the reason. `detail` is short and has no payload or secret."""

    asset_id: str
    kind: str
    uri: str | None
    stage: str
    reason: Reason
    detail: str
    attempts: int = 0
    fingerprint: str | None = None
    """Fingerprint of the source. While it is unchanged, a permanent failure is not retried."""


class LetterRow(TypedDict):
    """A dead letter as a row of its file."""

    asset_id: str
    kind: str
    uri: str | None
    stage: str
    reason: str
    detail: str
    attempts: int
    fingerprint: str | None


def metadata_type(types: Mapping[str, str]) -> pa.StructType | None:
    """Return the struct of the declared metadata columns; None without columns (Parquet has no empty struct)."""
    return pa.struct([(name, _METADATA_TYPES[kind]) for name, kind in types.items()]) if types else None


def asset_fields() -> list[pa.Field]:
    """Return the columns of an asset without its metadata and vector."""
    return [
        pa.field("asset_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("text", pa.string()),
        pa.field("content_sha256", pa.string(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),
        pa.field("media_type", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("prepared", pa.string()),
    ]


def embedding_field(dimension: int, vector_type: str = "float32") -> pa.Field:
    """Return the `embedding` column, a fixed-size list of float32 or float16."""
    item = pa.field("item", {"float32": pa.float32(), "float16": pa.float16()}[vector_type], nullable=False)
    return pa.field("embedding", pa.list_(item, dimension), nullable=False)


def unit_schema(dimension: int) -> pa.Schema:
    """Return the columns of a unit. Without metadata, since metadata can change while the vector is reused."""
    return pa.schema([*asset_fields(), embedding_field(dimension)])


def vector_schema(dimension: int, metadata: Mapping[str, str], vector_type: str = "float32") -> pa.Schema:
    """Return the columns of the vectors of a version."""
    struct = metadata_type(metadata)
    extra = [] if struct is None else [pa.field("metadata", struct)]
    return pa.schema([*asset_fields(), *extra, embedding_field(dimension, vector_type)])


def assets_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """Return the columns of `<kind>-assets.arrow`: the vector rows without vectors, in the order of the index."""
    struct = metadata_type(metadata)
    return pa.schema([*asset_fields(), *([] if struct is None else [pa.field("metadata", struct)])])


DEAD_LETTER_SCHEMA = pa.schema(
    [
        pa.field("asset_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("fingerprint", pa.string()),
    ]
)


def next_version(previous: str | None) -> str:
    """Return a unique name for a new version. It sorts after `previous` whatever the clock says."""
    before = re.match(r"[0-9]{1,12}(?=-)", previous or "")
    number = int(before[0]) + 1 if before else 1
    now = datetime.datetime.now(datetime.UTC)
    return f"{number:06d}-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"


def version_folder(version: str) -> str:
    return f"versions/{version}"


def manifest_name(version: str) -> str:
    return f"versions/{version}/manifest.json"


def vectors_name(version: str, kind: str, shard: int, shards: int) -> str:
    return f"versions/{version}/vectors/{kind}-{shard:05d}-of-{shards:05d}.parquet"


def index_name(version: str, kind: str, number: int = 0, count: int = 1) -> str:
    return f"versions/{version}/index/{kind}-{number:05d}-of-{count:05d}.faiss"


def codes_name(version: str, kind: str, number: int, count: int) -> str:
    return f"versions/{version}/index/{kind}-{number:05d}-of-{count:05d}.codes.faiss"


def assets_name(version: str, kind: str) -> str:
    return f"versions/{version}/index/{kind}-assets.arrow"


def dead_letters_name(version: str) -> str:
    return f"versions/{version}/dead_letters/dead-00000-of-00001.parquet"


def report_name(version: str) -> str:
    return f"versions/{version}/report.json"


def report_page_name(version: str) -> str:
    return f"versions/{version}/report.html"


def unit_name(unit: str) -> str:
    return f"{UNITS}/{unit}.parquet"


def unit_dead_letters_name(unit: str) -> str:
    return f"{UNITS}/{unit}{_DEAD_SUFFIX}"


def is_unit(name: str) -> bool:
    """Whether a file in the `units` folder holds vectors."""
    return name.endswith(".parquet") and not name.endswith(_DEAD_SUFFIX)


def run_folder(version: str) -> str:
    return f"{RUNS}/{version}"


def sample_name(version: str, kind: str, shard: int) -> str:
    return f"{run_folder(version)}/sample/{kind}-{shard:05d}.parquet"


def model_name(version: str) -> str:
    return f"{run_folder(version)}/model.npz"


def reader_name(version: str, nonce: str) -> str:
    return f"{READERS}/{version}.{nonce}.json"
