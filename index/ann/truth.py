"""The exact answers to sample queries, against which recall is measured.

They are computed block by block while the rows stream, and merged over the files of an index, so that recall is always
measured against all rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..vectors.distribution import Distribution, scores_distribution
from ..versions.manifest import ScoreFigures

TIE_CANDIDATES = 100
"""The number of answers kept beyond k, to find the rows that are as good as the k-th."""
_PENDING = 1 << 18

ReadRows = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""Reads stored vectors by row number: float32, (rows, dimension)."""
StoredScores = Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""Returns the inner products of a query, given by its number, with some stored rows."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Query vectors of one kind, to measure an index with."""

    kind: str
    rows: npt.NDArray[np.int64]
    """Their positions among the rows of their kind; -1 for a query that is not a row."""
    vectors: npt.NDArray[np.float32]
    """float32, (queries, dimension)."""


@dataclass
class Truth:
    """The best rows of one index file for some queries, and the distribution of all scores."""

    queries: Queries
    keep: int
    is_same_kind: bool
    """Whether the queries are rows of the kind itself; a query must then not find itself."""
    scores: npt.NDArray[np.float32] = field(init=False)
    """float32, (queries, up to `keep`), unordered; minus infinity where there are fewer."""
    rows: npt.NDArray[np.int64] = field(init=False)
    stored: npt.NDArray[np.float32] = field(init=False)
    """The scores of the same rows by their stored vectors; NaN where they were not read."""
    total: float = 0.0
    squares: float = 0.0
    count: int = 0
    distribution: Distribution = field(default_factory=scores_distribution)
    _pending: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]] = field(
        default_factory=list
    )
    _pending_count: int = 0

    def __post_init__(self) -> None:
        self.scores = np.full((len(self.queries.rows), self.keep), -np.inf, np.float32)
        self.rows = np.full((len(self.queries.rows), self.keep), -1, np.int64)
        self.stored = np.full_like(self.scores, np.nan)

    def add(self, scores: npt.NDArray[np.float32], first_row: int) -> None:
        """Adds the inner products of all queries with some rows: float32, (queries, rows); the array is modified."""
        self.total += float(scores.sum(dtype=np.float64))
        self.squares += float(np.square(scores, dtype=np.float64).sum())
        self.count += scores.size
        if self.is_same_kind:
            own = (self.queries.rows >= first_row) & (self.queries.rows < first_row + scores.shape[1])
            scores[np.flatnonzero(own), self.queries.rows[own] - first_row] = -np.inf
        self.distribution.add(scores)
        # Nearly all scores are below the kept ones, so few need sorting.
        query, column = np.nonzero(scores > self.scores.min(axis=1, keepdims=True))
        self._pending.append((query, column + first_row, scores[query, column]))
        self._pending_count += len(query)
        if self._pending_count >= _PENDING or self.count == scores.size:  # the first rows fill the list
            self.merge_pending()

    def merge_pending(self) -> None:
        """Merges the pending scores; call it before `scores` and `rows` are read."""
        if not self._pending:
            return
        queries, rows, scores = (np.concatenate(part) for part in zip(*self._pending, strict=True))
        self._pending, self._pending_count = [], 0
        kept = np.arange(len(self.scores)).repeat(self.keep)
        queries = np.concatenate([kept, queries])
        rows = np.concatenate([self.rows.ravel(), rows])
        scores = np.concatenate([self.scores.ravel(), scores])
        order = np.lexsort((-scores, queries))
        starts = np.searchsorted(queries[order], np.arange(len(self.scores)))
        best = order[starts[:, None] + np.arange(self.keep)]  # each query has at least the `keep` rows it had before
        self.rows, self.scores = rows[best], scores[best]

    def scores_by(self, read: ReadRows) -> StoredScores:
        """Returns a function that computes stored scores from the rows that `read` returns; NaN becomes -inf."""

        def scores(q: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            found: npt.NDArray[np.float32] = read(rows) @ self.queries.vectors[q]
            return np.where(np.isnan(found), np.float32(-np.inf), found)

        return scores

    def compare(self, stored: StoredScores, best: int | None = None) -> None:
        """Fills in the stored scores of all `rows`, or of the `best` of each query; call it after the last `add`."""
        self.merge_pending()
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :best]
        for q, places in enumerate(order):
            there = places[self.rows[q, places] >= 0]
            self.stored[q, there] = stored(q, self.rows[q, there])

    @property
    def figures(self) -> ScoreFigures:
        return merged_figures([self])


def merged_figures(truths: Sequence[Truth]) -> ScoreFigures:
    """Merges the score statistics of all files of an index."""
    count = sum(truth.count for truth in truths)
    mean = sum(truth.total for truth in truths) / count
    std = max(sum(truth.squares for truth in truths) / count - mean * mean, 0.0) ** 0.5
    distribution = scores_distribution()
    for truth in truths:
        distribution.merge(truth.distribution)
    # Rounded, because the last digits of a sum depend on the order of the rows.
    return ScoreFigures(mean=round(mean, 6), std=round(std, 6), histogram=distribution.histogram())
