"""The Beam side of embedding: units in, records out."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import orjson
from apache_beam.metrics import Metrics

from ..configs import CatalogConfig
from ..index.layout import run_folder
from ..index.store import Store
from ..index.units import UnitRecord
from .lane import LaneSetup, Telemetry, run_lane
from .plan import Unit

_NAMESPACE = "epithre_beam"


@dataclass(eq=False, kw_only=True)
class EmbedUnits(beam.PTransform):  # type: ignore[misc]
    """Embeds the units of a plan; gives a `UnitRecord` for each.

    Input: PCollection[Unit], which is small: its references stand in the plan's file. Output:
    PCollection[UnitRecord]. Vectors are in unit files in the catalog; neither they nor pictures cross a shuffle.
    """

    setup: LaneSetup

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, units: beam.PCollection) -> beam.PCollection:
        return (
            units
            | "ChooseLane" >> beam.Map(to_lane, self.setup.config.embed.lanes).with_output_types(tuple[int, Unit])
            | "GroupByLane" >> beam.GroupByKey()
            | "EmbedLane" >> beam.ParDo(_EmbedLane(self.setup))
        )


def to_lane(unit: Unit, lanes: int) -> tuple[int, Unit]:
    """Spreads units over lanes by their names, which are hashes."""
    return int(unit.name[:8], 16) % lanes, unit


class _EmbedLane(beam.DoFn):  # type: ignore[misc]
    """Runs one lane. Metrics are kept here, on the DoFn's own thread: those of a pool's threads are lost."""

    def __init__(self, setup: LaneSetup) -> None:
        self._setup = setup

    def process(self, element: tuple[int, Iterable[Unit]]) -> Iterator[UnitRecord]:
        lane, units = element
        telemetry = Telemetry()
        told: Counter[str] = Counter()
        try:
            for record in run_lane(self._setup, units, lane, telemetry):
                Metrics.counter(_NAMESPACE, "vectors").inc(record.rows)
                Metrics.counter(_NAMESPACE, "dead_letters").inc(record.dead)
                Metrics.counter(_NAMESPACE, "units_reused").inc(int(record.reused))
                _tell(telemetry, told)
                yield record
            _tell(telemetry, told)
        except Exception as error:
            note_failure(self._setup.config, self._setup.version, error)
            raise


def _tell(telemetry: Telemetry, told: Counter[str]) -> None:
    """Adds what was counted since the last time to Beam's metrics, by Beam's own names where it has one."""
    meter = telemetry.meter
    counts = {
        "cumulativeThrottlingSeconds": int(telemetry.throttled_s),  # what autoscalers read
        "RatelimitRequestsTotal": meter.requests,
        "RatelimitRequestsThrottled": meter.answers_429,
        "items_sent": meter.items_sent,
        "bytes_up": meter.bytes_up,
        "bytes_down": meter.bytes_down,
        "retries": meter.retries.total(),
    }
    for name, count in counts.items():
        Metrics.counter(_NAMESPACE, name).inc(count - told[name])
        told[name] = count


class Step:
    """A function with the run's setup, for Beam to call: a failure is left where the launcher finds it."""

    def __init__(self, function: Callable[[Any, Any], Any], setup: Any) -> None:
        self._function = function
        self._setup = setup

    def __call__(self, element: Any) -> Any:
        try:
            return self._function(element, self._setup)
        except Exception as error:
            note_failure(self._setup.config, self._setup.version, error)
            raise


def under_one_key(value: Any) -> tuple[int, Any]:
    return 0, value


def failure_name(version: str) -> str:
    return f"{run_folder(version)}/failure.json"


def note_failure(config: CatalogConfig, version: str, error: BaseException) -> None:
    """Leaves the reason where the launcher finds it: a runner wraps an error in pages of its own."""
    data = {"type": type(error).__name__, "message": str(error), "facts": getattr(error, "facts", {})}
    with contextlib.suppress(OSError):  # the storage that failed: the error itself must not be hidden by this one
        Store(config.catalog).write(failure_name(version), orjson.dumps(data))
