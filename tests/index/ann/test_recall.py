"""Exact answers are exact however the rows arrive, and recall is the share of them that an index gives."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.index.ann.recall import NOT_FOUND, judge_answers, merge_judged, recall_at
from epithre_beam.index.ann.truth import Queries, Truth, merged_figures

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def drawn(rows: int, dimension: int, seed: int) -> Floats:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def truth_of(
    vectors: Floats, own: Rows, keep: int, block: int = 77, *, first_row: int = 0, is_same_kind: bool = True
) -> Truth:
    """The exact answers to rows of `vectors`, found block by block."""
    queries = Queries(kind="image", rows=own + first_row, vectors=vectors[own])
    truth = Truth(queries, keep, is_same_kind=is_same_kind)
    for start in range(0, len(vectors), block):
        truth.add(queries.vectors @ vectors[start : start + block].T, first_row + start)
    truth.settle()
    return truth


def recall_of(truth: Truth, found: Rows, k: int, scores: Floats | None = None) -> float:
    """The recall of one way to ask; `scores` are those that the index says."""

    def stored(q: int, rows: Rows) -> Any:
        assert scores is not None
        return np.array([scores[q][found[q] == row][0] for row in rows], np.float32)

    given_scores = np.zeros(found.shape, np.float32) if scores is None else scores
    scores = given_scores
    return float(np.nanmean(recall_at(judge_answers(truth, [found], k, stored), k, k)))


def brute_force(vectors: Floats, queries: Floats, k: int) -> tuple[Rows, Floats]:
    scores = queries @ vectors.T
    found = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return found, np.take_along_axis(scores, found, 1)


@pytest.fixture(scope="module")
def known() -> tuple[Floats, Rows, Truth]:
    """Two thousand rows, sixty queries from among them, and their exact answers, found in odd blocks."""
    vectors = drawn(2000, 32, 6)
    rows = np.sort(np.random.default_rng(7).choice(2000, 60, replace=False)).astype(np.int64)
    return vectors, rows, truth_of(vectors, rows, 110)


def test_right_answers_have_a_recall_of_one(known: tuple[Floats, Rows, Truth]) -> None:
    vectors, rows, truth = known
    found, scores = brute_force(vectors, vectors[rows], 11)
    assert recall_of(truth, found, 10, scores) == 1.0


@pytest.mark.parametrize("wrong", range(0, 11, 2))
def test_the_recall_is_the_share_of_right_answers(known: tuple[Floats, Rows, Truth], wrong: int) -> None:
    vectors, rows, truth = known
    found, scores = brute_force(vectors, vectors[rows], 1500)
    kept = [*range(11 - wrong), *range(1400, 1400 + wrong)]  # the first is the query itself
    assert recall_of(truth, found[:, kept], 10, scores[:, kept]) == pytest.approx((10 - wrong) / 10)


def test_an_index_of_shuffled_rows_has_hardly_any_recall_though_its_scores_are_right(
    known: tuple[Floats, Rows, Truth],
) -> None:
    """The scores that an index reports say nothing about the rows it names."""
    vectors, rows, truth = known
    order = np.random.default_rng(8).permutation(len(vectors))
    found, scores = brute_force(vectors[order], vectors[rows], 11)
    assert recall_of(truth, found, 10, scores) < 0.1


def test_rows_that_are_shifted_by_one_have_hardly_any_recall(known: tuple[Floats, Rows, Truth]) -> None:
    vectors, rows, truth = known
    found, scores = brute_force(vectors, vectors[rows], 11)
    assert recall_of(truth, (found + 1) % len(vectors), 10, scores) < 0.1


def test_no_answers_have_no_recall(known: tuple[Floats, Rows, Truth]) -> None:
    _, rows, truth = known
    assert recall_of(truth, np.full((len(rows), 11), -1), 10) == 0.0


def test_a_query_that_finds_only_itself_again_and_again_has_no_recall(known: tuple[Floats, Rows, Truth]) -> None:
    _, rows, truth = known
    assert recall_of(truth, np.repeat(rows[:, None], 11, axis=1), 10) == 0.0


def test_one_right_row_said_ten_times_counts_once(known: tuple[Floats, Rows, Truth]) -> None:
    vectors, rows, truth = known
    found, scores = brute_force(vectors, vectors[rows], 2)
    again = np.repeat(found[:, 1:], 10, axis=1)
    assert recall_of(truth, again, 10, np.repeat(scores[:, 1:], 10, axis=1)) <= 0.1 + 1e-9


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 150),
    keep=st.integers(3, 40),
    is_same_kind=st.booleans(),
    first_row=st.sampled_from([0, 1000]),
    blocks=st.lists(st.integers(1, 60), min_size=1, max_size=6),
)
def test_the_exact_answers_do_not_depend_on_the_blocks(
    rows: int, keep: int, is_same_kind: bool, first_row: int, blocks: list[int]
) -> None:
    rng = np.random.default_rng([rows, keep])
    vectors = rng.standard_normal((rows, 8)).astype(np.float32)
    own = np.arange(0, rows, 7)
    queries = Queries(kind="image", rows=own + first_row, vectors=vectors[own])
    truth = Truth(queries, keep, is_same_kind=is_same_kind)
    start = 0
    for length in itertools.cycle(blocks):
        if start >= rows:
            break
        truth.add(queries.vectors @ vectors[start : start + length].T, first_row + start)
        start += length
    truth.settle()
    scores = queries.vectors.astype("f8") @ vectors.T.astype("f8")
    figures = truth.figures
    assert figures.mean == pytest.approx(scores.mean(), abs=1e-4)
    assert figures.std == pytest.approx(scores.std(), abs=1e-4)
    if is_same_kind:
        scores[np.arange(len(own)), own] = -np.inf
    for q in range(len(own)):
        best = np.sort(scores[q][np.isfinite(scores[q])])[::-1][:keep]
        there = np.isfinite(truth.scores[q])
        np.testing.assert_allclose(np.sort(truth.scores[q][there])[::-1], best, atol=1e-4)
        assert (truth.rows[q][~there] == -1).all()
        kept = truth.rows[q][there] - first_row
        assert len(set(kept.tolist())) == len(kept)
        np.testing.assert_allclose(scores[q][kept], truth.scores[q][there], atol=1e-4)


@pytest.mark.parametrize("copies", [5, 120, 1000])
def test_whichever_of_equal_rows_are_returned_they_are_right_and_lower_ones_are_wrong(copies: int) -> None:
    """More copies than candidates are kept of: the last of them, which were never kept, count like the first."""
    vectors = np.zeros((2000, 8), np.float32)
    vectors[:, 1] = 1
    vectors[:copies] = np.eye(8, dtype=np.float32)[0]
    truth = truth_of(vectors, np.array([0]), 110, 300)
    for equal in (np.arange(4), np.arange(copies - 4, copies)):
        found = np.concatenate([[0], equal[equal != 0]])[None]
        right = len(found[0]) - 1
        assert recall_of(truth, found, right, np.ones(found.shape, np.float32)) == 1.0
    lower = np.array([[0, 1999, 1998, 1997, 1996]])
    assert recall_of(truth, lower, 4, np.zeros(lower.shape, np.float32)) == 0.0


@pytest.mark.parametrize("cut", [1, 300, 1000, 1999])
def test_files_judged_apart_and_put_together_are_as_one(known: tuple[Floats, Rows, Truth], cut: int) -> None:
    """Right answers of each file make right answers of all; a file that finds nothing loses what it has."""
    vectors, rows, whole = known
    truths, found = [], []
    for first, last in ((0, cut), (cut, len(vectors))):
        truth = Truth(Queries(kind="image", rows=rows, vectors=vectors[rows]), 110, is_same_kind=True)
        truth.add(vectors[rows] @ vectors[first:last].T, first)
        truth.settle()
        truths.append(truth)
        found.append(brute_force(vectors[first:last], vectors[rows], 11)[0] + first)

    def judged(answers: list[Rows]) -> Any:
        parts = [
            judge_answers(t, [a], 10, lambda _, r: np.full(len(r), -np.inf, np.float32))
            for t, a in zip(truths, answers, strict=True)
        ]
        return recall_at(merge_judged(parts), 10, 10)[0]

    assert judged(found).tolist() == [1.0] * len(rows)
    best, _ = brute_force(vectors, vectors[rows], 11)
    in_first = ((best < cut) & (best != rows[:, None])).sum(axis=1)
    assert judged([found[0], np.full_like(found[1], -1)]) == pytest.approx(in_first / 10)
    figures = merged_figures(truths)
    assert (figures.mean, figures.std) == pytest.approx((whole.figures.mean, whole.figures.std), abs=1e-6)
    assert figures.histogram == whole.figures.histogram


def test_ranks_are_places_in_the_answer_without_the_query_itself(known: tuple[Floats, Rows, Truth]) -> None:
    vectors, rows, truth = known
    found, _ = brute_force(vectors, vectors[rows], 50)
    judged = judge_answers(truth, [found, found[:, :5]], 10, lambda _, r: np.zeros(len(r), np.float32))
    for q in range(len(rows)):
        places = dict(zip(truth.rows[q].tolist(), judged.ranks[0, q].tolist(), strict=False))
        assert [places[row] for row in found[q, 1:].tolist()] == list(range(49))
        assert sorted(place for place in judged.ranks[1, q].tolist() if place != NOT_FOUND) == list(range(4))


def test_a_query_without_any_answer_has_no_recall_to_count() -> None:
    """The only row of a kind, which may not find itself."""
    vectors = drawn(1, 8, 0)
    truth = truth_of(vectors, np.array([0]), 11)
    assert np.isnan(recall_at(judge_answers(truth, [np.array([[0]])], 10, lambda _, r: r), 10, 10)).all()
