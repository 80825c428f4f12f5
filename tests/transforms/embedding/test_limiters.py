"""There is one rate limiter in a process for a key, an address and its limits, and a fork starts anew."""

import asyncio
import os
import threading

import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.transforms.embedding.limiters import limiter_name, limiter_of, process_loop

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


def test_the_name_does_not_contain_the_key():
    assert "sk-12345" not in limiter_name(EMBED, "sk-12345")
    assert limiter_name(EMBED, "sk-12345") == limiter_name(EMBED, "sk-12345")


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
