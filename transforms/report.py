"""The report of a run: `report.json` for programs, `report.html` for people, one file that opens offline."""

import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import yaml

from ..configs import EmbedConfig
from ..index.manifest import Counts, Histogram, Manifest
from ..index.version import DeadLetterSummary
from .epithre.meter import Meter, Timeline
from .plots import Plot, draw_plots
from .words import of_api_figure, of_asset_count, of_count, of_duration, of_name, of_size

_LONGEST_SHOWN = 300

log = logging.getLogger("epithre_beam.run")


def make_report(
    manifest: Manifest, dead: DeadLetterSummary, lanes: list[dict[str, Any]], embed: EmbedConfig
) -> dict[str, Any]:
    """What happened in a run: the content of `report.json`.

    `series` is {"start_unix_s", "step_s", "counts"}, whose counts are lists of equal length, a number a step, by name:
    `assets` (finished, with or without a vector), `dead`, `items` (vectors from the API), `requests`, `retries`,
    `answers_429`. All lanes are added up, in at most 600 steps.

    `histograms` are {"edges", "counts"}, with one edge more than counts: `latency_s` of requests that were answered
    with vectors; `scores`, by direction, of inner products of sampled queries with all rows; `norm_deviation`, by
    kind, of the distance of the stored vectors' norms from 1.

    `sizes` are the files of `bytes` put together: {"files", "bytes"} by what they are.

    Args:
        manifest: Of the version that it wrote.
        dead: The dead letters by reason, with samples.
        lanes: What the lanes last said of themselves (`lane.read_progress`).
        embed: With the prices.
    """
    meter, timeline = Meter(), Timeline()
    for lane in lanes:
        meter.add(lane["meter"])
        if "series" in lane:  # a lane that was lost has not said its last word
            timeline.add(lane["series"])
    embed_s = manifest.timings_s["embed"]
    limit = next((lane["limits"].get("requests") for lane in lanes if lane["limits"].get("requests")), None)
    return {
        "version": manifest.version,
        "previous": manifest.previous,
        "held_back": list(manifest.held_back),
        "counts": manifest.counts.model_dump(),
        "dead_letters": {"by_reason": dict(dead.by_reason), "samples": dead.samples},
        "recall": {d: r for index in manifest.indexes for d, r in index.recall.items()},
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
    manifest: Manifest, rows: int, dead_letters: Iterable[pa.Table], embed: EmbedConfig, seconds: float
) -> dict[str, Any]:
    """The report of a run that found nothing changed and wrote nothing: of the version that stays in force."""
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
    # What a guard held back and a person then published is in force by that person's word.
    update = {"counts": counts, "held_back": (), "timings_s": {"embed": 0.0, "total": round(seconds, 3)}}
    report = make_report(manifest.model_copy(update=update), letters, [], embed)
    return {**report, "unchanged": True}


def _histogram(histogram: Histogram, *, is_log10: bool = False) -> dict[str, list[float]]:
    bins = len(histogram.counts)
    edges = [histogram.low + (histogram.high - histogram.low) * i / bins for i in range(bins + 1)]
    return {"edges": [10**edge if is_log10 else edge for edge in edges], "counts": list(histogram.counts)}


def _sizes(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Files and bytes by kind and purpose: `image vectors`, `image index`, `image assets`, `dead letters`."""
    sizes: dict[str, dict[str, int]] = {}
    for entry in manifest.files:
        folder, _, name = entry.name.rpartition("/")
        purpose = "assets" if name.endswith("-assets.arrow") else of_name(folder.rpartition("/")[2] or name)
        kind = next((kind for kind in manifest.counts.per_kind if name.startswith(f"{kind}-")), "")
        size = sizes.setdefault(f"{kind} {purpose}".strip(), {"files": 0, "bytes": 0})
        size["files"] += 1
        size["bytes"] += entry.size_bytes
    return dict(sorted(sizes.items()))


def render_report(report: Mapping[str, Any], manifest: Manifest) -> str:
    """The report as one HTML page, with plots where they can be drawn: a run never fails for its pictures."""
    plots: dict[str, Plot] = {}
    trouble = None
    try:
        plots = draw_plots(report)
    except ImportError:
        trouble = "The plots are missing, because matplotlib is not installed where the run ended."
    except Exception as error:
        trouble = f"The plots are missing, because they could not be drawn ({type(error).__name__}: {error})."
    if trouble:
        log.warning("%s The figures are in report.json.", trouble)
    environment = page_environment()
    config = yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True, width=100)
    return environment.get_template("report.html.j2").render(
        report=report, manifest=manifest, plots=plots, trouble=trouble, config=config
    )


def page_environment() -> jinja2.Environment:
    """Templates of this folder, in which whatever is put into a page is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "api_figure": of_api_figure,
        "asset_count": of_asset_count,
        "count_of": of_count,
        "words": of_name,
        "duration": of_duration,
        "size": of_size,
        "visible": visible,
    }
    return environment


def visible(text: str) -> str:
    """Text of strangers as it may stand on a page: short, and without characters that turn or hide what follows.

    Letters of right-to-left scripts stay as they are; only marks that override the order of others are spelled out.
    """
    shown = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
    return re.sub(
        r"[^\n -~]",
        lambda found: found[0] if unicodedata.category(found[0]) not in {"Cc", "Cf", "Cs"} else _spelled(found[0]),
        shown,
    )


def _spelled(character: str) -> str:
    # Joiners are part of how some scripts and emoji are written.
    return character if character in "\u200c\u200d" else f"\\u{ord(character):04x}"
