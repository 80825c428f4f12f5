"""What processes take: memory and CPU of a tree of them, and which pages of mapped files are resident. Linux only."""

import os
import threading
from pathlib import Path

MB = 1e6
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_PRESENT = 1 << 63


def read_memory(pids: list[int]) -> dict[str, float]:
    """Resident MB of the processes: `anon`, `file` and, counted once for all that share it, `shared`."""
    anon = file = shared = 0.0
    for pid in pids:
        status = _read_status(pid)
        anon += status.get("RssAnon", 0) / MB
        file += status.get("RssFile", 0) / MB
        shared = max(shared, status.get("RssShmem", 0) / MB)
    return {"anon": anon, "file": file, "shared": shared}


def _read_status(pid: int) -> dict[str, int]:
    """The lines of /proc/PID/status that end with kB, in bytes; empty when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    parts = (line.split() for line in lines)
    return {words[0][:-1]: int(words[1]) * 1024 for words in parts if words[-1] == "kB"}


def tree_of(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found, at = [pid], 0
    while at < len(found):
        for children in Path(f"/proc/{found[at]}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
        at += 1
    return found


def read_mapped(suffix: str, tail_bytes: int) -> float:
    """MB of this process's mapped files of that suffix that are resident and lie in a file's last `tail_bytes`.

    The kernel's own table of pages tells which: `smaps` has one figure for a whole mapping.
    """
    pages = 0
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb") as table:
        for line in maps:
            words = line.split(maxsplit=5)
            if len(words) < 6 or not words[5].strip().endswith(suffix):
                continue
            start, end = (int(word, 16) for word in words[0].split("-"))
            offset = int(words[2], 16)
            begin = max(offset, os.path.getsize(words[5].strip()) - tail_bytes)
            first = start + max(begin - offset, 0) // _PAGE * _PAGE
            if first < end:
                table.seek(first // _PAGE * 8)
                entries = memoryview(table.read((end - first) // _PAGE * 8)).cast("Q")
                pages += sum(1 for entry in entries if entry & _PRESENT)
    return pages * _PAGE / MB


class Watch:
    """Follows a process tree in a thread: the greatest memory it had, and the CPU it took.

    The peak is the greater of two: the sum over the tree at its greatest moment, seen 20 times a second, and the
    high-water mark that the kernel keeps for each single process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = self._anon = 0.0
        self._cpu: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(0.05):
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
    """Asks the kernel to drop the folder's files from its cache, so that every contender reads them from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size_of(folder: Path) -> float:
    """MB of the files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / MB
