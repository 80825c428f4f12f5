"""No client exceeds its rate limit, and clients do not affect each other."""

import asyncio
import logging

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.pipelines.serve.gate import Gate
from epithre_beam.pipelines.serve.metrics import Metrics
from epithre_beam.pipelines.serve.rates import Rates
from epithre_beam.pipelines.serve.settings import ServeSettings


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@given(st.integers(1, 1200), st.lists(st.floats(0, 30), min_size=1, max_size=200))
def test_any_minute_allows_at_most_the_limit_plus_the_burst(per_minute, pauses):
    clock = Clock()
    rates, let_through = Rates(per_minute, clock), []
    for pause in pauses:
        clock.now += pause
        if not rates.take("192.0.2.1"):
            let_through.append(clock.now)
    most = per_minute + max(1, per_minute / 6)
    for first in let_through:
        assert sum(first <= moment < first + 60 for moment in let_through) <= most + 1e-6


@given(st.integers(1, 600), st.integers(1, 50))
def test_a_client_that_waits_retry_after_is_allowed(per_minute, floods):
    clock = Clock()
    rates = Rates(per_minute, clock)
    for _ in range(floods):
        while not (wait_s := rates.take("192.0.2.1")):
            pass
        clock.now += wait_s
    assert rates.take("192.0.2.1") == 0
    assert rates.take("192.0.2.2") == 0


def test_an_ipv6_network_is_one_client_and_0_means_no_limit():
    rates = Rates(6, Clock())
    assert rates.take("2001:db8:0:1::1") == 0
    assert rates.take("2001:db8:0:1:ffff::2") > 0
    assert rates.take("2001:db8:0:2::1") == 0
    assert rates.take("::ffff:192.0.2.1") == 0
    assert rates.take("192.0.2.1") > 0
    assert all(Rates(0).take("192.0.2.1") == 0 for _ in range(1000))


def test_an_unexpected_failure_is_logged_and_hidden_from_the_client(caplog):
    async def app(scope, receive, send):
        raise RuntimeError("the secret of the house")

    async def ask():
        gate = Gate(app, settings=ServeSettings(catalog="c"), metrics=Metrics())
        transport = httpx.ASGITransport(gate, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/api/catalog")

    with caplog.at_level(logging.ERROR):
        answer = asyncio.run(ask())
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "defect"
    assert "secret" not in answer.text
    assert "the secret of the house" in caplog.text


def test_the_repr_omits_the_token():
    assert "hunter2" not in repr(ServeSettings(catalog="c", token="hunter2"))


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("127.0.0.1", {"localhost", "127.0.0.1", "::1", "name"}),
        ("localhost", {"localhost", "127.0.0.1", "::1", "name"}),
        ("127.0.0.2", {"localhost", "127.0.0.1", "::1", "127.0.0.2", "name"}),
        ("0.0.0.0", {"name"}),
        ("pictures.example", {"name"}),
    ],
)
def test_host_names_are_checked_on_loopback_or_when_given(host, answered):
    assert ServeSettings(catalog="c", host=host, allowed_hosts=("Name",)).answered_hosts == answered
    assert (ServeSettings(catalog="c", host=host).answered_hosts is None) == (answered == {"name"})
