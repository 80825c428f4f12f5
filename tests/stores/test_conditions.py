"""On every store, over HTTP: one winner, no lost update, and a lost answer is not confused with a lost race."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from epithre_beam.configs.errors import CatalogBusyError, StoreError, SwapConflictError
from epithre_beam.index import Store
from epithre_beam.index.publish.prune import PruneRules, prune
from epithre_beam.index.publish.publish import fence, publish
from epithre_beam.index.storage.conditional import is_refusal, tag_of, write_if
from epithre_beam.index.versions.latest import read_latest
from epithre_beam.index.versions.lease import LEASE, hold

from ..index.manifests import make_manifest
from ..s3_server import Proxy
from .conftest import Place
from .gcs_server import GcsServer
from .racer import count_up

RACERS = 6
RACER = Path(__file__).with_name("racer.py")
WRITES = {"PUT", "POST"}


def first_write(what: str) -> Callable[[str, dict[str, str]], str]:
    """Return a fault that applies `what` to the first write only."""
    left = [what]
    lock = threading.Lock()

    def fault(method: str, headers: dict[str, str]) -> str:
        with lock:
            return left.pop() if method in WRITES and left else "pass"

    return fault


def test_file_is_created_once_and_swapped_only_from_its_content(store: Store) -> None:
    store.create("a", b"one")
    with pytest.raises(FileExistsError, match="a already exists"):
        store.create("a", b"two")
    for expected in (None, b"", b"two"):
        with pytest.raises(SwapConflictError, match="a: another run changed it"):
            store.swap("a", expected, b"other")
    store.swap("a", b"one", b"two")
    assert store.read("a") == b"two"
    with pytest.raises(SwapConflictError):
        store.swap("absent", b"one", b"two")
    assert store.names("") == ["a"]
    assert not store.delete_if("a", b"one")
    assert store.delete_if("a", b"two")
    assert store.size("a") is None


def test_server_refuses_write_with_outdated_condition(store: Store) -> None:
    """Without the read that `swap` does first: the server enforces the condition."""
    store.create("a", b"one")
    tag = tag_of(store.fs, store.path("a"))
    store.swap("a", b"one", b"two")
    store.create("gone", b"one")
    gone = tag_of(store.fs, store.path("gone"))
    store.delete("gone")
    for name, stale in (("a", tag), ("a", None), ("gone", gone)):
        with pytest.raises(Exception, match=r".") as caught:  # each driver has its own exception
            write_if(store.fs, store.path(name), b"three", stale)
        assert is_refusal(caught.value) or (name == "gone" and isinstance(caught.value, FileNotFoundError))
    assert store.read("a") == b"two"
    assert store.size("gone") is None
    with pytest.raises(ValueError, match="must not be empty"):
        write_if(store.fs, store.path("b"), b"", None)


def test_racing_threads_create_once_and_lose_no_update(place: Place, folder: str) -> None:
    start = threading.Barrier(RACERS)

    def race(number: int) -> bool:
        store = place.store(folder)
        start.wait()
        return count_up(store, number, 4)

    with ThreadPoolExecutor(RACERS) as pool:
        assert sum(pool.map(race, range(RACERS))) == 1
    assert place.store(folder).read("n").split()[0] == b"%d" % (4 * RACERS)


def test_racing_processes_create_once_and_lose_no_update(place: Place, folder: str) -> None:
    order = json.dumps({"url": place.url(folder), "options": place.options()})
    processes = [
        subprocess.Popen([sys.executable, str(RACER), order, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for n in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    said = [process.communicate(b"go\n", timeout=60)[0] for process in processes]
    assert sorted(said) == [b"lost\n", b"won\n"]
    assert place.store(folder).read("n").split()[0] == b"20"


@pytest.mark.parametrize("what", ["lose answer", "lose request", "error"])
def test_write_with_lost_answer_succeeds_once(place: Place, proxy: Proxy, folder: str, what: str) -> None:
    """The client retries and is refused because of its own first write, which is not a lost race."""
    store = place.store(folder, port=proxy.port)
    proxy.fault = first_write(what)
    store.create("a", b"one")
    proxy.fault = first_write(what)
    store.swap("a", b"one", b"two")
    assert store.read("a") == b"two"


def test_lost_answer_after_write_of_another_process_is_a_conflict(
    place: Place, proxy: Proxy, store: Store, folder: str
) -> None:
    slow = place.store(folder, port=proxy.port)
    store.create("a", b"one")
    left = ["first"]

    def fault(method: str, headers: dict[str, str]) -> str:
        if method in WRITES and left:
            left.pop()
            store.swap("a", b"one", b"faster")
            return "lose answer"
        return "pass"

    proxy.fault = fault
    with pytest.raises(SwapConflictError):
        slow.swap("a", b"one", b"two")
    assert store.read("a") == b"faster"


def test_probe_passes_on_conditional_store_and_leaves_no_file(store: Store) -> None:
    store.probe()
    assert store.listing() == []


# Azure signs the conditions of a request, so a proxy cannot remove them.
@pytest.mark.parametrize(
    ("place", "ignored"), [("s3", "if-none-match"), ("s3", "if-match"), ("gcs", "")], indirect=["place"]
)
def test_probe_refuses_store_that_ignores_a_condition(
    place: Place, proxy: Proxy, folder: str, ignored: str, request: pytest.FixtureRequest
) -> None:
    store = place.store(folder, port=proxy.port)
    if place.name == "gcs":
        gcs: GcsServer = request.getfixturevalue("gcs_server")
        gcs.ignores_conditions = True
        request.addfinalizer(lambda: setattr(gcs, "ignores_conditions", False))

    def strip(method: str, headers: dict[str, str]) -> str:
        for name in [name for name in headers if name.lower() == ignored]:
            del headers[name]
        return "pass"

    proxy.fault = strip
    with pytest.raises(StoreError, match=r"does not refuse .* Use a store with conditional writes"):
        store.probe()
    with pytest.raises(StoreError, match="conditional writes"), hold(store, "run"):
        pass
    assert store.listing() == []


@pytest.mark.parametrize("what", ["lose answer", "lose request", "error"])
def test_publish_with_lost_answer_succeeds(place: Place, proxy: Proxy, folder: str, what: str) -> None:
    store = place.store(folder, port=proxy.port)
    publish(store, make_manifest(store, "000001-a", None), None)
    latest = read_latest(store)
    assert latest is not None
    manifest = make_manifest(store, "000002-b", "000001-a")
    proxy.fault = first_write(what)
    publish(store, manifest, latest.data)
    after = read_latest(store)
    assert after is not None
    assert after[1] == "000002-b"


def test_fence_and_lease_work_on_a_bucket(store: Store) -> None:
    with hold(store, "run"):
        with pytest.raises(CatalogBusyError, match=f"catalog {re.escape(store.url)}: another run is under way"):  # noqa: SIM117
            with hold(store, "prune"):
                pass
        publish(store, make_manifest(store, "000001-a", None), None)
    assert store.size(LEASE) is None
    latest = read_latest(store)
    assert latest is not None
    assert fence(store) != latest.data
    with pytest.raises(SwapConflictError):
        publish(store, make_manifest(store, "000002-b", "000001-a"), latest.data)


def test_prune_deletes_only_what_it_reports(store: Store) -> None:
    before: bytes | None = None
    for number in range(1, 5):
        manifest = make_manifest(store, f"00000{number}-x", f"00000{number - 1}-x" if number > 1 else None)
        store.write(f"versions/00000{number}-x/vectors/x.bin", b"x" * 100)
        publish(store, manifest, before)
        latest = read_latest(store)
        assert latest is not None
        before = latest.data
    done = prune(store, PruneRules(keep=2))
    assert {piece.name for piece in done.deleted} == {"000001-x", "000002-x"}
    left = [f"versions/00000{n}-x/{name}" for n in (3, 4) for name in ("manifest.json", "vectors/x.bin")]
    assert store.names("versions") == left


def test_name_like_a_pattern_deletes_only_itself(store: Store) -> None:
    names = ["ax", "[a]x", "a?", "*", "d/ax", "d[1]/*", "d1/ax"]
    for name in names:
        store.write(name, b"x")
    for name in ("[a]x", "a?", "*", "d[1]"):
        store.delete(name)
    assert store.names("") == ["ax", "d/ax", "d1/ax"]
    store.delete("nothing")
