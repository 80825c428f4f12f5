"""The chosen operating point is the cheapest that keeps the recall in every direction, with a margin."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.index.ann.recall import NOT_FOUND, Rated
from epithre_beam.index.ann.tune import K_FACTORS, SHARES, FileShape, cost_us, operating_points, probed_cells, ties_at

SHAPE = FileShape(rows=1_000_000, dimension=4000, code_dimension=256, cells=4000)
K = 10


def rated(places: list[float], queries: int = 200, *, seed: int = 0) -> Rated:
    """For each share of cells, the share of right rows in these cells; their ranks are random among 3 x k."""
    rng = np.random.default_rng(seed)
    scores = np.tile(np.linspace(1, 0.5, K, dtype=np.float32), (queries, 1))
    drawn, ranks = rng.random((queries, K)), rng.integers(0, 3 * K, (queries, K))
    ways = [np.where(drawn < share, ranks, NOT_FOUND) for share in places]
    ways.append(np.tile(np.arange(K), (queries, 1)))
    return Rated(scores=scores, ranks=np.array(ways, np.uint32), tolerances=np.zeros(queries, np.float32))


def rising(least: float) -> list[float]:
    return np.linspace(least, 1.0, len(SHARES)).tolist()


@settings(max_examples=40, deadline=None)
@given(
    least=st.floats(0, 1),
    other=st.floats(0, 1),
    target=st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0]),
    seed=st.integers(0, 5),
)
def test_points_are_unique_and_sorted_by_cost(least: float, other: float, target: float, seed: int) -> None:
    directions = {"image->image": rated(rising(least), seed=seed), "text->image": rated(rising(other), seed=seed + 9)}
    points, chosen = operating_points(directions, [SHAPE], K, target)
    costs = [point.cost_us for point in points]
    assert costs == sorted(costs)
    assert len({(p.cells_share, p.k_factor) for p in points}) == len(points)
    assert (points[-1].cells_share, points[-1].k_factor) == (None, None)
    assert min(points[-1].recall.values()) == 1.0
    assert chosen in points
    assert min(chosen.recall.values()) >= target
    for point in points:
        assert set(point.recall) == set(directions)
        assert point.cells_share in (*SHARES, None)
        assert point.k_factor in (*K_FACTORS, None)


def test_worst_direction_determines_the_point() -> None:
    easy, hard = rated([1.0] * len(SHARES)), rated(rising(0.2))
    alone, _ = operating_points({"image->image": easy}, [SHAPE], K, 0.95)
    _, chosen_alone = operating_points({"image->image": easy}, [SHAPE], K, 0.95)
    _, chosen = operating_points({"image->image": easy, "text->image": hard}, [SHAPE], K, 0.95)
    assert chosen_alone.cells_share == SHARES[0]
    assert chosen.cells_share is None or chosen.cells_share > SHARES[0]
    assert chosen.cost_us > chosen_alone.cost_us
    assert min(chosen.recall.values()) >= 0.95
    assert alone


def test_no_cheaper_point_reaches_the_target() -> None:
    _, chosen = operating_points({"text->image": rated(rising(0.5))}, [SHAPE], K, 0.9)
    _, easier = operating_points({"text->image": rated(rising(0.5))}, [SHAPE], K, 0.8)
    assert easier.cost_us < chosen.cost_us
    assert 0.9 <= chosen.recall["text->image"] < 0.99


def test_all_vectors_are_scanned_if_codes_miss_the_target() -> None:
    _, chosen = operating_points({"text->image": rated([0.5] * len(SHARES))}, [SHAPE], K, 0.95)
    assert (chosen.cells_share, chosen.k_factor, chosen.recall) == (None, None, {"text->image": 1.0})


def test_direction_without_answers_is_ignored() -> None:
    none = Rated(
        scores=np.full((5, K), -np.inf, np.float32),
        ranks=np.full((len(SHARES) + 1, 5, K), NOT_FOUND),
        tolerances=np.zeros(5, np.float32),
    )
    points, chosen = operating_points({"text->image": none}, [SHAPE], K, 0.95)
    assert chosen == points[0]
    assert chosen.recall == {"text->image": 1.0}


@settings(max_examples=60)
@given(share=st.floats(1e-6, 1), cells=st.integers(1, 10_000))
def test_probed_cells_is_between_one_and_all_cells(share: float, cells: int) -> None:
    assert 1 <= probed_cells(share, cells) <= cells
    assert probed_cells(1.0, cells) == cells


def test_cost_grows_with_bytes_read() -> None:
    costs = [cost_us(SHAPE, K, share, 10) for share in SHARES]
    assert costs == sorted(costs)
    assert [cost_us(SHAPE, K, 1.0, f) for f in K_FACTORS] == sorted(cost_us(SHAPE, K, 1.0, f) for f in K_FACTORS)
    assert cost_us(SHAPE, K, None, None) > cost_us(SHAPE, K, 1.0, 100)
    without = FileShape(rows=1000, dimension=4000)
    assert cost_us(without, K, 0.1, 10) == cost_us(without, K, None, None) == pytest.approx(2000)


def near_ties(tolerance: float, queries: int = 50) -> Rated:
    """Forty rows around the k-th that differ by 1e-6; the cheapest way finds the lower half, the others find all."""
    scores = np.tile(0.9 - 2e-6 * np.arange(40, dtype=np.float32), (queries, 1))
    ranks = np.full((len(SHARES) + 1, queries, 40), NOT_FOUND, np.uint32)
    ranks[:-1, :, 20:] = np.arange(20)
    ranks[-1] = np.arange(40)
    return Rated(scores=scores, ranks=ranks, tolerances=np.full(queries, tolerance, np.float32))


def test_near_ties_count_as_right_answers() -> None:
    found = {"text->text": near_ties(1e-4)}
    _, chosen = operating_points(found, [SHAPE], K, 1.0)
    assert (chosen.cells_share, chosen.k_factor) == (SHARES[0], K_FACTORS[0])
    assert ties_at(found, K, chosen) == {"text->text": 1.0}


def test_distinguishable_rows_do_not_count_as_ties() -> None:
    found = {"text->text": near_ties(1e-6)}
    _, chosen = operating_points(found, [SHAPE], K, 0.95)
    assert chosen.cells_share is None
    assert ties_at(found, K, chosen) == {"text->text": 0.0}


def test_ties_without_answers_are_zero() -> None:
    empty = Rated(
        scores=np.full((2, K), -np.inf, np.float32),
        ranks=np.full((len(SHARES) + 1, 2, K), NOT_FOUND),
        tolerances=np.zeros(2, np.float32),
    )
    _, chosen = operating_points({"text->image": empty}, [SHAPE], K, 0.95)
    assert ties_at({"text->image": empty}, K, chosen) == {"text->image": 0.0}
