"""Batching: queries that arrive at the same time share one search call, which is cheaper than separate calls."""

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from ...configs import AssetKind
from ...index.search.catalog import Catalog
from ...index.search.hits import Hit
from ...index.search.merge import Merge
from .faults import Fault
from .metrics import Metrics

_MOST = 8
"""Queries per call: larger batches are hardly cheaper per query, and waiting queries evict the CPU caches."""
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The parameters of a search. Queries with the same parameters can share a call."""

    version: str
    k: int
    kinds: tuple[AssetKind, ...] | None
    where_json: bytes | None
    merge: Merge
    query_kind: AssetKind | None
    recall: float | None


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    query: Vector | tuple[AssetKind, str]
    found: "asyncio.Future[list[Hit]]"


@dataclass(frozen=True, kw_only=True)
class _Group:
    asked: Asked
    catalog: Catalog
    where: pc.Expression | None
    waiting: "deque[_Waiting]"


class Batches:
    """Searches in threads, so that the event loop stays free. Use one instance per event loop.

    A batch does not wait to fill: queries that arrive during a search form the next batch.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        # FAISS's own threads spin for longer than a few queries take.
        self._pool = ThreadPoolExecutor(self._threads, "search", initializer=partial(faiss.omp_set_num_threads, 1))
        self._running = 0
        self._groups: OrderedDict[Asked, _Group] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def search(
        self, catalog: Catalog, asked: Asked, where: pc.Expression | None, query: Vector | tuple[AssetKind, str]
    ) -> list[Hit]:
        """Return the hits of one query: a vector, or the kind and id of an asset.

        Raises:
            Fault: When the asset does not exist.
            ArgumentError: When a parameter is invalid.
        """
        found: asyncio.Future[list[Hit]] = asyncio.get_running_loop().create_future()
        group = self._groups.get(asked)
        if group is None:
            group = self._groups[asked] = _Group(asked=asked, catalog=catalog, where=where, waiting=deque())
        group.waiting.append(_Waiting(query=query, found=found))
        self._start()
        return await found

    def _start(self) -> None:
        while self._groups and self._running < self._threads:
            asked, group = self._groups.popitem(last=False)
            # Take half of the queue: the clients of the previous batch send their next query during this search. Taking
            # all would make clients and search wait for each other in turns.
            batch = [group.waiting.popleft() for _ in range(min(_MOST, (len(group.waiting) + 1) // 2))]
            if group.waiting:
                self._groups[asked] = group  # last in the queue
            batch = [one for one in batch if not one.found.done()]  # drop queries of clients that have disconnected
            if batch:
                self._running += 1
                task = asyncio.get_running_loop().create_task(self._run(group, batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, group: _Group, batch: Sequence[_Waiting]) -> None:
        self._metrics.batches.observe(len(batch))
        try:
            queries = [one.query for one in batch]
            answers = await asyncio.get_running_loop().run_in_executor(self._pool, _search, group, queries)
        except Exception as error:
            answers = [error] * len(batch)
        finally:
            self._running -= 1
            self._start()
        for one, answer in zip(batch, answers, strict=True):
            if one.found.done():
                continue
            if isinstance(answer, Exception):
                one.found.set_exception(answer)
            else:
                one.found.set_result(answer)


def _search(group: _Group, queries: Sequence[Vector | tuple[AssetKind, str]]) -> list[Any]:
    """Return for each query a list of hits, or a Fault."""
    vectors = [_vector(group.catalog, query) if isinstance(query, tuple) else query for query in queries]
    whole = [vector for vector in vectors if not isinstance(vector, Fault)]
    asked = group.asked
    hits: list[list[Hit]] = []
    if whole:
        hits = group.catalog.search(
            np.stack(whole),
            asked.k,
            kinds=asked.kinds,
            where=group.where,
            merge=asked.merge,
            query_kind=asked.query_kind,
            recall=asked.recall,
        )
    found = iter(hits)
    return [vector if isinstance(vector, Fault) else next(found) for vector in vectors]


def _vector(catalog: Catalog, asset: tuple[AssetKind, str]) -> Vector | Fault:
    kind, asset_id = asset
    row = catalog.find_asset(kind, asset_id) if kind in catalog.kinds else None
    if row is None:
        return no_asset(kind)
    vector: Vector = catalog.vectors(kind, [row])[0]
    return vector


def no_asset(kind: str) -> Fault:
    return Fault(404, "no_asset", f"The current version has no {kind} with this id.")
