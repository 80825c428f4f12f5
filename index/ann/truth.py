"""The exact answers to some queries, and what share of them an index finds.

The answers are found block by block as the rows stream past, and merge over the files of an index, so that recall
is measured against all rows whatever their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..vectors.distribution import Distribution, scores_distribution
from ..versions.manifest import ScoreFigures

NOT_FOUND = np.iinfo(np.uint32).max
TIE_CANDIDATES = 100
"""So many answers beyond k are kept, to know which rows are as good as the k-th."""
SCORE_TOLERANCE = 2e-4
"""Of a score from fp16 codes."""
_EQUAL = 1e-6
_PENDING = 1 << 18


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
            self.settle()

    def settle(self) -> None:
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


@dataclass(frozen=True, kw_only=True)
class Judged:
    """At which place an index file lists the rows that may be right, for some ways to ask it."""

    scores: npt.NDArray[np.float32]
    """(queries, rows): exact inner products, minus infinity where there is no row."""
    ranks: npt.NDArray[np.uint32]
    """(ways, queries, rows), from 0, the query itself not counted; NOT_FOUND."""


def judge_answers(
    truth: Truth,
    answers: Sequence[npt.NDArray[np.int64]],
    k: int,
    stored_scores: Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.float32]],
) -> Judged:
    """Looks the exact answers up in what an index file answered.

    Equal scores are common: a catalog may hold a thousand copies of one placeholder picture. So a row counts when its
    exact score is not below the k-th. Where all that are kept tie with the k-th there may be more such rows than were
    kept; what the index answered then counts by its stored score.

    Args:
        truth: The exact answers from this file.
        answers: For each way to ask, rows int64, (queries, width), best first, -1 where there are fewer.
        k: That recall is measured at.
        stored_scores: Gives the inner products of a query, by its number, with stored rows.
    """
    truth.settle()
    kept, scores = truth.rows, truth.scores
    bars = np.sort(scores, axis=1)[:, ::-1][:, min(k, scores.shape[1]) - 1]
    crowded = np.isfinite(bars) & (scores.min(axis=1) >= bars - SCORE_TOLERANCE)
    more: dict[int, npt.NDArray[np.int64]] = {}
    for q in np.flatnonzero(crowded).tolist():
        others = np.setdiff1d(np.concatenate([answer[q] for answer in answers]), [*kept[q], -1])
        if truth.is_same_kind:
            others = np.setdiff1d(others, truth.queries.rows[q : q + 1])
        if len(others):
            more[q] = others[stored_scores(q, others) >= bars[q] - SCORE_TOLERANCE]
    widest = max((len(rows) for rows in more.values()), default=0)
    kept = np.pad(kept, ((0, 0), (0, widest)), constant_values=-1)
    scores = np.pad(scores, ((0, 0), (0, widest)), constant_values=-np.inf)
    for q, rows in more.items():
        kept[q, truth.keep : truth.keep + len(rows)] = rows
        scores[q, truth.keep : truth.keep + len(rows)] = bars[q]
    ranks = np.full((len(answers), *kept.shape), NOT_FOUND, np.uint32)
    own = truth.queries.rows if truth.is_same_kind else np.full(len(kept), -1)
    for way, answer in enumerate(answers):
        for q in range(len(kept)):
            ranks[way, q] = _places(answer[q], kept[q], int(own[q]))
    return Judged(scores=scores, ranks=ranks)


def _places(answer: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], own: int) -> npt.NDArray[np.uint32]:
    answer = answer[answer != own] if own >= 0 else answer
    order = np.argsort(answer)
    at = np.searchsorted(answer, rows, sorter=order)
    found = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(rows), np.int64)
    is_there = (rows >= 0) & (answer[found] == rows) if len(order) else np.zeros(len(rows), bool)
    return np.where(is_there, found, NOT_FOUND).astype(np.uint32)


def merge_judged(parts: Sequence[Judged]) -> Judged:
    """The files of an index as one: each gives its best, so that a row's place in its own file decides."""
    ways = max(len(part.ranks) for part in parts)
    ranks = [np.concatenate([p.ranks, np.repeat(p.ranks[-1:], ways - len(p.ranks), axis=0)]) for p in parts]
    return Judged(scores=np.concatenate([part.scores for part in parts], axis=1), ranks=np.concatenate(ranks, axis=2))


def recall_at(judged: Judged, k: int, width: int) -> npt.NDArray[np.float64]:
    """The share of the k best that stand among the first `width` answers: (ways, queries).

    NaN for a query that has no answer at all.
    """
    scores = np.sort(judged.scores, axis=1)[:, ::-1]
    possible = np.minimum(np.isfinite(scores).sum(axis=1), k)
    bars = scores[np.arange(len(scores)), np.maximum(possible, 1) - 1]
    right = np.isfinite(judged.scores) & (judged.scores >= bars[:, None] - _EQUAL)
    hits = ((judged.ranks < width) & right[None]).sum(axis=2)
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = np.minimum(hits, possible) / np.where(possible, possible, np.nan)
    return shares
