"""Near ties of exact search get the order of the index; all other rows keep their order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.transforms.evaluation.figures import Lists, Subject, search_exactly, search_index
from epithre_beam.transforms.evaluation.near_ties import order_ties, rounding_errors

from ...index.conftest import make


def lists(*queries):
    """Each query as (row, score) pairs."""
    width = max(map(len, queries))
    padded = [[*query, *[(-1, -np.inf)] * (width - len(query))] for query in queries]
    rows, scores = (np.array([[pair[i] for pair in query] for query in padded]) for i in (0, 1))
    return Lists(scores=scores.astype(np.float32), rows=rows.astype(np.int64))


def resolved(exact, index, error):
    found = order_ties(lists(exact), lists(index), np.array([error], np.float32))
    return found.rows[0].tolist()


EXACT = [(1, 0.9), (2, 0.80004), (3, 0.80003), (4, 0.80002), (5, 0.7)]


@pytest.mark.parametrize(
    ("index", "error", "rows"),
    [
        pytest.param([(1, 0.9), (4, 0.80003), (2, 0.80003)], 2e-5, [1, 4, 2, 3, 5], id="another order"),
        pytest.param([(1, 0.9), (4, 0.80003), (2, 0.80003)], 1e-7, [1, 2, 3, 4, 5], id="told apart"),
        pytest.param([(4, 0.80003), (2, 0.80003)], 2e-5, [1, 4, 2, 3, 5], id="the best is lost"),
        pytest.param([(1, 0.9), (5, 0.7)], 2e-5, [1, 2, 3, 4, 5], id="a worse row is no tie"),
        pytest.param([(1, 0.9), (9, 0.80003)], 2e-5, [1, 9, 2, 3, 4], id="a tie that exact search did not list"),
        pytest.param([(1, 0.9), (9, 0.7998)], 2e-5, [1, 2, 3, 4, 9], id="a worse row that was not listed"),
        pytest.param([(1, 0.9), (-1, -np.inf)], 2e-5, [1, 2, 3, 4, 5], id="a short list"),
        pytest.param([(-1, -np.inf)], 2e-5, [1, 2, 3, 4, 5], id="nothing"),
    ],
)
def test_near_ties_follow_the_order_of_the_index(index, error, rows):
    assert resolved(EXACT, index, error) == rows


def test_scores_stay_sorted_and_follow_the_index():
    found = order_ties(lists(EXACT), lists([(1, 0.90001), (4, 0.80005), (2, 0.80003)]), np.array([2e-5], np.float32))
    assert found.scores[0, :3] == pytest.approx([0.90001, 0.80005, 0.80003])
    assert (np.diff(found.scores[0]) <= 0).all()


@settings(max_examples=200)
@given(
    scores=st.lists(st.integers(0, 30), min_size=1, max_size=25, unique=False),
    error=st.integers(0, 6),
    width=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_rows_move_only_within_the_tolerance(scores, error, width, seed):
    rng = np.random.default_rng(seed)
    exact = np.sort(np.array(scores, np.float32) * 1e-3)[::-1]
    stored = exact + rng.uniform(-error, error, len(exact)) * 1e-3
    order = np.argsort(-stored)[:width]
    found = order_ties(
        lists(list(enumerate(exact.tolist()))),
        lists([(int(row), float(stored[row])) for row in order]),
        np.array([error * 1e-3], np.float32),
    )
    rows = found.rows[0]
    assert sorted(rows.tolist()) == list(range(len(exact)))
    assert rows[: len(order)].tolist() == order.tolist()  # a scan only reorders near ties
    assert (exact[rows] >= np.sort(exact)[::-1] - 2 * error * 1e-3 - 2e-6).all()


@pytest.mark.parametrize("rows", [1, 40, 400])
@pytest.mark.parametrize("k", [1, 5, 50])
def test_scanning_index_loses_nothing_with_near_ties(tmp_path, rows, k):
    rng = np.random.default_rng(rows)
    vectors = 1 + 1e-3 * rng.standard_normal((rows + 5, 64))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    made = make(tmp_path / "c", {"text": vectors[:rows]}, rows_per_unit=100, rows_per_file=300)
    with made.open() as catalog:
        subject = Subject(
            url=str(made.folder),
            catalog=catalog,
            vectors=vectors[-5:],
            query_kinds=["text"] * 5,
            own_rows=np.full(5, -1),
        )
        exact, index = search_exactly(subject, "text"), search_index(subject, "text", k)
        found = order_ties(exact, index, rounding_errors(subject, "text", exact))
    assert found.rows.shape == exact.rows.shape
    np.testing.assert_array_equal(found.rows[:, :k], index.rows)
