"""A catalog that switches to every newly published version without failing a search."""

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
"""Longest pause between two attempts to open a refused version. Each attempt may read or download all of it."""

_log = logging.getLogger(__name__)


class FollowingCatalog(Catalog):
    """A catalog that always searches the current version, also after a new one is published. Thread-safe.

    A daemon thread reads LATEST.json, opens a new version while the old one is in use, and swaps them. Each call uses
    one version; within `pinned()` several calls use the same one. The memory and the hold of the old version are
    released when its last search ends. If the new version is unreadable, damaged or made by another model, the old
    one stays current, a warning is logged once, and opening is retried.
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
        """Why the current version is not the published one, in one sentence. None after a successful refresh."""
        self._end: weakref.finalize[[], FollowingCatalog] | None = None
        self._start(first_wait_s=every_s)

    def close(self) -> None:
        """Stop following, and release the mapped files and the hold like `Catalog.close`."""
        with self._swapping:
            self._is_closed = True
            super().close()
        if self._pid == os.getpid():  # a forked process that never searched has no thread to stop
            self._over.set()

    @contextlib.contextmanager
    def pinned(self) -> Iterator[Catalog]:
        """Use the current version as a separate catalog that does not change until the block ends."""
        yield Catalog(self._store, self._now())

    def refresh(self) -> bool:
        """Check for a new version now, or after a check that is running. Return whether the version changed.

        Does not raise. `last_refresh_error` has the reason of a failure.
        """
        return self._look(is_asked=True)

    def _now(self) -> OpenVersion:
        if self._pid != os.getpid():
            with self._swapping:
                if self._pid != os.getpid() and not self._is_closed:
                    # A forked process has its parent's memory but not its threads, and the parent may release its hold.
                    self._is_copy = self._opened.is_held
                    self._start(first_wait_s=0.0)
        return self._opened

    def _start(self, first_wait_s: float) -> None:
        self._pid = os.getpid()
        if self._end is not None:
            self._end.detach()  # the parent's event: a thread that the fork did not copy may have left it locked
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
            except Exception as error:  # drivers raise any type; the current version still works
                reported = str(error) or type(error).__name__
                if reported != self.last_refresh_error:
                    kept = self._opened.manifest.version
                    fields = {"catalog": self._store.url, "version": kept, "error": reported}
                    extra = {"event": "reload_failed", "fields": fields}
                    _log.warning("%s: keeping version %s. %s", self._store.url, kept, reported, extra=extra)
                self.last_refresh_error = reported
                return False

    def _swap_if_new(self, *, is_asked: bool) -> bool:
        old = self._now()
        latest = self._published()
        version = latest.version
        if version == old.manifest.version and not self._is_copy:
            if self.last_refresh_error is not None:
                extra = {"event": "reload_recovered", "fields": {"catalog": self._store.url, "version": version}}
                _log.info("%s: version %s is current.", self._store.url, version, extra=extra)
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
            fields = {"catalog": self._store.url, "version": version, "previous": old.manifest.version}
            extra = {"event": "version_loaded", "fields": fields}
            _log.info("%s: switched to version %s.", self._store.url, version, extra=extra)
        return version != old.manifest.version


def _follow(
    followed: "weakref.ref[FollowingCatalog]", over: threading.Event, first_wait_s: float, every_s: float
) -> None:
    """Check for new versions until the catalog is closed or garbage-collected."""
    wait_s = first_wait_s
    while not over.wait(wait_s):
        wait_s = every_s
        catalog = followed()
        if catalog is None:
            return
        catalog._look(is_asked=False)  # noqa: SLF001 - the thread is the catalog's own
        del catalog
