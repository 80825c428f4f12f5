"""A vector as a sequence of numbers, over an array: a list of 4,000 Python floats takes eight times the memory.

This module does not use Beam.
"""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_SHOWN = 3


class Vector(Sequence[float]):
    """A sequence of float32 values that does not change. It equals a list with the same numbers.

    `numpy.asarray` returns its array without a copy. A shuffle turns it into a list.

    Args:
        values: Numbers. An array is copied, because it may be a view that keeps a larger one in memory.
        is_own: Whether nobody else changes the array; it is then not copied, unless it is a view.

    >>> vector = Vector([0.5, 0.25])
    >>> vector, vector == [0.5, 0.25], list(vector)
    (Vector([0.5, 0.25]), True, [0.5, 0.25])
    """

    __slots__ = ("_array",)
    __hash__ = None  # type: ignore[assignment]  # it equals lists, which have none

    def __init__(self, values: npt.ArrayLike, *, is_own: bool = False) -> None:
        is_view = isinstance(values, np.ndarray) and values.base is not None
        self._array: npt.NDArray[np.float32] = np.array(
            values, np.float32, copy=None if is_own and not is_view else True
        )
        self._array.flags.writeable = False

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, index: int) -> float: ...

    @overload
    def __getitem__(self, index: slice) -> list[float]: ...

    def __getitem__(self, index: int | slice) -> float | list[float]:
        return self._array[index].tolist()  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[float]:
        return iter(self._array.tolist())

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self._array, dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Vector):
            return np.array_equal(self._array, other._array)
        if isinstance(other, (list, tuple)):
            return len(self) == len(other) and list(self) == list(other)
        return NotImplemented

    def __reduce__(self) -> tuple[type["Vector"], tuple[npt.NDArray[np.float32]]]:
        return Vector, (self._array,)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self[:_SHOWN]))
        return f"Vector([{shown}])" if len(self) <= _SHOWN else f"Vector([{shown}, … {len(self):,} numbers])"

    def tolist(self) -> list[float]:
        """Return a list of floats, for example for JSON; of a list that came from a shuffle, use `list(…)`."""
        return self._array.tolist()  # type: ignore[no-any-return]
