"""The lease: one run or prune at a time holds a catalog, and what a dead one held is free again.

It keeps two runs from doing the same work twice. That nothing is lost even when two believe that they hold the
catalog is the swap of `LATEST.json` (`manifest.py`).
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
"""What this process holds, by nonce."""


class _Place(NamedTuple):
    """What is held."""

    store: Store
    label: str

    def __str__(self) -> str:
        return f"{self.label} {self.store.url}"


class Lease:
    """A catalog that this process holds. Made by `hold`."""

    def __init__(self, place: _Place, holder: Holder, renew_s: float) -> None:
        self.holder = holder
        self._place = place
        self._store = place.store
        self._token = holder.to_bytes()
        self._renew_s = renew_s
        self._renewed_s = time.monotonic()
        self._is_taken = False
        self._over = threading.Event()
        self._lock = threading.Lock()

    @property
    def is_lost(self) -> bool:
        """Whether somebody else may hold the catalog by now."""
        return self._is_taken or time.monotonic() - self._renewed_s > self.holder.ttl_s

    def check(self) -> None:
        """Raises LeaseLostError when somebody else may hold the catalog by now."""
        if self._is_taken:
            raise LeaseLostError(f"Another run has taken over the {self._place}: run again when it has ended.")
        if self.is_lost:
            raise LeaseLostError(
                f"The hold on the {self._place} could not be renewed for {self.holder.ttl_s:g} s: "
                "run again when the storage answers."
            )

    def take(self, found: bytes | None) -> None:
        """Writes the lease in the place of what was `found`, and renews it from then on.

        Raises:
            SwapConflictError: When somebody else was faster.
        """
        _held[self.holder.nonce] = self  # before the write: another thread that finds it must know whose it is
        try:
            self._store.swap(LEASE, found, self._token)
        except BaseException:
            del _held[self.holder.nonce]
            raise
        threading.Thread(target=self._renew_on, name="lease", daemon=True).start()

    def release(self, timeout_s: float = 60.0) -> None:
        """Gives the catalog back if it is still held. Where the storage does not answer, the lease ends by itself."""
        if os.getpid() != self.holder.process:
            return  # a fork's copy of what its parent holds
        self._over.set()
        is_ours = self._lock.acquire(timeout=timeout_s)
        try:
            if is_ours and not self.is_lost:
                self._give_back()
        except Exception as error:  # drivers raise what they like, and the run itself is over
            _log.warning("The hold on %s could not be given back (%s): it ends by itself.", self._store.url, error)
        finally:
            _held.pop(self.holder.nonce, None)
            if is_ours:
                self._lock.release()

    def _give_back(self) -> None:
        # Read first: a renewal whose answer was lost has written what this object does not know of.
        data = _found(self._store)
        found = read_holder(data)
        if data is not None and found is not None and found.nonce == self.holder.nonce:
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
                except Exception as error:  # a storage that is away for a while must not end the run
                    wait_s = self._renew_s / 4
                    _log.info("The hold on %s could not be renewed: %s", self._store.url, error)

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
            holder, data, began_s = there, found, self._renewed_s  # an earlier renewal, which seemed to fail
        self.holder, self._token, self._renewed_s = holder, data, began_s


@contextlib.contextmanager
def hold(
    store: Store, purpose: str, *, label: str = "catalog", ttl_s: float = 300.0, renew_s: float = 30.0
) -> Iterator[Lease]:
    """Holds the catalog for as long as the block runs, and renews the lease meanwhile.

    Args:
        store: The catalog, or another folder that one run at a time may write.
        purpose: What holds it, for others to read: `run`, `prune`.
        label: What the user calls the folder.
        ttl_s: How long the lease lasts when it is not renewed.
        renew_s: How often it is renewed.

    A holder on this machine whose process is dead is replaced at once. A lease from elsewhere that by the wall clock
    has not been renewed for its ttl is watched for another ttl on the own clock, and replaced if nothing happens to it.

    Raises:
        CatalogBusyError: When another process, or another thread of this one, holds it.
        StoreError: When the storage does not keep the conditions that all of this rests on.
    """
    store.probe()
    lease = _acquire(_Place(store, label), purpose, ttl_s, renew_s)
    try:
        yield lease
    finally:
        lease.release()


def release_all(timeout_s: float = 2.0) -> None:
    """Gives back all that this process holds, within `timeout_s`: for a signal's handler, before the process ends."""
    # In threads of their own: what the handler has interrupted may have the locks that this needs.
    threads = [threading.Thread(target=x.release, args=(timeout_s,), daemon=True) for x in list(_held.values())]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline_s - time.monotonic()))


def _acquire(place: _Place, purpose: str, ttl_s: float, renew_s: float) -> Lease:
    store = place.store
    found = _found(store)
    if found is not None:
        there = read_holder(found)
        verdict = (
            "watch" if there is None else check_holder(there.state(_held), there.renewed_at, there.ttl_s, utc_now())
        )
        if verdict == "busy":
            raise _busy(place, there)
        if verdict == "watch":
            found = _watch(place, found, there, ttl_s if there is None else there.ttl_s)
    lease = Lease(place, make_holder(purpose, secrets.token_hex(16), ttl_s), renew_s)
    try:
        lease.take(found)
    except SwapConflictError:
        raise _busy(place, read_holder(_found(store))) from None
    return lease


def _watch(place: _Place, found: bytes, there: Holder | None, ttl_s: float) -> bytes | None:
    """Sees the lease unchanged for a full ttl and returns it, to be swapped against; None when it was given back."""
    _log.warning(
        "The %s is held by %s, which did not renew its hold in time: watching it for %g s before taking over.",
        place,
        there or "somebody whose lease cannot be read",
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
        return CatalogBusyError(f"Another run holds the {place}: wait until it has ended.")
    advice = "wait until it has ended."
    if holder.state(_held) != "alive":
        advice = (
            f"wait until it has ended; if it is dead, it is replaced {holder.ttl_s:g} s after its last sign of life."
        )
    return CatalogBusyError(f"Another {holder.purpose} holds the {place} ({holder}): {advice}")
