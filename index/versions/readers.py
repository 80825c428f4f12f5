"""A reader's hold: a small file that says which version is being read, so that `versions prune` leaves it alone.

It is a courtesy between processes whose clocks agree: whoever writes none can read just as well, and what is pruned
under him is a CatalogError with the file's name.
"""

import contextlib
import datetime
import os
import secrets
import socket
import threading
from typing import NamedTuple

import orjson
from pydantic import AwareDatetime, BaseModel, ValidationError

from ...configs.errors import StoreError
from ..storage.store import Store
from .layout import READERS, reader_name
from .values import MAX_SMALL_BYTES, Text, VersionName


class VersionHold:
    """Keeps a version from being pruned until `release()`, or until `hold_s` after this process has died."""

    def __init__(self, store: Store, version: str, hold_s: float) -> None:
        """Writes the file; a daemon thread renews it three times in `hold_s`.

        Raises:
            OSError: When it cannot be written: a reader may lack the permission.
        """
        self.name = reader_name(version, secrets.token_hex(8))
        self._store = store
        self._version = version
        self._hold_s = hold_s
        self._over = threading.Event()
        self._pid = os.getpid()
        self._write()
        threading.Thread(target=self._renew, name="catalog-hold", daemon=True).start()

    def release(self) -> None:
        """Removes the file. Again, or in a process that was forked off, it does nothing."""
        if self._pid == os.getpid() and not self._over.is_set():
            self._over.set()
            with contextlib.suppress(OSError, StoreError):  # it expires by itself
                self._store.delete(self.name)

    def _write(self) -> None:
        until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self._hold_s)
        content = {
            "version": self._version,
            "expires_at": until.isoformat(),
            "reader": f"process {self._pid} on {socket.gethostname()}",
        }
        self._store.write(self.name, orjson.dumps(content) + b"\n")

    def _renew(self) -> None:
        while not self._over.wait(self._hold_s / 3):
            with contextlib.suppress(OSError, StoreError):  # the next turn may succeed
                self._write()
        if self._over.is_set():  # released while this thread wrote
            with contextlib.suppress(OSError, StoreError):
                self._store.delete(self.name)


class _Hold(BaseModel):
    """The content of a hold's file."""

    version: VersionName
    expires_at: AwareDatetime
    reader: Text


class Holds(NamedTuple):
    """What readers keep from being pruned."""

    readers: dict[str, str]
    """A holder in words, by the version."""
    void: list[str]
    """Files that hold nothing any more."""


def read_holds(store: Store) -> Holds:
    """The versions that are held by readers."""
    held: dict[str, str] = {}
    expired = []
    for name in store.names(READERS):
        try:
            hold = _Hold.model_validate_json(store.read(name, max_bytes=MAX_SMALL_BYTES))
            if hold.expires_at > datetime.datetime.now(datetime.UTC):
                held[hold.version] = f"{hold.reader}, until {hold.expires_at:%Y-%m-%d %H:%M:%S} UTC"
                continue
        except FileNotFoundError:
            continue
        except (ValidationError, StoreError):
            pass  # ours appear whole: this one says nothing that could be kept to
        expired.append(name)
    return Holds(held, expired)
