"""Opened files match the manifest despite damage and killed processes, and the cache keeps its size limit."""

import contextlib
import hashlib
import http.server
import mmap
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epithre_beam.configs.errors import CatalogError, StoreError
from epithre_beam.index.local.cache import BOUND_VARIABLE, FileCache
from epithre_beam.index.local.download import RANGE_BYTES
from epithre_beam.index.local.local_files import local_files
from epithre_beam.index.storage.store import Store
from epithre_beam.index.versions.manifest import FileEntry

from ...s3_server import Proxy, S3Server, s3_store

VERSION = "v1"
PROCESSES = 10

OPEN = """
import hashlib, json, logging, sys
from pathlib import Path
from tests.s3_server import s3_store
from epithre_beam.index.local.local_files import local_files
from epithre_beam.index.versions.manifest import FileEntry

port, folder, cache, entries = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
entries = [FileEntry(**entry) for entry in entries]
print("ready", flush=True)
sys.stdin.readline()
with local_files(s3_store(port, folder), "v1", entries, cache_folder=cache) as paths:
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    print(json.dumps(found), flush=True)
    sys.stdin.readline()
"""
"""Opens the files after a line on stdin, prints their sha256, and releases them after the next line."""


def content(size_bytes: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size_bytes)


def entry_of(name: str, data: bytes) -> FileEntry:
    return FileEntry(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def stored(store: Store, files: dict[str, bytes]) -> list[FileEntry]:
    """Write the files of a version. Return their manifest entries."""
    for name, data in files.items():
        store.write(f"versions/{VERSION}/{name}", data)
    return [entry_of(name, data) for name, data in files.items()]


def read(store: Store, entries: Sequence[FileEntry], cache: Path, **options: Any) -> dict[str, bytes]:
    with local_files(store, VERSION, entries, cache_folder=cache, **options) as paths:
        return {name: path.read_bytes() for name, path in paths.items()}


def cached(cache: Path) -> set[str]:
    """Return the names of complete and partial files in the cache."""
    return {path.name for path in cache.glob("files/*/*") if path.suffix in {"", ".partial"}}


def place_of(cache: Path, entry: FileEntry) -> Path:
    return cache / "files" / entry.sha256[:2] / entry.sha256


def names_of(*entries: FileEntry) -> set[str]:
    return {entry.sha256 for entry in entries}


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(s3_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def folder() -> str:
    return secrets.token_hex(8)


@pytest.fixture
def origin(s3_server: S3Server, folder: str) -> Store:
    """The catalog without the proxy, for writing."""
    return s3_store(s3_server.port, folder)


@pytest.fixture
def remote(proxy: Proxy, folder: str) -> Store:
    return s3_store(proxy.port, folder)


@pytest.fixture
def memory() -> Iterator[Store]:
    store = Store(f"memory://{secrets.token_hex(8)}")
    yield store
    store.delete("")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Opener:
    """Another process that opens files."""

    def __init__(self, port: int, folder: str, cache: Path, entries: Sequence[FileEntry]) -> None:
        listed = "[" + ",".join(entry.model_dump_json(exclude={"rows"}) for entry in entries) + "]"
        command = [sys.executable, "-c", OPEN, str(port), folder, str(cache), listed]
        root = str(Path(__file__).parents[3])
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ}
        )
        assert self.line() == "ready\n"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.go_on()
        assert self.process.wait(60) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def opener(folder: str, cache: Path) -> Iterator[Callable[[int, Sequence[FileEntry]], Opener]]:
    openers: list[Opener] = []

    def start(port: int, entries: Sequence[FileEntry]) -> Opener:
        openers.append(Opener(port, folder, cache, entries))
        return openers[-1]

    yield start
    for one in openers:
        one.kill()


# ---------------------------------------------------------------------------------------------------- downloads


SIZES = {"empty": 0, "byte": 1, "small.arrow": 70_000, "one": RANGE_BYTES, "more": RANGE_BYTES + 1, "big": 20_000_000}


def test_files_are_downloaded_once_and_unchanged(origin: Store, remote: Store, proxy: Proxy, cache: Path) -> None:
    files = {name: content(size, size) for name, size in SIZES.items()}
    entries = stored(origin, files)
    assert read(remote, entries, cache) == files
    ranges = sum(-(-size // RANGE_BYTES) for size in SIZES.values())
    assert proxy.requests.count("GET") == ranges
    asked = len(proxy.requests)
    assert read(remote, entries, cache) == files
    assert len(proxy.requests) == asked
    assert cached(cache) == names_of(*entries)
    for entry in entries:
        assert stat.S_IMODE(place_of(cache, entry).stat().st_mode) == 0o444
    for path in (cache, cache / "files", cache / "marks", *cache.glob("files/*")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_large_files_are_downloaded_in_bounded_parallel_ranges(
    origin: Store, remote: Store, proxy: Proxy, cache: Path
) -> None:
    entries = stored(origin, {"a": content(2 * RANGE_BYTES + 1), "b": content(4 * RANGE_BYTES + 1, 2)})
    seen: list[tuple[int, int]] = []
    under_way, most = set[int](), [0]
    several = threading.Event()

    def fault(method: str, headers: dict[str, str]) -> str:
        if "Range" in headers:
            first, last = (int(number) for number in headers["Range"].removeprefix("bytes=").split("-"))
            seen.append((first, last + 1))
            under_way.add(threading.get_ident())
            most[0] = max(most[0], len(under_way))
            if len(under_way) >= 4:
                several.set()
            several.wait(20)
            under_way.discard(threading.get_ident())
        return "pass"

    proxy.fault = fault
    read(remote, entries, cache)
    assert several.is_set()
    assert most[0] <= 8
    assert all(0 < end - start <= RANGE_BYTES for start, end in seen)
    for entry in entries:
        assert {(i, min(i + RANGE_BYTES, entry.size_bytes)) for i in range(0, entry.size_bytes, RANGE_BYTES)} <= {*seen}
    assert len(seen) == 3 + 5


def test_duplicate_content_is_downloaded_once(origin: Store, remote: Store, proxy: Proxy, cache: Path) -> None:
    entries = stored(origin, {"a": content(1000), "b": content(1000)})
    assert read(remote, entries, cache) == {"a": content(1000), "b": content(1000)}
    assert proxy.requests.count("GET") == 1


def nth_get(what: str, *numbers: int, also: Callable[[], None] = lambda: None) -> Callable[[str, dict[str, str]], str]:
    """Return a fault that applies `what` to these GETs, counted from 0."""
    lock, seen = threading.Lock(), [0]

    def fault(method: str, headers: dict[str, str]) -> str:
        if method != "GET":
            return "pass"
        with lock:
            number = seen[0]
            seen[0] += 1
        if number not in numbers:
            return "pass"
        also()
        return what

    return fault


def test_transfer_damage_is_downloaded_again(origin: Store, remote: Store, proxy: Proxy, cache: Path) -> None:
    data = content(RANGE_BYTES + 10)
    entries = stored(origin, {"a": data})
    proxy.fault = nth_get("damage", 1)
    assert read(remote, entries, cache) == {"a": data}
    assert proxy.requests.count("GET") == 4
    assert cached(cache) == names_of(*entries)


def test_damaged_object_is_refused_and_not_cached(origin: Store, remote: Store, proxy: Proxy, cache: Path) -> None:
    (entry,) = stored(origin, {"a": content(5000)})
    other = content(5000, 2)
    stored(origin, {"a": other})
    found = hashlib.sha256(other).hexdigest()
    with pytest.raises(CatalogError, match=f"versions/v1/a must have sha256 {entry.sha256}, got {found}"):
        read(remote, [entry], cache)
    assert proxy.requests.count("GET") == 2
    assert cached(cache) == set()


@pytest.mark.parametrize("change", [-1, 1, 700])
def test_object_with_a_wrong_length_is_not_downloaded(
    origin: Store, remote: Store, proxy: Proxy, cache: Path, change: int
) -> None:
    (entry,) = stored(origin, {"a": content(5000)})
    stored(origin, {"a": content(5000 + change)})
    with pytest.raises(CatalogError, match=f"v1/a must have 5000 bytes, got {5000 + change}"):
        read(remote, [entry], cache)
    assert "GET" not in proxy.requests


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_missing_object_is_named_and_not_cached(
    origin: Store, remote: Store, proxy: Proxy, cache: Path, moment: str
) -> None:
    entries = stored(origin, {"a": content(2 * RANGE_BYTES + 1)})
    gone = f"versions/{VERSION}/a"
    if moment == "before":
        origin.delete(gone)
    else:
        proxy.fault = nth_get("pass", 0, 1, 2, also=lambda: origin.delete(gone))
    with pytest.raises(CatalogError, match=r"versions/v1/a is missing\. Run the job again"):
        read(remote, entries, cache)
    assert cached(cache) == set()


@pytest.mark.parametrize("what", ["error", "lose answer", "lose request"])
def test_transient_failures_are_retried(origin: Store, remote: Store, proxy: Proxy, cache: Path, what: str) -> None:
    files = {"a": content(2 * RANGE_BYTES + 1), "b": content(100)}
    entries = stored(origin, files)
    proxy.fault = nth_get(what, 0, 2, 3)
    assert read(remote, entries, cache) == files


def test_first_failure_stops_other_downloads(origin: Store, remote: Store, proxy: Proxy, cache: Path) -> None:
    data = content(RANGE_BYTES * 3)
    entries = [entry_of("gone", b"gone"), *stored(origin, {f"{i}": data[: len(data) - i] for i in range(4)})]
    ranges: list[str] = []
    never = threading.Event()

    def fault(method: str, headers: dict[str, str]) -> str:
        if "Range" in headers:
            ranges.append(headers["Range"])
            never.wait(1)  # long enough to find out that the other file is missing
        return "pass"

    proxy.fault = fault
    with pytest.raises(CatalogError, match=r"v1/gone is missing\. Run the job again"):
        read(remote, entries, cache)
    assert len(ranges) <= 8  # of 12
    assert not any(name.endswith(".partial") for name in cached(cache))


class FileServer:
    """Serves one content over HTTP, with or without ranges, or only failures."""

    def __init__(self, data: bytes, way: str) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range") if way == "ranges" else None
                first, last = (int(n) for n in asked.removeprefix("bytes=").split("-")) if asked else (0, len(data) - 1)
                part = data[first : last + 1]
                self.send_response(503 if way == "failures" and self.command == "GET" else 206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                if self.command == "GET":
                    with contextlib.suppress(OSError):
                        self.wfile.write(part)

            do_HEAD = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.store = Store(f"http://127.0.0.1:{self._server.server_address[1]}/catalog")
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("way", "error"),
    [
        ("ranges", None),
        ("whole", "the store must support range requests"),
        ("failures", "cannot be read .*503.*Try again"),
    ],
)
def test_http_server_is_read_or_refused_with_the_reason(cache: Path, way: str, error: str | None) -> None:
    data = content(RANGE_BYTES + 5)
    server = FileServer(data, way)
    try:
        if error is None:
            assert read(server.store, [entry_of("a", data)], cache) == {"a": data}
        else:
            with pytest.raises(StoreError, match=error):
                read(server.store, [entry_of("a", data)], cache)
            assert cached(cache) == set()
    finally:
        server.close()


# ---------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_one_of_ten_processes_downloads_for_all(origin: Store, proxy: Proxy, opener: Callable[..., Opener]) -> None:
    entries = stored(origin, {"a": content(2 * RANGE_BYTES + 1), "b": content(100_000), "c": content(10)})
    openers = [opener(proxy.port, entries) for _ in range(PROCESSES)]
    for one in openers:
        one.go_on()
    expected = "{" + ", ".join(f'"{entry.name}": "{entry.sha256}"' for entry in entries) + "}\n"
    assert [one.line() for one in openers] == [expected] * PROCESSES
    assert proxy.requests.count("GET") == 3 + 1 + 1
    for one in openers:
        one.end()


@pytest.mark.slow
def test_partial_file_of_a_killed_process_is_replaced(
    origin: Store, remote: Store, proxy: Proxy, cache: Path, opener: Callable[..., Opener]
) -> None:
    data = content(3 * RANGE_BYTES)
    entries = stored(origin, {"a": data})
    halfway, never = threading.Event(), threading.Event()

    def stall() -> None:
        halfway.set()
        never.wait(30)

    proxy.fault = nth_get("lose request", 1, also=stall)
    one = opener(proxy.port, entries)
    one.go_on()
    assert halfway.wait(30)
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait(20)
    never.set()
    assert cached(cache) == {f"{entries[0].sha256}.partial"}
    assert read(remote, entries, cache) == {"a": data}
    assert cached(cache) == names_of(*entries)


def test_partial_files_of_killed_processes_use_no_space(memory: Store, cache: Path) -> None:
    entries = stored(memory, {"a": content(1000), "b": content(1000, 2)})
    read(memory, entries[:1], cache, max_bytes=2000)
    left = cache / "files" / "ff" / f"{'f' * 64}.partial"
    left.parent.mkdir()
    left.write_bytes(bytes(10_000))
    read(memory, entries, cache, max_bytes=2000)
    assert cached(cache) == names_of(*entries)


@pytest.mark.slow
def test_waiting_process_takes_over_from_a_dead_one(origin: Store, proxy: Proxy, opener: Callable[..., Opener]) -> None:
    entries = stored(origin, {"a": content(1000)})
    under_way, never = threading.Event(), threading.Event()

    def stall() -> None:
        under_way.set()
        never.wait(30)

    proxy.fault = nth_get("lose request", 0, also=stall)
    one, other = opener(proxy.port, entries), opener(proxy.port, entries)
    one.go_on()
    assert under_way.wait(30)
    other.go_on()
    one.kill()
    assert other.line() == f'{{"a": "{entries[0].sha256}"}}\n'
    never.set()
    other.end()


# ---------------------------------------------------------------------------------------------------- size limit


def test_least_recently_used_file_is_evicted_first(memory: Store, cache: Path) -> None:
    a, b, c, d, e = stored(memory, {name: content(1000, ord(name)) for name in "abcde"})
    for entry in (a, b, c):
        read(memory, [entry], cache, max_bytes=3000)
    read(memory, [a], cache, max_bytes=3000)
    read(memory, [d], cache, max_bytes=3000)
    assert cached(cache) == names_of(a, c, d)
    read(memory, [c, e], cache, max_bytes=3000)
    assert cached(cache) == names_of(c, d, e)
    assert {path.name.partition(".")[0] for path in cache.glob("files/*/*")} == names_of(
        c, d, e
    )  # no other files are left


def test_cache_never_exceeds_its_size_limit(memory: Store, cache: Path) -> None:
    random = np.random.default_rng(7)
    entries = stored(memory, {str(i): content(int(random.integers(1, 2000)), i) for i in range(12)})
    for _ in range(60):
        chosen = [entries[i] for i in random.choice(12, int(random.integers(1, 3)), replace=False)]
        assert {name: len(data) for name, data in read(memory, chosen, cache, max_bytes=5000).items()} == {
            entry.name: entry.size_bytes for entry in chosen
        }
        assert names_of(*chosen) <= cached(cache)
        assert sum(path.stat().st_size for path in cache.glob("files/*/*")) <= 5000


def test_concurrent_readers_share_a_tight_cache(memory: Store, cache: Path) -> None:
    """The limit is exactly what all threads hold together, so none is refused. Each has its own locks."""
    entries = stored(memory, {str(i): content(1000, i) for i in range(24)})

    def open_some(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(25):
            chosen = [entries[i] for i in random.choice(24, 2, replace=False)]
            with local_files(memory, VERSION, chosen, cache_folder=cache, max_bytes=12_000) as paths:
                for entry in chosen:
                    assert paths[entry.name].read_bytes() == content(1000, int(entry.name))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(open_some, range(6)))
    assert sum(path.stat().st_size for path in cache.glob("files/*/*")) <= 12_000
    assert not any(name.endswith(".partial") for name in cached(cache))


def test_eviction_keeps_files_of_the_same_request(memory: Store, cache: Path) -> None:
    """The oldest file is requested together with a file that needs space."""
    a, b, c = stored(memory, {name: content(1000, ord(name)) for name in "abc"})
    read(memory, [a], cache, max_bytes=2000)
    read(memory, [b], cache, max_bytes=2000)
    mtime = place_of(cache, a).stat().st_mtime_ns
    read(memory, [c, a], cache, max_bytes=2000)
    assert cached(cache) == names_of(a, c)
    assert place_of(cache, a).stat().st_mtime_ns == mtime


@pytest.mark.slow
@pytest.mark.parametrize("end", ["let go", "killed"])
def test_files_held_by_another_process_are_not_evicted(
    origin: Store, remote: Store, proxy: Proxy, cache: Path, opener: Callable[..., Opener], end: str
) -> None:
    a, b, c = stored(origin, {name: content(1000, ord(name)) for name in "abc"})
    other = opener(proxy.port, [a])
    other.go_on()
    assert a.sha256 in other.line()
    read(remote, [b], cache, max_bytes=2000)
    read(remote, [c], cache, max_bytes=2000)
    assert cached(cache) == names_of(a, c)  # b is younger, but was evicted
    with pytest.raises(
        CatalogError, match=f"is limited to 1500 bytes.* no space for 1000 bytes more.*{BOUND_VARIABLE}"
    ):
        read(remote, [b], cache, max_bytes=1500)
    assert a.sha256 in cached(cache)
    if end == "killed":
        other.kill()
    else:
        other.end()
    read(remote, [b], cache, max_bytes=1500)
    assert cached(cache) == names_of(b)


def test_mapped_file_stays_readable_after_eviction(memory: Store, cache: Path) -> None:
    a, b = stored(memory, {"a": content(9000), "b": content(9000, 2)})
    with local_files(memory, VERSION, [a], cache_folder=cache, max_bytes=9000) as paths, paths["a"].open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    read(memory, [b], cache, max_bytes=9000)
    assert cached(cache) == names_of(b)
    assert mapped[:] == content(9000)


def test_version_larger_than_the_limit_is_refused_without_requests(
    origin: Store, remote: Store, proxy: Proxy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = stored(origin, {"a": content(900_000), "b": content(900_000, 2)})
    monkeypatch.setenv(BOUND_VARIABLE, "1")
    rule = (
        f"needs 1800000 bytes of the cache {re.escape(str(cache))}, which is limited to 1000000 bytes. "
        f"Set {BOUND_VARIABLE} to 2"
    )
    with pytest.raises(CatalogError, match=rule):
        read(remote, entries, cache)
    assert proxy.requests == []
    monkeypatch.setenv(BOUND_VARIABLE, "2")
    assert len(read(remote, entries, cache)) == 2


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "１"])
def test_invalid_size_limit_raises(memory: Store, cache: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(BOUND_VARIABLE, value)
    with pytest.raises(
        CatalogError, match=f"{BOUND_VARIABLE} must be a whole number of megabytes above 0, got '{value}'"
    ):
        read(memory, [], cache)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root may mount a file system: run it as root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_file_too_large_for_the_disk_is_not_downloaded(
    origin: Store, remote: Store, proxy: Proxy, small_disk: Path
) -> None:
    old, big = stored(origin, {"old": content(1_000_000), "big": content(5_000_000)})
    read(remote, [old], small_disk / "cache")
    asked = proxy.requests.count("GET")
    with pytest.raises(
        CatalogError, match=r"cannot be written \(5000000 bytes are needed, \d+ are free\)\. Free space"
    ):
        read(remote, [big], small_disk / "cache")
    assert proxy.requests.count("GET") == asked
    assert cached(small_disk / "cache") == names_of(old)


def test_older_files_are_evicted_if_the_disk_is_small(origin: Store, small_disk: Path) -> None:
    old, new = stored(origin, {"old": content(2_500_000), "new": content(2_500_000, 2)})
    read(origin, [old], small_disk / "cache")
    read(origin, [new], small_disk / "cache")
    assert cached(small_disk / "cache") == names_of(new)


def test_disk_full_during_download_raises_and_leaves_nothing(
    origin: Store, remote: Store, proxy: Proxy, small_disk: Path
) -> None:
    entries = stored(origin, {"a": content(3_000_000)})

    def fill() -> None:
        (small_disk / "other").write_bytes(bytes(2_000_000))

    proxy.fault = nth_get("pass", 0, also=fill)
    with pytest.raises(CatalogError, match=r"cannot be written \(No space left on device\)\. Free space on its disk"):
        read(remote, entries, small_disk / "cache")
    assert cached(small_disk / "cache") == set()
    (small_disk / "other").unlink()
    assert read(remote, entries, small_disk / "cache") == {"a": content(3_000_000)}


# ---------------------------------------------------------------------------------------------------- trust


def test_changed_cached_file_with_same_size_and_mtime_is_replaced(
    origin: Store, remote: Store, proxy: Proxy, cache: Path
) -> None:
    (entry,) = stored(origin, {"a": content(5000)})
    read(remote, [entry], cache)
    path = place_of(cache, entry)
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(bytes([content(5000)[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert read(remote, [entry], cache) == {"a": content(5000)}
    assert proxy.requests.count("GET") == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_cached_file_missing_in_the_verification_cache_is_not_downloaded(
    origin: Store, remote: Store, proxy: Proxy, cache: Path
) -> None:
    (entry,) = stored(origin, {"a": content(5000)})
    read(remote, [entry], cache)
    for mark in (cache / "marks").iterdir():
        mark.unlink()
    assert read(remote, [entry], cache) == {"a": content(5000)}
    assert proxy.requests.count("GET") == 1
    assert len(list((cache / "marks").iterdir())) == 1


def test_truncated_cached_file_is_replaced_even_unverified(memory: Store, cache: Path) -> None:
    (entry,) = stored(memory, {"a": content(5000)})
    read(memory, [entry], cache)
    path = place_of(cache, entry)
    path.chmod(0o600)
    os.truncate(path, 4999)
    assert read(memory, [entry], cache, verify=False) == {"a": content(5000)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder to another user: run it as root")
def test_cache_of_another_user_is_refused(memory: Store, cache: Path) -> None:
    (entry,) = stored(memory, {"a": content(5000)})
    read(memory, [entry], cache)
    os.chown(cache, 12345, -1)
    with pytest.raises(CatalogError, match=f"{cache} must be owned by user 0, got 12345.*EPITHRE_BEAM_CACHE"):
        read(memory, [entry], cache)
    os.chown(cache, 0, -1)
    os.chown(cache / "files", 12345, -1)
    with pytest.raises(CatalogError, match="files must be owned by user 0, got 12345"):
        read(memory, [entry], cache)


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_cache_writable_by_others_is_refused(memory: Store, cache: Path, mode: int) -> None:
    cache.mkdir()
    cache.chmod(mode)
    with pytest.raises(CatalogError, match=f"writable by its owner only, got mode {mode & 0o777:o}. Run `chmod go-w`"):
        read(memory, [], cache)


def test_cache_in_a_shared_folder_is_private(memory: Store, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    entries = stored(memory, {"a": content(5000)})
    assert read(memory, entries, tmp_path / "tmp" / "cache") == {"a": content(5000)}


def test_cache_that_cannot_be_created_raises(memory: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        CatalogError, match=r"file/cache cannot be created \(Not a directory\)\. To fix it, set .* to a folder"
    ):
        read(memory, [], tmp_path / "file" / "cache")


@pytest.mark.parametrize("sha256", ["", "../../../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_invalid_sha256_never_becomes_a_path(memory: Store, cache: Path, sha256: str) -> None:
    with pytest.raises(CatalogError, match="v1/a must have a sha256 of 64 hex digits"):
        read(memory, [FileEntry.model_construct(name="a", size_bytes=1, sha256=sha256)], cache)


def test_exception_of_the_caller_is_not_wrapped(memory: Store, cache: Path) -> None:
    entries = stored(memory, {"a": content(10)})
    held = FileCache(cache, 1000).hold(memory, VERSION, entries, verify=True)
    with pytest.raises(OSError, match="the caller's own"), held:
        raise OSError("the caller's own")
