"""What the last steps of a run are told by its launcher."""

from collections.abc import Mapping
from dataclasses import dataclass

from .lane import LaneSetup
from .plan import Plan


@dataclass(frozen=True, kw_only=True)
class VersionSetup:
    """What the last steps of a run need to know. Travels through the graph, so it holds no secret."""

    lane: LaneSetup
    plan: Plan
    """Without its units and carried groups: those are elements of the pipeline."""
    previous: str | None
    rows_before: Mapping[str, int] | None
    """By kind, of the version in force; None when there is none, or its manifest is damaged."""
    latest: bytes | None
    """LATEST.json as it stood before the run wrote anything: it is swapped against this."""
    software: str
    started_at_s: float
    """time.time() at the launch."""
