"""What batches in flight share: a limit on their bytes, and the results of contents that were sent recently."""

import asyncio
from collections import OrderedDict, deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..epithre.client import Refusal, RefusalReason

_TRANSIENT = {RefusalReason.NOT_SENT, RefusalReason.RETRIES_EXHAUSTED, RefusalReason.BROKEN_ANSWER}


class ByteLimit:
    """A limit on bytes in flight, first come, first served. A request above the limit waits until it is alone."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = capacity
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, size: int) -> int:
        """Wait for `size` bytes and return the number to pass to `release`."""
        size = min(size, self._capacity)
        if self._waiting or size > self._free:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.release(size)  # cancelled after its turn came
                raise
        else:
            self._free -= size
        return size

    def release(self, size: int) -> None:
        self._free += size
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= size
                turn.set_result(None)


class Sent(NamedTuple):
    """The result of a content that was sent."""

    result: npt.NDArray[np.float32] | Refusal
    prepared: str | None
    """How the content was prepared when it was sent last; an image that is too large for the API is sent smaller."""


class SentContents:
    """Recent results by content, so that copies in different batches are sent once.

    A plan keeps possible copies in one unit, up to a few times the size of a unit. A placeholder image that is used a
    thousand times exceeds this. The least recently used results are dropped.

    Args:
        capacity: The number of results that are kept.
        is_of_one_run: Whether a transient failure holds for later copies too. A process that embeds for days sends
            them again.
    """

    def __init__(self, capacity: int, *, is_of_one_run: bool = True) -> None:
        self._capacity = capacity
        self._is_of_one_run = is_of_one_run
        self._futures: OrderedDict[tuple[str, str], asyncio.Future[Sent]] = OrderedDict()

    def find(self, kind: str, content_sha256: str) -> "asyncio.Future[Sent] | None":
        """Return the finished or pending result of an asset with this content; None if there is none."""
        key = (kind, content_sha256)
        if key in self._futures:
            self._futures.move_to_end(key)
        return self._futures.get(key)

    def promise(self, kind: str, content_sha256: str) -> "asyncio.Future[Sent]":
        """Register an asset with this content that is about to be sent. The caller calls `finish`, or `fail`."""
        future: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
        self._futures[kind, content_sha256] = future
        while len(self._futures) > self._capacity:
            self._futures.popitem(last=False)
        return future

    def finish(self, kind: str, content_sha256: str, promise: "asyncio.Future[Sent]", sent: Sent) -> None:
        """Set the result of a promise."""
        if isinstance(sent.result, Refusal) and sent.result.reason in _TRANSIENT and not self._is_of_one_run:
            self._forget(kind, content_sha256, promise)
        if not promise.done():
            promise.set_result(sent)

    def fail(self, kind: str, content_sha256: str, promise: "asyncio.Future[Sent]", error: BaseException) -> None:
        """Let those who wait for an unfinished promise fail as well; the next copy is sent."""
        if not promise.done():
            self._forget(kind, content_sha256, promise)
            promise.set_exception(error)
            promise.exception()  # mark it as retrieved: perhaps nobody waits for it

    def _forget(self, kind: str, content_sha256: str, promise: "asyncio.Future[Sent]") -> None:
        if self._futures.get((kind, content_sha256)) is promise:
            del self._futures[kind, content_sha256]
