"""A pause that the API requested is reported once, on a terminal and in the log."""

import io
import logging
import time

import pytest
from rich.console import Console

from epithre_beam.pipelines.console.progress import shown
from epithre_beam.transforms.epithre.meter import Meter
from epithre_beam.transforms.workers.progress import LaneProgress, PauseFigures


def lane(until_s=None, asked_s=300.0, why="429: daily quota, try tomorrow"):
    figures = LaneProgress(
        assets=10,
        done=2,
        dead=0,
        elapsed_s=1.0,
        is_done=False,
        throttled_s=0.0,
        limits={},
        meter=Meter().to_dict(),
    )
    if until_s is not None:
        figures["pause"] = PauseFigures(until_s=until_s, asked_s=asked_s, why=why)
    return figures


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_pause_is_reported_once_with_its_end_and_reason(is_terminal, caplog):
    caplog.set_level(logging.INFO)
    out = io.StringIO()
    until_s = time.time() + 300
    clock = time.strftime("%H:%M", time.localtime(until_s))
    with shown(Console(file=out, force_terminal=is_terminal, width=60), quiet=False) as watch:
        watch([lane()])
        for _ in range(5):  # two lanes that learn of it one after the other
            watch([lane(until_s), lane(until_s + 1)])
    reported = out.getvalue() if is_terminal else "\n".join(str(record.fields) for record in caplog.records)
    sentence = f"paused until {clock} "
    assert reported.count("paused until") == 1
    assert sentence in reported or "paused until 2" in reported  # with a date, around midnight
    assert "the server asked for 300 s (429: daily quota, try tomorrow)" in reported
    if not is_terminal:
        (record,) = [record for record in caplog.records if record.getMessage() == "paused"]
        assert record.levelno == logging.WARNING
        assert record.fields["asked_s"] == 300


def test_a_later_pause_is_reported_too(caplog):
    caplog.set_level(logging.INFO)
    now = time.time()
    with shown(Console(file=io.StringIO()), quiet=False, as_lines=True) as watch:
        for start in (0, 60, 120):
            watch([lane(now + start + 30, 30.0)])
            watch([lane()])
    assert [record.getMessage() for record in caplog.records if record.getMessage() == "paused"] == ["paused"] * 3
