"""Distributions of streamed values in fixed bins, so that memory does not grow with their number."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ...configs.errors import CatalogError
from ..versions.manifest import Histogram

_BINS = 2048
_MOST_BINS_KEPT = 128
_LEAST_DEVIATION = 1e-10
NORM_TOLERANCE = 2e-3
"""Vectors are stored unchanged when their norm is within 1e-3 of 1; float16 may add another half of that."""


@dataclass(kw_only=True)
class Distribution:
    """Counts in fine bins between `low` and `high`; values outside count in the first or the last bin."""

    low: float
    high: float
    _counts: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, values: npt.NDArray[np.floating]) -> None:
        """Counts values of any shape. NaN and infinite values are ignored."""
        # In the precision of the values, to avoid a copy of a million scores at twice the size.
        scale = _BINS / (self.high - self.low)
        positions = np.floor(values.ravel() * values.dtype.type(scale)) - values.dtype.type(self.low * scale)
        finite = positions[np.isfinite(positions)].clip(0, _BINS - 1).astype(np.int32)
        self._counts += np.bincount(finite, minlength=_BINS)

    def merge(self, other: "Distribution") -> None:
        """Adds the counts of another distribution with the same bins."""
        self._counts += other._counts  # noqa: SLF001 - of the same class

    def histogram(self) -> Histogram | None:
        """Returns the counts of the occupied range, with adjacent bins merged until few remain; None without values."""
        counts = self._counts
        filled = np.flatnonzero(counts)
        if not len(filled):
            return None
        # Always merge pairs counted from `low`, so that the bins of two distributions are aligned.
        while filled[-1] - filled[0] >= _MOST_BINS_KEPT:
            counts = counts.reshape(-1, 2).sum(axis=1)
            filled = np.flatnonzero(counts)
        width = (self.high - self.low) / len(counts)
        return Histogram(
            low=self.low + int(filled[0]) * width,
            high=self.low + (int(filled[-1]) + 1) * width,
            counts=tuple(counts[filled[0] : filled[-1] + 1].tolist()),
        )


def scores_distribution() -> Distribution:
    """A distribution for inner products of unit vectors."""
    return Distribution(low=-1.0, high=1.0)


def norms_distribution() -> Distribution:
    """A distribution for `norm_deviations`."""
    return Distribution(low=-10.0, high=0.0)


def norm_deviations(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Returns log10 of the distance of each row's norm from 1, at least -10: float64, (rows,)."""
    # Summed in float64: at 4000 dimensions the float32 error would exceed the deviation of the norms.
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    deviations: npt.NDArray[np.float64] = np.log10(np.maximum(np.abs(norms - 1.0), _LEAST_DEVIATION))
    return deviations


def checked_deviations(
    vectors: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], kind: str, dimension: int
) -> npt.NDArray[np.float64]:
    """Returns `norm_deviations` and refuses rows that are not unit vectors, which would distort searches and axes.

    Raises:
        CatalogError: When the dimension is wrong or a row is not a unit vector; names the first such row.
    """
    if vectors.shape[1] != dimension:
        raise CatalogError(
            f"The {kind} vectors must have {dimension} dimensions, got {vectors.shape[1]} from row {rows[0]}. "
            "Use a separate catalog for vectors of another model."
        )
    with np.errstate(invalid="ignore"):  # from infinite values
        deviations = norm_deviations(vectors)
    bad = np.flatnonzero(~(deviations <= np.log10(NORM_TOLERANCE)))
    if len(bad):
        norm = np.linalg.norm(vectors[bad[0]].astype(np.float64))
        raise CatalogError(
            f"The vector of {kind} row {rows[bad[0]]} must have the norm 1, got {norm:.6g}. The input is damaged or "
            "was never checked. Run `epithre-beam versions verify CATALOG` to find a damaged file."
        )
    return deviations
