"""Asks an index file as it is stored, and finds out which of the exact answers it gives."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...configs import IndexConfig
from ..storage.store import Store
from .codes import open_codes, search_codes
from .exact import read_rows, search_stored
from .recall import NOT_FOUND, SCORE_TOLERANCE, Judged, judge_answers
from .train import IndexTask
from .truth import Truth
from .tune import K_FACTORS, SHARES, FileShape, probed_cells


def ask_codes(
    store: Store,
    vectors_name: str,
    codes_name: str,
    truths: Sequence[Truth],
    task: IndexTask,
    shape: FileShape,
    settings: IndexConfig,
) -> list[Judged]:
    """Asks the stored codes in all ways; the last way is the exact scan, as far as the best rows go."""
    k = settings.recall_k
    width = min(K_FACTORS[-1] * k + 1, shape.rows)
    judged = []
    with (
        store.open_read(vectors_name) as vectors,
        open_codes(store, codes_name, shape.dimension, shape.rows) as index,
    ):
        for truth in truths:
            queries = truth.queries.vectors

            def stored(q: int, rows: npt.NDArray[np.int64], queries: npt.NDArray[np.float32] = queries) -> Any:
                return read_rows(vectors, shape.dimension, rows - task.first_row) @ queries[q]

            truth.settle()
            answers: list[npt.NDArray[np.int64]] = []
            for share in SHARES:
                if shape.cells == 1 and answers:
                    answers.append(answers[0])
                    continue
                found = search_codes(index, queries, width, probed_cells(share, shape.cells))
                answers.append(np.where(found >= 0, found + task.first_row, -1))
            scores = np.full(truth.rows.shape, -np.inf, np.float32)
            for q, rows in enumerate(truth.rows):
                scores[q, rows >= 0] = stored(q, rows[rows >= 0])
            # What a scan of the file gives first: the best rows by what is stored of them.
            answers.append(np.take_along_axis(truth.rows, np.argsort(-scores, axis=1, kind="stable"), axis=1))
            found_of = judge_answers(truth, answers, k, stored)
            # A row that is stored otherwise is not found, whatever its code says.
            is_other = (truth.rows >= 0) & ~(np.abs(scores - truth.scores) <= SCORE_TOLERANCE)
            found_of.ranks[:, :, : truth.keep][:, is_other] = NOT_FOUND
            judged.append(found_of)
    return judged


def ask_exactly(
    store: Store, name: str, truths: Sequence[Truth], task: IndexTask, settings: IndexConfig
) -> list[Judged]:
    """Scans the stored file. A reader maps it whole; here memory must not grow with it."""
    k = settings.recall_k
    queries = np.concatenate([truth.queries.vectors for truth in truths])
    with store.open_read(name) as file:
        scores, rows = search_stored(file, queries, k + 1)
    judged, first = [], 0
    for truth in truths:
        part = slice(first, first + len(truth.queries.rows))
        first = part.stop
        found, of_found = rows[part] + task.first_row, scores[part]

        def stored(q: int, asked: npt.NDArray[np.int64], found: Any = found, of_found: Any = of_found) -> Any:
            return of_found[q][[int(np.flatnonzero(found[q] == row)[0]) for row in asked]]

        judged.append(judge_answers(truth, [found], k, stored))
    return judged
