"""Exact answers do not depend on the blocks of rows, and recall is the share of them that an index returns."""

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.index.ann.exact import as_stored
from epithre_beam.index.ann.precision import error_bound
from epithre_beam.index.ann.recall import NOT_FOUND, Rated, mean_recall, merge_rated, rate_answers, recall_at
from epithre_beam.index.ann.truth import Queries, Truth, merged_figures

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def drawn(rows: int, dimension: int, seed: int) -> Floats:
    vectors = np.random.default_rng(seed).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def truth_of(
    vectors: Floats, own: Rows, keep: int, block: int = 77, *, first_row: int = 0, is_same_kind: bool = True
) -> Truth:
    """The exact answers to rows of `vectors`, computed block by block."""
    queries = Queries(kind="image", rows=own + first_row, vectors=vectors[own])
    truth = Truth(queries, keep, is_same_kind=is_same_kind)
    for start in range(0, len(vectors), block):
        truth.add(queries.vectors @ vectors[start : start + block].T, first_row + start)
    truth.merge_pending()
    return truth


def recall_of(truth: Truth, found: Rows, k: int, scores: Floats | None = None) -> float:
    """The recall of one way to search; `scores` are those that the index reports."""

    def stored(q: int, rows: Rows) -> Any:
        assert scores is not None
        return np.array([scores[q][found[q] == row][0] for row in rows], np.float32)

    given_scores = np.zeros(found.shape, np.float32) if scores is None else scores
    scores = given_scores
    return float(np.nanmean(recall_at(rate_answers(truth, [found], k, stored), k, k)))


def brute_force(vectors: Floats, queries: Floats, k: int) -> tuple[Rows, Floats]:
    scores = queries @ vectors.T
    found = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return found, np.take_along_axis(scores, found, 1)


@pytest.fixture(scope="module")
def known() -> tuple[Floats, Rows, Truth]:
    """Two thousand rows, sixty of them as queries, and their exact answers, computed in blocks of odd sizes."""
    vectors = drawn(2000, 32, 6)
    rows = np.sort(np.random.default_rng(7).choice(2000, 60, replace=False)).astype(np.int64)
    return vectors, rows, truth_of(vectors, rows, 110)


def test_right_answers_have_recall_one(known: tuple[Floats, Rows, Truth]) -> None:
    vectors, rows, truth = known
    found, scores = brute_force(vectors, vectors[rows], 11)
    assert recall_of(truth, found, 10, scores) == 1.0


@pytest.mark.parametrize("wrong", range(0, 11, 2))
def test_recall_is_the_share_of_right_answers(known: tuple[Floats, Rows, Truth], wrong: int) -> None:
    vectors, rows, truth = known
    found, scores = brute_force(vectors, vectors[rows], 1500)
    kept = [*range(11 - wrong), *range(1400, 1400 + wrong)]  # the first is the query itself
    assert recall_of(truth, found[:, kept], 10, scores[:, kept]) == pytest.approx((10 - wrong) / 10)


def test_shuffled_rows_with_right_scores_have_low_recall(
    known: tuple[Floats, Rows, Truth],
) -> None:
    """The reported scores are right although the row ids are wrong."""
    vectors, rows, truth = known
    order = np.random.default_rng(8).permutation(len(vectors))
    found, scores = brute_force(vectors[order], vectors[rows], 11)
    assert recall_of(truth, found, 10, scores) < 0.1


def test_rows_shifted_by_one_have_low_recall(known: tuple[Floats, Rows, Truth]) -> None:
    vectors, rows, truth = known
    found, scores = brute_force(vectors, vectors[rows], 11)
    assert recall_of(truth, (found + 1) % len(vectors), 10, scores) < 0.1


def test_empty_answers_have_recall_zero(known: tuple[Floats, Rows, Truth]) -> None:
    _, rows, truth = known
    assert recall_of(truth, np.full((len(rows), 11), -1), 10) == 0.0


def test_query_that_only_finds_itself_has_recall_zero(known: tuple[Floats, Rows, Truth]) -> None:
    _, rows, truth = known
    assert recall_of(truth, np.repeat(rows[:, None], 11, axis=1), 10) == 0.0


def test_repeated_right_row_counts_once(known: tuple[Floats, Rows, Truth]) -> None:
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
def test_exact_answers_do_not_depend_on_blocks(
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
    truth.merge_pending()
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
def test_any_of_equal_rows_is_right_and_lower_rows_are_wrong(copies: int) -> None:
    """There are more copies than kept candidates: copies that were not kept count like the others."""
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
def test_merged_ratings_of_files_equal_one_rating(known: tuple[Floats, Rows, Truth], cut: int) -> None:
    """Right answers of each file are right overall; a file that finds nothing loses its share."""
    vectors, rows, whole = known
    truths, found = [], []
    for first, last in ((0, cut), (cut, len(vectors))):
        truth = Truth(Queries(kind="image", rows=rows, vectors=vectors[rows]), 110, is_same_kind=True)
        truth.add(vectors[rows] @ vectors[first:last].T, first)
        truth.merge_pending()
        truths.append(truth)
        found.append(brute_force(vectors[first:last], vectors[rows], 11)[0] + first)

    def rated(answers: list[Rows]) -> Any:
        parts = [
            rate_answers(t, [a], 10, lambda _, r: np.full(len(r), -np.inf, np.float32))
            for t, a in zip(truths, answers, strict=True)
        ]
        return recall_at(merge_rated(parts), 10, 10)[0]

    assert rated(found).tolist() == [1.0] * len(rows)
    best, _ = brute_force(vectors, vectors[rows], 11)
    in_first = ((best < cut) & (best != rows[:, None])).sum(axis=1)
    assert rated([found[0], np.full_like(found[1], -1)]) == pytest.approx(in_first / 10)
    figures = merged_figures(truths)
    assert (figures.mean, figures.std) == pytest.approx((whole.figures.mean, whole.figures.std), abs=1e-6)
    assert figures.histogram == whole.figures.histogram


def test_ranks_exclude_the_query_itself(known: tuple[Floats, Rows, Truth]) -> None:
    vectors, rows, truth = known
    found, _ = brute_force(vectors, vectors[rows], 50)
    rated = rate_answers(truth, [found, found[:, :5]], 10, lambda _, r: np.zeros(len(r), np.float32))
    for q in range(len(rows)):
        places = dict(zip(truth.rows[q].tolist(), rated.ranks[0, q].tolist(), strict=False))
        assert [places[row] for row in found[q, 1:].tolist()] == list(range(49))
        assert sorted(place for place in rated.ranks[1, q].tolist() if place != NOT_FOUND) == list(range(4))


def test_query_without_answers_does_not_count() -> None:
    """The query is the only row of its kind and must not find itself."""
    vectors = drawn(1, 8, 0)
    truth = truth_of(vectors, np.array([0]), 11)
    assert np.isnan(recall_at(rate_answers(truth, [np.array([[0]])], 10, lambda _, r: r), 10, 10)).all()


# ---------------------------------------------------------------------------------------------------- near ties


def unit(vectors: npt.NDArray[np.floating]) -> Floats:
    vectors = vectors.astype(np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def near_duplicates(rows: int, dimension: int, apart: float) -> Floats:
    rng = np.random.default_rng([rows, dimension])
    base = rng.standard_normal(dimension) / dimension**0.5
    return unit(base + apart / dimension**0.5 * rng.standard_normal((rows, dimension)))


def sparse(rows: int, dimension: int, filled: int) -> Floats:
    rng = np.random.default_rng(dimension)
    vectors = np.zeros((rows, dimension))
    for vector in vectors:
        vector[rng.choice(dimension, filled, replace=False)] = rng.random(filled) + 0.1
    return unit(vectors)


UNUSUAL = {
    "random": drawn(1500, 64, 1),
    "near duplicates": near_duplicates(1500, 64, 1e-2),
    "near duplicates in 4000 dimensions": near_duplicates(150, 4000, 1e-2),
    "nearer than fp16 can tell": near_duplicates(1500, 64, 1e-5),
    "more alike than are kept": near_duplicates(3000, 16, 1e-3),
    "two dimensions": drawn(3000, 2, 2),
    "three of 256": sparse(1500, 256, 3),
    "bits": unit(np.random.default_rng(3).random((1500, 128)) < 0.1),
    "whole numbers": unit(np.rint(3 * drawn(1500, 32, 4) * 32**0.5) + np.eye(32)[0]),
    "on the axes": np.eye(32, dtype=np.float32)[np.random.default_rng(5).integers(0, 32, 1500)],
    "two clusters": unit(np.eye(24)[np.random.default_rng(6).integers(0, 2, 1500)] + 1e-4 * drawn(1500, 24, 7)),
}


def ask_stored(vectors: Floats, stored: Floats, k: int, queries: int = 60, keep: int = 110) -> tuple[Rated, Rows]:
    """The rating and the answers of a scan of stored vectors; the first rows are the queries."""
    truth = truth_of(vectors, np.arange(queries), keep)
    scores = vectors[:queries] @ stored.T
    scores[np.arange(queries), np.arange(queries)] = -np.inf
    found = np.argsort(-scores, axis=1, kind="stable")[:, :k]

    def of_stored(q: int, rows: Rows) -> Floats:
        return np.asarray(scores[q, rows])

    truth.compare(of_stored)
    return rate_answers(truth, [found], k, of_stored), found


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("name", UNUSUAL)
def test_scan_of_rounded_vectors_has_full_recall(name: str, k: int) -> None:
    vectors = UNUSUAL[name]
    rated, _ = ask_stored(vectors, as_stored(vectors), k)
    assert recall_at(rated, k, k).tolist() == [[1.0] * 60]


def test_recall_without_ties_counts_only_the_best() -> None:
    vectors = near_duplicates(1500, 64, 3e-2)
    rated, found = ask_stored(vectors, as_stored(vectors), 10)
    exact = vectors[:60].astype("f8") @ vectors.T.astype("f8")
    exact[np.arange(60), np.arange(60)] = -np.inf
    bars = -np.sort(-exact, axis=1)[:, 9:10]
    best = (np.take_along_axis(exact, found, 1) >= bars - 1e-6).mean()
    assert 0.2 < best < 0.9
    assert mean_recall(recall_at(rated, 10, 10, with_ties=False)) == pytest.approx(best, abs=0.02)


@pytest.mark.parametrize("name", ["random", "three of 256", "bits", "whole numbers"])
def test_tolerance_hardly_raises_recall_of_distinct_vectors(name: str) -> None:
    """Tested with an index that lacks half of the rows, and one that returns the next best answers."""
    vectors = UNUSUAL[name]
    whole, _ = ask_stored(vectors, as_stored(vectors), 10)
    lacking = as_stored(vectors)
    lacking[::2] = -lacking[::2]  # no longer near any query
    truth = truth_of(vectors, np.arange(60), 110)
    scores = vectors[:60] @ lacking.T
    scores[np.arange(60), np.arange(60)] = -np.inf
    found = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    truth.compare(lambda q, rows: np.asarray(vectors[rows] @ vectors[q]))
    half = mean_recall(recall_at(rate_answers(truth, [found], 10, lambda q, r: vectors[r] @ vectors[q]), 10, 10))
    assert half < 0.62
    bars = -np.sort(-whole.scores, axis=1)[:, 9:10] - 1e-6
    is_near = (whole.scores >= bars - whole.tolerances[:, None]) & (whole.scores < bars)
    assert is_near.sum(axis=1).mean() < 0.3


@pytest.mark.parametrize("damage", ["others", "scaled", "coarse", "not a number"])
def test_damage_does_not_widen_the_tolerance(damage: str) -> None:
    """The measured tolerance must not grow with damaged vectors."""
    vectors = UNUSUAL["random"]
    stored = as_stored(vectors)
    if damage == "others":
        stored = stored[np.random.default_rng(0).permutation(len(stored))]
    elif damage == "scaled":
        stored[::2] *= 1.5
    elif damage == "coarse":
        stored = np.rint(stored * 12) / 12
    else:
        stored[::2] = np.nan
        stored = np.nan_to_num(stored, nan=-1.0)
    rated, _ = ask_stored(vectors, stored, 10)
    assert rated.tolerances.max() <= 2 * error_bound(64)
    assert mean_recall(recall_at(rated, 10, 10)) < 0.8


def test_row_with_another_stored_vector_does_not_count() -> None:
    vectors = UNUSUAL["random"]
    stored = as_stored(vectors)
    truth = truth_of(vectors, np.array([0]), 110)
    nearest = truth.rows[0, np.argsort(-truth.scores[0])[:10]]
    stored[nearest[3]] *= 1.01
    rated, found = ask_stored(vectors, stored, 10, queries=1)
    assert set(found[0].tolist()) == set(nearest.tolist())
    assert recall_at(rated, 10, 10)[0, 0] == pytest.approx(0.9)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(2, 400),
    dimension=st.integers(1, 6),
    power=st.integers(0, 7),
    k=st.integers(1, 12),
    files=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_scan_of_near_ties_over_files_has_full_recall(
    rows: int, dimension: int, power: int, k: int, files: int, seed: int
) -> None:
    """Hundreds of near ties, more than are kept, distributed over several files."""
    rng = np.random.default_rng([seed, rows, dimension])
    vectors = unit(np.eye(dimension)[0] + 10.0**-power * rng.standard_normal((rows, dimension)))
    stored, own = as_stored(vectors), np.arange(min(rows, 10))
    parts = []
    for chosen in np.array_split(np.arange(rows), min(files, rows)):
        truth = Truth(Queries(kind="image", rows=own, vectors=vectors[own]), k + 20, is_same_kind=True)
        truth.add(vectors[own] @ vectors[chosen].T, int(chosen[0]))
        scores = vectors[own] @ stored.T
        truth.compare(lambda q, r, scores=scores: np.asarray(scores[q, r]))
        order = chosen[np.argsort(-scores[:, chosen], axis=1, kind="stable")[:, : k + 1]]
        parts.append(rate_answers(truth, [order], k, lambda q, r, scores=scores: np.asarray(scores[q, r])))
    recalls = recall_at(merge_rated(parts), k, k)
    assert mean_recall(recalls) == 1.0
