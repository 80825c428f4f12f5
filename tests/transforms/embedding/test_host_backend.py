"""If the process with the host's rate limiter is killed, a new one pauses as long as the lost counts matter."""

import logging
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
    """Start a process that holds a rate limiter; it is killed at the end of the test."""
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
    """Retry until a rate limiter is available again."""
    while True:
        try:
            return backend.try_acquire(WEIGHTS)
        except RateLimiterLostError:
            continue


def settings(**limits):
    return RateLimiterSettings(limits=limits, window_s=60.0, hold_s=120.0)


def killed(keeper, backend, *, served_before=()):
    """Kill the process that holds a rate limiter, after the clients in `served_before` have used it."""
    process = keeper(backend)
    for one in served_before:
        one.try_acquire({"requests": 0.0})
    process.kill()
    process.join()


def test_new_rate_limiter_does_not_pause_without_limits(keeper):
    backend = HostBackend(f"test-{secrets.token_hex(4)}", settings())
    killed(keeper, backend, served_before=[backend])
    assert ask(backend).lease is not None


def test_configured_limit_pauses_until_lost_counts_expire_and_logs_time(keeper, caplog):
    backend = HostBackend(f"test-{secrets.token_hex(4)}", settings(requests=600.0))
    killed(keeper, backend, served_before=[backend])
    answer = ask(backend)
    assert answer.lease is None
    assert 170 < answer.wait_s <= 180
    assert "Nothing is sent until" in caplog.text


def test_limits_stated_by_server_are_passed_to_new_rate_limiter(keeper):
    backend = HostBackend(f"test-{secrets.token_hex(4)}", settings())
    process = keeper(backend)
    backend.learn({"requests": 600.0})
    process.kill()
    process.join()
    assert ask(backend).wait_s > 170


def test_restarted_worker_does_not_discard_counts_of_others(keeper):
    """The restarted worker connects first and does not know that there was a rate limiter before."""
    survivor = HostBackend(f"test-{secrets.token_hex(4)}", settings(requests=600.0))
    killed(keeper, survivor, served_before=[survivor])
    started_anew = HostBackend(survivor.name, survivor.settings)
    ask(started_anew)
    assert ask(survivor).wait_s > 170
    assert ask(started_anew).wait_s > 170


def test_a_process_that_has_ended_is_replaced_without_a_word(keeper, caplog):
    """Beam would log five tracebacks of refused connections, as if the API did not answer."""
    backend = HostBackend(name=secrets.token_hex(4), settings=settings(requests=10))
    process = keeper(backend)
    process.kill()
    process.join()
    assert backend.try_acquire(WEIGHTS).lease is not None
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    backend.remove_files()
