"""Merge the hits of several kinds into one order, for many queries at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...configs.errors import ArgumentError
from ..versions.layout import KINDS
from ..versions.manifest import IndexEntry

Merge = Literal["score", "quota", "standardised"]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The hits of many queries, as arrays of shape (queries, width), best first."""

    scores: npt.NDArray[np.float32]
    kinds: npt.NDArray[np.int8]
    """Position of the kind in the merged mapping."""
    rows: npt.NDArray[np.int64]
    """Rows of `assets(kind)`. -1 in the last columns of a query with fewer hits."""


def check_merge(
    merge: str, entries: Mapping[str, IndexEntry], query_kind: str | None
) -> Mapping[str, tuple[float, float]]:
    """Return the mean and standard deviation of each kind's scores for `standardised`; (0, 1) for other merges.

    Raises:
        ArgumentError: If `merge` is unknown, or `standardised` lacks `query_kind` or the score figures.
    """
    if not isinstance(merge, str) or merge not in {"score", "quota", "standardised"}:
        raise ArgumentError(f"merge must be 'score', 'quota' or 'standardised', got {merge!r}.")
    if query_kind not in (None, *KINDS):
        raise ArgumentError(f"query_kind must be 'image' or 'text', got {query_kind!r}.")
    if merge != "standardised":
        return dict.fromkeys(entries, (0.0, 1.0))
    if query_kind is None:
        raise ArgumentError("merge='standardised' needs query_kind. Set it to 'image' or 'text'.")
    figures = {}
    for kind, entry in entries.items():
        found = entry.scores.get(f"{query_kind}->{kind}")
        if found is None:
            raise ArgumentError(
                f"merge='standardised' needs the score figures of {query_kind}->{kind}, but the catalog has no "
                f"{query_kind} assets. Use another merge."
            )
        figures[kind] = (found.mean, found.std or 1.0)
    return figures


def merge_kinds(
    found: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]],
    k: int,
    merge: Merge,
    figures: Sequence[tuple[float, float]],
) -> Merged:
    """Merge the scores and rows of each kind. Each kind is already sorted, best first.

    Args:
        found: Per kind, scores (float32) and rows (int64), both (queries, width); row -1 for a missing hit.
        k: Maximum number of hits per query.
        merge: `score`: by inner product; `quota`: alternately from each kind; `standardised`: by standard deviations
            above the mean. Ties are ordered by inner product, then by kind, then by input order.
        figures: Per kind, mean and standard deviation of the scores.
    """
    if len(found) == 1:  # already sorted, whatever the merge
        only, places = found[0]
        return Merged(scores=only[:, :k], kinds=np.zeros(places[:, :k].shape, np.int8), rows=places[:, :k])
    queries = len(found[0][0])
    scores = np.concatenate([scores for scores, _ in found], axis=1)
    rows = np.concatenate([rows for _, rows in found], axis=1)
    widths = [part.shape[1] for part, _ in found]
    kinds = np.repeat(np.arange(len(found), dtype=np.int8), widths)
    if merge == "quota":
        ranks = np.concatenate([np.arange(width) for width in widths])
        keys = np.broadcast_to(ranks.astype(np.float64), scores.shape).copy()
    else:
        means = np.repeat([mean for mean, _ in figures], widths)
        deviations = np.repeat([std for _, std in figures], widths)
        keys = -(scores.astype(np.float64) - means) / deviations
    keys[rows < 0] = np.inf
    # Both sorts are stable, so ties are ordered by kind and then by rank.
    order = np.argsort(-scores, axis=1, kind="stable")
    order = np.take_along_axis(order, np.argsort(np.take_along_axis(keys, order, 1), axis=1, kind="stable"), 1)
    order = order[:, :k]
    return Merged(
        scores=np.take_along_axis(scores, order, 1),
        kinds=np.broadcast_to(kinds, (queries, len(kinds)))[np.arange(queries)[:, None], order],
        rows=np.take_along_axis(rows, order, 1),
    )
