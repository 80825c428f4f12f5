"""The plots are small, deterministic, and drawn only when a report is written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import orjson
import pytest

from epithre_beam.transforms.reports.plots import draw_plots

DRAW = (
    "import sys, hashlib, orjson\n"
    "from epithre_beam.transforms.reports.plots import draw_plots\n"
    "plots = draw_plots(orjson.loads(sys.stdin.buffer.read()))\n"
    "assert 'matplotlib.pyplot' not in sys.modules\n"
    "print(hashlib.sha256(repr(plots).encode()).hexdigest(), len(plots))"
)


def draw_elsewhere(report, **environment) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in {"HOME", "MPLCONFIGDIR", "XDG_CACHE_HOME"}}
    done = subprocess.run(
        [sys.executable, "-c", DRAW], input=orjson.dumps(report), env={**kept, **environment}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return done


def description(report, name: str) -> str:
    return ElementTree.fromstring(draw_plots(report)[name].svg).find("desc").text


def test_equal_figures_give_equal_plots_in_any_process(draw_report):
    report, _ = draw_report(letters=({"asset_id": "a"},))
    here = draw_plots(report)
    assert here == draw_plots(report)
    drawn = {draw_elsewhere(report, PYTHONHASHSEED=seed, HOME=str(Path.home())).stdout for seed in ("1", "2")}
    assert len(drawn) == 1


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="no home"),
        pytest.param({"HOME": "/dev/null"}, id="a home that cannot be written"),
        pytest.param({"HOME": "/dev/null", "MPLCONFIGDIR": "/dev/null/x"}, id="nor its own folder"),
    ],
)
def test_plots_are_drawn_silently_without_a_home_folder(draw_report, environment):
    report, _ = draw_report()
    done = draw_elsewhere(report, **environment)
    assert int(done.stdout.split()[1]) == 10
    assert not done.stderr


def test_matplotlib_is_imported_only_for_drawing():
    program = (
        "import sys, json\n"
        "import epithre_beam.index, epithre_beam.pipelines.commands.cli, epithre_beam.transforms.reports.report\n"
        "import epithre_beam.transforms.write_version\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('matplotlib')]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_drawing_does_not_change_matplotlib_settings(draw_report):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw_plots(draw_report()[0])
    assert dict(mpl.rcParams) == before


def test_largest_report_has_small_plots(draw_report, run_a_lane):
    report, _ = draw_report(lanes=[run_a_lane(seed, 590) for seed in range(3)])
    drawn = draw_plots(report)
    assert sum(len(plot.svg) for plot in drawn.values()) < 200_000


def test_constant_run_at_its_limit_is_drawn_at_the_limit(draw_report):
    report, _ = draw_report()
    report["series"] = {"start_unix_s": 0.0, "step_s": 0.25, "counts": {"requests": [5, 0] * 240}}
    assert description(report, "requests") == "At most 600 requests within 60 s; the limit is 600."


def test_short_run_is_compared_with_the_rate_of_the_limit(draw_report, run_a_lane):
    report, _ = draw_report(lanes=[run_a_lane(1, 2)])
    plots = draw_plots(report)
    assert "rate of the limit, 600" in plots["requests"].svg
    assert "seconds since the start of embedding" in plots["throughput"].svg


@pytest.mark.parametrize(("seconds", "unit"), [(60, "seconds"), (600, "minutes"), (40_000, "hours")])
def test_time_axis_uses_a_suitable_unit(draw_report, seconds, unit):
    report, _ = draw_report()
    steps = np.random.default_rng(1).integers(0, 9, 500).tolist()
    counts = dict.fromkeys(("assets", "dead", "items", "requests", "retries", "answers_429"), steps)
    report["series"] = {"start_unix_s": 0.0, "step_s": seconds / 500, "counts": counts}
    plots = draw_plots(report)
    for name in ("throughput", "requests", "retries"):
        assert f"{unit} since the start of embedding" in plots[name].svg


def test_empty_plots_are_not_drawn(draw_report):
    report, _ = draw_report()
    report["series"]["counts"] = {name: [0, 0, 0] for name in report["series"]["counts"]}
    assert set(draw_plots(report)) == {"changes", "latency", "scores", "norms", "recall", "sizes", "timings"}


def test_similarities_are_described_by_direction(draw_report):
    report, _ = draw_report()
    words = description(report, "scores")
    for direction, centre in (("image->image", 0.6), ("text->image", 0.2), ("text->text", 0.6)):
        reported = float(words.split(f"{direction} ")[1].split(",")[0].rstrip("."))
        assert abs(reported - centre) < 0.02


def test_reused_assets_do_not_hide_embedded_ones(draw_report):
    report, _ = draw_report()
    counts = report["series"]["counts"]
    counts["assets"][0] += 1_000_000
    assert "vectors from the API" in description(report, "throughput")
    counts["items"] = [0] * len(counts["items"])
    assert "assets reused" in description(report, "throughput")
