"""The exact answers to some queries, against which recall is measured.

They are found block by block as the rows stream past, and merge over the files of an index, so that recall is
measured against all rows whatever their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..vectors.distribution import Distribution, scores_distribution
from ..versions.manifest import ScoreFigures

TIE_CANDIDATES = 100
"""So many answers beyond k are kept, to know which rows are as good as the k-th."""
_PENDING = 1 << 18

ReadRows = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""Gives stored vectors by the numbers of their rows: float32, (rows, dimension)."""
StoredScores = Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""The inner products of a query, by its number, with some rows as they are stored."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Vectors that an index is asked for, to measure it."""

    kind: str
    rows: npt.NDArray[np.int64]
    """Their own positions among the rows of their kind; -1 for a query that is no row."""
    vectors: npt.NDArray[np.float32]
    """float32, (queries, dimension)."""


@dataclass
class Truth:
    """The best rows of one index file for some queries, and how all scores are distributed."""

    queries: Queries
    keep: int
    is_same_kind: bool
    """Whether the queries are rows of the kind themselves: none of them may find itself."""
    scores: npt.NDArray[np.float32] = field(init=False)
    """float32, (queries, up to `keep`), in no order; minus infinity where there are fewer."""
    rows: npt.NDArray[np.int64] = field(init=False)
    stored: npt.NDArray[np.float32] = field(init=False)
    """Of the same rows, the scores by their stored vectors; NaN where none were looked at."""
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
        """Takes the inner products of all queries with some rows: float32, (queries, rows); it is changed."""
        self.total += float(scores.sum(dtype=np.float64))
        self.squares += float(np.square(scores, dtype=np.float64).sum())
        self.count += scores.size
        if self.is_same_kind:
            own = (self.queries.rows >= first_row) & (self.queries.rows < first_row + scores.shape[1])
            scores[np.flatnonzero(own), self.queries.rows[own] - first_row] = -np.inf
        self.distribution.add(scores)
        # Nearly all scores are below those that are kept already, so little is ever sorted.
        query, column = np.nonzero(scores > self.scores.min(axis=1, keepdims=True))
        self._pending.append((query, column + first_row, scores[query, column]))
        self._pending_count += len(query)
        if self._pending_count >= _PENDING or self.count == scores.size:  # the first rows fill it
            self.merge_pending()

    def merge_pending(self) -> None:
        """Sorts in what has come since; before `scores` and `rows` are read."""
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
        best = order[starts[:, None] + np.arange(self.keep)]  # each has `keep` at least: those it had
        self.rows, self.scores = rows[best], scores[best]

    def scores_by(self, read: ReadRows) -> StoredScores:
        """The stored scores of the queries, by stored rows that are read; what is no number counts as the least."""

        def scores(q: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            found: npt.NDArray[np.float32] = read(rows) @ self.queries.vectors[q]
            return np.where(np.isnan(found), np.float32(-np.inf), found)

        return scores

    def compare(self, stored: StoredScores, best: int | None = None) -> None:
        """Asks for the stored scores of `rows`, after all have passed: of all, or of the `best` of each query."""
        self.merge_pending()
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :best]
        for q, places in enumerate(order):
            there = places[self.rows[q, places] >= 0]
            self.stored[q, there] = stored(q, self.rows[q, there])

    @property
    def figures(self) -> ScoreFigures:
        return merged_figures([self])


def merged_figures(truths: Sequence[Truth]) -> ScoreFigures:
    """Over all files of an index."""
    count = sum(truth.count for truth in truths)
    mean = sum(truth.total for truth in truths) / count
    std = max(sum(truth.squares for truth in truths) / count - mean * mean, 0.0) ** 0.5
    distribution = scores_distribution()
    for truth in truths:
        distribution.merge(truth.distribution)
    # Rounded: the order of the rows, which is history, is seen in the last digits of a sum.
    return ScoreFigures(mean=round(mean, 6), std=round(std, 6), histogram=distribution.histogram())
