"""The probe checks server, key and model before a run starts."""

import asyncio

import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import ApiError, RefusedKeyError, SpentQuotaError, UnknownModelError, WrongAddressError
from epithre_beam.transforms.epithre.probe import probe

from . import hostile
from .asking import embed, serve, settings_for, texts


def test_probe_detects_the_emulator_and_rejects_wrong_settings():
    with serve() as emulator:
        probed = probe(settings_for(emulator), emulator.api_key)
        assert probed.emulator == emulator.model.fingerprint
        with pytest.raises(ApiError, match="refused the API key"):
            probe(settings_for(emulator), "wrong")
        with pytest.raises(ApiError, match="does not serve the model 'epithre-embde'"):
            probe(settings_for(emulator, model="epithre-embde"), emulator.api_key)
        gone = settings_for(emulator)
    with pytest.raises(ApiError, match="does not answer"):
        probe(gone, "any", pause_s=0.01)


def ask(server, **changes):
    settings = EmbedConfig(base_url=server.base_url, dimension=hostile.DIMENSION, **changes)
    return probe(settings, "key", pause_s=0.01)


def to_get(status, body, headers=None):
    """A server that gives this answer to `/models` and embeds."""
    said = hostile.answer(status, body, headers)
    return hostile.serve(lambda request: hostile.serves(request) if request.items else said)


@pytest.mark.parametrize("status", [400, 404, 405, 406, 410, 422, 451, 501])
@pytest.mark.parametrize("body", [{"error": {"message": "listing models is disabled"}}, b"<html>no</html>", b""])
def test_probe_accepts_a_server_without_a_list_of_models(status, body):
    with to_get(status, body) as server:
        assert ask(server).requests == 1
        server.api_key = "key"
        results, _ = embed(server, texts(3))
    assert [result.shape for result in results] == [(hostile.DIMENSION,)] * 3


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_probe_retries_and_then_shows_the_servers_message(status):
    said = to_get(status, {"error": {"message": "the database is being repaired"}})
    words = rf"does not answer \({status}: the database is being repaired; tried 3 times"
    with said as server, pytest.raises(ApiError, match=words):
        ask(server)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, {"error": {"message": "as I say"}}, RefusedKeyError),
        (403, {"error": {"message": "as I say"}}, RefusedKeyError),
        (402, {"error": {"message": "as I say"}}, SpentQuotaError),
        (307, {"error": {"message": "as I say"}}, WrongAddressError),
        (200, {"error": {"message": "as I say", "code": 401}}, RefusedKeyError),
        (200, {"error": {"message": "as I say", "code": 402}}, SpentQuotaError),
    ],
)
def test_probe_raises_for_a_refusal_in_every_format(status, body, error):
    with to_get(status, body) as server, pytest.raises(error, match="as I say"):
        ask(server)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>sign in</html>",
        b"",
        b"[]",
        {"data": None},
        {"data": "epithre-embed"},
        {"data": [1, None]},
        {"data": [{"id": None}]},
        {"data": [{"id": ["x"]}]},
        {"error": {"message": "no such page", "code": 400}},
        b"[" * 100_000,
        b'{"data":' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=range(11),
)
def test_probe_ignores_an_invalid_list_of_models(body):
    with to_get(200, body) as server:
        assert ask(server).emulator is None


def test_the_error_for_an_unknown_model_lists_few_models():
    models = [{"id": f"model-{i:05}" + "x" * 5000} for i in range(1000)]
    with to_get(200, {"data": models}) as server, pytest.raises(UnknownModelError) as caught:
        ask(server)
    assert "model-00000" in str(caught.value)
    assert "and 970 more" in str(caught.value)
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize(
    ("said", "taken"),
    [("emulator-hash-1-64", True), ("x" * 20_000, False), ("emulator-\x1b[31m", False), ("emulator-a b", False)],
    ids=["true", "long", "escape", "blank"],
)
def test_only_a_valid_fingerprint_identifies_an_emulator(said, taken):
    with to_get(200, {"data": []}, {"x-emulator-fingerprint": said}) as server:
        assert ask(server).emulator == (said if taken else None)


def test_probe_works_inside_an_event_loop():
    async def go(server):
        return ask(server)

    with to_get(404, b"") as server:
        assert asyncio.run(go(server)).requests == 1
