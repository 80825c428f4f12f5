"""Names of files that are being written. They say which process writes, so that what a dead one left is known at once.

A name is `.NAME.<12 hex digits>.partial`: 6 digits of the process id, 2 drawn, and 4 of a hash of both and of the
machine, without which an id means nothing.
"""

import hashlib
import os
import re
import secrets
from typing import Literal

from .processes import is_running, machine

_PARTIAL = re.compile(r"\.[^/]+\.([0-9a-f]{6})([0-9a-f]{2})([0-9a-f]{4})\.partial")
_LARGEST_ID = 0xFFFFFF

Writer = Literal["alive", "dead", "unknown"]


def partial_name(name: str) -> str:
    """A name for a file that this process writes and then renames to `name`; it may be taken already."""
    process, drawn = f"{os.getpid():06x}", secrets.token_hex(1)
    if os.getpid() > _LARGEST_ID or os.name != "posix":
        return f".{name}.{secrets.token_hex(6)}.partial"
    return f".{name}.{process}{drawn}{_check(process, drawn)}.partial"


def writer_of(name: str) -> Writer:
    """Whether the process that writes a partial file lives, as far as this machine can prove it.

    Unknown: it was on another machine, in another container, or before the machine was started. One that has the id
    of a dead writer counts as the writer.
    """
    found = _PARTIAL.fullmatch(name.rpartition("/")[2])
    if found is None or _check(found[1], found[2]) != found[3] or os.name != "posix":
        return "unknown"
    return "alive" if is_running(int(found[1], 16)) else "dead"


def _check(process: str, drawn: str) -> str:
    return hashlib.sha256(f"{machine()}/{process}/{drawn}".encode()).hexdigest()[:4]
