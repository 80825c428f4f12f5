"""Assets of a catalog and hits of a search."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """An asset that a search found."""

    asset_id: str
    kind: str
    uri: str | None
    text: str | None
    score: float
    """Inner product with the query. It is the cosine, since both have unit norm. The merge `standardised` changes
    only the order, not the score."""
    row: int
    """Row number within its kind."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """An asset of a catalog."""

    asset_id: str
    kind: str
    row: int
    """Row number within its kind, in this version."""
    uri: str | None
    text: str | None
    content_sha256: str
    """SHA-256 of the original bytes, in hex."""
    media_type: str | None
    size_bytes: int | None
    width: int | None
    height: int | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
