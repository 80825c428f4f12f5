"""Files appear atomically, a swap has one winner, and a store never shows its credentials."""

import errno
import gc
import hashlib
import io
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs.errors import StoreError, SwapConflictError
from epithre_beam.index.storage.store import HashingWriter, Store, sha256_of

RACERS = 8


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    url = str(tmp_path / "c") if request.param == "local" else f"memory://{uuid.uuid4().hex}/c"
    yield Store(url)
    Store(url).delete("")


class GivenUpError(Exception):
    pass


def write_half(store: Store, name: str) -> None:
    """Start to write a file, then raise."""
    with store.open_write(name) as file:
        file.write(b"half of it")
        raise GivenUpError


def write_half_a_table(store: Store, name: str) -> None:
    table = pa.table({"a": range(1000)})
    with store.open_write(name) as file, pq.ParquetWriter(pa.PythonFile(file, mode="w"), table.schema) as writer:
        writer.write_table(table)
        raise GivenUpError


# ---------------------------------------------------------------------------------------------------- atomic files


@pytest.mark.parametrize("old", [None, b"", b"old content"], ids=["absent", "empty", "old"])
def test_failed_write_keeps_the_old_content(store: Store, old: bytes | None) -> None:
    if old is not None:
        store.write("a/b.bin", old)
    with pytest.raises(GivenUpError):
        write_half(store, "a/b.bin")
    assert store.size("a/b.bin") == (None if old is None else len(old))
    assert store.names("") == ([] if old is None else ["a/b.bin"])
    if old is not None:
        assert store.read("a/b.bin") == old


def test_file_is_invisible_until_complete(store: Store) -> None:
    store.write("a", b"old")
    with store.open_write("a") as file:
        file.write(b"new " * 100_000)
        file.flush()
        assert store.read("a") == b"old"
        assert store.names("") == ["a"]
    assert store.read("a") == b"new " * 100_000


def test_failed_parquet_writer_leaves_no_file(store: Store) -> None:
    with pytest.raises(GivenUpError):
        write_half_a_table(store, "t.parquet")
    assert store.size("t.parquet") is None


@pytest.mark.parametrize("moment", ["during", "before the end"])
def test_killed_writer_keeps_the_old_content(tmp_path: Path, moment: str) -> None:
    """After SIGKILL, no handler and no `finally` of the child runs."""
    store = Store(str(tmp_path / "c"))
    store.write("f.bin", b"old")
    program = (
        "import sys\n"
        "from epithre_beam.index.storage.store import Store\n"
        "with Store(sys.argv[1]).open_write('f.bin') as file:\n"
        "    file.write(b'x' * 3_000_000)\n"
        "    file.flush()\n"
        "    print('half', flush=True)\n"
        "    while sys.argv[2] == 'during':\n"
        "        file.write(b'y' * 1000)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, store.url, moment]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        os.kill(child.pid, signal.SIGKILL)
        child.wait(20)
    assert child.returncode == -signal.SIGKILL
    assert store.read("f.bin") == b"old"
    assert store.names("") == ["f.bin"]
    assert len(list((tmp_path / "c").iterdir())) == 2  # the partial file exists, but is not listed
    store.write("f.bin", b"new")
    assert store.read("f.bin") == b"new"


def test_concurrent_writers_of_one_name_do_not_mix(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    contents = [bytes([i]) * 200_000 for i in range(RACERS)]

    def write(content: bytes) -> None:
        with store.open_write("f") as file:
            for start in range(0, len(content), 10_000):
                file.write(content[start : start + 10_000])

    with ThreadPoolExecutor(RACERS) as pool:
        list(pool.map(write, contents))
    assert store.read("f") in contents
    assert store.names("") == ["f"]


class UploadingFile(AbstractBufferedFile):
    """Uploads blocks like an object store; the file appears with the last block."""

    def _initiate_upload(self) -> None:
        self.blocks = b""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.blocks += self.buffer.getvalue()
        if final:
            self.fs.files[self.path] = self.blocks
        return True


class UploadingFileSystem(AbstractFileSystem):
    protocol = "uploading"
    cachable = False
    root_marker = ""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.files: dict[str, bytes] = {}

    def _open(self, path: str, mode: str = "rb", **options: object) -> io.IOBase:
        assert mode == "wb"
        return UploadingFile(self, path, mode, **options)


def test_failed_upload_is_never_completed() -> None:
    """By default, buffered files of fsspec upload their content when they are garbage-collected."""
    fsspec.register_implementation("uploading", UploadingFileSystem, clobber=True)
    store = Store("uploading://bucket")
    with store.open_write("whole") as file:
        file.write(b"all of it")
    with pytest.raises(GivenUpError):
        write_half(store, "half")
    gc.collect()
    assert list(store.fs.files.values()) == [b"all of it"]


# ---------------------------------------------------------------------------------------------------- swap


def test_swap_succeeds_only_with_the_expected_content(store: Store) -> None:
    store.swap("LATEST", None, b"one")
    for expected in (None, b"", b"two", b"one "):
        with pytest.raises(SwapConflictError, match="LATEST: another run changed it"):
            store.swap("LATEST", expected, b"other")
        assert store.read("LATEST") == b"one"
    store.swap("LATEST", b"one", b"two")
    assert store.read("LATEST") == b"two"
    assert store.names("") == ["LATEST"]  # the lock is not a file of the catalog


def race(url: str, number: int, start: object) -> bool:
    """Try to replace `old` with the own number. Return whether it succeeded."""
    start.wait()  # type: ignore[attr-defined]
    try:
        Store(url).swap("LATEST", b"old", str(number).encode())
    except SwapConflictError:
        return False
    return True


def test_one_of_racing_processes_wins_a_swap(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        store.write("LATEST", b"old")
        start, results = context.Barrier(RACERS), context.Queue()

        def run(number: int, start: object = start, results: object = results) -> None:
            results.put((number, race(store.url, number, start)))  # type: ignore[attr-defined]

        children = [context.Process(target=run, args=(i,)) for i in range(RACERS)]
        for child in children:
            child.start()
        won = [number for number, winner in (results.get(timeout=20) for _ in children) if winner]
        for child in children:
            child.join(20)
        assert len(won) == 1
        assert store.read("LATEST") == str(won[0]).encode()


def test_racing_threads_lose_no_swap(store: Store) -> None:
    store.write("n", b"0")

    def count_up(_: int) -> int:
        done = 0
        while done < 20:
            found = store.read("n")
            try:
                store.swap("n", found, str(int(found) + 1).encode())
                done += 1
            except SwapConflictError:
                continue
        return done

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count_up, range(4)))
    assert store.read("n") == b"80"


def test_create_raises_if_the_file_exists(store: Store) -> None:
    store.create("a/b", b"one")
    for content in (b"one", b"two"):
        with pytest.raises(FileExistsError, match="a/b already exists"):
            store.create("a/b", content)
    assert store.read("a/b") == b"one"
    store.delete("a/b")
    store.create("a/b", b"two")
    assert store.names("") == ["a/b"]


def test_one_of_racing_threads_creates_a_complete_file(store: Store) -> None:
    contents = [bytes([65 + i]) * 300_000 for i in range(RACERS)]
    for turn in range(5):
        name, start = f"turn {turn}", threading.Barrier(RACERS + 1)

        def create(content: bytes, name: str = name, start: threading.Barrier = start) -> bool:
            start.wait()
            try:
                store.create(name, content)
            except FileExistsError:
                return False
            return True

        with ThreadPoolExecutor(RACERS) as pool:
            won = [pool.submit(create, content) for content in contents]
            start.wait()
            while store.size(name) is None:
                continue
            assert store.read(name) in contents
        assert sum(future.result() for future in won) == 1
        assert store.read(name) == contents[[future.result() for future in won].index(True)]


def create_alone(url: str, number: int) -> bool:
    try:
        Store(url).create("lease", str(number).encode())
    except FileExistsError:
        return False
    return True


def test_one_of_racing_processes_creates_the_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    rounds = 10
    starts = [context.Barrier(4) for _ in range(rounds)]
    results = context.Queue()

    def run(number: int) -> None:
        for i, start in enumerate(starts):
            start.wait(20)
            results.put((i, number, create_alone(str(tmp_path / str(i)), number)))

    children = [context.Process(target=run, args=(number,)) for number in range(4)]
    for child in children:
        child.start()
    outcomes = [results.get(timeout=30) for _ in range(4 * rounds)]
    for child in children:
        child.join(20)
    for i in range(rounds):
        (winner,) = [number for turn, number, won in outcomes if turn == i and won]
        assert Store(str(tmp_path / str(i))).read("lease") == str(winner).encode()


def test_delete_if_needs_the_expected_content(store: Store) -> None:
    store.write("a", b"mine")
    assert not store.delete_if("a", b"other")
    assert store.read("a") == b"mine"
    assert store.delete_if("a", b"mine")
    assert not store.delete_if("a", b"mine")
    assert store.size("a") is None


def test_probe_does_nothing_without_conditional_writes(store: Store) -> None:
    store.probe()
    assert store.names("") == []


# ---------------------------------------------------------------------------------------------------- reading


def test_size_is_none_only_for_missing_files(store: Store) -> None:
    store.write("folder/empty", b"")
    store.write("folder/seven", b"1234567")
    assert store.size("folder/empty") == 0
    assert store.size("folder/seven") == 7
    assert store.size("absent") is None
    assert store.size("absent/file") is None
    assert store.size("folder") is None  # a folder is not a file
    with pytest.raises(FileNotFoundError):
        store.read("absent")


def test_size_raises_for_other_failures(tmp_path: Path) -> None:
    """A failure must not look like a missing file, or a run would embed again."""
    store = Store(str(tmp_path))
    (tmp_path / "loop").symlink_to("loop2")
    (tmp_path / "loop2").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"x")
    for name, number in (("n" * 300, errno.ENAMETOOLONG), ("file/below", errno.ENOTDIR)):
        with pytest.raises(OSError, match=r".") as caught:
            store.size(name)
        assert caught.value.errno == number


def test_names_lists_files_below_a_folder_in_order(store: Store) -> None:
    for name in ("b/2", "b/1", "a", "b/c/3", "ba"):
        store.write(name, b"x")
    assert store.names("b") == ["b/1", "b/2", "b/c/3"]
    assert store.names("") == ["a", "b/1", "b/2", "b/c/3", "ba"]
    assert store.names("absent") == []
    assert store.names("a") == ["a"]


def test_names_skips_partial_and_hidden_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("units/u.parquet", b"x")
    (tmp_path / "units" / ".u.parquet.0123.partial").write_bytes(b"half")
    (tmp_path / ".LATEST.json.lock").touch()
    with store.open_write("units/v.parquet") as file:
        file.write(b"half")
        assert store.names("") == ["units/u.parquet"]
    assert store.names("") == ["units/u.parquet", "units/v.parquet"]


def test_delete_removes_files_and_folders_and_ignores_missing(store: Store) -> None:
    for name in ("runs/1/a", "runs/1/b", "runs/2"):
        store.write(name, b"x")
    store.delete("runs/1")
    assert store.names("") == ["runs/2"]
    store.delete("runs/1")
    store.delete("runs/2")
    assert store.names("") == []


@settings(max_examples=50, deadline=None)
@given(chunks=st.lists(st.binary(max_size=300) | st.sampled_from([b"x" * (1 << 16), b"y" * (1 << 17)]), max_size=10))
def test_written_data_is_read_back_with_length_and_sha256(chunks: list[bytes]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    with store.open_write("f") as file:
        for i, chunk in enumerate(chunks):
            assert file.tell() == len(b"".join(chunks[:i]))
            assert file.write(memoryview(chunk) if i % 2 else chunk) == len(chunk)
    data = b"".join(chunks)
    assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert store.read("f") == data
    with store.open_read("f") as opened:
        assert sha256_of(opened) == file.sha256
    store.delete("f")


class _Full(io.BytesIO):
    """A file on a disk that takes 1 MB."""

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > 1 << 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("pieces", [9, 30])
def test_an_error_of_the_writing_thread_is_raised(pieces: int) -> None:
    """By a later write, or at the end of the block if there is none."""

    def fill() -> None:
        with HashingWriter(_Full()) as file:
            for _ in range(pieces):
                file.write(bytes(1 << 17))

    with pytest.raises(OSError, match="No space left"):
        fill()


def test_a_block_that_fails_leaves_no_thread_behind(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def fail() -> None:
        with store.open_write("f") as file:
            for _ in range(20):
                file.write(bytes(1 << 17))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("write")]
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_file_has_no_sum(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.open_write("f", is_temporary=True) as file:
        file.write(b"x")
        with pytest.raises(ValueError, match="not hashed"):
            _ = file.sha256
    assert store.read("f") == b"x"


def test_hashing_writer_counts_bytes_not_elements() -> None:
    file = HashingWriter(io.BytesIO())
    assert file.write(memoryview(bytes(24)).cast("d")) == 24
    assert file.size_bytes == 24


# ---------------------------------------------------------------------------------------------------- Store objects


def test_pickled_store_reads_the_same_files(tmp_path: Path) -> None:
    store = Store(str(tmp_path), {"auto_mkdir": True})
    store.write("f", b"x")
    again = pickle.loads(pickle.dumps(store))
    assert again.read("f") == b"x"
    assert again.url == store.url


def test_repr_shows_the_url_but_not_the_options() -> None:
    store = Store("memory://bucket/c", {"secret": "s3cr3t"})
    assert repr(store) == "Store('memory://bucket/c')"
    assert "s3cr3t" not in f"{store} {store!r}"


def test_forked_process_creates_its_own_connection(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    before = store.fs
    assert store.fs is before
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.write(writer, b"own" if store.fs is not before else b"shared")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"own"
    os.close(reader)
    os.close(writer)


def test_local_path_raises_for_remote_stores(tmp_path: Path) -> None:
    assert Store(str(tmp_path)).local_path("a/b") == tmp_path / "a" / "b"
    assert Store(f"file://{tmp_path}/").local_path("a") == tmp_path / "a"
    with pytest.raises(StoreError, match="memory://c is not on a local disk"):
        Store("memory://c").local_path("a")


def test_relative_url_is_resolved_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store("c").write("f", b"x")
    assert Store(str(tmp_path / "c")).names("") == ["f"]
