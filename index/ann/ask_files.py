"""Searches a stored index file and measures which of the exact answers it returns."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ...configs import IndexConfig
from ..storage.store import Store
from .codes import open_codes, search_codes
from .exact import read_rows, search_stored
from .recall import Rated, rate_answers
from .train import IndexTask
from .truth import TIE_CANDIDATES, ReadRows, StoredScores, Truth
from .tune import K_FACTORS, SHARES, FileShape, probed_cells


@contextlib.contextmanager
def stored_rows(store: Store, name: str, task: IndexTask, dimension: int) -> Iterator[ReadRows]:
    """Returns a function that reads rows of a stored vector file by row number: float32, (rows, dimension)."""
    with store.open_read(name) as file:
        yield lambda rows: read_rows(file, dimension, rows - task.first_row)


def ask_codes(
    store: Store,
    codes_name: str,
    truths: Sequence[Truth],
    stored: Sequence[StoredScores],
    task: IndexTask,
    shape: FileShape,
    settings: IndexConfig,
) -> list[Rated]:
    """Searches the stored codes with each share of cells; the last way is the exact scan, limited to the best rows.

    Args:
        store: The catalog.
        codes_name: Name of the codes file.
        truths: The exact answers, already compared with their stored scores.
        stored: The stored scores of each truth.
        task: The rows of the file.
        shape: The shape of the file.
        settings: The index settings, with `recall_k`.
    """
    k = settings.recall_k
    width = min(K_FACTORS[-1] * k + 1, shape.rows)
    rated = []
    with open_codes(store, codes_name, shape.dimension, shape.rows) as index:
        for truth, scores in zip(truths, stored, strict=True):
            answers: list[npt.NDArray[np.int64]] = []
            for share in SHARES:
                if shape.cells == 1 and answers:
                    answers.append(answers[0])
                    continue
                found = search_codes(index, truth.queries.vectors, width, probed_cells(share, shape.cells))
                answers.append(np.where(found >= 0, found + task.first_row, -1))
            # The first results of a scan of the file: the best rows by their stored scores.
            places = np.argsort(-np.where(truth.rows >= 0, truth.stored, -np.inf), axis=1, kind="stable")
            answers.append(np.take_along_axis(truth.rows, places, axis=1))
            rated.append(rate_answers(truth, answers, k, scores))
    return rated


def ask_exactly(
    store: Store, name: str, truths: Sequence[Truth], task: IndexTask, settings: IndexConfig
) -> list[Rated]:
    """Scans the stored file block by block, so that memory does not grow with the file."""
    k = settings.recall_k
    queries = np.concatenate([truth.queries.vectors for truth in truths])
    with store.open_read(name) as file:
        scores, rows = search_stored(file, queries, k + 1 + TIE_CANDIDATES)
    rated, first = [], 0
    with stored_rows(store, name, task, queries.shape[1]) as read:
        for truth in truths:
            part = slice(first, first + len(truth.queries.rows))
            first = part.stop
            stored = _scores_found(rows[part] + task.first_row, scores[part], truth.scores_by(read))
            truth.compare(stored)
            rated.append(rate_answers(truth, [rows[part, : k + 1] + task.first_row], k, stored))
    return rated


def _scores_found(found: npt.NDArray[np.int64], of_found: npt.NDArray[np.float32], other: StoredScores) -> StoredScores:
    """The stored scores of rows that a scan has returned; `other` reads the scores of the remaining rows."""

    def scores(q: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        order = np.argsort(found[q])
        places = order[np.minimum(np.searchsorted(found[q], rows, sorter=order), len(order) - 1)]
        is_found = found[q, places] == rows
        result: npt.NDArray[np.float32] = of_found[q, places]
        if not is_found.all():
            result[~is_found] = other(q, rows[~is_found])
        return result

    return scores
