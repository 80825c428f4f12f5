"""Draws reports as a run of some minutes writes them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.index.publish.dead_letters import DeadLetterSummary
from epithre_beam.index.vectors.distribution import norms_distribution, scores_distribution
from epithre_beam.index.versions.manifest import Counts, FileEntry, IndexEntry, Manifest, ScoreFigures
from epithre_beam.transforms.epithre.meter import Meter, Timeline
from epithre_beam.transforms.reports.report import make_report

KINDS = ("image", "text")
LIMIT = 600


def draw_lane(seed: int, seconds: int, *, start: float = 1_800_000_000.0) -> dict[str, Any]:
    """Draw the final record of a lane that used half the limit and was refused now and then."""
    rng = np.random.default_rng(seed)
    meter, timeline = Meter(), Timeline()
    done = dead = 0
    timeline.sample(start, dict.fromkeys(("assets", "dead", "requests", "items", "retries", "answers_429"), 0))
    for quarter in range(4 * seconds):
        if quarter % 4 == 0:
            meter.requests += LIMIT // 60 // 2
            meter.items_embedded += 64
            done += 65
            dead += 1
            meter.latencies.add(float(rng.lognormal(-1, 0.5)))
        if rng.random() < 0.02:
            meter.answers_429 += 1
            meter.retries["rate_limit_exceeded"] += 1
        totals = {
            "assets": done,
            "dead": dead,
            "requests": meter.requests,
            "items": meter.items_embedded,
            "retries": meter.retries.total(),
            "answers_429": meter.answers_429,
        }
        timeline.sample(start + quarter / 4, totals)
    return {
        "elapsed_s": float(seconds),
        "throttled_s": 1.5,
        "limits": {"requests": float(LIMIT)},
        "meter": meter.to_dict(),
        "series": timeline.to_dict(),
    }


def draw_manifest(seed: int = 0, **changes: Any) -> Manifest:
    rng = np.random.default_rng(seed)
    indexes = []
    for kind in KINDS:
        scores = {}
        for query in KINDS:
            distribution = scores_distribution()
            distribution.add(rng.normal(0.6 if query == kind else 0.2, 0.08, 5000))
            scores[f"{query}->{kind}"] = ScoreFigures(mean=0.4, std=0.1, histogram=distribution.histogram())
        norms = norms_distribution()
        norms.add(rng.normal(-7.5, 0.4, 500))
        indexes.append(
            IndexEntry(
                kind=kind,
                files=(f"index/{kind}-00000-of-00001.faiss",),
                assets=f"index/{kind}-assets.arrow",
                rows=500,
                factory="SQfp16",
                resident_bytes=500 * 128,
                recall_k=10,
                recall=dict.fromkeys(scores, 0.99),
                scores=scores,
                norms=norms.histogram(),
            )
        )
    names = [
        name
        for kind in KINDS
        for name in (
            f"vectors/{kind}-00000-of-00002.parquet",
            f"vectors/{kind}-00001-of-00002.parquet",
            f"index/{kind}-00000-of-00001.faiss",
            f"index/{kind}-assets.arrow",
        )
    ]
    values: dict[str, Any] = {
        "version": "000002-20261122T000000Z-abcdef",
        "previous": "000001-20261121T000000Z-abcdef",
        "created_at": "2026-11-22T00:00:00+00:00",
        "software": "epithre-beam 0",
        "nonce": "00",
        "model": "epithre-embed",
        "model_fingerprint": None,
        "dimension": 64,
        "faiss_version": "1",
        "metadata_types": {},
        "counts": Counts(
            assets=1003,
            per_kind=dict.fromkeys(KINDS, 500),
            embedded=600,
            reused=400,
            deduplicated=20,
            dead=3,
            moved=5,
            deleted=7,
        ),
        "files": tuple(FileEntry(name=n, size_bytes=1000 * len(n), sha256="0" * 64, rows=5) for n in sorted(names)),
        "indexes": tuple(indexes),
        "config": {"catalog": "c", "embed": {"base_url": "emulator"}, "index": {"target_recall": 0.95}},
        "timings_s": {"embed": 100.0, "index_image": 3.0, "index_text": 0.5, "total": 110.0},
    }
    return Manifest(**{**values, **changes})


def draw_letters(*letters: Mapping[str, Any]) -> DeadLetterSummary:
    summary = DeadLetterSummary()
    for letter in letters:
        plain = {"asset_id": "a", "kind": "image", "uri": None, "stage": "read", "reason": "unreadable", "detail": ""}
        summary.add({**plain, "attempts": 1, **letter})
    return summary


@pytest.fixture(scope="session")
def draw_report() -> Callable[..., tuple[dict[str, Any], Manifest]]:
    """Return a function that draws a report and its manifest from dead letters, lanes and changes to the manifest."""

    def drawn(
        letters: tuple[Mapping[str, Any], ...] = (), lanes: list[dict[str, Any]] | None = None, **changes: Any
    ) -> tuple[dict[str, Any], Manifest]:
        manifest = draw_manifest(**changes)
        lanes = [draw_lane(1, 100)] if lanes is None else lanes
        return make_report(manifest, draw_letters(*letters), lanes, EmbedConfig()), manifest

    return drawn


@pytest.fixture(scope="session")
def run_a_lane() -> Callable[..., dict[str, Any]]:
    """Return `draw_lane`."""
    return draw_lane
