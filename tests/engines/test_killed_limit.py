"""The shared rate limit holds when one of four workers is killed. In a separate file, because it mostly waits."""

import shutil

import pytest

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Limits

from .engine import KEY
from .test_killed_workers import (  # two of these are fixtures
    IN_FLIGHT,
    UNIT,
    embedded,  # noqa: F401
    kill_one,
    sends,
    sources,  # noqa: F401
    state,
    write_job,
)

LIMIT = 30


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["dask"], indirect=True, scope="session")
def test_limit_of_four_lanes_holds_when_a_worker_is_killed(
    engine,
    sources,  # noqa: F811
    embedded,  # noqa: F811
    redis_server,
):
    """Requests in flight when the worker is killed keep their leases, because the server may have counted them."""
    shutil.rmtree(sources.catalog, ignore_errors=True)
    settings = EmulatorSettings(dimension=64, api_keys=(KEY,), limits=Limits(requests_per_minute=LIMIT))
    with Emulator(settings) as emulator:
        redis = {"embed__rate_limiter": "redis", "embed__redis_url": redis_server.url}
        write_job(sources, emulator, 4, embed__requests_per_minute=LIMIT, **redis)
        launcher = sources.start("run", "job.yaml", "--", *engine.options)
        units = sources.catalog / "units"
        killed = kill_one(engine, launcher, lambda: len(list(units.glob("*.parquet"))) >= 10, sends(emulator))
        _, errors = launcher.communicate(timeout=150)
        assert launcher.returncode == 0, errors[-3000:]
        assert killed is not None
        assert emulator.worst_window().requests <= LIMIT
        assert not [admission for admission in emulator.log if admission.status == 429]
        assert sum(count - 1 for count in emulator.payments().values()) <= 2 * 4 * IN_FLIGHT * UNIT
    assert state(sources.catalog) == embedded
