"""What a search gives: hits, and how those of several kinds are put in one order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .manifest import IndexEntry

Merge = Literal["score", "quota", "standardised"]
Ranks = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]]
"""For each kind scores and rows, both (queries, at most k), best first; -1 for a row that is not there."""


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
    """What a catalog says of an asset."""

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


def merge_ranks(
    q: int, ranks: Ranks, entries: Mapping[str, IndexEntry], k: int, merge: Merge, query_kind: str | None
) -> list[tuple[float, int, str]]:
    """The best k of query `q` over all kinds, as (score, row, kind).

    Raises:
        ValueError: When `standardised` lacks the figures of a direction.
    """
    found = []
    for kind, (scores, rows) in ranks.items():
        offset, scale = 0.0, 1.0
        if merge == "standardised":
            figures = entries[kind].scores.get(f"{query_kind}->{kind}")
            if figures is None:
                raise ValueError(
                    f"merge='standardised' needs the figures of {query_kind}->{kind}, which this catalog lacks: "
                    f"it has no {query_kind} assets."
                )
            offset, scale = figures.mean, figures.std or 1.0
        for rank, (score, row) in enumerate(zip(scores[q].tolist(), rows[q].tolist(), strict=True)):
            if row >= 0:
                key = rank if merge == "quota" else -(score - offset) / scale
                found.append((key, -score, kind, rank, row))
    found.sort()
    return [(-negative, row, kind) for _, negative, kind, _, row in found[:k]]
