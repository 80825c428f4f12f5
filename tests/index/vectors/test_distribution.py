"""Distributions of streamed values."""

import numpy as np
import pytest

from epithre_beam.index.vectors.distribution import (
    Distribution,
    norm_deviations,
    norms_distribution,
    scores_distribution,
)


def edges(histogram) -> np.ndarray:
    return np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)


@pytest.mark.parametrize("spread", [0.001, 0.02, 0.3])
def test_counts_equal_those_of_numpy(spread):
    values = np.clip(np.random.default_rng(3).normal(0.2, spread, 20_000), -0.999, 0.999).astype(np.float32)
    distribution = scores_distribution()
    for block in np.array_split(values, 7):
        distribution.add(block.reshape(-1, 1))
    found = distribution.histogram()
    assert sum(found.counts) == len(values)
    assert 4 <= len(found.counts) <= 128
    assert np.array_equal(np.histogram(values, edges(found))[0], found.counts)


def test_counts_do_not_depend_on_order():
    values = np.random.default_rng(4).uniform(-1, 1, 1000)
    one, other = scores_distribution(), scores_distribution()
    one.add(values)
    other.add(values[::-1])
    assert one.histogram() == other.histogram()


def test_bins_of_two_distributions_are_aligned():
    narrow, wide = scores_distribution(), scores_distribution()
    narrow.add(np.array([0.5, 0.51]))
    wide.add(np.array([-0.8, 0.9]))
    fine, coarse = edges(narrow.histogram()), edges(wide.histogram())
    step, large = fine[1] - fine[0], coarse[1] - coarse[0]
    assert large / step == int(large / step)
    assert ((fine[0] - coarse[0]) / step) == int((fine[0] - coarse[0]) / step)


def test_invalid_numbers_are_ignored_and_outliers_counted():
    distribution = Distribution(low=-1.0, high=1.0)
    assert distribution.histogram() is None
    distribution.add(np.array([np.nan, -np.inf, np.inf, 1.0000002, -1.5, 0.0], np.float32))
    found = distribution.histogram()
    assert (found.low, found.high, sum(found.counts)) == (-1.0, 1.0, 3)


def test_unit_norms_deviate_by_less_than_one_millionth():
    vectors = np.random.default_rng(5).standard_normal((200, 4000)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    distribution = norms_distribution()
    distribution.add(norm_deviations(vectors))
    distribution.add(norm_deviations(np.array([[1.0, 0.0], [1.1, 0.0]], np.float32)))
    found = distribution.histogram()
    assert (found.low, sum(found.counts)) == (-10.0, 202)
    assert -1.05 < found.high < -0.9
    assert sum(n for n, edge in zip(found.counts, edges(found)[1:], strict=True) if edge <= -6) == 201
