"""The transform that lets elements of several bundles share requests, for unbounded input."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.coders import FastPrimitivesCoder, RowCoder, TupleCoder, VarIntCoder
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import BoundedWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from .elements import Asset

_KEYS = 4
"""Keys among which assets are buffered. One is filled after the other, so few requests are part-filled."""
_ASSETS = BagStateSpec("assets", TupleCoder((RowCoder.from_type_hint(Asset, None), VarIntCoder())))
"""Assets, with their timestamps in microseconds."""
_HELD = ReadModifyWriteStateSpec("held", FastPrimitivesCoder())
"""(assets, bytes)"""
_TIME_UP = TimerSpec("time_up", TimeDomain.REAL_TIME)
_WINDOW_END = TimerSpec("window_end", TimeDomain.WATERMARK)
_ASSETS_PARAM = beam.DoFn.StateParam(_ASSETS)
_HELD_PARAM = beam.DoFn.StateParam(_HELD)
_TIME_UP_PARAM = beam.DoFn.TimerParam(_TIME_UP)
_WINDOW_END_PARAM = beam.DoFn.TimerParam(_WINDOW_END)


@dataclass(eq=False, kw_only=True)
class FillRequests(beam.PTransform):  # type: ignore[misc]
    """Release assets in bundles that fill a request, or when the first of them has waited long enough.

    Input and output: PCollection[Asset], with the same timestamps and windows.
    """

    items: int
    size_bytes: int
    max_buffering_s: float
    clock: Callable[[], float] = time.time
    """Returns seconds since the epoch; for tests."""

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, assets: beam.PCollection) -> beam.PCollection:
        buffer = _Buffer(self.items, self.size_bytes, self.max_buffering_s, self.clock)
        return (
            assets
            | "ChooseKey" >> beam.ParDo(ChooseKey(self.items)).with_output_types(tuple[int, Asset])
            | "Buffer" >> beam.ParDo(buffer).with_output_types(Asset)
        )


class ChooseKey(beam.DoFn):  # type: ignore[misc]
    """Choose a key: the same one until a request is full, then the next."""

    def __init__(self, items: int) -> None:
        self._items = items
        self._seen = 0

    def process(self, element: Any) -> Iterator[tuple[int, Any]]:
        yield self._seen // self._items % _KEYS, element
        self._seen += 1


class _Buffer(beam.DoFn):  # type: ignore[misc]
    """Hold assets until they fill a request, their time is up, or their window ends; draining ends all windows."""

    def __init__(self, items: int, size_bytes: int, max_buffering_s: float, clock: Callable[[], float]) -> None:
        self._items = items
        self._bytes = size_bytes
        self._max_buffering_s = max_buffering_s
        self._clock = clock

    def process(
        self,
        element: tuple[int, Asset],
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        assets: Any = _ASSETS_PARAM,
        held: Any = _HELD_PARAM,
        time_up: Any = _TIME_UP_PARAM,
        window_end: Any = _WINDOW_END_PARAM,
    ) -> Iterator[WindowedValue]:
        _, asset = element
        count, size = held.read() or (0, 0)
        if not count:
            window_end.set(window.end)
            time_up.set(Timestamp.of(self._clock() + self._max_buffering_s))
        assets.add((asset, timestamp.micros))
        count, size = count + 1, size + len(asset.content or b"") + len(asset.text or "")
        if count >= self._items or size >= self._bytes:
            time_up.clear()
            yield from _release(assets, held, window)
        else:
            held.write((count, size))

    @on_timer(_TIME_UP)  # type: ignore[untyped-decorator]
    def end_of_time(
        self,
        window: Any = beam.DoFn.WindowParam,
        assets: Any = _ASSETS_PARAM,
        held: Any = _HELD_PARAM,
    ) -> Iterator[WindowedValue]:
        yield from _release(assets, held, window)

    @on_timer(_WINDOW_END)  # type: ignore[untyped-decorator]
    def end_of_window(
        self,
        window: Any = beam.DoFn.WindowParam,
        assets: Any = _ASSETS_PARAM,
        held: Any = _HELD_PARAM,
        time_up: Any = _TIME_UP_PARAM,
    ) -> Iterator[WindowedValue]:
        time_up.clear()
        yield from _release(assets, held, window)


def _release(assets: Any, held: Any, window: BoundedWindow) -> Iterator[WindowedValue]:
    buffered = list(assets.read())
    assets.clear()
    held.clear()
    for asset, micros in buffered:
        yield WindowedValue(asset, Timestamp(micros=micros), (window,))
