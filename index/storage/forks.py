"""A lock that is free in a forked process, even if a thread of the parent held it."""

import os
import threading
import weakref
from types import TracebackType

_locks: "weakref.WeakSet[ForkedLock]" = weakref.WeakSet()


class ForkedLock:
    """A lock for `with`. It is free in a forked process, even if it was held at the fork."""

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
        """Replace the lock. Only for use right after a fork, when no thread holds it."""
        self._lock = threading.Lock()


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_renew_all)
