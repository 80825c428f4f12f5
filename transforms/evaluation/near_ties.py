"""Sorts near ties of exact search in the order of the index.

Texts that differ by one number have scores that differ by less than the fp16 rounding error. Their order is neither an
error of the index nor a property of the model. Rows that tie within the tolerance of `index/ann/precision.py` are
therefore put into the order of the index in the lists of exact search.
"""

import numpy as np
import numpy.typing as npt

from ...index.ann.precision import EQUAL, compare_scores
from .figures import Lists, Subject


def rounding_errors(subject: Subject, kind: str, exact: Lists) -> npt.NDArray[np.float32]:
    """Measures the largest rounding error of the best rows' scores, per query: float32, (queries,).

    Args:
        subject: The catalog.
        kind: The kind of the rows.
        exact: The results of exact search.
    """
    stored = np.full(exact.scores.shape, np.nan, np.float32)
    for q, rows in enumerate(exact.rows):
        there = rows >= 0
        if there.any():
            vectors = subject.catalog.vectors(kind, rows[there])  # type: ignore[arg-type]  # a kind of the catalog
            stored[q, there] = vectors @ subject.vectors[q]
    errors, _ = compare_scores(exact.scores, stored, subject.vectors.shape[1])
    return errors


def order_ties(exact: Lists, index: Lists, errors: npt.NDArray[np.float32]) -> Lists:
    """Returns the lists of exact search, at the same length, with near ties in the order of the index.

    A row of the index is next if its exact score is at most twice the error below the best remaining row. A row that
    exact search did not list has only a stored score, which may be too high by the error.

    Args:
        exact: The lists of exact search.
        index: The lists of the index for the same queries, not longer than the exact ones.
        errors: The result of `rounding_errors`.
    """
    scores, rows = exact.scores.copy(), exact.rows.copy()
    width = index.rows.shape[1]
    for q, error in enumerate(errors.tolist()):
        if (index.rows[q] == exact.rows[q, :width]).all():
            scores[q, :width] = index.scores[q]
            continue
        known = dict(zip(exact.rows[q].tolist(), exact.scores[q].tolist(), strict=True))
        found = [
            (row, score, known.get(row, score - error))
            for row, score in zip(index.rows[q].tolist(), index.scores[q].tolist(), strict=True)
            if row >= 0
        ]
        placed = _merge(list(known.items()), found, 2 * error + EQUAL)[: rows.shape[1]]
        rows[q], scores[q] = -1, -np.inf
        rows[q, : len(placed)] = [row for row, _ in placed]
        scores[q, : len(placed)] = [score for _, score in placed]
    return Lists(scores=np.minimum.accumulate(scores, axis=1), rows=rows)


def _merge(
    exact: list[tuple[int, float]], found: list[tuple[int, float, float]], tolerance: float
) -> list[tuple[int, float]]:
    """Merges both lists into (row, score); rows of `found` (row, score, exact score) are first when equally good."""
    placed: dict[int, float] = {}
    at = 0
    for row, score in exact:
        while at < len(found) and found[at][2] >= score - tolerance:
            placed.setdefault(found[at][0], found[at][1])
            at += 1
            if row in placed:
                break
        if row >= 0:
            placed.setdefault(row, score)
    return list(placed.items())
