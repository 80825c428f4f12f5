"""A pipeline that is killed at any instant leaves the old version or the new one, and pays for little twice."""

import os
import random
import signal
import time

import pytest

from epithre_beam.configs import RunConfig
from epithre_beam.index import Store, open_catalog
from epithre_beam.index.publish.verify import verify_versions
from epithre_beam.index.versions.latest import read_latest
from epithre_beam.pipelines.jobs.run import run as run_job

from .forked import Forked
from .test_write_catalog import api_of, data_files, emulator, write_sources

__all__ = ["emulator"]  # a fixture

pytestmark = pytest.mark.slow
INSTANTS = 20
BATCH, CONCURRENCY = 4, 2


@pytest.fixture
def forked(emulator):
    started = Forked()
    yield started
    started.close()


def published(folder):
    """Return the data files of the published version, after verifying it; None if nothing is published."""
    store = Store(str(folder))
    if read_latest(store) is None:
        return None
    assert [verdict.damage for verdict in verify_versions(store)] == [()]
    return data_files(folder, open_catalog(folder).version)


def test_killed_at_any_instant_and_repeated_it_is_as_if_nothing_had_happened(emulator, forked, tmp_path):
    sources = write_sources(tmp_path)
    embed = api_of(emulator, unit_references=8, batch_items=BATCH, max_concurrency=CONCURRENCY)
    job = {"catalog": str(tmp_path / "job"), "sources": sources, "embed": embed}
    run_job(RunConfig.model_validate(job))
    expected = published(tmp_path / "job")

    def order(name):
        return {"sources": sources, "embed": embed, "catalog": str(tmp_path / name)}

    began = time.monotonic()
    emulator.reset()
    forked.start(**order("whole"))
    assert forked.status() == 0
    whole_s, items = time.monotonic() - began, emulator.stats()["billed_items"]
    assert published(tmp_path / "whole") == expected
    outcomes = set()
    for seed in range(INSTANTS):
        name = f"killed-{seed}"
        emulator.reset()
        process = forked.start(**order(name))
        time.sleep(random.Random(seed).uniform(0, whole_s))
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            outcomes.add("ended")
        forked.status()
        found = published(tmp_path / name)
        assert found in (None, expected)
        outcomes.add("nothing" if found is None else "published")
        forked.start(**order(name))
        assert forked.status() == 0
        assert published(tmp_path / name) == expected
        # Of each process, as many batches as twice the requests may be in flight or not stored yet.
        assert emulator.stats()["billed_items"] <= items + 2 * BATCH * CONCURRENCY
    assert "nothing" in outcomes
