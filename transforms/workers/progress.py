"""How far a run's workers are: a small file a lane, which the launcher reads wherever it is."""

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
    """A pause that the server asked for."""

    until_s: float
    """Seconds since the epoch."""
    asked_s: float
    why: str
    """What the server answered."""


class LaneProgress(TypedDict):
    """What a lane last said of itself."""

    assets: int
    """All that it has to do."""
    done: int
    """With or without a vector."""
    dead: int
    elapsed_s: float
    is_done: bool
    throttled_s: float
    """Waited for the limit."""
    limits: dict[str, float]
    """In force, a minute, by name."""
    meter: MeterFigures
    pause: NotRequired[PauseFigures]
    """That it keeps because the server asked for it."""
    series: NotRequired[TimelineFigures]
    """What was done when; in the last word of a lane only."""


class Throttle(Protocol):
    """What a rate limiter says of itself."""

    @property
    def throttled_s(self) -> float: ...
    @property
    def limits(self) -> dict[str, float]: ...


class ProgressWriter:
    """Writes how far a lane is, every second, and what was done when at its end."""

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
        """Says from now on that the lane waits because the server asked for it."""
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
            if not self._is_done:  # a slow write of the ticker must not replace the last one
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
    """What the lanes of a run last said of themselves; empty before they began."""
    store = run.store()
    lanes = []
    for name in store.names(run.name("")):
        if f"/{_PREFIX}" in name:
            try:
                lanes.append(orjson.loads(store.read(name)))
            except (FileNotFoundError, orjson.JSONDecodeError):
                continue  # being replaced at this moment
    return lanes


def read_lane(run: RunFolder, lane: int) -> LaneProgress | None:
    """What one lane last said of itself; None before it began. A runner may begin again what it has begun."""
    try:
        found: LaneProgress = orjson.loads(run.store().read(_name(run, lane)))
    except FileNotFoundError:
        return None
    return found


def _name(run: RunFolder, lane: int) -> str:
    return run.name(f"{_PREFIX}{lane}.json")
