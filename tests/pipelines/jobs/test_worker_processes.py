"""A run in worker processes ends with its work, or when a process dies; tests/engines kills real ones."""

import os
import threading

import pytest

from epithre_beam.configs.errors import RunnerError
from epithre_beam.pipelines.jobs.worker_processes import ask_loopback_directly, run_to_its_end

from ...ports import free_port

pytestmark = pytest.mark.slow  # worker processes import everything


def test_run_waits_until_the_work_is_done():
    done = []
    run_to_its_end(lambda: done.append(1))
    assert done == [1]


def test_an_error_of_the_work_is_raised_unchanged():
    with pytest.raises(ZeroDivisionError):
        run_to_its_end(lambda: 1 / 0)


def test_a_dead_worker_ends_a_run_that_would_wait_forever():
    over = threading.Event()

    def wait_for_the_dead():
        def wait_for_process():
            raise RuntimeError("Worker subprocess exited with return code -9")

        threading.Thread(target=wait_for_process, name="run_worker").start()
        over.wait()

    hook = threading.excepthook
    with pytest.raises(RunnerError, match="return code -9"):
        run_to_its_end(wait_for_the_dead)
    assert threading.excepthook is hook
    over.set()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "a.example, .b"}, "a.example,.b,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a", "no_grpc_proxy": "c,localhost"}, "c,localhost,127.0.0.1,::1"),
    ],
    ids=str,
)
def test_loopback_is_added_to_no_grpc_proxy(monkeypatch, before, after):
    name = "no_grpc_proxy"  # in lower case, as gRPC reads it
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(name, "")  # so that monkeypatch restores it
    for known, value in before.items():
        monkeypatch.setenv(known, value)
    for _ in range(2):  # a second run in one process adds nothing
        ask_loopback_directly()
        assert os.environ.get(name) == after


def test_workers_and_emulator_are_reached_despite_proxy_variables(place):
    place.write_job(beam_options=["--direct_running_mode=multi_processing", "--direct_num_workers=2"])
    nobody = f"http://127.0.0.1:{free_port()}"
    proxies = {name: nobody for kind in ("http", "https", "all") for name in (f"{kind}_proxy", f"{kind}_proxy".upper())}
    done = place.cli("run", "job.yaml", "--quiet", imports_itself=True, **proxies)
    assert done.returncode == 0, done.stderr
