"""Recall: the share of the k right rows that an index returns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .precision import EQUAL, compare_scores, error_bound
from .truth import StoredScores, Truth

NOT_FOUND = np.iinfo(np.uint32).max


@dataclass(frozen=True, kw_only=True)
class Rated:
    """The ranks of the possibly right rows in the answers of an index file, for several ways to search it."""

    scores: npt.NDArray[np.float32]
    """(queries, rows): exact inner products, minus infinity where there is no row."""
    ranks: npt.NDArray[np.uint32]
    """(ways, queries, rows): from 0, the query itself not counted; NOT_FOUND for a missing row."""
    tolerances: npt.NDArray[np.float32]
    """(queries,): the stored vectors cannot distinguish scores that are closer than this."""


def rate_answers(truth: Truth, answers: Sequence[npt.NDArray[np.int64]], k: int, stored_scores: StoredScores) -> Rated:
    """Finds the ranks of the exact answers in the answers of an index file.

    Near ties are common: a catalog may hold a thousand copies of one placeholder image, or texts that differ by one
    number. A row is therefore right when its exact score is within the tolerance of the k-th. When all kept rows are
    that close, more such rows may exist than were kept; the rows that the index returned then count by stored score.

    Args:
        truth: The exact answers from this file, after `Truth.compare` has filled in their stored scores.
        answers: For each way to search, rows int64, (queries, width), best first, -1 where there are fewer.
        k: The k that recall is measured at.
        stored_scores: Returns the stored scores of rows that are not kept.
    """
    truth.merge_pending()
    kept, scores = truth.rows, truth.scores
    dimension = truth.queries.vectors.shape[1]
    errors, is_other = compare_scores(scores, truth.stored, dimension)
    descending = np.sort(scores, axis=1)[:, ::-1]
    bars, least = descending[:, min(k, scores.shape[1]) - 1], descending[:, -1]
    # A row that is not kept scores at most `least`; its stored score may still reach the bar minus the measured error.
    crowded = np.isfinite(least) & (least + error_bound(dimension) >= bars - errors)
    more: dict[int, npt.NDArray[np.int64]] = {}
    for q in np.flatnonzero(crowded).tolist():
        others = np.setdiff1d(np.concatenate([answer[q] for answer in answers]), [*kept[q], -1])
        if truth.is_same_kind:
            others = np.setdiff1d(others, truth.queries.rows[q : q + 1])
        if len(others):
            more[q] = others[stored_scores(q, others) >= bars[q] - errors[q] - EQUAL]
    widest = max((len(rows) for rows in more.values()), default=0)
    kept = np.pad(kept, ((0, 0), (0, widest)), constant_values=-1)
    scores = np.pad(scores, ((0, 0), (0, widest)), constant_values=-np.inf)
    for q, rows in more.items():
        kept[q, truth.keep : truth.keep + len(rows)] = rows
        scores[q, truth.keep : truth.keep + len(rows)] = max(least[q], bars[q] - 2 * errors[q])
    ranks = np.full((len(answers), *kept.shape), NOT_FOUND, np.uint32)
    own = truth.queries.rows if truth.is_same_kind else np.full(len(kept), -1)
    for way, answer in enumerate(answers):
        for q in range(len(kept)):
            ranks[way, q] = _places(answer[q], kept[q], int(own[q]))
    ranks[:, :, : truth.keep][:, is_other] = (
        NOT_FOUND  # the stored vector is a different one, so its code does not count
    )
    return Rated(scores=scores, ranks=ranks, tolerances=2 * errors)


def _places(answer: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], own: int) -> npt.NDArray[np.uint32]:
    answer = answer[answer != own] if own >= 0 else answer
    order = np.argsort(answer)
    at = np.searchsorted(answer, rows, sorter=order)
    found = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(rows), np.int64)
    is_there = (rows >= 0) & (answer[found] == rows) if len(order) else np.zeros(len(rows), bool)
    return np.where(is_there, found, NOT_FOUND).astype(np.uint32)


def merge_rated(parts: Sequence[Rated]) -> Rated:
    """Merges the files of an index: each returns its own best rows, so a row keeps its rank in its own file."""
    ways = max(len(part.ranks) for part in parts)
    ranks = [np.concatenate([p.ranks, np.repeat(p.ranks[-1:], ways - len(p.ranks), axis=0)]) for p in parts]
    return Rated(
        scores=np.concatenate([part.scores for part in parts], axis=1),
        ranks=np.concatenate(ranks, axis=2),
        tolerances=np.max([part.tolerances for part in parts], axis=0),
    )


def recall_at(rated: Rated, k: int, width: int, *, with_ties: bool = True) -> npt.NDArray[np.float64]:
    """Returns the share of k right rows among the first `width` answers: (ways, queries).

    A row is right when its score is at most the tolerance below the k-th, as in the recall of ann-benchmarks, which
    allows a distance of (1 + epsilon) times the k-th (Aumüller, Bernhardsson and Faithfull 2020, section 2.2). Without
    ties, only the k best rows and those with the same score as the k-th are right.

    The share is NaN for a query without any answer.
    """
    scores = np.sort(rated.scores, axis=1)[:, ::-1]
    possible = np.minimum(np.isfinite(scores).sum(axis=1), k)
    bars = scores[np.arange(len(scores)), np.maximum(possible, 1) - 1]
    if with_ties:
        bars = bars - rated.tolerances
    right = np.isfinite(rated.scores) & (rated.scores >= bars[:, None] - EQUAL)
    hits = ((rated.ranks < width) & right[None]).sum(axis=2)
    with np.errstate(invalid="ignore"):
        shares: npt.NDArray[np.float64] = np.minimum(hits, possible) / np.where(possible, possible, np.nan)
    return shares


def mean_recall(recalls: npt.NDArray[np.float64]) -> float:
    """Returns the mean over the queries that have an answer, or 1 when none has."""
    recalls = recalls[~np.isnan(recalls)]
    return float(recalls.mean()) if len(recalls) else 1.0
