"""A run holds its catalog and releases it at any outcome; another run reports the holder."""

import signal
import time

import pytest

from epithre_beam.index import Store, read_latest, read_manifest
from epithre_beam.index.versions.holder import make_holder
from epithre_beam.index.versions.lease import LEASE
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ...s3_server import BUCKET, s3_store
from ..conftest import KEY

pytestmark = pytest.mark.slow  # runs that are stopped and killed


def serve_slowly():
    return Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,), faults=Faults(latency_s=5.0)))


def start_a_run(place, emulator):
    process = place.start("run", "job.yaml")
    deadline = time.monotonic() + 30
    while not ((place.catalog / LEASE).exists() and len(emulator.log) > 1):
        assert time.monotonic() < deadline, process.poll()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_releases_its_catalog(place, number):
    """Otherwise the next run, on another machine, must wait until the lease expires."""
    with serve_slowly() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        process = start_a_run(place, emulator)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert not (place.catalog / LEASE).exists()


def test_the_catalog_of_a_killed_run_is_free_at_once(place):
    with serve_slowly() as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        for _ in range(2):
            process = start_a_run(place, emulator)
            process.kill()
            process.communicate(timeout=60)
            assert (place.catalog / LEASE).exists()
        emulator.reset(faults=Faults())
        assert place.cli("run", "job.yaml").returncode == 0
    assert not (place.catalog / LEASE).exists()


def test_a_holder_on_another_machine_is_reported_at_once(place):
    holder = make_holder("run", "theirs", 300).model_copy(update={"host": "elsewhere", "machine": "x", "process": 7})
    Store(str(place.catalog)).write(LEASE, holder.to_bytes())
    began = time.monotonic()
    done = place.cli("run", "job.yaml")
    assert time.monotonic() - began < 60  # shorter than the TTL
    assert done.returncode == 4
    assert "another run is under way" in done.stderr
    assert "process 7 on elsewhere" in done.stderr


def test_a_catalog_in_a_bucket_is_held_published_and_released(place, s3_server):
    url = f"s3://{BUCKET}/{place.folder.name}"
    access = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_server.port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    store = s3_store(s3_server.port, place.folder.name)
    with serve_slowly() as emulator:
        place.write_job(catalog=url, embed__base_url=emulator.base_url)
        first = place.start("run", "job.yaml", **access)
        deadline = time.monotonic() + 60
        while store.size(LEASE) is None or len(emulator.log) < 2:
            assert time.monotonic() < deadline, first.poll()
            time.sleep(0.1)
        second = place.cli("run", "job.yaml", **access)
        assert second.returncode == 4
        assert f"process {first.pid} on " in second.stderr
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=20)
        assert store.size(LEASE) is None
        emulator.reset(faults=Faults())
        done = place.cli("run", "job.yaml", **access)
        assert done.returncode == 0, done.stderr
    latest = read_latest(store)
    assert latest is not None
    assert read_manifest(store, latest.version, latest.manifest_sha256).counts.assets == 90
    assert store.size(LEASE) is None
