"""What waiting cannot mend stops the run after few requests, and an outage makes no dead letters."""

import pytest

from epithre_beam.configs.errors import ApiError
from epithre_beam.transforms.epithre import circuit_breaker
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from .asking import embed, serve, texts


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"refuse_all": 401}, "refused the key"),
        ({"refuse_all": 403}, "refused the key"),
        ({"refuse_all": 402}, "quota"),
        ({"quota_429": 1.0}, "quota"),
        ({"refuse_all": 400}, "failed 10 times in a row"),
        ({"wrong_dimension": 0.0}, "embed.model"),
    ],
)
def test_what_waiting_cannot_mend_stops_the_run_after_few_requests(faults, words):
    model = "no-such-model" if "wrong_dimension" in faults else "epithre-embed"
    with serve(faults=Faults(**faults)) as emulator:
        with pytest.raises(ApiError, match=words):
            embed(emulator, texts(6400), model=model)
        assert len(emulator.log) <= 120


def test_another_dimension_than_configured_stops_the_run_and_says_which():
    with Emulator(EmulatorSettings(dimension=32)) as emulator, pytest.raises(ApiError, match=r"embed\.dimension=32"):
        embed(emulator, texts(640))


def test_an_outage_stops_the_run_instead_of_making_dead_letters(monkeypatch):
    monkeypatch.setattr(circuit_breaker, "_OUTAGE_S", 2.0)
    with serve(faults=Faults(refuse_all=500)) as emulator, pytest.raises(ApiError, match="in a row"):
        embed(emulator, texts(640), max_sends=1000)
