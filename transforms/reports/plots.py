"""Draws the plots of a run's report from `report.json`. Empty plots are omitted."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...configs.words import of_asset_count, of_count, of_duration, of_name, of_size
from .svg import (
    ALARM,
    FIRST,
    LINES,
    Drawing,
    add_legend,
    count_in_whole_numbers,
    draw_bars,
    drawing,
    make_axes,
    to_svg,
    use_log_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_STEPS_SHOWN = 75
_MOST_SCORE_BINS = 64


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot, and a sentence that explains how to read it."""

    title: str
    caption: str
    svg: str
    """An inline element for an HTML page."""


def draw_plots(report: Mapping[str, Any]) -> dict[str, Plot]:
    """Draws all plots that the report has figures for.

    Raises:
        ImportError: When matplotlib is not installed.
    """
    plots = {}
    for name, (title, caption, draw) in _PLOTS.items():
        with drawing(name):
            drawn = draw(report)
            if drawn is not None:
                plots[name] = Plot(title=title, caption=caption, svg=to_svg(name, title, drawn))
    return plots


def _changes(report: Mapping[str, Any]) -> Drawing | None:
    counts = {of_asset_count(n): c for n, c in report["counts"].items() if isinstance(c, int) and c}
    return draw_bars(counts, {label: f"{count:,}" for label, count in counts.items()}, FIRST) if counts else None


def _throughput(report: Mapping[str, Any]) -> Drawing | None:
    steps = _steps(report, "assets", "items")
    if steps is None or not any(steps.counts["assets"]):
        return None
    # Reused assets finish at once: a single spike that would hide everything else.
    name, label = ("items", "vectors from the API") if any(steps.counts["items"]) else ("assets", "assets reused")
    rate = steps.counts[name] / steps.step_s
    figure, axes = make_axes()
    axes.stairs(rate, steps.edges, fill=True, color=FIRST, alpha=0.45, label=label)
    axes.set_ylabel("per second")
    count_in_whole_numbers(axes)
    _finish_time(axes, steps)
    total, lasted = int(steps.counts[name].sum()), steps.step_s * len(rate)
    return Drawing(
        figure=figure,
        description=f"{total:,} {label} in {of_duration(lasted)}: {total / lasted:,.0f} per second on average, "
        f"{rate.max():,.0f} at most.",
    )


def _requests(report: Mapping[str, Any]) -> Drawing | None:
    steps = _steps(report, "requests", most=None)
    if steps is None or not any(steps.counts["requests"]):
        return None
    limit = report["api"]["limits"].get("requests")
    # The limit applies to the number of requests in the preceding 60 seconds.
    width = max(1, round(60 / steps.step_s))
    sums = np.convolve(steps.counts["requests"], np.ones(width))[: len(steps.counts["requests"])]
    sums *= 60 / (width * steps.step_s)
    figure, axes = make_axes()
    axes.plot(steps.edges, [0, *sums], color=FIRST, linewidth=1.3, label="requests in the 60 s before")
    description = f"At most {of_count(round(sums.max()), 'request')} within 60 s"
    if limit is not None:
        lasted = steps.step_s * len(sums)
        # A run of less than a minute cannot reach the limit: compare it with the rate that the limit allows.
        begins, word = (limit, "limit") if lasted >= 60 else (0.0, "rate of the limit,")
        ends = limit * min(lasted, 60) / 60
        label = f"{word} {limit:,.0f}"
        axes.plot(steps.edges[[0, -1]], [begins, ends], color=ALARM, linestyle="dashed", linewidth=1.3, label=label)
        description += f"; the limit is {limit:,.0f}"
    axes.margins(y=0.08)
    axes.set_ylim(0)
    axes.set_ylabel("requests per minute")
    _finish_time(axes, steps)
    return Drawing(figure=figure, description=description + ".")


def _latency(report: Mapping[str, Any]) -> Drawing | None:
    histogram = report["histograms"]["latency_s"]
    if not histogram["counts"]:
        return None
    counts = np.array(histogram["counts"])
    edges, counts = _thinned(np.array(histogram["edges"]), counts, 10 + int(min(50, counts.sum() ** 0.5)))
    figure, axes = make_axes()
    axes.stairs(counts, edges, fill=True, color=FIRST, alpha=0.45)
    words = []
    for (name, seconds), (ink, line) in zip(report["api"]["latency_s"].items(), LINES[1:], strict=False):
        if seconds is not None:
            words.append(f"{name} {of_duration(seconds)}")
            axes.axvline(seconds, color=ink, linestyle=line, linewidth=1.5, label=words[-1])
    use_log_axis(axes, edges[0] / 1.1, edges[-1] * 1.1, of_duration)
    axes.set_ylabel("requests")
    count_in_whole_numbers(axes)
    add_legend(axes)
    answered = of_count(int(counts.sum()), "answered request")
    return Drawing(figure=figure, description=f"Of {answered}: {', '.join(words)}.")


def _retries(report: Mapping[str, Any]) -> Drawing | None:
    steps = _steps(report, "retries", "answers_429")
    if steps is None or not (any(steps.counts["retries"]) or any(steps.counts["answers_429"])):
        return None
    figure, axes = make_axes()
    retries, refused = steps.counts["retries"], steps.counts["answers_429"]
    axes.stairs(retries, steps.edges, fill=True, color=FIRST, alpha=0.45, label="sent again")
    if any(refused):
        axes.stairs(refused, steps.edges, color=ALARM, linewidth=1.3, label="answered 429")
    axes.set_ylabel(f"in {of_duration(steps.step_s)}")
    count_in_whole_numbers(axes)
    _finish_time(axes, steps)
    return Drawing(
        figure=figure,
        description=f"{of_count(int(retries.sum()), 'request was', 'requests were')} sent again, "
        f"{of_count(int(refused.sum()), 'was', 'were')} answered 429.",
    )


def _dead(report: Mapping[str, Any]) -> Drawing | None:
    counts = dict(sorted(report["dead_letters"]["by_reason"].items(), key=lambda reason: -reason[1]))
    return draw_bars(counts, {reason: f"{count:,}" for reason, count in counts.items()}, ALARM) if counts else None


def _scores(report: Mapping[str, Any]) -> Drawing | None:
    histograms = report["histograms"]["scores"]
    if not histograms:
        return None
    # Use one width for all: a direction with finer bins would look lower than the others.
    width = max(h["edges"][1] - h["edges"][0] for h in histograms.values())
    reach = max(h["edges"][-1] for h in histograms.values()) - min(h["edges"][0] for h in histograms.values())
    while reach / width > _MOST_SCORE_BINS:
        width *= 2
    figure, axes = make_axes(2.9)
    words = []
    for (direction, histogram), (ink, line) in zip(histograms.items(), itertools.cycle(LINES), strict=False):
        edges, counts = _widened(np.array(histogram["edges"]), np.array(histogram["counts"]), width)
        # Lines between the bin centres: four overlapping step plots would be hard to distinguish.
        shares = np.pad(counts / counts.sum(), 1)
        middles = edges[0] + (np.arange(len(shares)) - 0.5) * width
        axes.plot(middles, shares, color=ink, linestyle=line, linewidth=1.6, label=direction)
        middle = float((counts * (edges[:-1] + edges[1:]) / 2).sum() / counts.sum())
        words.append(f"{direction} {middle:.2f}")
    axes.set_xlabel("inner product of a query and a row")
    axes.set_ylabel("share of pairs")
    axes.set_ylim(0)
    add_legend(axes, columns=2)
    return Drawing(figure=figure, description=f"Mean inner product by direction: {', '.join(words)}.")


def _norms(report: Mapping[str, Any]) -> Drawing | None:
    histograms = report["histograms"]["norm_deviation"]
    if not histograms:
        return None
    figure, axes = make_axes()
    for (kind, histogram), (ink, line) in zip(histograms.items(), itertools.cycle(LINES), strict=False):
        edges, counts = _thinned(np.array(histogram["edges"]), np.array(histogram["counts"]), 48)
        axes.stairs(counts, edges, color=ink, linestyle=line, linewidth=1.5, label=kind)
    low = min(h["edges"][0] for h in histograms.values())
    high = max(h["edges"][-1] for h in histograms.values())
    use_log_axis(axes, low, high, lambda value: f"{value:.0e}".replace("e-0", "e-"))
    axes.set_xlabel("distance of the norm from 1")
    axes.set_ylabel("vectors")
    count_in_whole_numbers(axes)
    add_legend(axes)
    return Drawing(figure=figure, description=f"The norm of every stored vector is within {high:.1g} of 1.")


def _recall(report: Mapping[str, Any]) -> Drawing | None:
    recall, target = report["recall"], report["target_recall"]
    if not recall:
        return None
    drawn = draw_bars(recall, {d: f"{value:.4f}" for d, value in recall.items()}, FIRST, most=1.0)
    if target is None:
        return drawn
    axes = drawn.figure.axes[0]
    axes.axvline(target, color=ALARM, linestyle="dashed", linewidth=1.3, label=f"target {target:g}")
    add_legend(axes)
    return Drawing(figure=drawn.figure, description=f"{drawn.description} The target is {target:g}.")


def _sizes(report: Mapping[str, Any]) -> Drawing | None:
    sizes = {name: part["bytes"] for name, part in report["sizes"].items()}
    return draw_bars(sizes, {name: of_size(size) for name, size in sizes.items()}, FIRST) if sizes else None


def _timings(report: Mapping[str, Any]) -> Drawing | None:
    timings = {of_name(name): seconds for name, seconds in report["timings_s"].items()}
    return draw_bars(timings, {n: of_duration(seconds) for n, seconds in timings.items()}, FIRST) if timings else None


_PLOTS: dict[str, tuple[str, str, Callable[[Mapping[str, Any]], Drawing | None]]] = {
    "changes": (
        "Assets by outcome",
        "In a scheduled run, most assets are reused and few are added, changed, removed or without a vector.",
        _changes,
    ),
    "throughput": (
        "Throughput",
        "A constant rate is good; gaps are pauses that the server requested, or slow sources.",
        _throughput,
    ),
    "requests": (
        "Requests and the limit",
        "The line may reach the limit but never exceeds it; if it stays far below, something else slows the run down.",
        _requests,
    ),
    "latency": (
        "Latency of requests",
        "A second peak, or a p99 far from the p50, means that some requests waited in the server.",
        _latency,
    ),
    "retries": (
        "Retries and refusals",
        "A few at the start are normal; if they continue, the limit is set too high or the server fails.",
        _retries,
    ),
    "dead": (
        "Dead letters by reason",
        "Fix the most frequent reason first; samples of each reason are below.",
        _dead,
    ),
    "scores": (
        "Similarity by direction",
        "The distance between the peaks is the modality gap: if it is large, scores of two kinds are not comparable.",
        _scores,
    ),
    "norms": (
        "Norms of the stored vectors",
        "All should be within 1e-6 of 1, or 1e-3 for vectors stored as float16, so that the inner product is a cosine.",
        _norms,
    ),
    "recall": (
        "Recall by direction",
        "Every bar must reach the target; otherwise a gate holds the version back.",
        _recall,
    ),
    "sizes": (
        "Sizes of the files",
        "Searching an index takes about its size in memory; vectors are read only when a version is built.",
        _sizes,
    ),
    "timings": (
        "Seconds by stage",
        "Optimise the longest stage first; the total also includes time outside of the stages.",
        _timings,
    ),
}


@dataclass(frozen=True, kw_only=True)
class _Steps:
    step_s: float
    counts: Mapping[str, npt.NDArray[np.float64]]
    edges: npt.NDArray[np.float64]
    """In `unit`s since the first step, one more than the counts."""
    unit: str


def _steps(report: Mapping[str, Any], *names: str, most: int | None = _MOST_STEPS_SHOWN) -> _Steps | None:
    """Merges series of the report into at most `most` steps; None when there are none."""
    series = report["series"]
    counts = {name: np.array(series["counts"].get(name, []), np.float64) for name in names}
    length = max(len(values) for values in counts.values())
    if not length:
        return None
    factor = -(-length // most) if most else 1
    groups = np.arange(0, length, factor)
    counts = {
        name: np.add.reduceat(values, groups) if len(values) else np.zeros(len(groups))
        for name, values in counts.items()
    }
    step_s = series["step_s"] * factor
    lasted = step_s * len(groups)
    unit_s, unit = (3600, "hours") if lasted > 7200 else (60, "minutes") if lasted > 120 else (1, "seconds")
    return _Steps(step_s=step_s, counts=counts, edges=np.arange(len(groups) + 1) * step_s / unit_s, unit=unit)


def _thinned(
    edges: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], most: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Merges adjacent bins until at most `most` remain."""
    factor = -(-len(counts) // most)
    groups = np.arange(0, len(counts), factor)
    return np.append(edges[:-1][groups], edges[-1]), np.add.reduceat(counts, groups)


def _widened(
    edges: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], width: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Merges equal bins into bins of `width`, a multiple of theirs, that start at multiples of `width`."""
    positions = np.floor((edges[:-1] + edges[1:]) / 2 / width).astype(int)
    low, high = positions[0], positions[-1] + 1
    wide = np.zeros(high - low, np.int64)
    np.add.at(wide, positions - low, counts)
    return np.arange(low, high + 1) * width, wide


def _finish_time(axes: "Axes", steps: _Steps) -> None:
    axes.set_xlim(0, steps.edges[-1])
    axes.set_xlabel(f"{steps.unit} since the start of embedding")
    add_legend(axes)
