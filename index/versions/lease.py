"""The lease: only one run or prune holds a catalog at a time. The lease of a dead process can be taken over.

It prevents two runs from doing the same work. If two runs still believe that they hold the catalog, the swap of
`LATEST.json` (`index/publish/publish.py`) prevents lost data.
"""

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

from ...configs.errors import CatalogBusyError, LeaseLostError, SwapConflictError
from ..storage.store import Store
from .holder import Holder, check_holder, make_holder, read_holder, utc_now
from .values import MAX_SMALL_BYTES

LEASE = ".lease.json"

_log = logging.getLogger(__name__)
_held: dict[str, "Lease"] = {}
"""The leases of this process, by nonce."""


class _Place(NamedTuple):
    """The folder that a lease holds."""

    store: Store
    label: str

    def __str__(self) -> str:
        return f"{self.label} {self.store.url}"


class Lease:
    """A lease that this process holds on a catalog. Created by `hold`."""

    def __init__(self, place: _Place, holder: Holder, renew_s: float) -> None:
        self.holder = holder
        self._place = place
        self._store = place.store
        self._token = holder.to_bytes()
        self._renew_s = renew_s
        self._renewed_s = time.monotonic()
        self._is_taken = False
        self.is_idle = False
        """Whether nobody uses it at the moment, so that this process may take it for another purpose."""
        self._over = threading.Event()
        self._lock = threading.Lock()

    @property
    def is_lost(self) -> bool:
        """Whether another process may hold the catalog by now."""
        return self._is_taken or time.monotonic() - self._renewed_s > self.holder.ttl_s

    @property
    def is_released(self) -> bool:
        return self._over.is_set()

    def check(self) -> None:
        """Raise LeaseLostError if another process may hold the catalog by now."""
        if self._is_taken:
            raise LeaseLostError(f"Another run has taken over the {self._place}. Run again when it has ended.")
        if self.is_lost:
            raise LeaseLostError(
                f"The lease on the {self._place} could not be renewed for {self.holder.ttl_s:g} s. "
                "Run again when the storage answers."
            )

    def take(self, found: bytes | None) -> None:
        """Write the lease over `found` and start renewing it.

        Raises:
            SwapConflictError: If another process was faster.
        """
        _held[self.holder.nonce] = self  # before the write, so that other threads recognise the lease as ours
        try:
            self._store.swap(LEASE, found, self._token)
        except BaseException:
            del _held[self.holder.nonce]
            raise
        threading.Thread(target=self._renew_on, name="lease", daemon=True).start()

    def release(self, timeout_s: float = 60.0) -> None:
        """Release the catalog if it is still held. If the storage does not answer, the lease expires."""
        if os.getpid() != self.holder.process:
            return  # a forked process has a copy of its parent's lease
        self._over.set()
        is_ours = self._lock.acquire(timeout=timeout_s)
        try:
            if is_ours and not self.is_lost:
                self._give_back()
        except Exception as error:  # drivers raise any type, and the run itself has ended
            _log.warning("%s: the lease could not be released (%s). It expires by itself.", self._store.url, error)
        finally:
            _held.pop(self.holder.nonce, None)
            if is_ours:
                self._lock.release()

    def _give_back(self) -> None:
        # Read first: a renewal whose answer was lost may have written a newer token.
        data = _found(self._store)
        found = read_holder(data)
        is_ours = found is not None and (found.nonce, found.process) == (self.holder.nonce, self.holder.process)
        if data is not None and is_ours:
            self._store.delete_if(LEASE, data)

    def _renew_on(self) -> None:
        wait_s = self._renew_s
        while not self._over.wait(wait_s):
            with self._lock:
                if self._over.is_set() or self._is_taken:
                    return
                try:
                    self._renew()
                    wait_s = self._renew_s
                except Exception as error:  # a short outage of the storage must not end the run
                    wait_s = self._renew_s / 4
                    _log.info("%s: the lease could not be renewed: %s", self._store.url, error)

    def _renew(self) -> None:
        began_s = time.monotonic()
        holder = self.holder.renewed()
        data = holder.to_bytes()
        try:
            self._store.swap(LEASE, self._token, data)
        except SwapConflictError:
            found = _found(self._store)
            there = read_holder(found)
            if found is None or there is None or there.nonce != self.holder.nonce:
                self._is_taken = True
                _log.warning("Another run has taken over the %s.", self._place)
                return
            if there.process != self.holder.process:  # another process of the same holder renews it now
                self._is_taken = True
                return
            holder, data, began_s = there, found, self._renewed_s  # an earlier renewal that seemed to fail
        self.holder, self._token, self._renewed_s = holder, data, began_s


@contextlib.contextmanager
def hold(
    store: Store, purpose: str, *, label: str = "catalog", ttl_s: float = 300.0, renew_s: float = 30.0
) -> Iterator[Lease]:
    """Hold the catalog while the block runs, and renew the lease.

    The lease of a dead process on this machine is taken over at once. A lease from another machine that was not
    renewed for its ttl by the wall clock is watched for another ttl, and taken over if it does not change.

    Args:
        store: The catalog, or another folder that only one run at a time may write.
        purpose: What the holder does, for messages to other processes: `run`, `prune`.
        label: Name of the folder in messages.
        ttl_s: Time after the last renewal until the lease expires.
        renew_s: Time between two renewals.

    Raises:
        CatalogBusyError: If another process, or another thread of this process, holds it.
        StoreError: If the storage does not support conditional writes reliably.
    """
    store.probe()
    lease = acquire(store, purpose, label=label, ttl_s=ttl_s, renew_s=renew_s)
    try:
        yield lease
    finally:
        lease.release()


def release_all(timeout_s: float = 2.0) -> None:
    """Release all leases of this process within `timeout_s`. For signal handlers, before the process exits."""
    # In separate threads: the interrupted code may hold the locks that this needs.
    threads = [threading.Thread(target=x.release, args=(timeout_s,), daemon=True) for x in list(_held.values())]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))


def acquire(
    store: Store,
    purpose: str,
    *,
    nonce: str | None = None,
    label: str = "catalog",
    ttl_s: float = 300.0,
    renew_s: float = 30.0,
) -> Lease:
    """Take the lease; the caller releases it.

    Args:
        store: As for `hold`.
        purpose: As for `hold`.
        nonce: Names a holder of several processes: each may take the lease over from the others. Absent: a new one.
        label: As for `hold`.
        ttl_s: As for `hold`.
        renew_s: As for `hold`.

    Raises:
        CatalogBusyError: If another holder has it.
    """
    place = _Place(store, label)
    found = _found(store)
    there = read_holder(found)
    if there is not None and there.nonce in _held and _held[there.nonce].is_idle and there.nonce != nonce:
        _held[there.nonce].release()
        found = _found(store)
        there = read_holder(found)
    if found is not None and not (there is not None and there.nonce == nonce):
        verdict = (
            "watch" if there is None else check_holder(there.state(_held), there.renewed_at, there.ttl_s, utc_now())
        )
        if verdict == "busy":
            raise _busy(place, there)
        if verdict == "watch":
            found = _watch(place, found, there, ttl_s if there is None else there.ttl_s)
    lease = Lease(place, make_holder(purpose, nonce or secrets.token_hex(16), ttl_s), renew_s)
    try:
        lease.take(found)
    except SwapConflictError:
        raise _busy(place, read_holder(_found(store))) from None
    return lease


def active_holder(store: Store) -> Holder | None:
    """Return who holds the catalog now. None if no one does, or the holder has ended or stopped renewing its lease."""
    there = read_holder(_found(store))
    if there is None or check_holder(there.state(_held), there.renewed_at, there.ttl_s, utc_now()) != "busy":
        return None
    return there


def _watch(place: _Place, found: bytes, there: Holder | None, ttl_s: float) -> bytes | None:
    """Wait until the lease is unchanged for a full ttl and return it. Return None if it is released."""
    _log.warning(
        "%s: another %s may be under way (%s), but did not renew its lease in time. "
        "Watching it for %g s before taking over.",
        place,
        "run" if there is None else there.purpose,
        there or "its lease cannot be read",
        ttl_s,
    )
    deadline_s = time.monotonic() + ttl_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        time.sleep(min(left_s, max(0.05, ttl_s / 20)))
        now_there = _found(place.store)
        if now_there is None:
            return None
        if now_there != found:
            raise _busy(place, read_holder(now_there))
    return found


def _found(store: Store) -> bytes | None:
    try:
        return store.read(LEASE, max_bytes=MAX_SMALL_BYTES)
    except FileNotFoundError:
        return None


def _busy(place: _Place, holder: Holder | None) -> CatalogBusyError:
    if holder is None:
        return CatalogBusyError(f"{place}: another run is under way. Wait until it has ended.")
    advice = "Wait until it has ended."
    if holder.state(_held) != "alive":
        advice = f"Wait until it has ended. If it is dead, its lease expires {holder.ttl_s:g} s after the last renewal."
    return CatalogBusyError(f"{place}: another {holder.purpose} is under way ({holder}). {advice}")
