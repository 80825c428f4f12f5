"""Read the vectors of an answer from base64 or lists, order them like the request, and check them."""

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
_UNIT_TOLERANCE = 1e-3
_PLAUSIBLE_NORMS = (0.05, 1e6)
"""Range of the norms of a model's vectors. Other number formats, read as float32, fall outside it or are NaN."""
_DIMENSIONS = range(8, 65_537)
"""Valid values of `embed.dimension`."""
_WANT_FLOAT32 = "Configure the server to return float32, in base64 or as lists of numbers"


class BrokenAnswerError(Exception):
    """A 200 whose body does not contain one valid vector per item; the whole answer is discarded.

    Args:
        message: What is wrong.
        dimension: The vectors' common length, if `embed.dimension` should be set to it.
        remedy: What to do if every answer is broken in this way; None if the cause may be accidental.
    """

    def __init__(self, message: str, *, dimension: int | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.dimension = dimension
        self.remedy = remedy


class AnswerEntry(NamedTuple):
    """A vector as received."""

    place: object
    """The index from the server, unchecked; None if there is none."""
    vector: npt.NDArray[np.float32]
    is_base64: bool = False


def check_vectors(entries: Sequence[AnswerEntry], count: int, dimension: int) -> tuple[npt.NDArray[np.float32], int]:
    """Put an answer's vectors in the order of the request's items, and check and normalise them.

    Args:
        entries: The vectors as received.
        count: Number of items in the request.
        dimension: Required dimension of every vector.

    Returns:
        float32, (count, dimension), unit norm; and the number of vectors that were normalised.

    Raises:
        BrokenAnswerError: On a wrong count, wrong indexes, a wrong dimension, NaN, infinity or a zero vector.
    """
    if len(entries) != count:
        raise BrokenAnswerError(f"{count} items were sent, but {len(entries)} vectors were returned")
    if all(entry.place is None for entry in entries):
        places = list(range(count))  # a server without indexes answers in order
    else:
        places = [_place(entry.place) for entry in entries]
        if sorted(places) != list(range(count)):
            raise BrokenAnswerError("the indexes of the answer do not match the request")
    if {entry.vector.shape for entry in entries} != {(dimension,)}:
        raise _wrong_lengths(entries, dimension)
    vectors = np.full((count, dimension), np.nan, np.float32)  # an unfilled row is rejected below
    for place, entry in zip(places, entries, strict=True):
        vectors[place] = entry.vector
    is_finite, is_zero, normalised = normalise(vectors)
    if not is_finite.all():
        raise BrokenAnswerError("a vector contains NaN or infinity")
    if is_zero.any():
        raise BrokenAnswerError("a vector is zero")
    return vectors, normalised


def _place(value: object) -> int:
    """Return an answer's index as an int, or -1 if it is invalid. A bool is an int in Python, but not an index."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= _LONGEST_INDEX and value.isascii() and value.isdecimal():
        return int(value)
    return -1


def normalise(vectors: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], int]:
    """Normalise, in place, the vectors whose norm is not 1.

    Args:
        vectors: float32, (rows, dimension).

    Returns:
        Which rows are finite, bool (rows,); which are zero, bool (rows,); and the number of rows normalised.
    """
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    is_finite, is_zero = np.isfinite(norms), norms < 1e-6
    off = is_finite & ~is_zero & (np.abs(norms - 1) > _NORM_TOLERANCE)
    if off.any():
        vectors[off] = (vectors[off] / norms[off, None]).astype(np.float32)
    return is_finite, is_zero, int(off.sum())


def load_answer(body: bytes) -> Any:
    """Parse an answer's JSON. Raises BrokenAnswerError if it is invalid."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    # Raised outside the handler: orjson's error keeps copies of the whole body, and chaining would keep it alive.
    raise BrokenAnswerError("the answer is not valid JSON")


def read_entry(place: object, value: Any) -> AnswerEntry:
    """Read one vector of an answer with its index. Raises BrokenAnswerError if it is not a vector."""
    return AnswerEntry(place, read_vector(value), isinstance(value, str))


def read_vector(value: Any) -> npt.NDArray[np.float32]:
    """Read a vector from base64 of little-endian float32 or from a list of numbers: float32, (dimension,).

    Raises:
        BrokenAnswerError: If the value is neither.
    """
    try:
        if isinstance(value, str):
            content = decode_base64(value)
            if len(content) % _FLOAT32_BYTES:
                raise BrokenAnswerError(
                    f"a vector in base64 has {len(content):,} bytes, not a multiple of {_FLOAT32_BYTES} (float32)",
                    remedy=_WANT_FLOAT32,
                )
            return np.frombuffer(content, "<f4")
        if isinstance(value, list):
            if not set(map(type, value)) <= {int, float}:  # numpy would convert true and "1" to 1
                raise BrokenAnswerError("a vector has values that are not numbers")
            with np.errstate(over="ignore"):  # an overflow becomes infinity, which is rejected later
                return np.asarray(value, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise BrokenAnswerError(f"a vector cannot be read: {error}") from None
    raise BrokenAnswerError("a vector is neither base64 nor a list of numbers")


def _wrong_lengths(entries: Sequence[AnswerEntry], dimension: int) -> BrokenAnswerError:
    """Return the error for a wrong dimension. It proposes another one only if the vectors are plausible."""
    lengths = sorted({entry.vector.size for entry in entries})
    if lengths == [0]:
        return BrokenAnswerError("the vectors are empty", remedy="Check that the model is an embedding model")
    if len(lengths) > 1:
        some = ", ".join(map(str, lengths[:5])) + (", …" if len(lengths) > 5 else "")
        return BrokenAnswerError(f"vectors must have {dimension} dimensions, got {some}")
    (length,) = lengths
    is_base64 = any(entry.is_base64 for entry in entries)
    if is_base64 and (other := _other_format([entry.vector for entry in entries], dimension)):
        return BrokenAnswerError(
            f"vectors in base64 must have {dimension * _FLOAT32_BYTES:,} bytes ({dimension} numbers in float32), "
            f"got {length * _FLOAT32_BYTES:,} bytes ({dimension} numbers in {other})",
            remedy=_WANT_FLOAT32,
        )
    message = f"vectors must have {dimension} dimensions, got {length}"
    if all(_is_plausible(entry.vector) for entry in entries):
        return BrokenAnswerError(message, dimension=length if length in _DIMENSIONS else None)
    if is_base64:
        return BrokenAnswerError(f"{message} that are not plausible as float32", remedy=_WANT_FLOAT32)
    return BrokenAnswerError(message)


def _other_format(vectors: Sequence[npt.NDArray[np.float32]], dimension: int) -> str | None:
    """Return the number format in which these bytes have the required dimension; None if unknown."""
    if all(_is_unit(vector) for vector in vectors):
        return None  # float32 of another dimension: no other format gives unit vectors when it is read as float32
    size = vectors[0].nbytes
    if size == 8 * dimension and all(_is_plausible(v.view("<f8")) for v in vectors):
        return "float64"
    if size == 2 * dimension and all(_is_plausible(v.view("<f2")) or _is_plausible(_bfloat16(v)) for v in vectors):
        return "float16 or bfloat16"
    if size == dimension and not all(_is_plausible(v) for v in vectors):
        return "int8"
    return None


def _bfloat16(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Read the bytes as bfloat16, which is the upper half of a float32."""
    return (vector.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _is_plausible(vector: npt.NDArray[Any]) -> bool:
    least, most = _PLAUSIBLE_NORMS
    return least <= _norm(vector) <= most


def _is_unit(vector: npt.NDArray[Any]) -> bool:
    return abs(_norm(vector) - 1) <= _UNIT_TOLERANCE


def _norm(vector: npt.NDArray[Any]) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(vector.astype(np.float64)))
