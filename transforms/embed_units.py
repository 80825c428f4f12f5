"""The transform that embeds the work units of a plan."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.metrics import Metrics

from ..index.vectors.units import UnitRecord
from .embedding.lane import LaneSetup, Telemetry, run_lane
from .planning.plan import Unit
from .workers.failures import note_failure

_NAMESPACE = "epithre_beam"


@dataclass(eq=False, kw_only=True)
class EmbedUnits(beam.PTransform):  # type: ignore[misc]
    """Embed the work units of a plan and return one `UnitRecord` for each.

    Input: PCollection[Unit]. It is small, because the references are in the plan's file.
    Output: PCollection[UnitRecord]. The vectors are in unit files in the catalog. Neither vectors nor images cross a
    shuffle.
    """

    setup: LaneSetup

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        return (
            units
            | "ChooseLane" >> beam.Map(to_lane, self.setup.embed.lanes).with_output_types(tuple[int, Unit])
            | "GroupByLane" >> beam.GroupByKey()
            | "EmbedLane" >> beam.ParDo(_EmbedLane(self.setup))
        )


def to_lane(unit: Unit, lanes: int) -> tuple[int, Unit]:
    """Assign a unit to a lane by its name, which is a hash."""
    return int(unit.name[:8], 16) % lanes, unit


class _EmbedLane(beam.DoFn):  # type: ignore[misc]
    """Run one lane. Update metrics on the DoFn's own thread only: Beam loses updates from other threads."""

    def __init__(self, setup: LaneSetup) -> None:
        self._setup = setup

    def process(self, element: tuple[int, Iterable[Unit]]) -> Iterator[UnitRecord]:
        lane, units = element
        telemetry = Telemetry()
        reported: Counter[str] = Counter()
        try:
            for record in run_lane(self._setup, units, lane, telemetry):
                Metrics.counter(_NAMESPACE, "vectors").inc(record.rows)
                Metrics.counter(_NAMESPACE, "dead_letters").inc(record.dead)
                Metrics.counter(_NAMESPACE, "units_reused").inc(int(record.reused))
                _report(telemetry, reported)
                yield record
            _report(telemetry, reported)
        except Exception as error:
            note_failure(self._setup.run, error)
            raise


def _report(telemetry: Telemetry, reported: Counter[str]) -> None:
    """Add the counts since the last call to Beam's metrics, under Beam's own names where they exist."""
    meter = telemetry.meter
    counts = {
        "cumulativeThrottlingSeconds": int(telemetry.throttled_s),  # autoscalers read it
        "RatelimitRequestsTotal": meter.requests,
        "RatelimitRequestsThrottled": meter.answers_429,
        "items_sent": meter.items_sent,
        "bytes_up": meter.bytes_up,
        "bytes_down": meter.bytes_down,
        "retries": meter.retries.total(),
    }
    for name, count in counts.items():
        Metrics.counter(_NAMESPACE, name).inc(count - reported[name])
        reported[name] = count
