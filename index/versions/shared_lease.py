"""The lease of a pipeline: whichever of its processes works on the catalog holds it.

A pipeline has no process of its own that lives from its start to its end, and none that learns of a failure elsewhere.
So each step uses the lease while it works. Unused, it is kept for some seconds for the next step, then released.
"""

import atexit
import contextlib
import os
import threading
from collections.abc import Iterator

from ..storage.store import Store
from .holder import read_holder
from .lease import LEASE, Lease, acquire
from .values import MAX_SMALL_BYTES

_KEPT_UNUSED_S = 30.0


class _Used:
    """A lease of this process, and how many steps use it."""

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.users = 0
        self.timer: threading.Timer | None = None


class _Process:
    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start anew, also in a forked process, which has none of its parent's leases."""
        self.lock = threading.RLock()
        self.used: dict[tuple[str, str], _Used] = {}


_process = _Process()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.reset)


def use(store: Store, nonce: str, purpose: str = "pipeline") -> None:
    """Hold the catalog for a pipeline in this process; call `leave` once for each call.

    Args:
        store: The catalog.
        nonce: The pipeline.
        purpose: What the holder is, for messages to other processes.

    Raises:
        CatalogBusyError: If a run or another pipeline holds it.
        StoreError: If the storage does not support conditional writes reliably.
    """
    with _process.lock:
        used = _process.used.get((store.url, nonce))
        if used is not None and (used.lease.is_lost or used.lease.is_released):
            _drop((store.url, nonce))
            used = None
        if used is None:
            store.probe()
            used = _Used(acquire(store, purpose, nonce=nonce))
            _process.used[store.url, nonce] = used
        if used.timer is not None:
            used.timer.cancel()
        used.users += 1
        used.lease.is_idle = False


def leave(store: Store, nonce: str) -> None:
    """Note that a step has ended. The lease is kept for the next step, or until another pipeline here needs it."""
    with _process.lock:
        used = _process.used.get((store.url, nonce))
        if used is None:
            return
        used.users -= 1
        if used.users <= 0:
            used.lease.is_idle = True
            used.timer = threading.Timer(_KEPT_UNUSED_S, _release_unused, (store.url, nonce))
            used.timer.daemon = True
            used.timer.start()


@contextlib.contextmanager
def used(store: Store, nonce: str) -> Iterator[None]:
    """Hold the catalog for a pipeline while the block runs. If the block fails, the lease is released.

    Raises:
        CatalogBusyError: If a run or another pipeline holds it.
    """
    use(store, nonce)
    try:
        yield
    except BaseException:
        end(store, nonce)
        raise
    leave(store, nonce)


def end(store: Store, nonce: str) -> None:
    """Release the lease of a pipeline, whichever of its processes took it last."""
    with _process.lock:
        _drop((store.url, nonce))
    with contextlib.suppress(FileNotFoundError):
        data = store.read(LEASE, max_bytes=MAX_SMALL_BYTES)
        holder = read_holder(data)
        if holder is not None and holder.nonce == nonce:
            store.delete_if(LEASE, data)


def _release_unused(url: str, nonce: str) -> None:
    with _process.lock:
        used = _process.used.get((url, nonce))
        if used is not None and used.users <= 0:
            _drop((url, nonce))


def _drop(key: tuple[str, str]) -> None:
    used = _process.used.pop(key, None)
    if used is not None:
        if used.timer is not None:
            used.timer.cancel()
        used.lease.release()


@atexit.register
def _release_all() -> None:
    with _process.lock:
        for key in list(_process.used):
            _drop(key)
