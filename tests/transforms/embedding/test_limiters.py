"""There is one rate limiter in a process for a key, an address and its limits, and a fork starts anew."""

import asyncio
import os
import threading

import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.load import parse_config
from epithre_beam.pipelines.jobs.run import run
from epithre_beam.transforms.embedding.limiters import limiter_of, process_loop, remove_host_limiter
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings

EMBED = EmbedConfig(base_url="http://localhost:1/v1", requests_per_minute=7)


def test_threads_get_the_same_limiter_and_other_keys_addresses_or_limits_another():
    found = []

    def work():
        found.append(limiter_of(EMBED, "key"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1
    others = [
        (EMBED, "another key"),
        (EMBED.model_copy(update={"base_url": "http://localhost:2/v1"}), "key"),
        (EMBED.model_copy(update={"requests_per_minute": 8}), "key"),
        (EMBED.model_copy(update={"rate_limiter_name": "other"}), "key"),
    ]
    limiters = [limiter_of(embed, key) for embed, key in others]
    assert len({id(limiter) for limiter in (*limiters, found[0])}) == 5
    # What does not limit anything does not matter.
    assert limiter_of(EMBED.model_copy(update={"batch_items": 3}), "key") is found[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a process")
def test_a_forked_process_has_a_loop_of_its_own_that_runs():
    assert process_loop() is process_loop()
    limiter = limiter_of(EMBED, "key")
    child = os.fork()
    if child == 0:
        try:
            answer = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "runs"), process_loop()).result(timeout=20)
            os._exit(0 if answer == "runs" and limiter_of(EMBED, "key") is not limiter else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def ask(limiter, within_s):
    """Whether a request may be sent within a time."""

    async def acquire():
        try:
            lease = await asyncio.wait_for(limiter.acquire(items=1, tokens=1), within_s)
        except TimeoutError:
            return False
        limiter.answered(lease)
        return True

    return asyncio.run_coroutine_threadsafe(acquire(), process_loop()).result(timeout=60)


def test_a_job_and_the_transforms_of_its_process_count_together(tmp_path, monkeypatch):
    """A job of this process has sent a request; the next one waits for its pace, 60 s / 3."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a red mug")
    with Emulator(EmulatorSettings(dimension=16)) as emulator:
        monkeypatch.setenv("LIMITERS_KEY", emulator.api_key)
        embed = {
            "base_url": emulator.base_url,
            "api_key_env": "LIMITERS_KEY",
            "dimension": 16,
            "requests_per_minute": 3,
        }
        config = parse_config(
            {
                "catalog": str(tmp_path / "catalog"),
                "sources": [{"kind": "text", "files": str(tmp_path / "texts")}],
                "embed": {**embed, "requests_per_minute": 3},
            }
        )
        run(config)
        assert not ask(limiter_of(config.embed, emulator.api_key), 0.2)
        assert ask(limiter_of(config.embed, "another key"), 20)


def test_requests_that_a_launcher_sent_count_in_a_limiter_that_is_there():
    embed = EMBED.model_copy(update={"base_url": "http://localhost:3/v1", "requests_per_minute": 600})
    limiter = limiter_of(embed, "key")
    limiter.key_accepted()
    assert ask(limiter, 20)
    assert limiter_of(embed, "key", run="run", spent=600) is limiter
    assert not ask(limiter, 0.3)


def test_lanes_of_a_run_share_a_limiter_of_the_host_until_it_ends():
    embed = EMBED.model_copy(update={"rate_limiter": "host"})
    first, other = limiter_of(embed, "key", run="one"), limiter_of(embed, "key", run="two")
    assert limiter_of(embed, "key", run="one") is first is not other
    assert ask(first, 20)
    remove_host_limiter(embed, "one")
    assert limiter_of(embed, "key", run="one") is not first
    assert limiter_of(embed, "key", run="two") is other
    for name in ("one", "two"):
        remove_host_limiter(embed, name)
