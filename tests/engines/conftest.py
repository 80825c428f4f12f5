"""Start each engine once. Its tests are skipped if it is not available."""

from collections.abc import Iterator

import pytest

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings

from .engine import ENGINES, KEY, Engine, Missing


@pytest.fixture(scope="session", params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    try:
        with ENGINES[request.param](tmp_path_factory.mktemp(request.param)) as found:
            yield found
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,))) as found:
        yield found
