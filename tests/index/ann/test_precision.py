"""The error bound of rounded scores holds for all vectors and is close to the worst case."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from epithre_beam.index.ann.exact import as_stored
from epithre_beam.index.ann.precision import compare_scores, error_bound

Doubles = npt.NDArray[np.float64]


def unit(vectors: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    vectors = vectors.astype(np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def moved(queries: npt.NDArray[np.float32], rows: npt.NDArray[np.float32]) -> Doubles:
    """The change of each score by rounding, without the rounding of the sums."""
    moves: Doubles = np.abs(queries.astype("f8") @ (as_stored(rows).astype("f8") - rows).T)
    return moves


@pytest.mark.parametrize("dimension", [1, 2, 3, 64, 768, 4000])
def test_uniform_rounding_stays_within_the_bound(dimension: int) -> None:
    """Equal numbers, which round in the same direction, and numbers without a sign."""
    rng = np.random.default_rng(dimension)
    for rows in (np.ones((1, dimension)), np.abs(rng.standard_normal((200, dimension))), rng.random((200, dimension))):
        assert moved(unit(rows), unit(rows)).max() <= error_bound(dimension)
    assert error_bound(dimension) < 6e-4


@settings(max_examples=200, deadline=None)
@given(numbers=arrays(np.float64, (6, 5), elements=st.floats(-1, 1)), power=st.integers(0, 30))
def test_all_vectors_stay_within_the_bound(numbers: Doubles, power: int) -> None:
    """Includes vectors whose numbers are mostly subnormal in fp16."""
    numbers[:, 1:] *= 2.0**-power
    numbers[np.linalg.norm(numbers, axis=1) < 1e-6, 0] = 1
    vectors = unit(numbers)
    assert moved(vectors, vectors).max() <= error_bound(5)


def test_bound_is_close_to_the_worst_case() -> None:
    row = np.array([[1 + 2.0**-11 * 0.999, 0]], np.float32)  # a norm that is stored unchanged
    assert 0.9 * error_bound(2) < moved(row, row).max() < error_bound(2)


def test_compare_scores_excludes_differences_beyond_rounding() -> None:
    exact = np.array([[0.9, 0.8, 0.7], [0.9, 0.8, -np.inf], [0.5, 0.4, 0.3], [-np.inf] * 3], np.float32)
    stored = np.array([[0.9001, 0.8, 0.6998], [np.nan, 0.8, np.nan], [0.9, -np.inf, np.inf], [np.nan] * 3], np.float32)
    errors, is_other = compare_scores(exact, stored, 64)
    assert errors == pytest.approx([2e-4, 0, 0, 0], abs=1e-6)
    assert is_other.tolist() == [[False] * 3, [False] * 3, [True] * 3, [False] * 3]


def test_unread_scores_have_no_error() -> None:
    errors, is_other = compare_scores(np.empty((3, 0), np.float32), np.empty((3, 0), np.float32), 8)
    assert errors.tolist() == [0, 0, 0]
    assert is_other.shape == (3, 0)
