"""The report of a run: `report.json` for programs and `report.html`, one self-contained file, for people."""

import logging
from collections.abc import Iterable, Sequence
from typing import NotRequired, TypedDict, cast

import pyarrow as pa
import yaml

from ...configs import EmbedConfig
from ...configs.words import of_name
from ...index.publish.dead_letters import DeadLetterSummary
from ...index.versions.layout import LetterRow
from ...index.versions.manifest import Counts, Histogram, Manifest
from ...index.versions.stored_names import GATE_FAILURES
from ..epithre.meter import Histogram as HistogramFigures
from ..epithre.meter import Meter, Timeline, TimelineFigures
from ..workers.progress import LaneProgress
from .pages import page_environment
from .plots import Plot, draw_plots

log = logging.getLogger("epithre_beam.run")


class CountFigures(TypedDict):
    """`Counts` of the manifest."""

    assets: int
    per_kind: dict[str, int]
    embedded: int
    reused: int
    deduplicated: int
    dead: int
    unchanged: int
    touched: int
    prepared_anew: int
    changed: int
    moved: int
    copied: int
    new: int
    other_metadata: int
    deleted: int


class DeadLetterFigures(TypedDict):
    """The number of dead letters by reason, with samples of each."""

    by_reason: dict[str, int]
    samples: dict[str, list[LetterRow]]


class ApiFigures(TypedDict):
    """The requests to the API."""

    requests: int
    items_sent: int
    items_embedded: int
    tokens_estimated: int
    tokens_billed: int
    cost: float | None
    """At the configured prices; None without prices."""
    bytes_up: int
    bytes_down: int
    retries: dict[str, int]
    """The number of retries by reason."""
    answers_429: int
    renormalised: int
    throttled_s: float
    latency_s: dict[str, float | None]
    """p50, p95, p99; None when no request was answered."""
    limits: dict[str, float]
    """The limits per minute, by name."""
    utilisation: float | None
    """The used share of the limit; None for a run that was too short to measure it."""


class FileFigures(TypedDict):
    """The number and size of files of one purpose."""

    files: int
    bytes: int


class Histograms(TypedDict):
    """The histograms of the plots: {"edges", "counts"}, with one more edge than counts."""

    latency_s: HistogramFigures
    """Latencies of requests that returned vectors."""
    scores: dict[str, HistogramFigures]
    """Inner products of sampled queries with all rows, by direction."""
    norm_deviation: dict[str, HistogramFigures]
    """Distances of the stored vectors' norms from 1, by kind."""


ImportedFigures = TypedDict("ImportedFigures", {"from": str, "rows": int, "normalised": int})
"""The vectors imported from a folder."""


class Report(TypedDict):
    """The content of `report.json`."""

    version: str
    previous: str | None
    held_back: list[str]
    counts: CountFigures
    dead_letters: DeadLetterFigures
    recall: dict[str, float]
    """Recall by direction."""
    ties: dict[str, float]
    """By direction, the share of answers that `recall` counts as near ties: they score below the k-th best by less than
    the stored precision. Empty when the version does not record it."""
    recall_k: int | None
    target_recall: float | None
    bytes: dict[str, int]
    """Size by file."""
    sizes: dict[str, FileFigures]
    timings_s: dict[str, float]
    api: ApiFigures
    series: TimelineFigures
    """Counts over time: `assets` (finished, with or without a vector), `dead`, `items` (vectors from the API),
    `requests`, `retries`, `answers_429`. The sum of all lanes, in at most 600 steps."""
    histograms: Histograms
    unchanged: NotRequired[bool]
    """Nothing changed and nothing was written: the report describes the current version."""
    imported: NotRequired[ImportedFigures]
    every_vector_is_new_because: NotRequired[list[str]]
    """The reasons why no vector of the current version could be reused; added by the launcher."""


def make_report(
    manifest: Manifest, dead: DeadLetterSummary, lanes: Sequence[LaneProgress], embed: EmbedConfig
) -> Report:
    """Makes the report of a run.

    Args:
        manifest: The manifest of the version that the run wrote.
        dead: The dead letters by reason, with samples.
        lanes: The last reported progress of the lanes.
        embed: The embedding settings, with the prices.
    """
    meter, timeline = Meter(), Timeline()
    for lane in lanes:
        meter.add(lane["meter"])
        if "series" in lane:  # a lost lane has not reported its series
            timeline.add(lane["series"])
    embed_s = manifest.timings_s["embed"]
    limit = next((lane["limits"].get("requests") for lane in lanes if lane["limits"].get("requests")), None)
    return {
        "version": manifest.version,
        "previous": manifest.previous,
        GATE_FAILURES: list(manifest.gate_failures),
        "counts": cast("CountFigures", manifest.counts.model_dump()),
        "dead_letters": {"by_reason": dict(dead.by_reason), "samples": dead.samples},
        "recall": {d: r for index in manifest.indexes for d, r in index.recall.items()},
        "ties": {d: share for index in manifest.indexes for d, share in index.ties.items()},
        "recall_k": manifest.indexes[0].recall_k if manifest.indexes else None,
        "target_recall": manifest.config.get("index", {}).get("target_recall"),
        "bytes": {entry.name: entry.size_bytes for entry in manifest.files},
        "sizes": _sizes(manifest),
        "timings_s": manifest.timings_s,
        "api": {
            "requests": meter.requests,
            "items_sent": meter.items_sent,
            "items_embedded": meter.items_embedded,
            "tokens_estimated": meter.tokens_estimated,
            "tokens_billed": meter.tokens_billed,
            "cost": embed.cost(
                requests=meter.requests,
                items=meter.items_embedded,
                tokens=meter.tokens_billed or meter.tokens_estimated,
            ),
            "bytes_up": meter.bytes_up,
            "bytes_down": meter.bytes_down,
            "retries": dict(meter.retries),
            "answers_429": meter.answers_429,
            "renormalised": meter.renormalised,
            "throttled_s": round(sum(lane["throttled_s"] for lane in lanes), 3),
            "latency_s": {f"p{int(p * 100)}": meter.latencies.percentile(p) for p in (0.5, 0.95, 0.99)},
            "limits": lanes[0]["limits"] if lanes else {},
            "utilisation": round(meter.requests / (limit * embed_s / 60), 4) if limit and embed_s > 60 else None,
        },
        "series": timeline.to_dict(),
        "histograms": {
            "latency_s": meter.latencies.histogram(),
            "scores": {
                direction: _histogram(figures.histogram)
                for index in manifest.indexes
                for direction, figures in index.scores.items()
                if figures.histogram is not None
            },
            "norm_deviation": {
                index.kind: _histogram(index.norms, is_log10=True) for index in manifest.indexes if index.norms
            },
        },
    }


def unchanged_report(
    manifest: Manifest,
    rows: int,
    dead_letters: Iterable[pa.Table],
    embed: EmbedConfig,
    seconds: float,
    lanes: Sequence[LaneProgress] = (),
) -> Report:
    """Makes the report of a run that found no changes and wrote no version; it describes the current version."""
    letters = DeadLetterSummary()
    for table in dead_letters:
        for letter in table.to_pylist():
            letters.add(letter)
    dead = letters.by_reason.total()
    counts = Counts(
        assets=rows + dead,
        per_kind=manifest.counts.per_kind,
        embedded=0,
        reused=rows,
        deduplicated=0,
        dead=dead,
        unchanged=rows,
    )
    # A version that was held by a gate and then published by a person is accepted: do not report its gate failures.
    update = {"counts": counts, "gate_failures": (), "timings_s": {"embed": 0.0, "total": round(seconds, 3)}}
    report = make_report(manifest.model_copy(update=update), letters, lanes, embed)
    report["unchanged"] = True
    return report


def _histogram(histogram: Histogram, *, is_log10: bool = False) -> HistogramFigures:
    bins = len(histogram.counts)
    edges = [histogram.low + (histogram.high - histogram.low) * i / bins for i in range(bins + 1)]
    return {"edges": [10**edge if is_log10 else edge for edge in edges], "counts": list(histogram.counts)}


def _sizes(manifest: Manifest) -> dict[str, FileFigures]:
    """Counts files and bytes by kind and purpose: `image vectors`, `image index`, `image assets`, `dead letters`."""
    sizes: dict[str, FileFigures] = {}
    for entry in manifest.files:
        folder, _, name = entry.name.rpartition("/")
        purpose = "assets" if name.endswith("-assets.arrow") else of_name(folder.rpartition("/")[2] or name)
        kind = next((kind for kind in manifest.counts.per_kind if name.startswith(f"{kind}-")), "")
        size = sizes.setdefault(f"{kind} {purpose}".strip(), {"files": 0, "bytes": 0})
        size["files"] += 1
        size["bytes"] += entry.size_bytes
    return dict(sorted(sizes.items()))


def render_report(report: Report, manifest: Manifest) -> str:
    """Renders the report as one HTML page. A failure to draw the plots is logged and does not fail the run."""
    plots: dict[str, Plot] = {}
    trouble = None
    try:
        plots = draw_plots(report)
    except ImportError:
        trouble = "The plots are missing because matplotlib is not installed on the machine that wrote the report."
    except Exception as error:
        trouble = f"The plots are missing because they could not be drawn ({type(error).__name__}: {error})."
    if trouble:
        log.warning("%s The figures are in report.json.", trouble)
    environment = page_environment(__package__)
    config = yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True, width=100)
    return environment.get_template("report.html.j2").render(
        report=report, manifest=manifest, plots=plots, trouble=trouble, config=config
    )
