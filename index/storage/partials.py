"""Names of partial files. They contain the id of the writing process, so leftovers of dead processes are recognised.

A name is `.NAME.<12 hex digits>.partial`: 6 digits of the process id, 2 random digits, and 4 digits of a hash of both
and of the machine, since a process id is only valid on its machine.
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
    """Return a name for a file that this process writes and then renames to `name`. It may already exist."""
    process, drawn = f"{os.getpid():06x}", secrets.token_hex(1)
    if os.getpid() > _LARGEST_ID or os.name != "posix":
        return f".{name}.{secrets.token_hex(6)}.partial"
    return f".{name}.{process}{drawn}{_check(process, drawn)}.partial"


def writer_of(name: str) -> Writer:
    """Return whether the process that writes a partial file is running, as far as this machine can tell.

    "unknown" means another machine, another container, or a time before the last boot. If another process has the id
    of a dead writer, the writer counts as alive.
    """
    found = _PARTIAL.fullmatch(name.rpartition("/")[2])
    if found is None or _check(found[1], found[2]) != found[3] or os.name != "posix":
        return "unknown"
    return "alive" if is_running(int(found[1], 16)) else "dead"


def _check(process: str, drawn: str) -> str:
    return hashlib.sha256(f"{machine()}/{process}/{drawn}".encode()).hexdigest()[:4]
