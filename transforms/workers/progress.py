"""Progress of a run's workers: one small file per lane, which the launcher reads."""

import asyncio
import threading
import time
from typing import NotRequired, Protocol, TypedDict

import orjson

from ..epithre.meter import Meter, MeterFigures, Timeline, TimelineFigures
from ..epithre.retries import Pause
from .run_folder import RunFolder

_WRITE_EVERY_S = 1.0
_SAMPLE_EVERY_S = 0.25
_PREFIX = "progress-"


class PauseFigures(TypedDict):
    """A pause that the server requested."""

    until_s: float
    """Seconds since the epoch."""
    asked_s: float
    why: str
    """The server's answer."""


class LaneProgress(TypedDict):
    """The last reported progress of a lane."""

    assets: int
    """All assets of the lane."""
    done: int
    """Assets that are finished, with or without a vector."""
    dead: int
    elapsed_s: float
    is_done: bool
    throttled_s: float
    """Seconds that requests waited for the rate limiter."""
    limits: dict[str, float]
    """Current limits per minute, by name."""
    meter: MeterFigures
    pause: NotRequired[PauseFigures]
    """The current pause, if the server requested one."""
    series: NotRequired[TimelineFigures]
    """Counts over time; only in the last report of a lane."""


class Throttle(Protocol):
    """The figures of a rate limiter."""

    @property
    def throttled_s(self) -> float: ...
    @property
    def limits(self) -> dict[str, float]: ...


class ProgressWriter:
    """Writes the progress of a lane every second, and its counts over time at the end."""

    def __init__(self, run: RunFolder, lane: int, assets: int, meter: Meter, rate_limiter: Throttle) -> None:
        self._store = run.store()
        self._name = _name(run, lane)
        self._assets = assets
        self._meter = meter
        self._rate_limiter = rate_limiter
        self._started = time.monotonic()
        self._done = 0
        self._dead = 0
        self._timeline = Timeline()
        self._sample()
        self._last_word = threading.Lock()
        self._is_done = False
        self._pause: Pause | None = None

    def note_pause(self, pause: Pause) -> None:
        """Report this pause until it is over."""
        self._pause = pause

    def note(self, done: int, dead: int) -> None:
        self._done += done
        self._dead += dead

    def write(self, *, is_done: bool = False) -> None:
        data = LaneProgress(
            assets=self._assets,
            done=self._done,
            dead=self._dead,
            elapsed_s=time.monotonic() - self._started,
            is_done=is_done,
            throttled_s=self._rate_limiter.throttled_s,
            limits=self._rate_limiter.limits,
            meter=self._meter.to_dict(),
        )
        if self._pause is not None and self._pause.until_s > time.time():
            data["pause"] = PauseFigures(until_s=self._pause.until_s, asked_s=self._pause.asked_s, why=self._pause.why)
        if is_done:
            self._sample()
            data["series"] = self._timeline.to_dict()
        with self._last_word:
            if not self._is_done:  # a slow periodic write must not replace the last report
                self._is_done = is_done
                self._store.write(self._name, orjson.dumps(data))

    async def tick(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_often())
            group.create_task(self._sample_often())

    async def _write_often(self) -> None:
        while True:
            await asyncio.to_thread(self.write)
            await asyncio.sleep(_WRITE_EVERY_S)

    async def _sample_often(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_EVERY_S)
            self._sample()

    def _sample(self) -> None:
        totals = {
            "assets": self._done,
            "dead": self._dead,
            "requests": self._meter.requests,
            "items": self._meter.items_embedded,
            "retries": self._meter.retries.total(),
            "answers_429": self._meter.answers_429,
        }
        self._timeline.sample(time.time(), totals)


def read_progress(run: RunFolder) -> list[LaneProgress]:
    """Return the last reported progress of each lane of a run; empty before the first report."""
    store = run.store()
    lanes = []
    for name in store.names(run.name("")):
        if f"/{_PREFIX}" in name:
            try:
                lanes.append(orjson.loads(store.read(name)))
            except (FileNotFoundError, orjson.JSONDecodeError):
                continue  # the file is being replaced
    return lanes


def read_lane(run: RunFolder, lane: int) -> LaneProgress | None:
    """Return the last reported progress of one lane; None before its first report."""
    try:
        found: LaneProgress = orjson.loads(run.store().read(_name(run, lane)))
    except FileNotFoundError:
        return None
    return found


def _name(run: RunFolder, lane: int) -> str:
    return run.name(f"{_PREFIX}{lane}.json")
