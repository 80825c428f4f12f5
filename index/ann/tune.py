"""Chooses the cheapest search parameters of an index that keep the recall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..versions.manifest import OperatingPoint
from .recall import Rated, mean_recall, recall_at

SHARES = (1 / 256, 1 / 128, 1 / 64, 1 / 32, 3 / 64, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
"""The shares of cells that are tried; after them, a scan of all vectors without codes."""
K_FACTORS = (2, 3, 5, 10, 20, 50, 100)
_TARGETS = (0.8, 0.9, 0.95, 0.99)
_ERRORS = 2.0

# Approximate rates of one core; only their ratios matter.
_SCANNED_BYTES_A_US = 20_000
_REFINED_BYTES_A_US = 4_000
_ROUTING_FLOPS_A_US = 40_000


@dataclass(frozen=True, kw_only=True)
class FileShape:
    """The properties of an index file that determine the cost of a query."""

    rows: int
    dimension: int
    """Dimension of the vectors."""
    code_dimension: int = 0
    """0: the file has no codes."""
    cells: int = 1


def probed_cells(share: float, cells: int) -> int:
    """The number of cells that a share of a file's cells amounts to, at least 1."""
    return min(cells, max(1, round(share * cells)))


def cost_us(shape: FileShape, k: int, share: float | None, k_factor: float | None) -> float:
    """Estimates the cost of a query in microseconds, from the bytes it reads."""
    if share is None or k_factor is None or not shape.code_dimension:
        return shape.rows * shape.dimension * 2 / _REFINED_BYTES_A_US
    routed = 2 * shape.code_dimension * (shape.dimension + (shape.cells if shape.cells > 1 else 0))
    scanned = shape.rows * probed_cells(share, shape.cells) / shape.cells * shape.code_dimension / 2
    refined = min(k * k_factor, shape.rows) * shape.dimension * 2
    return routed / _ROUTING_FLOPS_A_US + scanned / _SCANNED_BYTES_A_US + refined / _REFINED_BYTES_A_US


def operating_points(
    rated: Mapping[str, Rated], shapes: Sequence[FileShape], k: int, target: float
) -> tuple[list[OperatingPoint], OperatingPoint]:
    """Returns the cheapest operating points for several recalls, and the one for `target`.

    A point reaches a recall when the measured recall exceeds it by two standard errors in every direction: the point
    is selected from many with the same queries, and other queries must reach the recall too. If no point does, one
    that reaches the recall as measured is used; if there is none, all vectors are scanned.

    Args:
        rated: The ratings by direction; the ways are `SHARES`, then the exact scan.
        shapes: The shapes of the files.
        k: The k that recall is measured at.
        target: The recall to reach in every direction.
    """
    all_found: list[tuple[OperatingPoint, float]] = []
    tried: list[tuple[float | None, int | None]] = [(share, factor) for share in SHARES for factor in K_FACTORS]
    recalls = {factor: {d: recall_at(j, k, k * factor) for d, j in rated.items()} for factor in K_FACTORS}
    exact = {direction: recall_at(j, k, k) for direction, j in rated.items()}
    for share, factor in [*tried, (None, None)]:
        way = -1 if share is None else SHARES.index(share)
        measured = {d: r[way] for d, r in (exact if factor is None else recalls[factor]).items()}
        point = OperatingPoint(
            cells_share=share,
            k_factor=factor,
            recall={direction: round(mean_recall(r), 6) for direction, r in measured.items()},
            cost_us=round(sum(cost_us(shape, k, share, factor) for shape in shapes), 1),
        )
        all_found.append((point, min((_low(r) for r in measured.values()), default=1.0)))
    all_found.sort(key=lambda found: found[0].cost_us)
    points = {}
    for wanted in sorted({*_TARGETS, target}):
        point = _cheapest(all_found, wanted)
        points[(point.cells_share, point.k_factor)] = point
    chosen = _cheapest(all_found, target)
    scan = next(point for point, _ in all_found if point.cells_share is None)
    points[(None, None)] = scan
    return sorted(points.values(), key=lambda point: point.cost_us), chosen


def ties_at(rated: Mapping[str, Rated], k: int, point: OperatingPoint) -> dict[str, float]:
    """The share of right answers, by direction, that are near ties: below the k-th by less than the fp16 precision."""
    way = -1 if point.cells_share is None else SHARES.index(point.cells_share)
    width = k if point.k_factor is None else int(k * point.k_factor)
    ties = {}
    for direction, found in rated.items():
        all_right, best = (recall_at(found, k, width, with_ties=with_them)[way] for with_them in (True, False))
        ties[direction] = round(mean_recall(all_right) - mean_recall(best), 6)
    return ties


def _cheapest(found: Sequence[tuple[OperatingPoint, float]], wanted: float) -> OperatingPoint:
    surely = (point for point, low in found if low >= wanted)
    measured = (point for point, _ in found if min(point.recall.values(), default=1.0) >= wanted)
    scan = (point for point, _ in found if point.cells_share is None)
    return next(surely, None) or next(measured, None) or next(scan)


def _low(recalls: npt.NDArray[np.float64]) -> float:
    recalls = recalls[~np.isnan(recalls)]
    if not len(recalls):
        return 1.0
    return float(recalls.mean() - _ERRORS * recalls.std() / len(recalls) ** 0.5)
