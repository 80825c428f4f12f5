"""What stored vectors can tell: by how much rounding them to fp16 moves an inner product.

Let u = 2**-11 be half a unit in the last place of fp16. A stored number differs from x by at most u |x|, and below the
normal numbers by at most 2**-25 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, theorem 2.2). Only the
stored vector is rounded, the query stays float32, so the inner product of unit vectors moves by at most

    u sum |q_i x_i| + 2**-25 sum |q_i|  <=  u + sqrt(d) 2**-25,

about 4.9e-4 in any dimension. It does so where all numbers round the same way, as in two dimensions. Where they round
independently its standard deviation is at most u / sqrt(3) sqrt(sum q_i**2 x_i**2), which falls with the square root of
the dimension: 1e-5 at 768. Bits and whole numbers scaled to unit norm do not round independently. So the error is
measured, for each query, on the rows around its k-th, and the bound only says what cannot be rounding.

A scan of stored vectors puts a row r before a row t where the exact score of r is lower by at most twice the greatest
error: s(r) >= s'(r) - m >= s'(t) - m >= s(t) - 2m. That is the tolerance, and no smaller one holds for every data set.
"""

import math

import numpy as np
import numpy.typing as npt

from ..vectors.distribution import NORM_TOLERANCE

_ROUNDOFF = 2.0**-11
_LEAST_STEP = 2.0**-25
_SUM_ROUNDOFF = 2.0**-24
_SUM_DEVIATIONS = 5.0
"""Two float32 sums of d products are off by so many times sqrt(d) u of float32 (Higham and Mary 2019, theorem 2.4)."""
EQUAL = 1e-6
"""Equal vectors get float32 scores that differ by less, depending on where they stand in a matrix product."""

Floats = npt.NDArray[np.float32]


def error_bound(dimension: int) -> float:
    """The most by which a score with a stored unit vector may differ from the exact one."""
    root = math.sqrt(dimension)
    norms = (1 + NORM_TOLERANCE) ** 2
    return norms * (_ROUNDOFF + root * _LEAST_STEP + 2 * _SUM_DEVIATIONS * root * _SUM_ROUNDOFF)


def compare_scores(exact: Floats, stored: Floats, dimension: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """How far rounding moved the scores of each query, and which rows are stored as something else.

    Args:
        exact: float32, (queries, rows): inner products with the vectors as they came.
        stored: The same with the vectors as they are stored; NaN where they were not looked at.
        dimension: Of the vectors.

    Returns:
        The greatest error of each query, float32, (queries,), 0 where nothing was looked at; and a mask of
        (queries, rows): the scores that no rounding explains.
    """
    with np.errstate(invalid="ignore"):  # minus infinity, where there is no row
        errors = np.abs(stored - exact)
        is_other = errors > error_bound(dimension)
    errors[is_other | np.isnan(errors)] = 0
    return errors.max(axis=1, initial=0), is_other
