"""A worker is killed during a run: the engine restarts its work, or the run fails and the next run continues.

In both cases the catalog is the same as without the kill, and only requests in flight are billed twice.
"""

import contextlib
import shutil
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..pipelines.conftest import Place, sentences, write_images, write_texts
from ..pipelines.jobs.test_run import finished_contents
from ..pipelines.scene import current_rows, found_in
from .engine import KEY
from .test_engines import digests

KILLABLE = ("processes", "portable", "prism", "dask", "flink", "spark")
"""The engines whose workers are separate processes."""
BEGINS_AGAIN = ("dask", "flink", "spark")
"""The engines that replace a worker; with the others, the run fails."""
ASSETS, UNIT, IN_FLIGHT, LANES = 120, 4, 2, 2
REFERENCE = ("--runner=FnApiRunner",)


def sends(emulator):
    """Return a check whether a worker has a connection to the API."""
    port = int(emulator.base_url.split(":")[2].split("/")[0])
    return lambda worker: any(c.raddr and c.raddr.port == port for c in worker.net_connections())


def builds(worker):
    """Return whether a worker has a file of the new version open."""
    return any("/versions/" in file.path or "/vectors/" in file.path for file in worker.open_files())


def kill_one(engine, launcher, is_time, is_busy):
    """Kill a busy worker with SIGKILL when it is time, and return its pid; None if the run was over before."""
    while launcher.poll() is None:
        if is_time():
            for worker in engine.workers(launcher.pid):
                with contextlib.suppress(psutil.Error):
                    if is_busy(worker):
                        worker.kill()
                        return worker.pid
        time.sleep(0.005)
    return None


def finish(place, launcher, engine, *arguments):
    """Wait for the end of the run. If it failed with a one-line error, run it again. Return whether it succeeded."""
    _, errors = launcher.communicate(timeout=100)
    if launcher.returncode == 0:
        return True
    assert launcher.returncode == 1, errors[-3000:]
    assert len(sentences(errors)) == 1, errors[-3000:]
    done = place.cli(*arguments, "--", *engine.options)
    assert done.returncode == 0, done.stderr[-3000:]
    return False


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("sources"))
    write_images(place.folder / "pictures", ASSETS // 2)
    write_texts(place.folder / "texts.csv", ASSETS // 2)
    return place


def write_job(place, emulator, lanes=LANES, **settings):
    place.write_job(
        embed__base_url=emulator.base_url,
        embed__unit_references=UNIT,
        embed__batch_items=UNIT,
        embed__max_concurrency=IN_FLIGHT,
        embed__lanes=lanes,
        **{"embed__rate_limiter": "host" if lanes > 1 else "memory", **settings},
    )


def state(catalog):
    return current_rows(catalog), found_in(catalog)


@pytest.fixture(scope="module")
def embedded(sources, emulator):
    """Return the result without a kill."""
    write_job(sources, emulator, lanes=1)
    assert sources.cli("run", "job.yaml", "--", *REFERENCE).returncode == 0
    found = state(sources.catalog)
    shutil.rmtree(sources.catalog)
    return found


@pytest.mark.parametrize("engine", KILLABLE, indirect=True, scope="session")
def test_worker_killed_while_embedding_costs_only_requests_in_flight(engine, sources, embedded):
    shutil.rmtree(sources.catalog, ignore_errors=True)
    settings = EmulatorSettings(dimension=64, api_keys=(KEY,), faults=Faults(latency_s=0.25))
    with Emulator(settings) as emulator:
        write_job(sources, emulator)
        launcher = sources.start("run", "job.yaml", "--", *engine.options)
        units = sources.catalog / "units"
        killed = kill_one(engine, launcher, lambda: len(list(units.glob("*.parquet"))) >= 6, sends(emulator))
        finished = finished_contents(sources.catalog)
        began_again = finish(sources, launcher, engine, "run", "job.yaml")
        billed = emulator.payments()
    assert killed is not None
    assert began_again == (engine.name in BEGINS_AGAIN)
    assert state(sources.catalog) == embedded
    assert len(billed) == ASSETS
    assert len(finished) >= 5 * UNIT
    assert all(billed[content] == 1 for content in finished)
    # In flight: the requests of each lane, and as many units that were being written.
    assert sum(count - 1 for count in billed.values()) <= 2 * LANES * IN_FLIGHT * UNIT


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """Write vectors whose index takes a while to build."""
    place = Place(tmp_path_factory.mktemp("vectors"))
    rng = np.random.default_rng(8)
    rows = rng.standard_normal((24_000, 64)).astype(np.float32)
    (place.folder / "old").mkdir()
    for i, part in enumerate(np.array_split(np.arange(len(rows)), 6)):
        kinds = ["image" if row % 2 else "text" for row in part]
        table = {"id": [f"v{row}" for row in part], "kind": kinds, "embedding": list(rows[part])}
        pq.write_table(pa.table(table), place.folder / "old" / f"{i}.parquet")
    return place


BUILD = ("index", "catalog", "--from=old", "--set=index.exact_up_to_mb=0", "--set=index.rows_per_index=2000")
BUILD += ("--set=index.rows_per_file=3000",)


@pytest.fixture(scope="module")
def built(vectors):
    """Return the result without a kill."""
    done = vectors.cli(*BUILD, "--", *REFERENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    found = digests(vectors.catalog)
    shutil.rmtree(vectors.catalog)
    return found


@pytest.mark.parametrize("engine", KILLABLE, indirect=True, scope="session")
def test_worker_killed_while_building_does_not_change_the_index(engine, vectors, built):
    shutil.rmtree(vectors.catalog, ignore_errors=True)
    launcher = vectors.start(*BUILD, "--", *engine.options)
    versions = vectors.catalog / "versions"
    killed = kill_one(engine, launcher, lambda: any(versions.glob("*/vectors/*.parquet")), builds)
    began_again = finish(vectors, launcher, engine, *BUILD)
    assert killed is not None
    assert began_again == (engine.name in BEGINS_AGAIN)
    assert digests(vectors.catalog) == built
