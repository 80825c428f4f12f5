"""Permanent errors stop the run after few requests, and an outage makes no dead letters."""

import asyncio
import base64

import numpy as np
import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import ApiError, UnusableVectorsError
from epithre_beam.transforms.epithre import circuit_breaker
from epithre_beam.transforms.epithre.circuit_breaker import CircuitBreaker
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from . import hostile
from .asking import embed, serve, texts


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"refuse_all": 401}, "refused the API key"),
        ({"refuse_all": 403}, "refused the API key"),
        ({"refuse_all": 402}, "quota"),
        ({"quota_429": 1.0}, "quota"),
        ({"refuse_all": 400}, "10 requests in a row failed"),
        ({"wrong_dimension": 0.0}, "embed.model"),
    ],
)
def test_a_permanent_error_stops_the_run_after_few_requests(faults, words):
    model = "no-such-model" if "wrong_dimension" in faults else "epithre-embed"
    with serve(faults=Faults(**faults)) as emulator:
        with pytest.raises(ApiError, match=words):
            embed(emulator, texts(6400), model=model)
        assert len(emulator.log) <= 120


def test_a_wrong_dimension_stops_the_run_and_names_the_right_one():
    with Emulator(EmulatorSettings(dimension=32)) as emulator, pytest.raises(ApiError, match=r"embed\.dimension=32"):
        embed(emulator, texts(640))


def test_an_outage_stops_the_run_without_dead_letters(monkeypatch):
    monkeypatch.setattr(circuit_breaker, "_OUTAGE_S", 2.0)
    with serve(faults=Faults(refuse_all=500)) as emulator, pytest.raises(ApiError, match="in a row"):
        embed(emulator, texts(640), max_sends=1000)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda v: [], "the vectors are empty"),
        (lambda v: "", "the vectors are empty"),
        (lambda v: base64.b64encode(v.astype("<f8")).decode(), "64 numbers in float64"),
        (lambda v: base64.b64encode(v.astype("<f2")).decode(), "64 numbers in float16"),
        (lambda v: base64.b64encode((v * 127).astype(np.int8)).decode(), "64 numbers in int8"),
        (lambda v: base64.b64encode(v.tobytes() + b"1").decode(), "has 257 bytes"),
    ],
    ids=["empty list", "empty text", "float64", "float16", "int8", "a byte too many"],
)
def test_unusable_vectors_stop_the_run_without_advising_a_dimension(form, words):
    def respond(request):
        entries = [{"index": i, "embedding": form(hostile.vector_of(item))} for i, item in enumerate(request.items)]
        return hostile.answer(200, {"data": entries})

    with hostile.serve(respond) as server:
        server.api_key = "key"
        with pytest.raises(UnusableVectorsError, match=words) as caught:
            embed(server, texts(640), max_concurrency=1)
        assert len(server.posts) <= 5
    assert "embed.dimension" not in str(caught.value)


def test_what_precedes_a_request_is_not_waited_for_when_the_breaker_opens():
    async def go():
        breaker = CircuitBreaker(EmbedConfig())
        waiting = [asyncio.create_task(breaker.unless_open(asyncio.sleep(600))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="because"):
            breaker.stop(ApiError("because"))
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)

    assert [str(error) for error in asyncio.run(go())] == ["because"] * 3


def test_a_result_that_arrives_together_with_a_cancellation_is_undone():
    async def go():
        breaker = CircuitBreaker(EmbedConfig())
        undone = []
        ready = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(breaker.unless_open(ready, undone.append))
        await asyncio.sleep(0)
        ready.set_result("lease")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return undone

    assert asyncio.run(go()) == ["lease"]
