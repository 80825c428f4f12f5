"""Counters of the client's requests, items, tokens and latencies; those of several lanes can be added."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict, cast

_GROWTH = math.log(1.05)
_STEP_S = 0.25
_MOST_STEPS = 600


class Histogram(TypedDict):
    """Counts per bin; `edges` has one element more than `counts`. Both are empty if there is no data."""

    edges: list[float]
    counts: list[int]


class TimelineFigures(TypedDict):
    """Counts over time: lists of equal length, with one number per step."""

    start_unix_s: float
    step_s: float
    counts: dict[str, list[int]]


class MeterFigures(TypedDict):
    """The counts of a meter as plain data."""

    requests: int
    items_sent: int
    items_embedded: int
    tokens_estimated: int
    tokens_billed: int
    tokens_spent: int
    bytes_up: int
    bytes_down: int
    splits: int
    renormalised: int
    answers_429: int
    retries: dict[str, int]
    latency_bins: dict[str, int]


@dataclass
class Latencies:
    """A histogram with bins 5 % wide: percentiles of any number of latencies in constant memory."""

    bins: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float) -> None:
        self.bins[round(math.log(max(seconds, 1e-6)) / _GROWTH)] += 1

    def percentile(self, share: float) -> float | None:
        """Return the seconds below which `share` of the latencies lie, within 5 %; None if there are none."""
        left = share * self.bins.total()
        for position, count in sorted(self.bins.items()):
            left -= count
            if left <= 0:
                return math.exp(position * _GROWTH)
        return None

    def histogram(self) -> Histogram:
        """Return the bins; `edges` are in seconds."""
        if not self.bins:
            return {"edges": [], "counts": []}
        positions = range(min(self.bins), max(self.bins) + 1)
        return {
            "edges": [math.exp((p - 0.5) * _GROWTH) for p in (*positions, positions.stop)],
            "counts": [self.bins[p] for p in positions],
        }


class Timeline:
    """Counts over time, by name, in equal steps. The step doubles when there would be more than 600 of them.

    Steps are aligned to the epoch, so that timelines of lanes that started at different times can be added.
    """

    def __init__(self) -> None:
        self._step_s = _STEP_S
        self._steps: dict[int, Counter[str]] = {}
        self._last_reported: dict[str, int] = {}

    def sample(self, now_s: float, totals: Mapping[str, int]) -> None:
        """Count the growth of `totals` since the last sample. The first sample only sets the starting point.

        Args:
            now_s: Current time in seconds since the epoch.
            totals: Numbers that never decrease, by name.
        """
        growth = {name: total - self._last_reported.get(name, total) for name, total in totals.items()}
        self._steps.setdefault(int(now_s // self._step_s), Counter()).update(growth)
        self._last_reported = dict(totals)
        self._fit()

    def to_dict(self) -> TimelineFigures:
        """Return plain data for a progress file."""
        if not self._steps:
            return {"start_unix_s": 0.0, "step_s": self._step_s, "counts": {}}
        first, last = min(self._steps), max(self._steps)
        names = sorted({name for step in self._steps.values() for name in step})
        empty: Counter[str] = Counter()
        counts = {n: [self._steps.get(p, empty)[n] for p in range(first, last + 1)] for n in names}
        return {"start_unix_s": first * self._step_s, "step_s": self._step_s, "counts": counts}

    def add(self, data: TimelineFigures) -> None:
        """Add the `to_dict` data of another lane."""
        while self._step_s < data["step_s"]:
            self._double()
        for name, counts in data["counts"].items():
            for i, count in enumerate(counts):
                position = int((data["start_unix_s"] + i * data["step_s"]) // self._step_s)
                self._steps.setdefault(position, Counter())[name] += count
        self._fit()

    def _fit(self) -> None:
        while self._steps and max(self._steps) - min(self._steps) >= _MOST_STEPS:
            self._double()

    def _double(self) -> None:
        steps: dict[int, Counter[str]] = {}
        for position, counts in self._steps.items():
            steps.setdefault(position // 2, Counter()).update(counts)
        self._steps, self._step_s = steps, 2 * self._step_s


@dataclass
class Meter:
    """Counts of one lane. `retries` are by reason."""

    requests: int = 0
    items_sent: int = 0
    items_embedded: int = 0
    tokens_estimated: int = 0
    tokens_billed: int = 0
    tokens_spent: int = 0
    """Tokens of all requests: the billed tokens if the server states them, otherwise the estimate."""
    bytes_up: int = 0
    bytes_down: int = 0
    answers_429: int = 0
    renormalised: int = 0
    splits: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)

    def to_dict(self) -> MeterFigures:
        """Return plain data for a progress file."""
        counts = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        bins = {str(position): count for position, count in sorted(self.latencies.bins.items())}
        return cast("MeterFigures", {**counts, "retries": dict(self.retries), "latency_bins": bins})

    def add(self, data: MeterFigures) -> None:
        """Add the `to_dict` data of another lane."""
        self.retries.update(data["retries"])
        self.latencies.bins.update({int(position): count for position, count in data["latency_bins"].items()})
        for name, value in data.items():
            if isinstance(value, int) and isinstance(getattr(self, name, None), int):
                setattr(self, name, getattr(self, name) + value)
