"""The process that keeps a host's ledger is killed: what it counted is waited for, where there is a limit at all."""

import multiprocessing
import secrets

import pytest

from epithre_beam.configs.errors import RateLimiterLostError
from epithre_beam.transforms.embedding.host_backend import HostBackend
from epithre_beam.transforms.epithre.rate_limit.memory_backend import RateLimiterSettings

WEIGHTS = {"requests": 1.0}


def _keep(backend, is_kept):
    backend.try_acquire({"requests": 0.0})
    is_kept.set()
    multiprocessing.Event().wait()  # until it is killed


@pytest.fixture
def keeper():
    """Starts a process that keeps a ledger and returns what kills it."""
    context = multiprocessing.get_context("spawn")
    started = []

    def start(backend):
        is_kept = context.Event()
        process = context.Process(target=_keep, args=(backend, is_kept), daemon=True)
        process.start()
        started.append(process)
        assert is_kept.wait(60)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def ask(backend):
    """Asks until there is a ledger again."""
    while True:
        try:
            return backend.try_acquire(WEIGHTS)
        except RateLimiterLostError:
            continue


def settings(**limits):
    return RateLimiterSettings(limits=limits, window_s=60.0, hold_s=120.0)


def killed(keeper, backend, *, served_before=()):
    """Kills the keeper of a ledger after these asked it."""
    process = keeper(backend)
    for one in served_before:
        one.try_acquire({"requests": 0.0})
    process.kill()
    process.join()


def test_without_any_limit_nothing_is_waited_for(keeper):
    backend = HostBackend(f"test-{secrets.token_hex(4)}", settings())
    killed(keeper, backend, served_before=[backend])
    assert ask(backend).lease is not None


def test_a_configured_limit_waits_until_nothing_of_the_old_count_counts_and_says_until_when(keeper, caplog):
    backend = HostBackend(f"test-{secrets.token_hex(4)}", settings(requests=600.0))
    killed(keeper, backend, served_before=[backend])
    answer = ask(backend)
    assert answer.lease is None
    assert 170 < answer.wait_s <= 180
    assert "nothing is sent until" in caplog.text


def test_limits_that_the_server_stated_are_told_to_the_next_backend_and_waited_for(keeper):
    backend = HostBackend(f"test-{secrets.token_hex(4)}", settings())
    process = keeper(backend)
    backend.learn({"requests": 600.0})
    process.kill()
    process.join()
    assert ask(backend).wait_s > 170


def test_a_worker_that_was_started_anew_does_not_make_the_others_forget_what_was_counted(keeper):
    """It is the first to ask, finds no ledger, and knows nothing of one before."""
    survivor = HostBackend(f"test-{secrets.token_hex(4)}", settings(requests=600.0))
    killed(keeper, survivor, served_before=[survivor])
    started_anew = HostBackend(survivor.name, survivor.settings)
    ask(started_anew)
    assert ask(survivor).wait_s > 170
    assert ask(started_anew).wait_s > 170
