"""The vectors of an answer: read from base64 or lists, put in the order of the request, and checked."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

try:
    from pybase64 import b64decode_as_bytearray as _decode_fast

    def decode_base64(text: str) -> bytes | bytearray:
        decoded: bytearray = _decode_fast(text)
        return decoded

except ImportError:
    from binascii import a2b_base64

    def decode_base64(text: str) -> bytes | bytearray:
        return a2b_base64(text)


_NORM_TOLERANCE = 1e-3
_LONGEST_INDEX = 9
_FLOAT32_BYTES = 4
_PLAUSIBLE_NORMS = (0.05, 1e6)
"""Of a model's vectors. The bytes of other numbers, read as float32, are far from them or no numbers at all."""
_DIMENSIONS = range(8, 65_537)
"""What `embed.dimension` can be set to."""
_WANT_FLOAT32 = "Let the server answer float32, in base64 or as lists of numbers"


class BrokenAnswerError(Exception):
    """A 200 whose body is not one good vector for each item; nothing of it is used.

    Args:
        message: What is wrong.
        dimension: The vectors' common length, where everything says that `embed.dimension` should be that.
        remedy: What to do if every answer is like this one; absent where it may be an accident.
    """

    def __init__(self, message: str, *, dimension: int | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.dimension = dimension
        self.remedy = remedy


class AnswerEntry(NamedTuple):
    """A vector as it came."""

    place: object
    """The index that the server gave it, whatever that is; None: it gave none."""
    vector: npt.NDArray[np.float32]
    is_base64: bool = False


def check_vectors(entries: Sequence[AnswerEntry], count: int, dimension: int) -> tuple[npt.NDArray[np.float32], int]:
    """Puts an answer's vectors in the order of the request's items and proves that they are vectors.

    Args:
        entries: As they came.
        count: Items in the request.
        dimension: That every vector must have.

    Returns:
        float32, (count, dimension), unit norm; and how many had to be normalised.

    Raises:
        BrokenAnswerError: On a wrong count, indexes that are no permutation, a wrong dimension, NaN, infinity, zero.
    """
    if len(entries) != count:
        raise BrokenAnswerError(f"{count} items were sent and {len(entries)} vectors came back")
    if all(entry.place is None for entry in entries):
        places = list(range(count))  # a server without indexes answers in order
    else:
        places = [_place(entry.place) for entry in entries]
        if sorted(places) != list(range(count)):
            raise BrokenAnswerError("the indexes of the answer are not those of the request")
    if {entry.vector.shape for entry in entries} != {(dimension,)}:
        raise _wrong_lengths(entries, dimension)
    vectors = np.full((count, dimension), np.nan, np.float32)  # a row that nobody fills is refused below
    for place, entry in zip(places, entries, strict=True):
        vectors[place] = entry.vector
    is_finite, is_zero, normalised = normalise(vectors)
    if not is_finite.all():
        raise BrokenAnswerError("a vector holds NaN or infinity")
    if is_zero.any():
        raise BrokenAnswerError("a vector is zero")
    return vectors, normalised


def _place(value: object) -> int:
    """An index of an answer as a number, -1 if it is none. A bool is an int to Python, and no index to anybody."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= _LONGEST_INDEX and value.isascii() and value.isdecimal():
        return int(value)
    return -1


def normalise(vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], int]:
    """Gives vectors whose norm is off the norm 1, in place, and says which cannot have it.

    Args:
        vectors: float32, (rows, dimension).

    Returns:
        Which are finite; which are zero; how many were off.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    is_finite, is_zero = np.isfinite(norms), norms < 1e-6
    off = is_finite & ~is_zero & (np.abs(norms - 1) > _NORM_TOLERANCE)
    if off.any():
        vectors[off] = (vectors[off] / norms[off, None]).astype(np.float32)
    return is_finite, is_zero, int(off.sum())


def load_answer(body: bytes) -> Any:
    """An answer's JSON. Raises BrokenAnswerError when it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    # Not from within: orjson's error holds the whole body, several times its size, and would live as long as this one.
    raise BrokenAnswerError("the answer is no JSON")


def read_entry(place: object, value: Any) -> AnswerEntry:
    """A vector of an answer with the index that came with it. Raises BrokenAnswerError when it is no vector."""
    return AnswerEntry(place, read_vector(value), isinstance(value, str))


def read_vector(value: Any) -> npt.NDArray[np.float32]:
    """A vector as base64 of little-endian float32, or as a list of numbers: float32, (dimension,).

    Raises:
        BrokenAnswerError: When it is neither.
    """
    try:
        if isinstance(value, str):
            content = decode_base64(value)
            if len(content) % _FLOAT32_BYTES:
                raise BrokenAnswerError(
                    f"a vector in base64 has {len(content):,} bytes, no multiple of the {_FLOAT32_BYTES} of a float32",
                    remedy=_WANT_FLOAT32,
                )
            return np.frombuffer(content, "<f4")
        if isinstance(value, list):
            if not set(map(type, value)) <= {int, float}:  # numpy takes true for 1, and "1" as well
                raise BrokenAnswerError("a vector has values that are no numbers")
            with np.errstate(over="ignore"):  # what is too great becomes infinite, and is refused
                return np.asarray(value, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise BrokenAnswerError(f"a vector cannot be read: {error}") from None
    raise BrokenAnswerError("a vector is neither base64 nor a list of numbers")


def _wrong_lengths(entries: Sequence[AnswerEntry], dimension: int) -> BrokenAnswerError:
    """What to say of vectors that have not the dimension. Another is only advised where it would give true vectors."""
    lengths = sorted({entry.vector.size for entry in entries})
    if lengths == [0]:
        return BrokenAnswerError("the vectors are empty", remedy="Check that embed.model is a model of embeddings")
    if len(lengths) > 1:
        some = ", ".join(map(str, lengths[:5])) + (", …" if len(lengths) > 5 else "")
        return BrokenAnswerError(f"vectors must have {dimension} dimensions, got {some}")
    (length,) = lengths
    is_base64 = any(entry.is_base64 for entry in entries)
    if is_base64 and (other := _other_format([entry.vector for entry in entries], dimension)):
        return BrokenAnswerError(
            f"vectors in base64 must have {dimension} numbers in float32, {dimension * _FLOAT32_BYTES:,} bytes; "
            f"these have {length * _FLOAT32_BYTES:,} bytes, as {dimension} numbers in {other} have",
            remedy=_WANT_FLOAT32,
        )
    message = f"vectors must have {dimension} dimensions, got {length}"
    if all(_is_plausible(entry.vector) for entry in entries):
        return BrokenAnswerError(message, dimension=length if length in _DIMENSIONS else None)
    if is_base64:
        return BrokenAnswerError(f"{message} that are no plausible float32", remedy=_WANT_FLOAT32)
    return BrokenAnswerError(message)


def _other_format(vectors: Sequence[npt.NDArray[np.float32]], dimension: int) -> str | None:
    """The number format in which these bytes are vectors of the dimension; None where it is not known."""
    size = vectors[0].nbytes
    if size == 8 * dimension and all(_is_plausible(v.view("<f8")) for v in vectors):
        return "float64"
    if size == 2 * dimension and all(_is_plausible(v.view("<f2")) or _is_plausible(_bfloat16(v)) for v in vectors):
        return "float16 or bfloat16"
    if size == dimension and not all(_is_plausible(v) for v in vectors):
        return "int8"
    return None


def _bfloat16(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The bytes as bfloat16, which is the upper half of a float32."""
    return (vector.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _is_plausible(vector: npt.NDArray[Any]) -> bool:
    least, most = _PLAUSIBLE_NORMS
    with np.errstate(all="ignore"):
        norm = float(np.linalg.norm(vector.astype(np.float64)))
    return least <= norm <= most
