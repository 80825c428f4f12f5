"""Processes of this machine: which one this is, and whether another still lives."""

import os
import uuid
from pathlib import Path


def machine() -> str:
    """The boot of this machine and the space of its process ids: only where both are the same does an id mean anything.

    Two containers may share a host's name and boot, but a process id of one means nothing in the other.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{uuid.getnode():x}"


def started(process: int) -> str | None:
    """When a process started, in clock ticks since the boot; None where the system does not say."""
    try:
        return _stat(process)[19]
    except (OSError, IndexError):
        return None


def is_running(process: int) -> bool:
    """Whether there is a process with this id; one that was killed and not yet waited for is not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there, and another user's
    try:
        return _stat(process)[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return not Path("/proc/self/stat").exists()


def _stat(process: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on: the second, a name, may hold spaces and parentheses."""
    return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
