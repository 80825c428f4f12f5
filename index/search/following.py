"""A catalog that goes over to every newly published version, without failing a search."""

import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from ..storage.forks import ForkedLock
from ..storage.store import Store
from ..versions.latest import Latest
from ..versions.manifest import Manifest
from .catalog import Catalog, OpenVersion

_LONGEST_PAUSE_S = 600.0
"""Between two openings of a version that was refused: each may read, or download, all of it."""

_log = logging.getLogger(__name__)


class FollowingCatalog(Catalog):
    """The version in force of a catalog, whatever is published while it is open. Thread-safe.

    A daemon thread looks at LATEST.json, opens a new version beside the old one and swaps them. Each call is answered
    by one version; several calls by the same one within `pinned()`. The memory and the hold of the old version are let
    go of when the last search in it is over. When the new version cannot be read, is damaged, or was made by another
    model, the old one stays in force, a warning says so once, and it is tried again.
    """

    def __init__(
        self,
        store: Store,
        opened: OpenVersion,
        *,
        published: Callable[[], Latest],
        open_like: Callable[[Latest, Manifest], OpenVersion],
        every_s: float,
    ) -> None:
        super().__init__(store, opened)
        self._published = published
        self._open_like = open_like
        self._every_s = every_s
        self._looking = ForkedLock()
        self._swapping = ForkedLock()
        self._is_closed = False
        self._is_copy = False
        self._refused: str | None = None
        self._refusals = 0
        self._refused_until = 0.0
        self.last_refresh_error: str | None = None
        """Why the version in force is not the published one, in a sentence; None when the last look found no fault."""
        self._end: weakref.finalize[[], FollowingCatalog] | None = None
        self._start(first_wait_s=every_s)

    def close(self) -> None:
        """Ends the following, and lets go of the mapped files and of the hold, as `Catalog.close` does."""
        with self._swapping:
            self._is_closed = True
            super().close()
        if self._pid == os.getpid():  # a fork that never searched has no thread to end
            self._over.set()

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Catalog]:
        """The version in force as a catalog of its own, which stays what it is until the block ends."""
        yield Catalog(self._store, self._now())

    def refresh(self) -> bool:
        """Looks for a new version now, or after the look that is under way. Returns whether it swapped.

        It raises nothing: what went wrong is in `last_refresh_error`.
        """
        return self._look(is_asked=True)

    def _now(self) -> OpenVersion:
        if self._pid != os.getpid():
            with self._swapping:
                if self._pid != os.getpid() and not self._is_closed:
                    # A fork has its parent's memory and none of its threads; nor does the parent's hold stay for it.
                    self._is_copy = self._opened.is_held
                    self._start(first_wait_s=0.0)
        return self._opened

    def _start(self, first_wait_s: float) -> None:
        self._pid = os.getpid()
        if self._end is not None:
            self._end.detach()  # the parent's event: a thread that is not here may have left it locked
        self._over = threading.Event()
        self._end = weakref.finalize(self, self._over.set)
        follow = (weakref.ref(self), self._over, first_wait_s, self._every_s)
        threading.Thread(target=_follow, args=follow, name="catalog-follow", daemon=True).start()

    def _look(self, *, is_asked: bool) -> bool:
        with self._looking:
            if self._is_closed:
                return False
            try:
                return self._swap_if_new(is_asked=is_asked)
            except Exception as error:  # whatever a store's driver raises: the version in force is not to blame
                reported = str(error) or type(error).__name__
                if reported != self.last_refresh_error:
                    _log.warning("%s stays at version %s: %s", self._store.url, self._opened.manifest.version, reported)
                self.last_refresh_error = reported
                return False

    def _swap_if_new(self, *, is_asked: bool) -> bool:
        old = self._now()
        latest = self._published()
        version = latest.version
        if version == old.manifest.version and not self._is_copy:
            self._refused, self.last_refresh_error = None, None
            return False
        if version == self._refused and not is_asked and time.monotonic() < self._refused_until:
            return False
        try:
            new = self._open_like(latest, old.manifest)
        except Exception:
            self._refusals = self._refusals + 1 if version == self._refused else 1
            self._refused = version
            self._refused_until = time.monotonic() + min(self._every_s * 2 ** min(self._refusals, 16), _LONGEST_PAUSE_S)
            raise
        with self._swapping:
            if self._is_closed:
                new.let_go()
                return False
            self._refused, self.last_refresh_error, self._is_copy = None, None, False
            self._opened = new
        if version != old.manifest.version:
            _log.info("%s is now at version %s.", self._store.url, version)
        return version != old.manifest.version


def _follow(
    followed: "weakref.ref[FollowingCatalog]", over: threading.Event, first_wait_s: float, every_s: float
) -> None:
    """Looks until the catalog is closed, or nobody has it any more."""
    wait_s = first_wait_s
    while not over.wait(wait_s):
        wait_s = every_s
        catalog = followed()
        if catalog is None:
            return
        catalog._look(is_asked=False)  # noqa: SLF001 - the thread is the catalog's own
        del catalog
