"""The report of a run: `report.json` for programs, `report.html` for people, one file that opens offline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ..configs import EmbedConfig
from ..index.manifest import Counts, Manifest
from ..index.version import DeadLetterSummary
from .compare import Comparison
from .epithre.meter import Meter


def make_report(
    manifest: Manifest, dead: DeadLetterSummary, lanes: list[dict[str, Any]], embed: EmbedConfig
) -> dict[str, Any]:
    """What happened in a run.

    Args:
        manifest: Of the version that it wrote.
        dead: The dead letters by reason, with samples.
        lanes: What the lanes last said of themselves (`lane.read_progress`).
        embed: With the prices.
    """
    meter = Meter()
    for lane in lanes:
        meter.add(lane["meter"])
    embed_s = manifest.timings_s["embed"]
    limit = next((lane["limits"].get("requests") for lane in lanes if lane["limits"].get("requests")), None)
    return {
        "version": manifest.version,
        "previous": manifest.previous,
        "held_back": list(manifest.held_back),
        "counts": manifest.counts.model_dump(),
        "dead_letters": {"by_reason": dict(dead.by_reason), "samples": dead.samples},
        "recall": {d: r for index in manifest.indexes for d, r in index.recall.items()},
        "bytes": {entry.name: entry.size_bytes for entry in manifest.files},
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
    }


def unchanged_report(manifest: Manifest, comparison: Comparison, embed: EmbedConfig, seconds: float) -> dict[str, Any]:
    """The report of a run that found nothing changed and wrote nothing: of the version that stays in force."""
    letters = DeadLetterSummary()
    for table in comparison.dead_letters():
        for letter in table.to_pylist():
            letters.add(letter)
    rows = sum(comparison.changes().unchanged.values())
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


def render_report(report: Mapping[str, Any], manifest: Manifest) -> str:
    """The report as one HTML page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("report.html.j2").render(report=report, manifest=manifest)
