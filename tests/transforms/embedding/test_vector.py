"""A vector is a sequence of numbers like a list, over an array that nobody changes."""

import copy
import pickle

import numpy as np
import pytest
from apache_beam.coders import FastPrimitivesCoder, RowCoder

from epithre_beam import transforms as epithre
from epithre_beam.transforms.embedding.vector import Vector

NUMBERS = [0.5, -0.25, 0.125, 1.0]


def asset(embedding):
    return epithre.EmbeddedAsset(
        "p1", "text", None, "words", "0" * 64, None, "text/plain", 5, None, None, None, None, embedding
    )


def test_it_reads_like_a_list():
    vector = Vector(np.array(NUMBERS, np.float32))
    assert (len(vector), list(vector), vector.tolist(), vector[1], vector[-1]) == (4, NUMBERS, NUMBERS, -0.25, 1.0)
    assert (vector[1:3], 0.125 in vector, vector.index(1.0), list(reversed(vector))) == (
        NUMBERS[1:3],
        True,
        3,
        NUMBERS[::-1],
    )
    assert all(type(number) is float for number in (*vector, vector[0]))


@pytest.mark.parametrize("other", [NUMBERS, tuple(NUMBERS), Vector(NUMBERS)])
def test_it_equals_the_same_numbers_on_either_side(other):
    vector = Vector(NUMBERS)
    assert vector == other
    assert other == vector
    assert vector != NUMBERS[:3]
    assert vector != [*NUMBERS[:3], 2.0]
    assert vector != "words"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda vector: pickle.loads(pickle.dumps(vector))])
def test_it_can_be_copied_and_pickled(copied):
    assert copied(Vector(NUMBERS)) == Vector(NUMBERS)


def test_numpy_reads_it_without_a_copy_and_cannot_change_it():
    vector = Vector(NUMBERS)
    array = np.asarray(vector)
    assert array.dtype == np.float32
    assert np.shares_memory(array, np.asarray(vector, np.float32))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 2
    assert np.asarray(vector, np.float64).dtype == np.float64


def test_it_does_not_keep_the_array_that_it_is_a_row_of():
    answer = np.zeros((64, 4), np.float32)
    vector = Vector(answer[3])
    answer[3] = 1
    assert list(vector) == [0.0] * 4
    assert np.asarray(vector).base is None


def test_elements_have_the_same_bytes_with_a_vector_and_a_list():
    coder = RowCoder.from_type_hint(epithre.EmbeddedAsset, None)
    encoded = coder.encode(asset(Vector(NUMBERS)))
    assert encoded == coder.encode(asset(NUMBERS))
    assert coder.decode(encoded) == asset(Vector(NUMBERS))
    untyped = FastPrimitivesCoder()
    assert untyped.decode(untyped.encode(asset(Vector(NUMBERS)))) == asset(NUMBERS)


def test_a_long_vector_is_shown_in_short():
    assert repr(Vector([1.0] * 4000)) == "Vector([1.0, 1.0, 1.0, … 4,000 numbers])"
    assert repr(Vector([1.0, 0.5])) == "Vector([1.0, 0.5])"
