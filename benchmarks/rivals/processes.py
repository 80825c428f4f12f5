"""Measures memory and CPU of a process tree, and the resident part of mapped files. Linux only."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

MB = 1e6
_TICKS = os.sysconf("SC_CLK_TCK")


def read_memory(pids: list[int]) -> dict[str, float]:
    """Return the resident MB of the processes: `anon`, `file` and `shared`, which is counted once."""
    anon = file = shared = 0.0
    for pid in pids:
        status = _read_status(pid)
        anon += status.get("RssAnon", 0) / MB
        file += status.get("RssFile", 0) / MB
        shared = max(shared, status.get("RssShmem", 0) / MB)
    return {"anon": anon, "file": file, "shared": shared}


def _read_status(pid: int) -> dict[str, int]:
    """Return the kB fields of /proc/PID/status in bytes; empty if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    parts = (line.split() for line in lines)
    return {words[0][:-1]: int(words[1]) * 1024 for words in parts if words[-1] == "kB"}


def tree_of(pid: int) -> list[int]:
    """Return the process and all its descendants."""
    found, at = [pid], 0
    while at < len(found):
        for children in Path(f"/proc/{found[at]}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
        at += 1
    return found


def read_mapped(wanted: Callable[[str], bool]) -> float:
    """Return the resident MB of this process's mappings of wanted files."""
    size, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if "-" in words[0]:
            counts = len(words) == 6 and wanted(words[5])
        elif words[0] == "Rss:" and counts:
            size += int(words[1]) * 1024
    return size / MB


class Watch:
    """Measures peak memory and CPU of a process tree in a thread.

    The peak is the larger of two values: the maximum of the sum over the tree, sampled ten times a second, and the
    kernel's high-water mark of each process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = self._anon = 0.0
        self._cpu: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(0.1):
            pids = tree_of(self._pid)
            now = read_memory(pids)
            marks = [_read_status(pid).get("VmHWM", 0) / MB for pid in pids]
            self._peak = max(self._peak, sum(now.values()), *marks)
            self._anon = max(self._anon, now["anon"])
            for pid in pids:
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                self._cpu[pid] = (int(fields[11]) + int(fields[12])) / _TICKS

    def end(self) -> dict[str, float]:
        self._stop.set()
        self._thread.join()
        return {"peak_mb": self._peak, "peak_anon_mb": self._anon, "cpu_s": sum(self._cpu.values())}


def forget_cached(folder: Path) -> None:
    """Drop the folder's files from the page cache, so that every contender reads them from disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size_of(folder: Path) -> float:
    """Return the MB of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MB
