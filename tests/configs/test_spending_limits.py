"""The spending limits of a run."""

from epithre_beam.configs import EmbedConfig


def test_a_sum_of_prices_reaches_its_limit_exactly() -> None:
    settings = EmbedConfig(price_per_1000_requests=100.0, max_cost=0.3, max_requests=4)
    assert settings.may_send(requests=3, items=10**9, tokens=10**9)
    assert not settings.may_send(requests=4, items=0, tokens=0)
    free = EmbedConfig(max_requests=4)
    assert free.may_send(requests=4, items=0, tokens=0)
    assert not free.may_send(requests=5, items=0, tokens=0)
