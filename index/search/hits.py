"""What a catalog says of its assets, and of those that a search found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An asset that was found."""

    asset_id: str
    kind: str
    uri: str | None
    text: str | None
    score: float
    """Inner product with the query: the cosine, since both have unit norm. With the merge `standardised` still
    the inner product; only the order is by the standardised score."""
    row: int
    """Position among the rows of its kind."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """An asset of a catalog."""

    asset_id: str
    kind: str
    row: int
    """Position among the rows of its kind, in this version."""
    uri: str | None
    text: str | None
    content_sha256: str
    """Of the original bytes, in hex."""
    media_type: str | None
    size_bytes: int | None
    width: int | None
    height: int | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
