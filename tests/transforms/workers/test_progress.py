"""The launcher reads the last reported progress of lanes, and a slow periodic write never replaces the last report."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from epithre_beam.transforms.epithre.meter import Meter
from epithre_beam.transforms.epithre.retries import Pause
from epithre_beam.transforms.workers.progress import ProgressWriter, read_lane, read_progress
from epithre_beam.transforms.workers.run_folder import RunFolder


@dataclass
class Throttle:
    """The figures of a rate limiter."""

    throttled_s: float = 1.5
    limits: dict[str, float] = field(default_factory=lambda: {"requests": 600.0})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(url=str(tmp_path), version="000001-x")


def test_no_progress_before_a_lane_starts(run: RunFolder) -> None:
    assert read_progress(run) == []
    assert read_lane(run, 0) is None


def test_progress_of_each_lane_is_read_back(run: RunFolder) -> None:
    for lane in range(3):
        meter = Meter(requests=lane, items_sent=10 * lane)
        meter.retries["timeout"] += lane
        writer = ProgressWriter(run, lane, 100, meter, Throttle())
        writer.note(lane, 1)
        writer.note(5, 0)
        writer.write()
        found = read_lane(run, lane)
        assert found is not None
        assert (found["assets"], found["done"], found["dead"], found["is_done"]) == (100, lane + 5, 1, False)
        assert (found["throttled_s"], found["limits"]) == (1.5, {"requests": 600.0})
        assert found["meter"] == meter.to_dict()
        assert "series" not in found
    assert [lane["done"] for lane in read_progress(run)] == [5, 6, 7]


def test_last_report_of_a_lane_is_not_replaced(run: RunFolder) -> None:
    writer = ProgressWriter(run, 0, 10, Meter(), Throttle())
    writer.note(10, 0)
    writer.write(is_done=True)
    last = read_lane(run, 0)
    writer.write()
    assert read_lane(run, 0) == last
    assert last is not None
    assert last["is_done"]
    assert last["series"]


def test_empty_progress_file_is_skipped(run: RunFolder) -> None:
    for lane in range(2):
        ProgressWriter(run, lane, 10, Meter(), Throttle()).write()
    run.store().write(run.name("progress-0.json"), b"")
    assert len(read_progress(run)) == 1


def test_pause_is_reported_until_it_is_over(run: RunFolder) -> None:
    writer = ProgressWriter(run, 0, 10, Meter(), Throttle())
    writer.write()
    assert "pause" not in (read_lane(run, 0) or {})
    pause = Pause(until_s=time.time() + 60, asked_s=60.0, why="429: slow down")
    writer.note_pause(pause)
    writer.write()
    found = read_lane(run, 0)
    assert found is not None
    assert found["pause"] == {"until_s": pause.until_s, "asked_s": 60.0, "why": "429: slow down"}
    writer.note_pause(replace(pause, until_s=time.time() - 1))
    writer.write()
    assert "pause" not in (read_lane(run, 0) or {})
