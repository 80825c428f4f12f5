"""A run in worker processes ends when its work does, and when one of them dies; tests/engines kills real ones."""

import threading

import pytest

from epithre_beam.configs.errors import RunnerError
from epithre_beam.pipelines.jobs.worker_processes import run_to_its_end


def test_it_waits_until_the_work_is_done():
    done = []
    run_to_its_end(lambda: done.append(1))
    assert done == [1]


def test_an_error_of_the_work_comes_out_as_it_is():
    with pytest.raises(ZeroDivisionError):
        run_to_its_end(lambda: 1 / 0)


def test_a_worker_that_died_ends_it_though_the_work_would_wait_for_ever():
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
