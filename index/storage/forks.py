"""A lock that a process which was forked off never finds locked by a thread that it does not have."""

import os
import threading
import weakref
from types import TracebackType

_locks: "weakref.WeakSet[ForkedLock]" = weakref.WeakSet()


class ForkedLock:
    """A lock for `with`; in a process that was forked off it is free, whoever held it at the fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Nobody may hold it: right after a fork, the one thread there is does not."""
        self._lock = threading.Lock()


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_renew_all)
