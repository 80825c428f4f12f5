"""Only one process holds a catalog. A dead holder is replaced at once on its machine, else after a ttl."""

import contextlib
import datetime
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from epithre_beam.configs.errors import CatalogBusyError, LeaseLostError, SwapConflictError
from epithre_beam.index import Store
from epithre_beam.index.versions.holder import Holder, check_holder, make_holder, read_holder, utc_now
from epithre_beam.index.versions.lease import LEASE, hold, release_all

from ...s3_server import Proxy, S3Server, s3_store

TTL_S = 0.6
PROGRAM = """
import os, sys
from epithre_beam.index import Store
from epithre_beam.index.versions.lease import hold
with hold(Store(sys.argv[1]), "run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "catalog"))


@contextlib.contextmanager
def holding_process(store: Store) -> Iterator[subprocess.Popen[bytes]]:
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, store.url], **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def holder_of(store: Store) -> Holder:
    holder = read_holder(store.read(LEASE))
    assert holder is not None
    return holder


def write_lease(store: Store, **changes: Any) -> bytes:
    """Write the lease of a process on another machine, renewed a second ago, with `changes`."""
    then = utc_now() - datetime.timedelta(seconds=1)
    elsewhere = {"host": "elsewhere", "machine": "other", "process": 7, "started": "1", "renewed_at": then}
    data = make_holder("run", "theirs", TTL_S).model_copy(update=elsewhere | changes).to_bytes()
    store.write(LEASE, data)
    return data


def assert_busy(store: Store, *words: str) -> None:
    """Check that a second hold is refused at once."""
    began = time.monotonic()
    with pytest.raises(CatalogBusyError) as caught, hold(store, "run", ttl_s=60):
        pass
    assert time.monotonic() - began < TTL_S
    for word in words:
        assert word in str(caught.value)


# ---------------------------------------------------------------------------------------------------- one at a time


def test_lease_is_held_until_the_block_ends_or_raises(store: Store) -> None:
    with hold(store, "prune") as lease:
        found = holder_of(store)
        assert found == lease.holder
        assert (found.purpose, found.process) == ("prune", os.getpid())
        assert store.names("") == []  # the lease is not a file of the catalog
        lease.check()
        assert_busy(store, f"catalog {store.url}: another prune is under way (process {os.getpid()} on ", "Wait until")
        with ThreadPoolExecutor(1) as pool:
            pool.submit(assert_busy, store).result()
    assert store.size(LEASE) is None
    with pytest.raises(ZeroDivisionError), hold(store, "run"):
        raise ZeroDivisionError
    assert store.size(LEASE) is None


def test_store_in_memory_is_held_by_one_thread() -> None:
    store = Store("memory://lease/catalog")
    with hold(store, "run"):
        assert_busy(store)
    assert store.size(LEASE) is None


def test_running_holder_is_named_and_keeps_its_lease(store: Store) -> None:
    with holding_process(store) as process:
        before = store.read(LEASE)
        assert_busy(store, "another run is under way", f"process {process.pid} on ", "Wait until it has ended.")
        assert store.read(LEASE) == before
        process.communicate(timeout=20)  # its block ends
    assert store.size(LEASE) is None


def count_up(url: str, times: int) -> None:
    store, done = Store(url), 0
    while done < times:
        with contextlib.suppress(CatalogBusyError), hold(store, "run"):
            number = int(store.read("n"))
            store.write("n", b"%d" % (number + 1))
            done += 1


@pytest.mark.parametrize("leftover", [False, True], ids=["free", "of a dead process"])
def test_racing_processes_and_threads_hold_one_at_a_time(store: Store, leftover: bool) -> None:
    """Read, add and write are three steps, so two concurrent holders would lose counts."""
    store.write("n", b"0")
    if leftover:
        with holding_process(store) as process:
            process.kill()
            process.wait()
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=count_up, args=(store.url, 15)) for _ in range(3)]
    for child in children:
        child.start()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: count_up(store.url, 15), range(3)))
    for child in children:
        child.join(60)
    assert store.read("n") == b"90"
    assert store.size(LEASE) is None


def test_fork_neither_renews_nor_releases_the_lease_of_its_parent(store: Store) -> None:
    with hold(store, "run") as lease:
        if not (child := os.fork()):
            with contextlib.suppress(BaseException):
                release_all()
                lease.release()
                with hold(store, "run"):
                    os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert holder_of(store) == lease.holder


# ---------------------------------------------------------------------------------------------------- dead holders


@pytest.mark.parametrize("is_reaped", [True, False], ids=["gone", "zombie"])
def test_killed_holder_is_replaced_at_once(store: Store, is_reaped: bool) -> None:
    for _ in range(3):
        with holding_process(store) as process:
            os.kill(process.pid, signal.SIGKILL)
            if is_reaped:
                process.wait()
            else:
                while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
                    continue
            began = time.monotonic()
            with hold(store, "run") as lease:
                assert time.monotonic() - began < 60  # far less than the ttl of 300 s
                assert holder_of(store) == lease.holder


def test_reused_process_id_is_not_the_holder(store: Store) -> None:
    with holding_process(store) as process:
        real = holder_of(store)
        store.write(LEASE, real.model_copy(update={"started": "12345"}).to_bytes())
        with hold(store, "run") as lease:
            assert holder_of(store) == lease.holder
        process.kill()


def test_unreleased_lease_of_this_process_does_not_block_it(store: Store) -> None:
    store.write(LEASE, make_holder("run", "of an earlier run", 300).to_bytes())
    with hold(store, "run"):
        pass


@pytest.mark.parametrize(
    "changes",
    [{"host": "elsewhere"}, {"machine": "the same boot/another container"}, {"started": None}],
    ids=["host", "container", "no start"],
)
def test_holder_outside_this_machine_is_not_considered_dead(store: Store, changes: dict[str, Any]) -> None:
    dead = make_holder("run", "theirs", 300).model_copy(update={"process": os.getpid(), **changes})
    store.write(LEASE, dead.to_bytes())
    assert_busy(store, "If it is dead, its lease expires 300 s after the last renewal")


# ---------------------------------------------------------------------------------------------------- other machines


def test_remote_holder_within_its_ttl_keeps_its_lease(store: Store) -> None:
    before = write_lease(store, ttl_s=100.0)
    assert_busy(store, "process 7 on elsewhere")
    assert store.read(LEASE) == before


EXPIRED: dict[str, Any] = {
    "expired": {},
    "clock ahead": {"renewed_at": utc_now() + datetime.timedelta(days=400)},
}


@pytest.mark.parametrize("changes", EXPIRED.values(), ids=EXPIRED)
def test_expired_remote_holder_is_watched_for_a_ttl_then_replaced(
    store: Store, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    write_lease(store, **changes)
    began = time.monotonic()
    with hold(store, "run", ttl_s=60) as lease:
        assert time.monotonic() - began >= TTL_S
        assert holder_of(store) == lease.holder
    assert "process 7 on elsewhere" in caplog.text
    assert "Watching it for 0.6 s" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"nonce": "x"}', b"\xff\x00"])
def test_unreadable_lease_is_watched_for_the_callers_ttl(store: Store, content: bytes) -> None:
    store.write(LEASE, content)
    began = time.monotonic()
    with hold(store, "run", ttl_s=TTL_S):
        assert time.monotonic() - began >= TTL_S


@pytest.mark.parametrize(
    "changes",
    [
        *({field: []} for field in Holder.model_fields),
        {"process": 0},  # 0 and negative ids mean process groups
        {"process": -1},
        {"ttl_s": 1e9},  # an absurdly long wait
        {"ttl_s": -1},
        {"renewed_at": "2026-11-22T00:00:00"},  # without a zone it cannot be compared
    ],
    ids=str,
)
def test_lease_with_an_invalid_value_is_not_read(changes: dict[str, Any]) -> None:
    raw = json.loads(make_holder("run", "n", 1).to_bytes())
    assert read_holder(json.dumps(raw).encode()) is not None
    assert read_holder(json.dumps(raw | changes).encode()) is None


def test_holder_that_renews_while_watched_keeps_its_lease(store: Store) -> None:
    """Its clock is slow, but its token changes."""
    data = write_lease(store, ttl_s=5.0, renewed_at=utc_now() - datetime.timedelta(hours=1))
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(lambda: hold(store, "run").__enter__())
        assert not watching.done()
        after, number = data, 0
        while not watching.done():  # whenever it began to watch
            number += 1
            after = write_lease(store, nonce=f"renewed {number}", renewed_at=utc_now() - datetime.timedelta(hours=1))
            time.sleep(0.05)
        with pytest.raises(CatalogBusyError):
            watching.result(20)
    assert store.read(LEASE) == after != data


def test_lease_released_while_watched_is_free(store: Store) -> None:
    data = write_lease(store, ttl_s=20.0, renewed_at=utc_now() - datetime.timedelta(hours=1))
    timer = threading.Timer(0.2, store.delete_if, (LEASE, data))
    timer.start()
    began = time.monotonic()
    with hold(store, "run"):
        assert time.monotonic() - began < 20
    timer.join()


def test_one_of_several_watchers_takes_the_lease(store: Store) -> None:
    write_lease(store)
    start, ends = threading.Barrier(4), threading.Barrier(4)

    def take(_: int) -> bool:
        start.wait()
        try:
            with hold(store, "run", ttl_s=60):
                ends.wait()
                return True
        except CatalogBusyError:
            ends.wait()
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(take, range(4))) == 1
    assert store.size(LEASE) is None


def test_verdict_follows_from_state_and_age() -> None:
    now = utc_now()
    for age_s, verdict in ((0, "busy"), (299, "busy"), (300, "busy"), (301, "watch"), (1e6, "watch"), (-1, "watch")):
        then = now - datetime.timedelta(seconds=age_s)
        assert check_holder("unknown", then, 300, now) == verdict
        assert check_holder("alive", then, 300, now) == "busy"
        assert check_holder("dead", then, 300, now) == "free"


# ---------------------------------------------------------------------------------------------------- renewal


def wait_until(condition: Any, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lease_is_renewed_while_held(store: Store) -> None:
    with hold(store, "run", ttl_s=0.5, renew_s=0.05) as lease:
        wait_until(lambda: holder_of(store).renewals >= 20)
        assert not lease.is_lost
        first, now = lease.holder.acquired_at, holder_of(store).renewed_at
        assert now > first + datetime.timedelta(seconds=0.5)
    assert store.size(LEASE) is None


def test_holder_detects_a_takeover_and_keeps_the_new_lease(store: Store) -> None:
    with hold(store, "run", renew_s=0.05) as lease:
        while True:
            with contextlib.suppress(SwapConflictError):
                theirs = make_holder("run", "theirs", 300).to_bytes()
                store.swap(LEASE, store.read(LEASE), theirs)
                break
        wait_until(lambda: lease.is_lost)
        with pytest.raises(LeaseLostError, match="has taken over the catalog"):
            lease.check()
    assert store.read(LEASE) == theirs


def test_deleted_lease_is_lost(store: Store) -> None:
    with hold(store, "run", renew_s=0.05) as lease:
        store.delete(LEASE)
        wait_until(lambda: lease.is_lost)
    assert store.size(LEASE) is None


def test_storage_outage_loses_the_lease_but_not_the_run(s3_server: S3Server, tmp_path: Path) -> None:
    proxy = Proxy(s3_server.port)
    store = s3_store(proxy.port, tmp_path.name)
    with hold(store, "run", ttl_s=1.0, renew_s=0.1) as lease:
        proxy.fault = lambda method, headers: "error"
        wait_until(lambda: lease.is_lost)
        with pytest.raises(LeaseLostError, match="could not be renewed for 1 s"):
            lease.check()
        proxy.fault = lambda method, headers: "pass"
        wait_until(lambda: not lease.is_lost)  # no other process has taken it
    assert store.size(LEASE) is None
    proxy.close()


def test_renewal_with_a_lost_answer_keeps_the_lease(s3_server: S3Server, tmp_path: Path) -> None:
    proxy = Proxy(s3_server.port)
    store = s3_store(proxy.port, tmp_path.name)
    with hold(store, "run", ttl_s=60, renew_s=0.05) as lease:
        for what in ("lose answer", "error"):
            number = lease.holder.renewals
            proxy.fault = lambda method, headers, what=what: what if method == "PUT" else "pass"
            wait_until(lambda number=number: lease.holder.renewals > number)
        proxy.fault = lambda method, headers: "pass"
        number = lease.holder.renewals
        wait_until(lambda: lease.holder.renewals > number)
        assert not lease.is_lost
    assert store.size(LEASE) is None
    proxy.close()


def test_release_all_respects_its_timeout(s3_server: S3Server, tmp_path: Path) -> None:
    proxy = Proxy(s3_server.port)
    store = s3_store(proxy.port, tmp_path.name)
    silent = threading.Event()

    def say_nothing(method: str, headers: dict[str, str]) -> str:
        silent.wait(30)
        return "pass"

    with hold(store, "run"):
        proxy.fault = say_nothing
        began = time.monotonic()
        release_all(timeout_s=0.5)
        assert time.monotonic() - began < 15  # less than the 30 s without an answer
        silent.set()
    proxy.close()


def test_release_all_frees_the_catalog(store: Store) -> None:
    with hold(store, "run"):
        release_all()
        assert store.size(LEASE) is None
        with hold(store, "run") as other:
            assert holder_of(store) == other.holder
    assert store.size(LEASE) is None
