"""A lane: one event loop that embeds many units at once within one budget, and tells how it is getting on.

By default all the requests of a run go through one lane, so its budget in plain memory holds the limit on any runner.
Several lanes share a ledger.
"""

import asyncio
import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson

from ..configs import RunConfig
from ..index.layout import run_folder
from ..index.manifest import read_manifest
from ..index.paid import PaidVectors
from ..index.store import Store
from ..index.units import UnitRecord
from .epithre.budget import Budget
from .epithre.client import Client, RunStopped, limits_of
from .epithre.ledger import LedgerSettings, SharedLedger
from .epithre.meter import Meter, Timeline
from .plan import PlanReader, Unit, recipe
from .reading import Reader
from .references import references_of
from .unit import ByteLimit, SentContents, UnitContext, embed_unit

_PROGRESS_EVERY_S = 1.0
_SAMPLE_EVERY_S = 0.25
_PAYLOAD_SHARE = 0.4
_SENT_KEPT = 1024
_UNIT_COPIES = 2
"""A unit's vectors are there about twice while they are written."""


@dataclass(frozen=True, kw_only=True)
class LaneSetup:
    """What a lane needs to know. Travels through the pipeline's graph, so it holds no secret."""

    config: RunConfig
    version: str
    plan: str
    """The plan's file in the catalog."""
    base_url: str
    """Where the API is: the config's, or the emulator's that the run started."""
    api_key_env: str
    model_fingerprint: str | None = None
    paid_versions: tuple[str, ...] = ()
    """The versions whose vectors may be taken over, where the content is the same."""
    retry_dead: bool = False
    """Try dead letters again whatever their reason was."""
    requests_spent: int = 0
    """Requests that the launcher made and the server may still count."""


class Telemetry:
    """What a lane has counted so far, for the thread that reads its records: plain numbers, read while they grow."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.throttled_s = 0.0


def run_lane(
    setup: LaneSetup, units: Iterable[Unit], lane: int = 0, telemetry: Telemetry | None = None
) -> Iterator[UnitRecord]:
    """Embeds units, several at a time, and yields the record of each as it is done, in no set order.

    Raises:
        RunStopped: When no request will succeed any more. Units that were finished stay finished.
    """
    records: queue.SimpleQueue[UnitRecord | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    main: list[asyncio.Task[None]] = []

    def run() -> None:
        try:
            main.append(loop.create_task(_run(setup, list(units), lane, records.put, telemetry or Telemetry())))
            loop.run_until_complete(main[0])
            records.put(None)
        except BaseException as error:  # handed to the caller's thread, which raises it
            records.put(error)
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="embed-lane", daemon=True)
    thread.start()
    try:
        while (record := records.get()) is not None:
            if isinstance(record, BaseException):
                raise record
            yield record
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the lane is over already
            loop.call_soon_threadsafe(_cancel, main)
        thread.join(timeout=10)


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()


async def _run(setup: LaneSetup, units: list[Unit], lane: int, emit: Any, telemetry: Telemetry) -> None:
    config = setup.config
    settings = config.embed.share(lane, greetings=setup.requests_spent)
    settings = settings.model_copy(update={"base_url": setup.base_url, "api_key_env": setup.api_key_env})
    store = Store(config.catalog)
    memory = config.embed.memory_mb * 1_000_000
    vector_bytes = config.embed.dimension * 4 * _UNIT_COPIES
    meter = telemetry.meter
    if config.embed.max_requests is not None or config.embed.max_cost is not None:
        with contextlib.suppress(FileNotFoundError):  # a runner may begin again what it has begun: that was spent too
            meter.add(orjson.loads(await asyncio.to_thread(store.read, progress_name(setup.version, lane)))["meter"])
    budget = Budget(
        limits_of(config.embed),
        max_concurrency=config.embed.max_concurrency,
        spent=setup.requests_spent,
        ledger=shared_ledger(setup),
    )
    vectors_in_flight = ByteLimit(int(memory * (1 - _PAYLOAD_SHARE)))
    progress = _Progress(store, setup.version, lane, sum(u.references for u in units), meter, budget)
    reader = Reader(config.sources, config.prepare)
    client = Client(settings, api_key(settings.api_key_env), budget=budget, meter=meter)
    threads = ThreadPoolExecutor(config.embed.readers, thread_name_prefix="read")
    local_threads = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="prepare")
    plan = PlanReader(store, setup.plan)
    plan_lock = threading.Lock()
    made_with = recipe(config.embed, config.prepare, setup.model_fingerprint)

    def find_paid() -> PaidVectors:
        return PaidVectors(store, [read_manifest(store, version) for version in setup.paid_versions], made_with)

    paid = await asyncio.to_thread(find_paid)
    context = UnitContext(
        store=store,
        embed=config.embed,
        prepare=config.prepare,
        reader=reader,
        client=client,
        threads=threads,
        local_threads=local_threads,
        bytes_in_flight=ByteLimit(int(memory * _PAYLOAD_SHARE)),
        sent=SentContents(_SENT_KEPT),
        paid=paid,
        recipe=made_with,
        retry_dead=setup.retry_dead,
        note_progress=progress.note,
    )

    async def embed(unit: Unit, held: int) -> None:
        try:

            def read() -> Any:
                with plan_lock:
                    return plan.read(unit.row_group)

            references = references_of(await context.in_thread(read))
            record = await embed_unit(unit, references, context)
            telemetry.throttled_s = budget.throttled_s
            emit(record)
        finally:
            vectors_in_flight.release(held)

    try:
        async with client:
            ticker = asyncio.create_task(progress.tick())
            try:
                async with asyncio.TaskGroup() as group:
                    for unit in units:
                        held = await vectors_in_flight.acquire(unit.references * vector_bytes)
                        group.create_task(embed(unit, held))
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                ticker.cancel()
                await asyncio.wait([ticker])
                progress.write(is_done=True)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        local_threads.shutdown(wait=False, cancel_futures=True)
        reader.close()
        plan.close()
        await asyncio.to_thread(budget.close)


def shared_ledger(setup: LaneSetup) -> SharedLedger | None:
    """The ledger that this lane shares with others; None when it is alone and keeps its own."""
    embed = setup.config.embed
    if embed.budget == "lane":
        return None
    settings = LedgerSettings(
        limits={name: limit for name, limit in limits_of(embed).items() if limit is not None},
        hold_s=embed.timeout_s,
        spent=setup.requests_spent,
    )
    if embed.budget == "host":
        from .host_ledger import HostLedger

        # A run has a ledger of its own: the process that keeps it may live no longer than the run.
        return HostLedger(f"{embed.budget_name}-{setup.version}", settings)
    from .epithre.redis_ledger import RedisLedger

    password = os.environ.get(embed.redis_password_env or "")
    return RedisLedger(embed.redis_url or "", embed.budget_name, settings, password=password)


def api_key(variable: str) -> str:
    """The key from the environment of this process.

    Raises:
        RunStopped: When the variable is not set here, though it was where the run was started.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RunStopped(f"The environment variable {variable}, named by embed.api_key_env, is not set on this worker.")
    return key


class _Progress:
    """Writes how far the lane is to a small file that the launcher, wherever it is, can read.

    The last write also has what was done when (`Timeline.to_dict`).
    """

    def __init__(self, store: Store, version: str, lane: int, assets: int, meter: Meter, budget: Budget) -> None:
        self._store = store
        self._name = progress_name(version, lane)
        self._assets = assets
        self._meter = meter
        self._budget = budget
        self._started = time.monotonic()
        self._done = 0
        self._dead = 0
        self._timeline = Timeline()
        self._sample()
        self._last_word = threading.Lock()
        self._is_done = False

    def note(self, done: int, dead: int) -> None:
        self._done += done
        self._dead += dead

    def write(self, *, is_done: bool = False) -> None:
        data = {
            "assets": self._assets,
            "done": self._done,
            "dead": self._dead,
            "elapsed_s": time.monotonic() - self._started,
            "is_done": is_done,
            "throttled_s": self._budget.throttled_s,
            "limits": self._budget.limits,
            "meter": self._meter.to_dict(),
        }
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
            await asyncio.sleep(_PROGRESS_EVERY_S)

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


def progress_name(version: str, lane: int) -> str:
    return f"{run_folder(version)}/progress-{lane}.json"


def read_progress(store: Store, version: str) -> list[dict[str, Any]]:
    """What the lanes of a run last said of themselves; empty before they began."""
    lanes = []
    for name in store.names(run_folder(version)):
        if "/progress-" in name:
            try:
                lanes.append(orjson.loads(store.read(name)))
            except (FileNotFoundError, orjson.JSONDecodeError):
                continue  # being replaced at this moment
    return lanes
