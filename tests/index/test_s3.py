"""On S3, over HTTP: one winner, no lost change, and a lost answer is told from a lost race."""

import re
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from epithre_beam.index import Store
from epithre_beam.index.conditional import tag_of, write_if
from epithre_beam.index.layout import LATEST
from epithre_beam.index.lease import LEASE, CatalogBusy, hold
from epithre_beam.index.manifest import fence, publish, read_latest
from epithre_beam.index.store import StoreError, SwapConflictError, SwapUnknownError

from ..s3_server import Proxy, S3Server, s3_store
from .test_manifest import make_manifest

RACERS = 6


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(s3_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def store(s3_server: S3Server) -> Store:
    return s3_store(s3_server.port, secrets.token_hex(8))


def first_write(what: str) -> Any:
    """The first PUT meets `what`, all else passes."""
    left = [what]
    lock = threading.Lock()

    def fault(method: str, headers: dict[str, str]) -> str:
        with lock:
            return left.pop() if method == "PUT" and left else "pass"

    return fault


def test_a_file_is_created_once_and_swapped_only_from_what_it_holds(store: Store) -> None:
    store.create("a", b"one")
    with pytest.raises(FileExistsError, match="a exists"):
        store.create("a", b"two")
    for expected in (None, b"", b"two"):
        with pytest.raises(SwapConflictError, match="a was changed by another run"):
            store.swap("a", expected, b"other")
    store.swap("a", b"one", b"two")
    assert store.read("a") == b"two"
    with pytest.raises(SwapConflictError):
        store.swap("absent", b"one", b"two")
    assert store.names("") == ["a"]
    assert not store.delete_if("a", b"one")
    assert store.delete_if("a", b"two")
    assert store.size("a") is None


def test_the_server_itself_refuses_what_was_decided_on_a_state_that_is_gone(store: Store) -> None:
    """Without the look that `swap` takes first: it is the condition that is kept, not luck."""
    store.create("a", b"one")
    tag = tag_of(store.fs, store.path("a"))
    store.swap("a", b"one", b"two")
    for stale in (tag, None):
        with pytest.raises(OSError, match=r"."):
            write_if(store.fs, store.path("a"), b"three", stale)
    assert store.read("a") == b"two"
    with pytest.raises(ValueError, match="must not be empty"):
        write_if(store.fs, store.path("b"), b"", None)


def test_of_racing_clients_one_creates_and_no_change_is_lost(s3_server: S3Server) -> None:
    folder = secrets.token_hex(8)
    start = threading.Barrier(RACERS)

    def race(number: int) -> bool:
        store = s3_store(s3_server.port, folder)
        start.wait()
        try:
            store.create("n", b"0 by %d" % number)
        except FileExistsError:
            won = False
        else:
            won = True
        done = 0
        while done < 4:
            found = store.read("n")
            try:
                store.swap("n", found, b"%d by %d" % (int(found.split()[0]) + 1, number))
            except SwapConflictError:
                continue
            done += 1
        return won

    with ThreadPoolExecutor(RACERS) as pool:
        assert sum(pool.map(race, range(RACERS))) == 1
    assert s3_store(s3_server.port, folder).read("n").split()[0] == b"%d" % (4 * RACERS)


@pytest.mark.parametrize("attempts", [1, 3], ids=["asked once", "asked again by the client"])
@pytest.mark.parametrize("what", ["lose answer", "lose request", "error"])
def test_a_write_whose_answer_is_lost_is_done_once_and_told_as_done(proxy: Proxy, what: str, attempts: int) -> None:
    """The client asks again by itself and is refused by its own first write: that is no lost race."""
    store = s3_store(proxy.port, secrets.token_hex(8), attempts=attempts)
    proxy.fault = first_write(what)
    store.create("a", b"one")
    proxy.fault = first_write(what)
    store.swap("a", b"one", b"two")
    assert store.read("a") == b"two"


def test_an_answer_that_is_lost_behind_another_ones_write_is_a_conflict(proxy: Proxy, s3_server: S3Server) -> None:
    folder = secrets.token_hex(8)
    store, other = s3_store(proxy.port, folder), s3_store(s3_server.port, folder)
    store.create("a", b"one")
    left = ["first"]

    def fault(method: str, headers: dict[str, str]) -> str:
        if method == "PUT" and left:
            left.pop()
            other.swap("a", b"one", b"faster")
            return "lose answer"
        return "pass"

    proxy.fault = fault
    with pytest.raises(SwapConflictError):
        store.swap("a", b"one", b"two")
    assert store.read("a") == b"faster"


def test_when_nothing_is_answered_nothing_is_claimed(proxy: Proxy) -> None:
    store = s3_store(proxy.port, secrets.token_hex(8))
    store.create("a", b"one")
    proxy.fault = lambda method, headers: "error" if method == "PUT" else "pass"
    store.swap("a", b"one", b"two")  # told as failures, but it can be read
    began = []

    def silent_after_the_write(method: str, headers: dict[str, str]) -> str:
        began.append(method)
        return "error" if "PUT" in began else "pass"

    proxy.fault = silent_after_the_write
    with pytest.raises(SwapUnknownError, match=re.escape(f"{store.url}/a was written")):
        store.swap("a", b"two", b"three")
    proxy.fault = lambda method, headers: "lose request" if method == "PUT" else "pass"
    store.fs.retries = 1
    with pytest.raises(SwapUnknownError, match="It is not known whether"):
        store.swap("a", b"three", b"four")
    proxy.fault = lambda method, headers: "pass"
    assert store.read("a") == b"three"


def test_a_bucket_that_is_not_there_is_told_as_that(s3_server: S3Server) -> None:
    store = s3_store(s3_server.port, "x")
    store.url = "s3://no-such-bucket/x"
    with pytest.raises(FileNotFoundError):
        store.create("a", b"x")


def test_the_probe_passes_where_conditions_are_kept_and_leaves_nothing(store: Store) -> None:
    store.probe()
    assert store.fs.find(store.path("")) == []


@pytest.mark.parametrize("ignored", ["if-none-match", "if-match"])
def test_the_probe_refuses_a_store_that_ignores_a_condition(proxy: Proxy, ignored: str) -> None:
    def strip(method: str, headers: dict[str, str]) -> str:
        for name in [name for name in headers if name.lower() == ignored]:
            del headers[name]
        return "pass"

    store = s3_store(proxy.port, secrets.token_hex(8))
    proxy.fault = strip
    with pytest.raises(StoreError, match=r"must refuse .*, but does it: .* use a store with conditional writes"):
        store.probe()
    with pytest.raises(StoreError, match="conditional writes"), hold(store, "run"):
        pass
    proxy.fault = lambda method, headers: "pass"
    assert store.fs.find(store.path("")) == []


def test_a_probe_that_is_not_answered_does_not_pass(proxy: Proxy) -> None:
    store = s3_store(proxy.port, secrets.token_hex(8))
    seen = []

    def fail_the_second_write(method: str, headers: dict[str, str]) -> str:
        seen.append(method)
        return "error" if method == "PUT" and seen.count("PUT") == 2 else "pass"

    proxy.fault = fail_the_second_write
    with pytest.raises(StoreError, match="could not be tried"):
        store.probe()


# ---------------------------------------------------------------------------------------------------- the protocol


@pytest.mark.parametrize("what", ["lose answer", "lose request", "error"])
def test_a_version_whose_publication_is_not_answered_is_published_and_said_to_be(proxy: Proxy, what: str) -> None:
    store = s3_store(proxy.port, secrets.token_hex(8))
    publish(store, make_manifest(store, "000001-a", None), None)
    latest = read_latest(store)
    assert latest is not None
    manifest = make_manifest(store, "000002-b", "000001-a")
    proxy.fault = first_write(what)
    publish(store, manifest, latest[0])
    after = read_latest(store)
    assert after is not None
    assert after[1] == "000002-b"


def test_a_version_that_was_published_unheard_and_followed_by_another_is_published(
    proxy: Proxy, s3_server: S3Server
) -> None:
    """The answer is lost, and the next run is faster than the question how it ended."""
    folder = secrets.token_hex(8)
    store, other = s3_store(proxy.port, folder), s3_store(s3_server.port, folder)
    publish(store, make_manifest(store, "000001-a", None), None)
    latest = read_latest(store)
    assert latest is not None
    manifest = make_manifest(store, "000002-b", "000001-a")
    seen = []

    def fault(method: str, headers: dict[str, str]) -> str:
        if method == "PUT":
            seen.append(method)
            return "error"
        if len(seen) == 1:  # the first look after the write
            seen.append("followed")
            now = read_latest(other)
            assert now is not None
            publish(other, make_manifest(other, "000003-c", "000002-b"), now[0])
        return "pass"

    proxy.fault = fault
    publish(store, manifest, latest[0])
    after = read_latest(store)
    assert after is not None
    assert after[1] == "000003-c"


def test_a_publication_that_cannot_be_settled_deletes_nothing_and_says_so(proxy: Proxy) -> None:
    store = s3_store(proxy.port, secrets.token_hex(8))
    manifest = make_manifest(store, "000001-a", None)
    seen = []

    def silent_after_the_write(method: str, headers: dict[str, str]) -> str:
        seen.append(method)
        return "error" if "PUT" in seen else "pass"

    proxy.fault = silent_after_the_write
    with pytest.raises(SwapUnknownError, match=r"not known whether version 000001-a was published .*nothing was del"):
        publish(store, manifest, None)
    proxy.fault = lambda method, headers: "pass"
    assert store.names("") == [LATEST, "versions/000001-a/manifest.json"]


def test_a_fence_and_a_lease_work_on_a_bucket(store: Store) -> None:
    with hold(store, "run"):
        with pytest.raises(CatalogBusy, match="Another run holds the catalog s3://"), hold(store, "prune"):
            pass
        publish(store, make_manifest(store, "000001-a", None), None)
    assert store.size(LEASE) is None
    latest = read_latest(store)
    assert latest is not None
    assert fence(store) != latest[0]
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "000002-b", "000001-a"), latest[0])
