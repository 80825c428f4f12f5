"""Reader holds: small files that name the versions being read, so that `versions prune` keeps them.

Holds are optional and need synchronised clocks. A reader without a hold works too; if its version is pruned, it gets a
CatalogError with the name of the missing file.
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
    """Protects a version from prune until `release()`, or until `hold_s` seconds after the process dies."""

    def __init__(self, store: Store, version: str, hold_s: float) -> None:
        """Write the file, and start a daemon thread that renews it three times per `hold_s`.

        Raises:
            OSError: If it cannot be written, for example without write permission.
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
        """Remove the file. Repeated calls, and calls in a forked process, do nothing."""
        if self._pid == os.getpid() and not self._over.is_set():
            self._over.set()
            with contextlib.suppress(OSError, StoreError):  # the hold expires by itself
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
            with contextlib.suppress(OSError, StoreError):  # the next renewal may succeed
                self._write()
        if self._over.is_set():  # released while this thread wrote
            with contextlib.suppress(OSError, StoreError):
                self._store.delete(self.name)


class _Hold(BaseModel):
    """The content of a hold file."""

    version: VersionName
    expires_at: AwareDatetime
    reader: Text


class Holds(NamedTuple):
    """The holds in a catalog."""

    readers: dict[str, str]
    """Description of a reader by version."""
    void: list[str]
    """Expired or invalid hold files."""


def read_holds(store: Store) -> Holds:
    """Read all holds of a catalog."""
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
            pass  # holds are written atomically, so an invalid file is not a hold
        expired.append(name)
    return Holds(held, expired)
