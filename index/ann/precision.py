"""The precision of stored vectors: how much rounding to fp16 changes an inner product.

Let u = 2**-11 be half a unit in the last place of fp16. A stored number differs from x by at most u |x|, and for
subnormal numbers by at most 2**-25 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, theorem 2.2). Only
the stored vector is rounded, the query stays float32, so the inner product of unit vectors changes by at most

    u sum |q_i x_i| + 2**-25 sum |q_i|  <=  u + sqrt(d) 2**-25,

about 4.9e-4 in any dimension. The maximum occurs when all numbers round in the same direction, as in two dimensions.
When they round independently, the standard deviation is at most u / sqrt(3) sqrt(sum q_i**2 x_i**2), which decreases
with the square root of the dimension: 1e-5 at 768. Bits and integers scaled to unit norm do not round independently.
The error is therefore measured per query, on the rows around its k-th; the bound only detects differences that
rounding cannot cause.

A scan of stored vectors can rank a row r before a row t although the exact score of r is lower, by at most twice the
greatest error m: s(r) >= s'(r) - m >= s'(t) - m >= s(t) - 2m. That is the tolerance; no smaller one holds for every
data set.
"""

import math

import numpy as np
import numpy.typing as npt

from ..vectors.distribution import NORM_TOLERANCE

_ROUNDOFF = 2.0**-11
_LEAST_STEP = 2.0**-25
_SUM_ROUNDOFF = 2.0**-24
_SUM_DEVIATIONS = 5.0
"""The error of two float32 sums of d products, in units of sqrt(d) u of float32 (Higham and Mary 2019, theorem 2.4)."""
EQUAL = 1e-6
"""The float32 scores of equal vectors differ by less than this, depending on their position in a matrix product."""

Floats = npt.NDArray[np.float32]


def error_bound(dimension: int) -> float:
    """The maximum difference between a score with a stored unit vector and the exact score."""
    root = math.sqrt(dimension)
    norms = (1 + NORM_TOLERANCE) ** 2
    return norms * (_ROUNDOFF + root * _LEAST_STEP + 2 * _SUM_DEVIATIONS * root * _SUM_ROUNDOFF)


def compare_scores(exact: Floats, stored: Floats, dimension: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Measures the rounding error of each query and finds rows whose stored vector is a different one.

    Args:
        exact: float32, (queries, rows): inner products with the original vectors.
        stored: The same with the stored vectors; NaN where they were not read.
        dimension: Dimension of the vectors.

    Returns:
        The greatest error of each query, float32, (queries,), 0 where nothing was read; and a mask of (queries, rows)
        that marks scores whose difference is larger than rounding can cause.
    """
    with np.errstate(invalid="ignore"):  # minus infinity, where there is no row
        errors = np.abs(stored - exact)
        is_other = errors > error_bound(dimension)
    errors[is_other | np.isnan(errors)] = 0
    return errors.max(axis=1, initial=0), is_other
