"""Identity of this machine, and state of its processes."""

import os
import uuid
from pathlib import Path


def machine() -> str:
    """Return the boot id and the namespace of process ids. Process ids are only comparable where both are the same.

    Two containers may share host name and boot, but not their process ids.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{uuid.getnode():x}"


def started(process: int) -> str | None:
    """Return the start time of a process in clock ticks since boot; None if the system does not report it."""
    try:
        return _stat(process)[19]
    except (OSError, IndexError):
        return None


def is_running(process: int) -> bool:
    """Whether a process with this id is running. A zombie is not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it exists and belongs to another user
    try:
        return _stat(process)[0] not in {"Z", "X"}
    except (OSError, IndexError):
        return not Path("/proc/self/stat").exists()


def _stat(process: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the third on. The second, a name, may have spaces and parentheses."""
    return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
