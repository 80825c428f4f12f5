"""What failed is sent again, no sooner than the server asks and at little cost."""

import time

import pytest

from epithre_beam.transforms.epithre.client import Refusal
from epithre_beam.transforms.epithre.emulator import Faults, Limits

from .asking import assert_right, embed, serve, texts


def test_a_hanging_server_costs_a_timeout_and_a_retry():
    contents = texts(32)
    with serve(faults=Faults(hang=1.0, hang_s=20, stop_at_request=1)) as emulator:
        started = time.monotonic()
        results, client = embed(emulator, contents, timeout_s=1.0)
    assert time.monotonic() - started < 10
    assert_right(contents, results)
    assert client.meter.retries["timeout"] == 1


def test_ten_percent_random_failures_cost_at_most_fifteen_percent_more_requests():
    contents = texts(6000)
    with serve(faults=Faults(rate_429=0.05, error_500=0.05), seed=3) as emulator:
        results, client = embed(emulator, contents, batch_items=4)
    assert not [r for r in results if isinstance(r, Refusal)]
    assert client.meter.requests <= 1.15 * 1500


@pytest.mark.parametrize("form", ["seconds", "float", "date", "milliseconds", "absent"])
def test_retry_after_is_waited_for_in_every_form(form):
    limits = Limits(requests_per_minute=5, window_s=1.0, retry_after=form, send_headers=False)
    contents = texts(8)
    with serve(limits=limits) as emulator:
        results, _ = embed(emulator, contents, batch_items=1, max_sends=200, retry_share=1.0)
        assert emulator.worst_window().requests <= 5
    assert not [r for r in results if isinstance(r, Refusal)]
