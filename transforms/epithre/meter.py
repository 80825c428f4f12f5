"""What the client did, counted: plain numbers that cost nothing to keep and add up over lanes."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_GROWTH = math.log(1.05)


@dataclass
class Latencies:
    """A histogram with bins 5 % wide: percentiles of any number of latencies in constant memory."""

    bins: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float) -> None:
        self.bins[round(math.log(max(seconds, 1e-6)) / _GROWTH)] += 1

    def percentile(self, share: float) -> float | None:
        """Seconds below which `share` of the latencies lie, to within 5 %; None when there are none."""
        left = share * self.bins.total()
        for position, count in sorted(self.bins.items()):
            left -= count
            if left <= 0:
                return math.exp(position * _GROWTH)
        return None


@dataclass
class Meter:
    """Counts of one lane. `retries` and `failures` are by reason."""

    requests: int = 0
    items_sent: int = 0
    items_embedded: int = 0
    tokens_estimated: int = 0
    tokens_billed: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    answers_429: int = 0
    renormalised: int = 0
    splits: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a progress file."""
        data = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return {
            **data,
            "retries": dict(self.retries),
            "latency_bins": {str(position): count for position, count in sorted(self.latencies.bins.items())},
        }

    def add(self, data: Mapping[str, Any]) -> None:
        """Adds what `to_dict` gave, of another lane."""
        for name, value in data.items():
            if name == "retries":
                self.retries.update(value)
            elif name == "latency_bins":
                self.latencies.bins.update({int(position): count for position, count in value.items()})
            elif isinstance(getattr(self, name, None), int):
                setattr(self, name, getattr(self, name) + value)
