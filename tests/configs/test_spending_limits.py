"""The spending limits of a run, and the shares of its lanes."""

import random

import pytest

from epithre_beam.configs import EmbedConfig


@pytest.mark.parametrize("seed", range(50))
def test_shares_of_lanes_and_probe_stay_within_the_limit(seed: int) -> None:
    rng = random.Random(seed)
    lanes, probe_requests = rng.randint(1, 9), rng.randint(0, 3)
    whole = EmbedConfig(
        lanes=lanes,
        rate_limiter="host",
        max_requests=rng.randint(lanes + 1, 100),
        max_cost=rng.uniform(0.1, 10),
        price_per_1000_requests=10.0,
    )
    parts = [whole.share(lane, probe_requests=probe_requests) for lane in range(lanes)]
    assert sum(part.max_requests or 0 for part in parts) == max(0, (whole.max_requests or 0) - probe_requests)
    assert sum(part.max_cost or 0 for part in parts) + probe_requests * 0.01 <= (whole.max_cost or 0) * (1 + 1e-9)


def test_a_sum_of_prices_reaches_its_limit_exactly() -> None:
    settings = EmbedConfig(price_per_1000_requests=100.0, max_cost=0.3, max_requests=4)
    assert settings.may_send(requests=3, items=10**9, tokens=10**9)
    assert not settings.may_send(requests=4, items=0, tokens=0)
    free = EmbedConfig(max_requests=4)
    assert free.may_send(requests=4, items=0, tokens=0)
    assert not free.may_send(requests=5, items=0, tokens=0)
