"""Counts take constant memory and can be added over lanes."""

import orjson
import pytest

from epithre_beam.transforms.epithre.meter import Latencies, Timeline


def reported(timeline: Timeline) -> dict:
    return orjson.loads(orjson.dumps(timeline.to_dict()))  # as stored in a progress file


def test_a_long_timeline_keeps_all_counts_and_stays_short():
    timeline = Timeline()
    for second in range(0, 40_000, 7):
        timeline.sample(1_800_000_000.0 + second, {"requests": second, "retries": second // 100})
    data = reported(timeline)
    assert 300 <= len(data["counts"]["requests"]) <= 600
    assert sum(data["counts"]["requests"]) == 39_998
    assert sum(data["counts"]["retries"]) == 399
    assert len({len(counts) for counts in data["counts"].values()}) == 1
    assert data["step_s"] == 128
    assert data["counts"]["requests"][3] == pytest.approx(128, abs=7)


def test_timelines_with_different_steps_are_added_by_time():
    long, short = Timeline(), Timeline()
    for second in range(1000):
        long.sample(1_000_000.0 + second, {"requests": second})
    for second in range(100):
        short.sample(1_000_500.0 + second / 10, {"requests": 10 * second})
    totals = []
    for order in ((long, short), (short, long)):
        both = Timeline()
        for lane in order:
            both.add(reported(lane))
        totals.append(reported(both))
    assert totals[0] == totals[1]
    assert sum(totals[0]["counts"]["requests"]) == 999 + 990
    step = totals[0]["step_s"]
    counts = totals[0]["counts"]["requests"]
    assert sum(counts) - sum(reported(long)["counts"]["requests"]) == 990
    assert counts[int((1_000_504 - totals[0]["start_unix_s"]) // step)] > 50 * step  # the steps of the short one


def test_the_sum_of_distant_timelines_stays_short():
    both = Timeline()
    for start in (0.0, 90_000.0):
        lane = Timeline()
        for second in range(20):
            lane.sample(start + second, {"requests": second})
        both.add(reported(lane))
    data = reported(both)
    assert len(data["counts"]["requests"]) <= 600
    assert sum(data["counts"]["requests"]) == 38


def test_a_timeline_tolerates_clock_changes():
    timeline = Timeline()
    for now in (100.0, 101.0, 99.0, 1_800_000_000.0, 1_800_000_001.0):
        timeline.sample(now, {"requests": int(now)})
    assert len(reported(timeline)["counts"]["requests"]) <= 600
    assert (
        sum(reported(timeline)["counts"]["requests"]) == 1_800_000_001 - 100
    )  # the first sample sets the starting point


def test_an_empty_meter_has_empty_figures():
    assert reported(Timeline())["counts"] == {}
    assert Latencies().histogram() == {"edges": [], "counts": []}


def test_the_histogram_contains_all_latencies():
    latencies = Latencies()
    for seconds in (0.01, 0.011, 0.2, 3.0):
        latencies.add(seconds)
    found = latencies.histogram()
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert sum(found["counts"]) == 4
    assert found["edges"][0] < 0.01
    assert found["edges"][-1] > 3.0
    filled = [i for i, count in enumerate(found["counts"]) if count]
    assert all(found["edges"][i] < found["edges"][i + 1] for i in filled)
    assert any(found["edges"][i] <= 0.2 <= found["edges"][i + 1] for i in filled)
