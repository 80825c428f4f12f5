"""Recall, MRR and nDCG of labelled queries, by index and by exact search, with confidence intervals.

Exact search shows what the model and the labels allow. The difference to the index is the error of the index, except
for near ties (`near_ties.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...index.ann.stored import nearest_stored
from ...index.search.catalog import Catalog
from ...index.search.merge import Merge, check_merge, merge_kinds
from ...index.storage.store import Store
from .document import CatalogFigures, ComparedFigures, IntervalFigures, Intervals

DEPTH = 100
"""The length of the result lists of exact search."""
RESAMPLES = 2000
_SEED = 20
_RESAMPLED_AT_ONCE = 4_000_000

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The relevant rows of some queries, in one kind or all kinds: arrays with one entry per labelled pair."""

    queries: int
    query: Rows
    """Positions from 0 to `queries`; each query has a pair with a grade above 0."""
    rows: Rows
    """-1 for an asset without a vector, which no search can find."""
    grades: Floats

    def __post_init__(self) -> None:
        if len(np.unique(self.query[self.grades > 0])) != self.queries:
            raise ValueError("each query must have an asset with a grade above 0")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over queries with its confidence interval."""

    value: float
    low: float
    high: float

    def figures(self) -> IntervalFigures:
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def score_lists(found: Rows, wanted: Wanted, ks: Sequence[int]) -> dict[str, Floats]:
    """Computes the figures of each query, by name.

    `recall@k` is the share of the relevant assets among the first k. `mrr@k`, for the greatest k only, is the
    reciprocal rank of the first relevant asset, or 0 if it is not among the first k. `ndcg@k` is the sum of the grades,
    each divided by log2(rank + 1), divided by the same sum for the best possible order (Järvelin and Kekäläinen 2002,
    with the grades as gains).

    Args:
        found: Rows int64, (queries, width), best first; -1 after the end of a list.
        wanted: The relevant rows.
        ks: The list lengths, ascending.

    Returns:
        For each figure, float64, (queries,).
    """
    gains = _gains(found, wanted)
    relevant = np.bincount(wanted.query[wanted.grades > 0], minlength=wanted.queries)
    discounts = 1 / np.log2(np.arange(2, max(*ks, found.shape[1], 2) + 2))
    # The best possible order: all grades of a query, the highest first.
    order = np.lexsort((-wanted.grades, wanted.query))
    query, grades = wanted.query[order], wanted.grades[order]
    places = np.arange(len(query)) - np.searchsorted(query, query)
    figures = {}
    for k in ks:
        figures[f"recall@{k}"] = (gains[:, :k] > 0).sum(axis=1) / relevant
    ranks = first_ranks(found[:, : ks[-1]], wanted)
    figures[f"mrr@{ks[-1]}"] = np.divide(1.0, ranks, out=np.zeros(len(ranks)), where=ranks > 0)
    for k in ks:
        got = gains[:, :k] @ discounts[: min(k, gains.shape[1])]
        counted = places < k
        best = np.bincount(query[counted], grades[counted] * discounts[places[counted]], minlength=wanted.queries)
        figures[f"ndcg@{k}"] = got / best
    return figures


def score_by_length(found: Mapping[int, Rows], wanted: Wanted) -> dict[str, Floats]:
    """Computes `score_lists` of lists that were searched separately for each length, in ascending order of length."""
    parts = [score_lists(rows, wanted, [k]) for k, rows in found.items()]
    last = next(reversed(found))
    figures = {name: values for part in parts for name, values in part.items()}
    names = [*(f"recall@{k}" for k in found), f"mrr@{last}", *(f"ndcg@{k}" for k in found)]
    return {name: figures[name] for name in names}


def first_ranks(found: Rows, wanted: Wanted) -> Rows:
    """Returns the rank of each query's first relevant asset, from 1; 0 when none was found."""
    right = _gains(found, wanted) > 0
    return (
        np.where(right.any(axis=1), right.argmax(axis=1) + 1, 0) if found.shape[1] else np.zeros(len(found), np.int64)
    )


def recall_curve(found: Rows, wanted: Wanted) -> Floats:
    """Returns the mean recall at each rank: float64, (width,)."""
    relevant = np.bincount(wanted.query[wanted.grades > 0], minlength=wanted.queries)
    curve: Floats = (np.cumsum(_gains(found, wanted) > 0, axis=1) / relevant[:, None]).mean(axis=0)
    return curve


def _gains(found: Rows, wanted: Wanted) -> Floats:
    """The grade of each found row, (queries, width); 0 for a row without a label."""
    alive = wanted.rows >= 0
    stride = int(max(found.max(initial=0), wanted.rows.max(initial=0))) + 1
    keys = wanted.query[alive] * stride + wanted.rows[alive]
    order = np.argsort(keys)
    keys, grades = keys[order], wanted.grades[alive][order]
    if not len(keys):
        return np.zeros(found.shape)
    sought = np.arange(len(found))[:, None] * stride + found
    at = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
    return np.where((keys[at] == sought) & (found >= 0), grades[at], 0.0)


def mean_intervals(values: Floats, confidence: float, *, seed: int = _SEED) -> list[Interval]:
    """Computes the mean of each column with the interval of a percentile bootstrap over the rows.

    The same rows are drawn for all columns, so the interval of a column of differences is that of *paired* values.

    Args:
        values: float64, (queries, figures).
        confidence: The share of bootstrap means inside the interval, such as 0.95.
        seed: The seed of the draws.
    """
    queries = len(values)
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, min(RESAMPLES, _RESAMPLED_AT_ONCE // queries))
    for first in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - first)
        drawn = rng.integers(0, queries, (count, queries)) + np.arange(count)[:, None] * queries
        weights = np.bincount(drawn.ravel(), minlength=count * queries).reshape(count, queries)
        means.append(weights @ values / queries)
    edges = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = np.quantile(np.concatenate(means), edges, axis=0)
    return [
        Interval(value=float(value), low=float(least), high=float(most))
        for value, least, most in zip(values.mean(axis=0), low, high, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The results of all queries: scores float32 and rows int64, both (queries, width), -1 after the end of a list."""

    scores: npt.NDArray[np.float32]
    rows: Rows


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An evaluated catalog, and the queries embedded by its model."""

    url: str
    catalog: Catalog
    vectors: npt.NDArray[np.float32]
    """float32, (queries, dimension)."""
    query_kinds: Sequence[str]
    own_rows: Rows
    """The rows of queries that are assets, which must not count as hits; -1 for other queries."""


def search_index(subject: Subject, kind: Any, k: int) -> Lists:
    """Searches the index for the best k rows of a kind. An index searches more cells for a larger k."""
    lists = _no_lists(subject, k)
    if kind not in subject.catalog.kinds:
        return lists
    own = _own_rows(subject, kind)
    for of_sort in (own < 0, own >= 0):  # an asset also finds itself, so it needs one more result
        if of_sort.any():
            asked = k + int(own[of_sort][0] >= 0)
            found = subject.catalog.find_rows(subject.vectors[of_sort], asked, kind=kind)
            part = _without(own[of_sort], *found, k)
            lists.scores[of_sort], lists.rows[of_sort] = part.scores, part.rows
    return lists


def search_exactly(subject: Subject, kind: Any) -> Lists:
    """Finds the best `DEPTH` rows of a kind for all queries by comparing them with every stored vector."""
    catalog = subject.catalog
    if kind not in catalog.kinds:
        return _no_lists(subject, DEPTH)
    ids = catalog.assets(kind).column("asset_id")
    found = nearest_stored(Store(subject.url), catalog.manifest, kind, ids, subject.vectors, DEPTH + 1)
    return _without(_own_rows(subject, kind), *found, DEPTH)


def _own_rows(subject: Subject, kind: str) -> Rows:
    return np.where(np.array([kind == query for query in subject.query_kinds]), subject.own_rows, -1)


def _no_lists(subject: Subject, width: int) -> Lists:
    shape = (len(subject.vectors), width)
    return Lists(scores=np.full(shape, -np.inf, np.float32), rows=np.full(shape, -1, np.int64))


def _without(own: Rows, scores: npt.NDArray[np.float32], rows: Rows, width: int) -> Lists:
    """Removes each query from its own list and cuts all lists to one length."""
    missing = max(0, width + 1 - rows.shape[1])
    scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    rows = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
    is_own = (rows == own[:, None]) & (rows >= 0)
    order = np.argsort(is_own, axis=1, kind="stable")[:, :width]
    return Lists(scores=np.take_along_axis(scores, order, 1), rows=np.take_along_axis(rows, order, 1))


def row_offsets(catalog: Catalog) -> dict[str, int]:
    """Returns the first row of each kind when the rows of all kinds are numbered consecutively."""
    sizes = [len(catalog.assets(kind)) for kind in catalog.kinds]  # type: ignore[arg-type]
    return dict(zip(catalog.kinds, np.cumsum([0, *sizes]).tolist(), strict=False))


def merge_lists(subject: Subject, lists: Mapping[str, Lists], merge: Merge) -> Lists:
    """Merges the lists of all kinds into one list of the same length; rows are numbered over all kinds."""
    kinds = list(lists)
    wide = next(iter(lists.values())).rows.shape[1]
    entries = {entry.kind: entry for entry in subject.catalog.manifest.indexes if entry.kind in lists}
    starts = np.array([row_offsets(subject.catalog)[kind] for kind in kinds])
    merged_lists = _no_lists(subject, wide)
    scores, rows = merged_lists.scores, merged_lists.rows
    for query_kind in dict.fromkeys(subject.query_kinds):
        of_kind = np.flatnonzero([one == query_kind for one in subject.query_kinds])
        figures = check_merge(merge, entries, query_kind)
        found = [(lists[kind].scores[of_kind], lists[kind].rows[of_kind]) for kind in kinds]
        merged = merge_kinds(found, wide, merge, [figures[kind] for kind in kinds])
        width = merged.rows.shape[1]
        scores[of_kind, :width] = merged.scores
        rows[of_kind, :width] = np.where(merged.rows >= 0, merged.rows + starts[merged.kinds], -1)
    return merged_lists


@dataclass(frozen=True)
class SubjectFigures:
    """The figures of a catalog in one direction, by name, from `score_lists`."""

    index: Mapping[str, Floats]
    exact: Mapping[str, Floats]
    resolved: Mapping[str, Floats]
    """Figures of exact search with near ties in the order of the index; the difference is the index error."""


def compare_figures(subjects: Sequence[SubjectFigures], confidence: float) -> ComparedFigures:
    """Computes the figures of one direction with their intervals, for one or two catalogs.

    Args:
        subjects: One for each catalog.
        confidence: The confidence level of the intervals.

    Returns:
        `catalogs`, a list of {"index", "exact", "index_error"}; with two catalogs also `difference`, {"index",
        "exact"}, the second minus the first. Each has intervals by the name of the figure.
    """
    names = list(subjects[0].index)
    columns: dict[tuple[int, str], Mapping[str, Floats]] = {}
    for number, subject in enumerate(subjects):
        columns |= {(number, "index"): subject.index, (number, "exact"): subject.exact}
        columns[number, "index_error"] = {name: subject.resolved[name] - subject.index[name] for name in names}
    if len(subjects) == 2:
        first, second = subjects
        columns[2, "index"] = {name: second.index[name] - first.index[name] for name in names}
        columns[2, "exact"] = {name: second.exact[name] - first.exact[name] for name in names}
    values = np.stack([figures[name] for figures in columns.values() for name in names], axis=1)
    intervals = iter(mean_intervals(values, confidence))
    found: dict[tuple[int, str], Intervals] = {
        column: {name: next(intervals).figures() for name in names} for column in columns
    }
    catalogs: list[CatalogFigures] = [
        {"index": found[n, "index"], "exact": found[n, "exact"], "index_error": found[n, "index_error"]}
        for n in range(len(subjects))
    ]
    if len(subjects) == 1:
        return {"catalogs": catalogs}
    return {"catalogs": catalogs, "difference": {"index": found[2, "index"], "exact": found[2, "exact"]}}
