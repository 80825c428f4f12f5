"""A lane: embeds many units concurrently on the process's event loop within one rate limit, and reports its progress.

By default a run has one lane, so a rate limiter in memory is enough on any runner. Several lanes share a rate limiter
backend.
"""

import asyncio
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from ...configs import EmbedConfig, PrepareConfig, SourceConfig
from ...configs.caller import JOB, Caller
from ...configs.errors import RefusedKeyError, RunnerError, StorageError
from ...index.vectors.reusable import ReusableVectors
from ...index.vectors.units import UnitRecord
from ...index.versions.manifest import read_manifest
from ..epithre.client import Client
from ..epithre.meter import Meter
from ..epithre.rate_limit.account import Account
from ..epithre.rate_limit.rate_limiter import RateLimiter
from ..epithre.rate_limit.spending import SpendingLimit, Totals
from ..planning.plan import PlanReader, Unit
from ..sources.reading import Reader
from ..sources.references import references_of
from ..workers.progress import ProgressWriter, read_lane
from ..workers.run_folder import RunFolder
from .assets import AssetEmbedder
from .in_flight import ByteLimit, SentContents
from .limiters import limiter_of, process_loop
from .unit import UnitContext, embed_unit

_PAYLOAD_SHARE = 0.4
_LOOK_EVERY_S = 2.0
_SENT_KEPT = 1024
_END_WITHIN_S = 10.0
_UNIT_COPIES = 2
"""The vectors of a unit are in memory about twice while they are written."""


@dataclass(frozen=True, kw_only=True)
class LaneSetup:
    """Settings for a lane. Part of the pipeline graph, so it contains no secrets."""

    run: RunFolder
    plan: str
    """The plan's file in the catalog."""
    embed: EmbedConfig
    """The job's settings, with the resolved address of the API."""
    prepare: PrepareConfig
    sources: tuple[SourceConfig, ...]
    """The sources of the plan's references."""
    embedding_config_hash: str
    """The embedding config hash, as stored in units."""
    first_embedding_config_hash: str | None = None
    """The hash as stored in units of the first preparation rules, if they can be reused with these settings."""
    reusable_versions: tuple[str, ...] = ()
    """The versions whose vectors may be reused for the same content."""
    requests_spent: int = 0
    """Requests that the launcher sent and the server may still count."""


class Telemetry:
    """The counts of a lane so far, read by the thread that yields its records while they grow."""

    def __init__(self) -> None:
        self.meter = Meter()
        self.throttled_s = 0.0


class _Throttle:
    """The figures of a rate limiter since this lane started; the process may have used it before."""

    def __init__(self, rate_limiter: RateLimiter) -> None:
        self._rate_limiter = rate_limiter
        self._before_s = rate_limiter.throttled_s

    @property
    def throttled_s(self) -> float:
        return self._rate_limiter.throttled_s - self._before_s

    @property
    def limits(self) -> dict[str, float]:
        return self._rate_limiter.limits


def run_lane(
    setup: LaneSetup, units: Iterable[Unit], lane: int = 0, telemetry: Telemetry | None = None
) -> Iterator[UnitRecord]:
    """Embed units concurrently and yield the record of each finished unit, in any order.

    Raises:
        ApiError: When the API is not available. Finished units stay finished.
    """
    records: queue.SimpleQueue[UnitRecord | None] = queue.SimpleQueue()
    ended = threading.Event()

    async def run(own: list[Unit]) -> None:
        try:
            await _run(setup, own, lane, records.put, telemetry or Telemetry())
        finally:
            ended.set()
            records.put(None)

    running = asyncio.run_coroutine_threadsafe(run(list(units)), process_loop())
    try:
        while (record := records.get()) is not None:
            yield record
        running.result()
    finally:
        running.cancel()
        ended.wait(timeout=_END_WITHIN_S)


async def _run(
    setup: LaneSetup, units: list[Unit], lane: int, emit: Callable[[UnitRecord], None], telemetry: Telemetry
) -> None:
    embed = setup.embed
    store = setup.run.store()
    memory = embed.memory_mb * 1_000_000
    vector_bytes = embed.dimension * 4 * _UNIT_COPIES
    meter = telemetry.meter
    is_limited = embed.max_requests is not None or embed.max_cost is not None
    if is_limited and (before := await asyncio.to_thread(read_lane, setup.run, lane)) is not None:
        meter.add(before["meter"])  # a runner may restart a lane: what it spent before counts too
    key = api_key(embed.api_key_env)
    rate_limiter = await asyncio.to_thread(limiter_of, embed, key, run=setup.run.version, spent=setup.requests_spent)
    rate_limiter.key_accepted()  # by the launcher's probe
    figures = _Throttle(rate_limiter)
    vectors_in_flight = ByteLimit(int(memory * (1 - _PAYLOAD_SHARE)))
    progress = ProgressWriter(setup.run, lane, sum(u.references for u in units), meter, figures)
    reader = Reader(setup.sources, setup.prepare)
    account = Account(
        rate_limiter,
        SpendingLimit.of(embed, requests_spent=setup.requests_spent),
        scope=setup.run.version,
        user=f"lane {lane}",
        spent=Totals(meter.requests, meter.items_sent, meter.tokens_spent),
    )
    client = Client(
        embed,
        key,
        rate_limiter=rate_limiter,
        account=account,
        meter=meter,
        report_pause=progress.note_pause,
    )
    threads = ThreadPoolExecutor(embed.readers, thread_name_prefix="read")
    local_threads = ThreadPoolExecutor(max(2, os.cpu_count() or 2), thread_name_prefix="prepare")
    plan = PlanReader(store, setup.plan)
    plan_lock = threading.Lock()

    def find_reusable() -> ReusableVectors:
        of_first_rules = (
            {} if setup.first_embedding_config_hash is None else {setup.first_embedding_config_hash: setup.prepare}
        )
        manifests = [read_manifest(store, version) for version in setup.reusable_versions]
        return ReusableVectors(store, manifests, setup.embedding_config_hash, of_first_rules)

    reusable = await asyncio.to_thread(find_reusable)
    embedder = AssetEmbedder(
        embed=embed,
        prepare=setup.prepare,
        reader=reader,
        client=client,
        threads=threads,
        local_threads=local_threads,
        bytes_in_flight=ByteLimit(int(memory * _PAYLOAD_SHARE)),
        sent=SentContents(_SENT_KEPT),
        reusable=reusable,
    )
    context = UnitContext(
        store=store,
        embedder=embedder,
        embedding_config_hash=setup.embedding_config_hash,
        note_progress=progress.note,
    )

    async def embed_one(unit: Unit, held: int) -> None:
        try:

            def read() -> pa.Table:
                with plan_lock:
                    return plan.read(unit.row_group)

            references = references_of(await context.in_thread(read))
            record = await embed_unit(unit, references, context)
            telemetry.throttled_s = figures.throttled_s
            emit(record)
        finally:
            vectors_in_flight.release(held)

    try:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(rate_limiter.in_use(embed.max_concurrency))
            await stack.enter_async_context(client)
            ticker = asyncio.create_task(progress.tick())
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(_stop_with(setup.run))
                    tasks = []
                    for unit in units:
                        held = await vectors_in_flight.acquire(unit.references * vector_bytes)
                        tasks.append(group.create_task(embed_one(unit, held)))
                    await asyncio.gather(*tasks)
                    watch.cancel()
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
        await rate_limiter.drain()


async def _stop_with(run: RunFolder) -> None:
    """Wait until the run is over, then raise RunnerError: a lane must not send requests after its launcher stopped."""
    while True:
        with contextlib.suppress(OSError, StorageError):  # checked again at the next interval
            if await asyncio.to_thread(run.is_over):
                break
        await asyncio.sleep(_LOOK_EVERY_S)
    raise RunnerError("The run is over: its launcher stopped, or another run has started. No more requests are sent.")


def api_key(variable: str, caller: Caller = JOB) -> str:
    """Read the key from the environment of this process.

    Raises:
        RefusedKeyError: When the variable is not set in this process.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RefusedKeyError(
            f"{caller.name('api_key_env')}: the environment variable {variable} is not set on this worker. "
            "Set it on all workers."
        )
    return key
