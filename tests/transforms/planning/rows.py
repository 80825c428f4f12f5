"""References of texts and images, as rows."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from epithre_beam.transforms.sources.references import reference_schema, text_fingerprint

Row = dict[str, Any]


def text_row(number: int, text: str, source: int = 0) -> Row:
    return {
        "asset_id": f"t{number}",
        "kind": "text",
        "text": text,
        "fingerprint": text_fingerprint(text),
        "size_bytes": len(text.encode()),
        "source": source,
    }


def image_row(number: int, size: int | None, fingerprint: str, source: int = 0) -> Row:
    return {
        "asset_id": f"i{number}",
        "kind": "image",
        "uri": f"/pictures/{number}.jpg",
        "fingerprint": fingerprint,
        "size_bytes": size,
        "source": source,
    }


def as_table(rows: Sequence[Row], types: dict[str, str] | None = None) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=reference_schema(types or {}))
