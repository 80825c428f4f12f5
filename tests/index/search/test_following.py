"""A following catalog: no search fails or sees two versions, and old versions leave no resources."""

import contextlib
import gc
import logging
import multiprocessing
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest

from epithre_beam.index import FollowingCatalog, Manifest, Store, open_catalog, read_latest, read_manifest
from epithre_beam.index.publish.prune import PruneRules, prune
from epithre_beam.index.publish.publish import publish
from epithre_beam.index.versions.latest import Latest, latest_bytes
from epithre_beam.index.versions.layout import LATEST, READERS, manifest_name
from epithre_beam.index.versions.readers import read_holds

from ...s3_server import S3Server, s3_store

Floats = npt.NDArray[np.float32]

NAMES = tuple(f"00000{n}-20250102T030405Z-abcdef" for n in (1, 2))
NEVER_S = 3600.0
SWAPS = 10
DIMENSION = 16


def numbers_of(version: str) -> range:
    """Return the numbers of a version's assets. No other version has any of them."""
    first = int(version[:6]) * 1000
    return range(first, first + 60)


def versions_in(hits: Any) -> set[int]:
    return {int(hit.asset_id.split()[1]) // 1000 for one in hits for hit in one}


@pytest.fixture(scope="module")
def two(make_catalog: Any, add_version: Any, draw_vectors: Any) -> Any:
    """A catalog of two versions without common assets. Only for copying."""

    def drawn(seed: int) -> dict[str, Floats]:
        return {"image": draw_vectors(60, DIMENSION, seed), "text": draw_vectors(60, DIMENSION, seed + 1)}

    numbers = [{"image": numbers_of(name), "text": numbers_of(name)} for name in NAMES]
    made = make_catalog(drawn(1), version=NAMES[0], numbers=numbers[0])
    add_version(made.folder, drawn(7), version=NAMES[1], previous=NAMES[0], numbers=numbers[1])
    return made


class Published:
    """A private catalog that switches between two current versions."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.put(0)

    def put(self, number: int) -> str:
        latest = read_latest(self.store)
        publish(self.store, read_manifest(self.store, NAMES[number]), None if latest is None else latest.data)
        return NAMES[number]

    def change_manifest(self, number: int, **changes: Any) -> Manifest:
        """Write a changed manifest for a version."""
        manifest = read_manifest(self.store, NAMES[number]).model_copy(update=changes)
        self.store.write(manifest_name(manifest.version), manifest.to_bytes())
        return manifest


@pytest.fixture
def catalog_of(two: Any, tmp_path: Path) -> Published:
    return Published(Store(str(shutil.copytree(two.folder, tmp_path / "c"))))


def following(published: Published, every_s: float = NEVER_S, **options: Any) -> FollowingCatalog:
    return open_catalog(published.store.url, follow=True, follow_every_s=every_s, **options)


def queries(rows: int = 4) -> Floats:
    drawn = np.random.default_rng(3).standard_normal((rows, DIMENSION))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def wait_until(is_so: Callable[[], Any], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def mapped_files(folder: str) -> set[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if folder in line}


@contextlib.contextmanager
def searching(catalog: FollowingCatalog, threads: int, ask: Callable[[], None]) -> Iterator[Callable[[], int]]:
    """Call `ask` in `threads` threads without a pause and check that none fails. Yields a call counter."""
    over, asked = threading.Event(), [0] * threads

    def go_on(thread: int) -> None:
        while not over.is_set():
            ask()
            asked[thread] += 1

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(go_on, thread) for thread in range(threads)]
        try:
            yield lambda: sum(asked)
        finally:
            over.set()
        for future in futures:
            future.result(20)
    assert min(asked) > 0


# ---------------------------------------------------------------------------------------------------- swapping


def test_each_search_sees_one_version_during_swaps(catalog_of: Published) -> None:
    asked, where = queries(), pc.field("size_bytes") > 0
    expected = []
    for name in NAMES:
        with open_catalog(catalog_of.store.url, version=name) as catalog:
            expected.append(catalog.search(asked, 10, where=where))
    assert [versions_in(hits) for hits in expected] == [{1}, {2}]
    seen: set[int] = set()

    def ask() -> None:
        seen.add(expected.index(catalog.search(asked, 10, where=where)))

    with following(catalog_of) as catalog, searching(catalog, 8, ask) as count:
        for swap in range(SWAPS):
            before = count()
            catalog_of.put((swap + 1) % 2)
            assert catalog.refresh()
            wait_until(lambda before=before: count() > before)  # type: ignore[misc]
    assert seen == {0, 1}


def test_calls_within_a_pin_use_one_version(catalog_of: Published) -> None:
    def ask() -> None:
        with catalog.pinned() as version:
            name = version.version
            (hits,) = version.search(queries(1), 5)
            for hit in hits:
                assert version.find_asset(hit.kind, hit.asset_id) == hit.row  # type: ignore[arg-type]
                assert version.asset(hit.kind, hit.row).asset_id == hit.asset_id  # type: ignore[arg-type]
                assert version.assets(hit.kind)["asset_id"][hit.row].as_py() == hit.asset_id  # type: ignore[arg-type]
                assert versions_in([[hit]]) == {int(name[:6])}
            assert (version.version, version.manifest.version) == (name, name)

    with following(catalog_of) as catalog, searching(catalog, 4, ask) as count:
        for swap in range(SWAPS):
            before = count()
            catalog_of.put((swap + 1) % 2)
            assert catalog.refresh()
            wait_until(lambda before=before: count() > before)  # type: ignore[misc]


def test_pin_of_a_plain_catalog_is_the_catalog_itself(two: Any) -> None:
    with two.open() as catalog, catalog.pinned() as version:
        assert version is catalog


def test_old_version_is_released_after_its_last_search(catalog_of: Published) -> None:
    folder = catalog_of.store.url
    with following(catalog_of) as catalog:
        with catalog.pinned() as version:
            expected = version.search(queries())
            catalog_of.put(1)
            assert catalog.refresh()
            assert catalog.version == NAMES[1]
            assert any(NAMES[0] in path for path in mapped_files(folder))
            assert version.search(queries()) == expected
        del version
        assert mapped_files(folder)
        assert all(NAMES[1] in path for path in mapped_files(folder))
    assert mapped_files(folder) == set()


def test_swaps_leak_no_maps_descriptors_or_threads(catalog_of: Published) -> None:
    def counted() -> tuple[int, int, int]:
        maps = Path("/proc/self/maps").read_text().count(catalog_of.store.url)
        return maps, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    with following(catalog_of, hold_s=60) as catalog:
        for swap in range(21):
            catalog_of.put((swap + 1) % 2)
            assert catalog.refresh()
            catalog.search(queries())
            if swap == 0:
                wait_until(lambda: len(read_holds(catalog_of.store).readers) == 1)
                time.sleep(0.05)  # let the thread of the released hold end
                first = counted()
        wait_until(lambda: counted() <= first)
        assert list(read_holds(catalog_of.store).readers) == [catalog.version]


def test_new_version_is_used_within_the_interval(catalog_of: Published, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "epithre_beam")
    with following(catalog_of, every_s=0.2) as catalog:
        for number in (1, 0):
            name = catalog_of.put(number)
            wait_until(lambda name=name: catalog.version == name)  # type: ignore[misc]
        assert not catalog.refresh()
        catalog_of.put(0)  # LATEST.json changes, but names the same version
        assert not catalog.refresh()
    assert [record.getMessage().rsplit(" ", 1)[1] for record in caplog.records] == [f"{NAMES[1]}.", f"{NAMES[0]}."]


def test_follow_works_in_a_bucket_and_in_a_fork(two: Any, s3_server: S3Server, tmp_path: Path) -> None:
    store = s3_store(s3_server.port, secrets.token_hex(8))
    for name in two.store.names(""):
        store.write(name, two.store.read(name))
    published = Published(store)
    options = {"storage_options": store._options, "cache_folder": tmp_path / "cache"}
    with following(published, every_s=0.3, **options) as catalog:
        assert versions_in(catalog.search(queries())) == {1}
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                wait_until(lambda: versions_in(catalog.search(queries())) == {2})
                os._exit(0)
            os._exit(1)
        published.put(1)
        wait_until(lambda: catalog.version == NAMES[1])
        assert versions_in(catalog.search(queries())) == {2}
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------------------------------------------- failures


def damage_latest(published: Published) -> None:
    published.store.write(LATEST, published.store.read(LATEST)[:-9])


def damage_index(published: Published) -> None:
    published.put(1)
    path = next(Path(published.store.url).glob(f"versions/{NAMES[1]}/index/image*.faiss"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def name_nothing(published: Published) -> None:
    published.store.write(LATEST, latest_bytes("000009-20250102T030405Z-abcdef", "0" * 64))


def another(published: Published, **changes: Any) -> None:
    manifest = published.change_manifest(1, **changes)
    latest = read_latest(published.store)
    publish(published.store, manifest, None if latest is None else latest.data)


FAULTS: dict[str, tuple[Callable[[Published], None], str]] = {
    "LATEST is missing": (lambda published: published.store.delete(LATEST), r"LATEST\.json is missing"),
    "LATEST is damaged": (damage_latest, r"LATEST\.json must have a version"),
    "LATEST names nothing": (name_nothing, r"manifest\.json is missing"),
    "the index is damaged": (damage_index, r"\.faiss must have sha256"),
    "a newer format": (
        lambda published: another(published, format_version=99),
        "has format 99, but this release reads",
    ),
    "another model": (
        lambda published: another(published, model="m2"),
        "has model 'm2', but the open version has 'a model'",
    ),
    "another emulator": (lambda published: another(published, model_fingerprint="e"), "has model_fingerprint 'e'"),
    "another dimension": (
        lambda published: another(published, dimension=8),
        "has dimension 8, but the open version has 16",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_unreadable_version_keeps_the_old_one_and_is_logged_once(
    catalog_of: Published, fault: str, caplog: pytest.LogCaptureFixture, two: Any
) -> None:
    break_it, sentence = FAULTS[fault]
    with following(catalog_of) as catalog:
        expected = catalog.search(queries())
        break_it(catalog_of)
        for _ in range(3):
            assert not catalog.refresh()
            assert catalog.last_refresh_error is not None
            assert re.search(sentence, catalog.last_refresh_error)
            assert catalog.search(queries()) == expected
        (record,) = caplog.records
        assert (record.levelname, record.name) == ("WARNING", "epithre_beam.index.search.following")
        assert catalog.last_refresh_error in record.getMessage()
        assert NAMES[0] in record.getMessage()
        shutil.copytree(two.folder, catalog_of.store.url, dirs_exist_ok=True)
        catalog_of.store.delete(LATEST)
        catalog_of.put(1)
        assert catalog.refresh()
        assert catalog.last_refresh_error is None
        assert versions_in(catalog.search(queries())) == {2}


def test_refused_version_is_retried_with_a_backoff(catalog_of: Published) -> None:
    """Opening a version may read gigabytes."""
    damage_index(catalog_of)
    damaged = catalog_of.store.read(LATEST)
    catalog_of.put(0)
    with following(catalog_of, every_s=0.05) as catalog:
        opened: list[str] = []
        really = catalog._open_like

        def count(latest: Latest, like: Manifest) -> Any:
            opened.append(latest.version)
            return really(latest, like)

        catalog._open_like = count
        catalog_of.store.write(LATEST, damaged)
        wait_until(lambda: catalog.last_refresh_error is not None)
        time.sleep(1.0)  # time for twenty checks
        assert 2 <= len(opened) <= 5
        assert catalog.last_refresh_error is not None
        before = len(opened)
        assert not catalog.refresh()  # an explicit refresh always retries
        assert len(opened) == before + 1
        catalog_of.put(0)
        wait_until(lambda: catalog.last_refresh_error is None)


def test_hold_protects_the_searched_version_until_the_swap(
    catalog_of: Published,
) -> None:
    catalog_of.put(1)
    catalog_of.put(0)
    rules = PruneRules(keep=1)
    with following(catalog_of, hold_s=60) as catalog:
        catalog_of.put(1)
        prune(catalog_of.store, rules)
        assert list(read_holds(catalog_of.store).readers) == [NAMES[0]]
        assert versions_in(catalog.search(queries())) == {1}
        assert catalog.refresh()
        assert list(read_holds(catalog_of.store).readers) == [NAMES[1]]
    assert read_holds(catalog_of.store) == ({}, [])


def test_deleted_catalog_stays_searchable_and_is_followed_when_restored(catalog_of: Published, two: Any) -> None:
    with following(catalog_of, hold_s=0.3, every_s=0.05) as catalog:
        expected = catalog.search(queries())
        Path(catalog_of.store.url).rename(catalog_of.store.url + ".gone")
        wait_until(lambda: catalog.last_refresh_error is not None)
        # And why: there is no such folder, or one that the hold has made anew, with nothing else in it.
        assert "there is no catalog here" in str(catalog.last_refresh_error)
        assert catalog.search(queries()) == expected
        rows = np.arange(60)
        np.testing.assert_allclose(catalog.vectors("image", rows), two.vectors["image"], atol=1e-3)
        shutil.copytree(two.folder, catalog_of.store.url, dirs_exist_ok=True)  # the hold may have created it again
        wait_until(lambda: catalog.version == NAMES[1])
        assert catalog.last_refresh_error is None


# ---------------------------------------------------------------------------------------------------- closing


def test_close_does_not_break_running_searches(catalog_of: Published) -> None:
    catalog = following(catalog_of, every_s=0.01)
    expected = catalog.search(queries())
    answered = [0] * 4

    def ask(number: int) -> None:
        while True:
            assert catalog.search(queries()) == expected
            answered[number] += 1

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(4)]
        try:
            wait_until(lambda: all(answered) or any(future.done() for future in asked))
        finally:
            catalog.close()
        for future in asked:
            with pytest.raises(ValueError, match="closed"):
                future.result(20)
    assert all(answered)
    catalog.close()  # again is no error
    catalog_of.put(1)
    assert not catalog.refresh()
    assert catalog.version == NAMES[0]
    with pytest.raises(ValueError, match="closed"):
        len(catalog)
    assert repr(catalog) == (
        f"FollowingCatalog({catalog_of.store.url!r}, version={NAMES[0]!r}, assets={{'image': 60, 'text': 60}})"
    )


def test_version_opened_during_close_is_released(catalog_of: Published) -> None:
    catalog = following(catalog_of, hold_s=60)
    really, begun, may_go_on = catalog._open_like, threading.Event(), threading.Event()

    def slowly(latest: Latest, like: Manifest) -> Any:
        begun.set()
        may_go_on.wait(20)
        return really(latest, like)

    catalog._open_like = slowly
    catalog_of.put(1)
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(catalog.refresh)
        begun.wait(20)
        catalog.close()  # does not wait for the refresh
        may_go_on.set()
        assert not looking.result(20)
    assert mapped_files(catalog_of.store.url) == set()
    assert read_holds(catalog_of.store) == ({}, [])


def test_garbage_collected_catalog_releases_its_resources(catalog_of: Published) -> None:
    catalog = following(catalog_of, every_s=0.05, hold_s=60)
    threads = [thread for thread in threading.enumerate() if thread.name == "catalog-follow"]
    del catalog
    gc.collect()
    wait_until(lambda: not any(thread.is_alive() for thread in threads))
    assert mapped_files(catalog_of.store.url) == set()
    assert list((Path(catalog_of.store.url) / READERS).iterdir()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"follow_every_s": 0}, "follow_every_s must be a positive number of seconds, got 0"),
        ({"follow_every_s": float("nan")}, "follow_every_s must be a positive number of seconds, got nan"),
        ({"version": NAMES[0]}, "follow=True cannot be combined with a version, got version="),
    ],
    ids=str,
)
def test_invalid_follow_arguments_raise(two: Any, options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        open_catalog(two.folder, follow=True, **options)


# ---------------------------------------------------------------------------------------------------- forks

FORK_PROGRAM = """
import multiprocessing, os, sys, threading, time
import numpy as np
from epithre_beam.index import open_catalog

folder, old, new, children = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
catalog = open_catalog(folder, follow=True, follow_every_s=0.02, hold_s=60)
queries = np.random.default_rng(3).standard_normal((40, catalog.dimension)).astype(np.float32)
over = threading.Event()

def search():
    while not over.is_set():
        catalog.search(queries, 10)
        catalog.search(queries[:1], 10, where=None)
        catalog.refresh()

def follow_as_a_child():
    assert catalog.version == old
    catalog.search(queries, 10)
    os.write(1, b"searched" + bytes([10]))
    while catalog.version != new:
        time.sleep(0.01)
    assert len(catalog.search(queries, 10)) == len(queries)
    catalog.close()

def child_of(kind):
    if kind == "multiprocessing":
        process = multiprocessing.get_context("fork").Process(target=follow_as_a_child)
        process.start()
        return lambda: (process.join(), process.exitcode)[1]
    pid = os.fork()
    if not pid:
        try:
            follow_as_a_child()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

threads = [threading.Thread(target=search) for _ in range(4)]
for thread in threads:
    thread.start()
waits = [child_of(("fork", "multiprocessing")[n % 2]) for n in range(children)]
sys.stdin.readline()
codes = [wait() for wait in waits]
while catalog.version != new:
    time.sleep(0.01)
over.set()
for thread in threads:
    thread.join()
catalog.close()
sys.exit(max(codes))
"""


def test_forked_processes_search_and_follow_on_their_own(catalog_of: Published) -> None:
    """The threads of the parent may hold any lock at the fork."""
    children = 12
    command = [sys.executable, "-W", "ignore", "-c", FORK_PROGRAM, catalog_of.store.url, *NAMES, str(children)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert process.stdout is not None
    try:
        for _ in range(children):
            assert process.stdout.readline() == "searched\n"
        catalog_of.put(1)
        _, errors = process.communicate("go on\n", timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert read_holds(catalog_of.store).readers == {}


def test_fork_holds_its_own_version(catalog_of: Published) -> None:
    with following(catalog_of, hold_s=60, every_s=0.02) as catalog:
        asked, reported = multiprocessing.get_context("fork").Pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                catalog.search(queries())
                wait_until(lambda: not catalog._is_copy)
                asked.recv()
                catalog.close()
            os._exit(0)
        try:
            wait_until(lambda: len(list((Path(catalog_of.store.url) / READERS).iterdir())) == 2)
        finally:
            reported.send("end")
            os.waitpid(child, 0)
        wait_until(lambda: len(list((Path(catalog_of.store.url) / READERS).iterdir())) == 1)
