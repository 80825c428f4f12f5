"""A file is read once, and any later change to it is detected."""

import hashlib
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index.local.local_files import local_files
from epithre_beam.index.local.private import CACHE
from epithre_beam.index.local.verification_cache import VerificationCache, remember, verification_cache_for
from epithre_beam.index.storage.store import Store
from epithre_beam.index.versions.manifest import FileEntry

VERSION = "v1"
BIG_BYTES = 200_000_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "catalog"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE.variable, str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(store: Store, name: str, data: bytes) -> FileEntry:
    store.write(f"versions/{VERSION}/{name}", data)
    return FileEntry(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def place_of(store: Store, entry: FileEntry) -> Path:
    return store.local_path(f"versions/{VERSION}/{entry.name}")


def open_files(store: Store, *entries: FileEntry, verify: bool = True) -> dict[str, Path]:
    with local_files(store, VERSION, entries, verify=verify) as paths:
        return paths


def bytes_read() -> int:
    """Return the number of bytes that this process has read so far."""
    return int(Path("/proc/self/io").read_text("ascii").split()[1])


def flip(path: Path, at: int = 0) -> None:
    """Change one byte and reset the times, as an attacker could."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


# ---------------------------------------------------------------------------------------------------- hits


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
def test_file_is_read_only_when_first_opened(store: Store, cache: Path) -> None:
    entry = make(store, "big", bytes(BIG_BYTES))
    began = bytes_read()
    assert open_files(store, entry) == {"big": place_of(store, entry)}
    first = bytes_read() - began
    open_files(store, entry)
    second = bytes_read() - began - first
    assert first >= BIG_BYTES
    assert second < 100_000


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
def test_file_hashed_by_its_writer_is_not_read(store: Store, cache: Path) -> None:
    entry = make(store, "big", bytes(BIG_BYTES))
    remember(place_of(store, entry), entry.sha256)
    began = bytes_read()
    open_files(store, entry)
    assert bytes_read() - began < 100_000
    remember(place_of(store, entry), "0" * 64)
    with pytest.raises(CatalogError, match=f"must have sha256 {entry.sha256}, got {'0' * 64}"):
        open_files(store, entry)


def test_links_and_relative_paths_share_an_entry(
    store: Store, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = make(store, "a", b"content")
    open_files(store, entry)
    (tmp_path / "link").symlink_to(tmp_path / "catalog")
    monkeypatch.chdir(tmp_path)
    for url in ("link", "catalog", str(tmp_path / "link")):
        open_files(Store(url), entry)
    assert len(list((cache / "marks").iterdir())) == 1


# ---------------------------------------------------------------------------------------------------- invalidation


def test_changed_byte_with_same_size_and_mtime_is_detected(store: Store, cache: Path) -> None:
    """This includes changes right after the file was written and verified, within a tick of the clock."""
    random = np.random.default_rng(3)
    for i in range(40):
        entry = make(store, str(i), random.bytes(200))
        open_files(store, entry)
        flip(place_of(store, entry), int(random.integers(200)))
        with pytest.raises(CatalogError, match=f"versions/v1/{i} must have sha256 {entry.sha256}, got .*damaged"):
            open_files(store, entry)
        flip(place_of(store, entry), 0)
        remember(place_of(store, entry), entry.sha256)
        flip(place_of(store, entry), 1)
        with pytest.raises(CatalogError, match=r"The file is damaged\. Run the job again"):
            open_files(store, entry)


def test_replaced_file_is_detected(store: Store, cache: Path, tmp_path: Path) -> None:
    entry = make(store, "a", b"content")
    open_files(store, entry)
    before = place_of(store, entry).stat()
    (tmp_path / "other").write_bytes(b"CONTENT")
    os.utime(tmp_path / "other", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "other").replace(place_of(store, entry))
    with pytest.raises(CatalogError, match=r"The file is damaged\. Run the job again"):
        open_files(store, entry)


@pytest.mark.parametrize("change", ["gone", "empty", "no JSON", "not its form", "another file's"])
def test_damaged_entry_causes_one_read_only(store: Store, cache: Path, change: str) -> None:
    entry, other = make(store, "a", b"content"), make(store, "b", b"another")
    open_files(store, entry)
    (mark,) = (cache / "marks").iterdir()
    good = mark.read_bytes()
    open_files(store, other)
    (others,) = set((cache / "marks").iterdir()) - {mark}
    if change == "gone":
        mark.unlink()
    else:
        contents = {
            "empty": b"",
            "no JSON": b'{"path": ',
            "not its form": b"[1]",
            "another file's": others.read_bytes(),
        }
        mark.write_bytes(contents[change])
    open_files(store, entry)
    assert mark.read_bytes() == good


def test_file_written_during_hashing_is_not_cached(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(bytes(50_000_000))
    (tmp_path / "marks").mkdir()
    verification_cache = VerificationCache(tmp_path / "marks")
    over = threading.Event()

    def write() -> None:
        with path.open("r+b") as file:
            while not over.is_set():
                os.pwrite(file.fileno(), os.urandom(8), 0)

    thread = threading.Thread(target=write)
    thread.start()
    verification_cache.sha256(path)
    over.set()
    thread.join()
    assert verification_cache.known(path) is None
    assert (
        verification_cache.sha256(path)
        == hashlib.sha256(path.read_bytes()).hexdigest()
        == verification_cache.known(path)
    )


@pytest.mark.parametrize("verify", [True, False])
def test_missing_or_resized_file_raises_even_unverified(store: Store, cache: Path, verify: bool) -> None:
    entry = make(store, "a", b"content")
    place_of(store, entry).write_bytes(b"content and more")
    with pytest.raises(CatalogError, match=r"versions/v1/a must have 7 bytes, got 16\. The file is damaged"):
        open_files(store, entry, verify=verify)
    place_of(store, entry).unlink()
    with pytest.raises(CatalogError, match=r"versions/v1/a is missing"):
        open_files(store, entry, verify=verify)


def test_unverified_open_reads_and_stores_nothing(store: Store, cache: Path) -> None:
    entry = make(store, "a", b"content")
    place_of(store, entry).write_bytes(b"CONTENT")
    assert open_files(store, entry, verify=False) == {"a": place_of(store, entry)}
    assert not cache.exists()


def test_damaged_file_among_several_is_named(store: Store, cache: Path) -> None:
    entries = [make(store, str(i), bytes([i]) * 1000) for i in range(20)]
    assert list(open_files(store, *entries)) == [entry.name for entry in entries]
    flip(place_of(store, entries[13]))
    with pytest.raises(CatalogError, match="versions/v1/13 must have sha256"):
        open_files(store, *entries)


# ---------------------------------------------------------------------------------------------------- the folder


def test_old_entries_are_deleted(store: Store, cache: Path) -> None:
    open_files(store, make(store, "a", b"content"))
    (old,) = (cache / "marks").iterdir()
    left = cache / "marks" / "left.partial"
    left.write_bytes(b"")
    for path in (old, left):
        os.utime(path, (time.time(), time.time() - 91 * 86_400))
    open_files(store, make(store, "b", b"another"))
    assert not old.exists()
    assert not left.exists()
    assert len(list((cache / "marks").iterdir())) == 1


def test_cache_folders_are_private(store: Store, cache: Path) -> None:
    open_files(store, make(store, "a", b"content"))
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, cache / "marks")] == [0o700, 0o700]


@pytest.mark.parametrize("why", ["it cannot be made", "others may write to it", "it is another user's"])
def test_unsafe_folder_disables_the_cache_without_errors(
    store: Store, cache: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "it cannot be made":
        cache.write_bytes(b"a file")
        folder = cache / "below"
        monkeypatch.setenv(CACHE.variable, str(folder))
    else:
        if why == "it is another user's" and os.geteuid() != 0:
            pytest.skip("only root may give a folder to another user: run it as root")
        folder = cache
        entry = make(store, "a", b"content")
        open_files(store, entry)  # a valid entry
        if why == "others may write to it":
            cache.chmod(0o777)
        else:
            os.chown(cache, 12345, -1)
    entry = make(store, "b", b"another")
    remember(place_of(store, entry), "0" * 64)
    assert open_files(store, entry) == {"b": place_of(store, entry)}
    assert verification_cache_for(folder).known(place_of(store, entry)) is None
    assert not folder.exists() or len(list((folder / "marks").iterdir())) == 1


def test_cache_folder_comes_from_the_environment_or_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE.variable, str(tmp_path / "named"))
    assert CACHE.path() == tmp_path / "named"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(CACHE.variable, "named")
    assert CACHE.path() == tmp_path / "named"
    monkeypatch.delenv(CACHE.variable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "system"))
    assert CACHE.path().name == "epithre-beam"
    assert CACHE.path().is_absolute()
