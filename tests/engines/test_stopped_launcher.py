"""A stopped launcher cancels its job, which would otherwise continue on a remote engine and send requests."""

import json
import re
import signal
import time

import grpc
import pytest
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..pipelines.conftest import Place, write_texts
from .engine import KEY

REMOTE = ("portable", "prism", "flink", "spark")
TEXTS, UNIT = 240, 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = Place(tmp_path_factory.mktemp("stopped"))
    write_texts(found.folder / "texts.csv", TEXTS)
    return found


def endpoint_of(engine):
    return next(o.partition("=")[2] for o in engine.options if o.startswith("--job_endpoint="))


def states_of(engine):
    """Return the states of the engine's jobs by id."""
    with grpc.insecure_channel(endpoint_of(engine)) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        jobs = service.GetJobs(beam_job_api_pb2.GetJobsRequest(), timeout=20).job_info
    return {job.job_id: beam_job_api_pb2.JobState.Enum.Name(job.state) for job in jobs}


def start(place, engine, emulator, catalog):
    """Start a run, and wait until it has sent requests."""
    place.write_job(
        catalog=catalog,
        sources=[{"kind": "text", "table": "texts.csv", "id": "id", "text": "text"}],
        embed__base_url=emulator.base_url,
        embed__unit_references=UNIT,
        embed__batch_items=UNIT,
        embed__max_concurrency=2,
    )
    launcher = place.start("run", "job.yaml", "--json", "--", *engine.options)
    deadline = time.monotonic() + 100
    while sum(emulator.payments().values()) < 5 * UNIT:
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return launcher


@pytest.mark.parametrize("engine", REMOTE, indirect=True, scope="session")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_launcher_cancels_its_job_and_requests_end(engine, place, number):
    settings = EmulatorSettings(dimension=64, model="hash", api_keys=(KEY,), faults=Faults(latency_s=0.3))
    with Emulator(settings) as emulator:
        launcher = start(place, engine, emulator, f"catalog-{engine.name}-{number}")
        launcher.send_signal(number)
        said, errors = launcher.communicate(timeout=60)
        assert launcher.returncode == 128 + number, errors[-3000:]
        document = json.loads(said)
        assert document["status"] == "terminated"
        assert "Traceback" not in errors
        found = re.search(r"The job (\S+) at (\S+) was cancelled\.", document["message"])
        assert found, document["message"]
        assert found[2] == endpoint_of(engine)
        if engine.name != "portable":  # Beam's own job server does not list its jobs' states
            assert states_of(engine).get(found[1], "CANCELLED") == "CANCELLED"
        stopped(emulator)
        assert sum(emulator.payments().values()) < TEXTS


def stopped(emulator):
    """Wait until no more requests arrive. A worker finishes the requests that it has sent."""
    deadline, last, since = time.monotonic() + 30, -1, time.monotonic()
    while time.monotonic() - since < 2:  # several times the duration of a request
        assert time.monotonic() < deadline
        asked = len(emulator.log)
        if asked != last:
            last, since = asked, time.monotonic()
        time.sleep(0.02)


@pytest.mark.parametrize("engine", ["portable", "prism"], indirect=True, scope="session")
def test_error_names_job_that_cannot_be_cancelled_and_its_endpoint(engine, place):
    settings = EmulatorSettings(dimension=64, model="hash", api_keys=(KEY,), faults=Faults(latency_s=0.3))
    server = engine.processes[0]
    with Emulator(settings) as emulator:
        launcher = start(place, engine, emulator, f"catalog-{engine.name}-lost")
        server.suspend()  # it does not answer
        try:
            launcher.send_signal(signal.SIGTERM)
            said, errors = launcher.communicate(timeout=60)
        finally:
            server.resume()
        assert launcher.returncode == 128 + signal.SIGTERM, errors[-3000:]
        message = json.loads(said)["message"]
        assert "could not be cancelled" in message
        assert f"at {endpoint_of(engine)} " in message
        assert "Cancel it there" in message
        for job in [job for job, state in states_of(engine).items() if state == "RUNNING"]:
            with grpc.insecure_channel(endpoint_of(engine)) as channel:
                service = beam_job_api_pb2_grpc.JobServiceStub(channel)
                service.Cancel(beam_job_api_pb2.CancelJobRequest(job_id=job), timeout=20)
