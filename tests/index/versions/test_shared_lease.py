"""A pipeline's lease is held by whichever of its processes works, and free soon after the last step."""

import json
import subprocess
import sys

import pytest

from epithre_beam.errors import CatalogBusyError
from epithre_beam.index import Store
from epithre_beam.index.versions import shared_lease
from epithre_beam.index.versions.holder import read_holder
from epithre_beam.index.versions.lease import LEASE, hold
from epithre_beam.index.versions.shared_lease import end, leave, use, used

PROGRAM = """
import sys
from epithre_beam.index import Store
from epithre_beam.index.versions.shared_lease import use
use(Store(sys.argv[1]), sys.argv[2])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path):
    found = Store(str(tmp_path / "catalog"))
    yield found
    for url, nonce in list(shared_lease._process.used):
        if url == found.url:
            end(found, nonce)


def holder_of(store):
    return read_holder(store.read(LEASE))


def other_process(store, nonce):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, store.url, nonce], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    return process


def test_catalog_is_held_while_a_step_uses_it_and_kept_for_the_next_one(store):
    use(store, "a" * 32)
    use(store, "a" * 32)
    leave(store, "a" * 32)
    with pytest.raises(CatalogBusyError, match="another pipeline is under way"), hold(store, "run"):
        pass
    leave(store, "a" * 32)
    before = holder_of(store)
    with used(store, "a" * 32):
        assert holder_of(store).acquired_at == before.acquired_at
    end(store, "a" * 32)
    assert store.size(LEASE) is None


def test_unused_lease_gives_way_to_other_work_of_this_process(store):
    with used(store, "a" * 32):
        pass
    with hold(store, "run"):
        assert holder_of(store).purpose == "run"
        with pytest.raises(CatalogBusyError, match="another run is under way"):
            use(store, "a" * 32)
    use(store, "b" * 32)
    with pytest.raises(CatalogBusyError):
        use(store, "a" * 32)


def test_unused_lease_is_released_after_a_while(store, monkeypatch):
    monkeypatch.setattr(shared_lease, "_KEPT_UNUSED_S", 0.01)
    with used(store, "a" * 32):
        pass
    timer = shared_lease._process.used.get((store.url, "a" * 32))
    if timer is not None and timer.timer is not None:
        timer.timer.join(60)
    assert store.size(LEASE) is None


def test_failed_step_releases_it_at_once(store):
    with pytest.raises(ZeroDivisionError), used(store, "a" * 32):
        raise ZeroDivisionError
    assert store.size(LEASE) is None


def test_process_of_the_same_pipeline_takes_it_over_and_any_other_is_refused(store):
    process = other_process(store, "a" * 32)
    try:
        with pytest.raises(CatalogBusyError, match=f"process {process.pid} on"):
            use(store, "b" * 32)
        use(store, "a" * 32)
        assert holder_of(store).process != process.pid
        end(store, "a" * 32)
        assert store.size(LEASE) is None
    finally:
        process.kill()
        process.wait()


def test_lease_of_a_killed_process_is_taken_over_at_once(store):
    process = other_process(store, "a" * 32)
    process.kill()
    process.wait()
    use(store, "b" * 32)
    assert json.loads(store.read(LEASE))["nonce"] == "b" * 32


def test_process_that_ends_leaves_no_lease(store):
    process = other_process(store, "a" * 32)
    process.stdin.close()
    assert process.wait(60) == 0
    assert store.size(LEASE) is None
