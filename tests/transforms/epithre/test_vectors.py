"""Every vector is checked and put in the right row."""

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.transforms.epithre.vectors import (
    AnswerEntry,
    BrokenAnswerError,
    check_vectors,
    read_entry,
    read_vector,
)

DIMENSION = 16


def entries(count, seed=0):
    vectors = np.random.default_rng(seed).standard_normal((count, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, [AnswerEntry(place, vector) for place, vector in enumerate(vectors)]


@given(st.permutations(range(7)))
def test_vectors_are_returned_in_the_order_of_the_request(order):
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


def _duplicate(pairs):
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
    "spoil", [_missing, _duplicate, _half_indexed, _beyond, _negative, _short, _nan, _infinite, _zero]
)
def test_a_broken_answer_raises(spoil):
    with pytest.raises(BrokenAnswerError):
        check_vectors(spoil(entries(4)[1]), 4, DIMENSION)


def test_an_unnormalised_vector_is_normalised_and_counted():
    vectors, pairs = entries(4)
    found, renormalised = check_vectors([*pairs[:3], AnswerEntry(3, pairs[3].vector * 7)], 4, DIMENSION)
    np.testing.assert_allclose(found, vectors, atol=1e-6)
    assert renormalised == 1


def test_a_common_wrong_dimension_is_reported():
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
def test_invalid_indexes_raise(places):
    vectors, _ = entries(4)
    with pytest.raises(BrokenAnswerError, match="the indexes of the answer"):
        check_vectors([AnswerEntry(place, vector) for place, vector in zip(places, vectors, strict=True)], 4, DIMENSION)


@pytest.mark.parametrize("places", [[3.0, 0, 2, 1], ["3", "0", "2", "1"], [3, "0", 2.0, 1]], ids=str)
def test_indexes_are_accepted_as_floats_and_strings(places):
    vectors, _ = entries(4)
    found, _ = check_vectors([AnswerEntry(*pair) for pair in zip(places, vectors, strict=True)], 4, DIMENSION)
    np.testing.assert_array_equal(found, vectors[[1, 3, 2, 0]])


@pytest.mark.parametrize(
    "value", [None, 3, {"a": 1}, "abc", ["x"], "%%%", [True] * 16, [1.0] * 15 + ["1"], [[1.0] * 16]]
)
def test_an_invalid_vector_raises(value):
    with pytest.raises(BrokenAnswerError):
        check_vectors([AnswerEntry(0, read_vector(value))], 1, DIMENSION)


# ------------------------------------------------------------------------ errors for vectors of a wrong length


def unit(dimension, seed=0, scale=1.0):
    vector = np.random.default_rng(seed).standard_normal(dimension)
    return scale * vector / np.linalg.norm(vector)


def in_base64(array):
    return base64.b64encode(array.tobytes()).decode()


def wrong(values, dimension=DIMENSION):
    """The error for these received values if `dimension` is configured."""
    with pytest.raises(BrokenAnswerError) as caught:
        check_vectors([read_entry(i, value) for i, value in enumerate(values)], len(values), dimension)
    return caught.value


def bfloat16(vector):
    return (vector.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


FORMATS = {
    "float64": lambda v: v.astype("<f8"),
    "float16": lambda v: v.astype("<f2"),
    "bfloat16": bfloat16,
    "int8": lambda v: np.round(v * 127 / np.abs(v).max()).astype(np.int8),
}


@pytest.mark.parametrize("scale", [1.0, 20.0])
@pytest.mark.parametrize("dimension", [8, 64, 1536, 4000])
@pytest.mark.parametrize("form", FORMATS)
def test_the_error_names_another_number_format_and_no_dimension(form, dimension, scale):
    reported = wrong([in_base64(FORMATS[form](unit(dimension, seed, scale))) for seed in range(3)], dimension)
    assert reported.dimension is None
    assert f"{dimension} numbers in " in str(reported)
    assert form in str(reported)
    assert "float32" in reported.remedy


@pytest.mark.parametrize("make", [lambda v: v.astype(np.float32), np.sign, lambda v: 1.0 * (v == v.max())])
def test_float64_with_few_digits_is_detected(make):
    """Such bytes are also plausible as float32, but would be noise."""
    reported = wrong([in_base64(make(unit(64, seed)).astype("<f8")) for seed in range(4)], 64)
    assert reported.dimension is None
    assert "float64" in str(reported)


@pytest.mark.parametrize("scale", [1.0, 0.3, 20.0])
@pytest.mark.parametrize("form", ["base64", "list"])
@pytest.mark.parametrize(("configured", "found"), [(1024, 1536), (4000, 1024), (1536, 8), (8, 4096), (64, 1000)])
def test_the_error_names_the_dimension_of_plausible_vectors(configured, found, form, scale):
    vectors = [unit(found, seed, scale).astype(np.float32) for seed in range(3)]
    reported = wrong([in_base64(v) if form == "base64" else v.tolist() for v in vectors], configured)
    assert reported.dimension == found
    assert reported.remedy is None


@pytest.mark.parametrize("form", ["base64", "list"])
@pytest.mark.parametrize(("configured", "found"), [(768, 1536), (1536, 768), (4000, 1000)])
def test_the_error_names_twice_or_half_the_dimension(configured, found, form):
    vectors = [unit(found, seed).astype(np.float32) for seed in range(3)]
    reported = wrong([in_base64(v) if form == "base64" else v.tolist() for v in vectors], configured)
    assert reported.dimension == found


@pytest.mark.parametrize(("configured", "found"), [(64, 32), (16, 8), (16, 32)])
def test_a_unit_vector_in_float32_is_never_read_as_another_format(configured, found):
    """A few numbers may be plausible in another format by chance."""
    for seed in range(500):
        reported = wrong([in_base64(unit(found, seed).astype(np.float32))], configured)
        assert reported.dimension == found, seed


@pytest.mark.parametrize("values", [[[]], [[], []], ["", ""]], ids=repr)
def test_the_error_names_empty_vectors(values):
    reported = wrong(values)
    assert str(reported) == "the vectors are empty"
    assert reported.dimension is None
    assert reported.remedy is not None


@pytest.mark.parametrize(
    "values",
    [
        [[0.5] * 7],  # embed.dimension is at least 8
        [[0.5]],
        [[0.5] * 15, [0.5] * 17],
        [[0.5] * 15, []],
        [[0.0] * 24],
        [[float("nan")] * 24],
        [[1e30] * 24],
        [[0.1] * 70_000],
        [in_base64(np.full(24, np.nan, np.float32))],
        [in_base64(np.zeros(24, np.float32))],
        [in_base64(np.full(24, 1e30, np.float32))],
    ],
    ids=range(11),
)
def test_the_error_names_no_dimension_for_implausible_vectors(values):
    reported = wrong(values)
    assert reported.dimension is None
    assert f"must have {DIMENSION} dimensions" in str(reported)


def test_the_error_for_many_lengths_is_short():
    assert len(str(wrong([[0.5] * (i + 20) for i in range(64)]))) < 120


@pytest.mark.parametrize("size", [1, 2, 3, 5, 30, 63])
def test_a_partial_float_raises(size):
    with pytest.raises(BrokenAnswerError, match=rf"has {size} bytes, not a multiple of 4 \(float32\)") as caught:
        read_vector(base64.b64encode(bytes(size)).decode())
    assert "float32" in caught.value.remedy
