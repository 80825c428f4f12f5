"""No vector is taken on faith, and none comes to stand on another row."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.transforms.epithre.vectors import AnswerEntry, BrokenAnswerError, check_vectors, read_vector

DIMENSION = 16


def entries(count, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, [AnswerEntry(place, vector) for place, vector in enumerate(vectors)]


@given(st.permutations(range(7)))
def test_vectors_come_back_in_the_order_of_the_request_whatever_the_answers_order(order):
    vectors, pairs = entries(7)
    found, renormalised = check_vectors([pairs[i] for i in order], 7, DIMENSION)
    np.testing.assert_array_equal(found, vectors)
    assert renormalised == 0


def test_an_answer_without_indexes_is_in_order():
    vectors, pairs = entries(3)
    found, _ = check_vectors([AnswerEntry(None, vector) for _, vector, _ in pairs], 3, DIMENSION)
    np.testing.assert_array_equal(found, vectors)


def _missing(pairs):
    return pairs[:-1]


def _doubled(pairs):
    return [*pairs[:-1], AnswerEntry(0, pairs[-1].vector)]


def _half_indexed(pairs):
    return [AnswerEntry(None, pairs[0].vector), *pairs[1:]]


def _beyond(pairs):
    return [*pairs[:-1], AnswerEntry(len(pairs), pairs[-1].vector)]


def _negative(pairs):
    return [*pairs[:-1], AnswerEntry(-1, pairs[-1].vector)]


def _short(pairs):
    return [*pairs[:-1], AnswerEntry(pairs[-1].place, pairs[-1].vector[:-1])]


def _nan(pairs):
    return [*pairs[:-1], AnswerEntry(pairs[-1].place, np.full(DIMENSION, np.nan, np.float32))]


def _infinite(pairs):
    return [*pairs[:-1], AnswerEntry(pairs[-1].place, np.full(DIMENSION, np.inf, np.float32))]


def _zero(pairs):
    return [*pairs[:-1], AnswerEntry(pairs[-1].place, np.zeros(DIMENSION, np.float32))]


@pytest.mark.parametrize(
    "spoil", [_missing, _doubled, _half_indexed, _beyond, _negative, _short, _nan, _infinite, _zero]
)
def test_nothing_is_taken_from_a_broken_answer(spoil):
    with pytest.raises(BrokenAnswerError):
        check_vectors(spoil(entries(4)[1]), 4, DIMENSION)


def test_a_vector_off_its_norm_is_normalised_and_counted():
    vectors, pairs = entries(4)
    found, renormalised = check_vectors([*pairs[:3], AnswerEntry(3, pairs[3].vector * 7)], 4, DIMENSION)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    assert renormalised == 1


def test_a_common_wrong_dimension_is_reported_as_such():
    with pytest.raises(BrokenAnswerError) as caught:
        check_vectors([AnswerEntry(0, np.ones(8, np.float32)), AnswerEntry(1, np.ones(8, np.float32))], 2, DIMENSION)
    assert caught.value.dimension == 8


def test_vectors_are_read_from_base64_and_from_lists():
    vector = entries(1)[0][0]
    np.testing.assert_array_equal(read_vector(base64.b64encode(vector.tobytes()).decode()), vector)
    np.testing.assert_allclose(read_vector(vector.tolist()), vector)


@pytest.mark.parametrize(
    "places",
    [
        [False, True, 2, 3],
        [0, True, 2, 3],
        [0, 1, 2, False],
        [0, 1, 2, None],
        [0, 1, 2, 3.5],
        [0, 1, 2, float("nan")],
        [0, 1, 2, "3 "],
        [0, 1, 2, "٣"],
        [0, 1, 2, "-3"],
        [0, 1, 2, "9" * 5000],
        [0, 1, 2, [3]],
        [0, 1, 2, {}],
        [0, 1, 2, 2**70],
        [0, 1, 2, 2.0],
    ],
    ids=str,
)
def test_indexes_that_are_no_numbers_or_not_those_of_the_request_are_refused(places):
    vectors, _ = entries(4)
    with pytest.raises(BrokenAnswerError, match="the indexes of the answer"):
        check_vectors([AnswerEntry(place, vector) for place, vector in zip(places, vectors, strict=True)], 4, DIMENSION)


@pytest.mark.parametrize("places", [[3.0, 0, 2, 1], ["3", "0", "2", "1"], [3, "0", 2.0, 1]], ids=str)
def test_indexes_that_are_written_as_other_numbers_are_those_numbers(places):
    vectors, _ = entries(4)
    found, _ = check_vectors([AnswerEntry(*pair) for pair in zip(places, vectors, strict=True)], 4, DIMENSION)
    np.testing.assert_array_equal(found, vectors[[1, 3, 2, 0]])


@pytest.mark.parametrize(
    "value", [None, 3, {"a": 1}, "abc", ["x"], "%%%", [True] * 16, [1.0] * 15 + ["1"], [[1.0] * 16]]
)
def test_what_is_no_vector_is_a_broken_answer(value):
    with pytest.raises(BrokenAnswerError):
        check_vectors([AnswerEntry(0, read_vector(value))], 1, DIMENSION)
