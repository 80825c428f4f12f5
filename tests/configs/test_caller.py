"""A message names a setting as its reader writes it: a key of a job, an option of a command, or an argument."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from epithre_beam.configs.address import API_KEY_ENV_VARIABLE, BASE_URL_VARIABLE, ApiAddress
from epithre_beam.configs.caller import ARGUMENTS, COMMAND, EMBED, JOB, Caller
from epithre_beam.configs.errors import ApiError, ConfigError, EpithreBeamError
from epithre_beam.index import Store
from epithre_beam.transforms.embedding.arguments import SEARCH_TRANSFORM, TRANSFORM
from epithre_beam.transforms.embedding.endpoint import open_endpoint
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings
from epithre_beam.transforms.epithre.probe import probe

from ..transforms.epithre import hostile
from ..transforms.epithre.asking import serve, settings_for

CALLERS = {
    "job": (JOB, "embed.base_url", "embed.api_key_env"),
    "embed": (EMBED, "embed.base_url", "embed.api_key_env"),
    "arguments": (ARGUMENTS, "base_url", "api_key_env"),
    "command": (COMMAND, "--base-url", "--api-key-env"),
    "transform": (TRANSFORM, "base_url", "api_key_env"),
    "search transform": (SEARCH_TRANSFORM, "`base_url` in `embed`", "`api_key_env` in `embed`"),
}


def message_of(ask: Callable[[], Any]) -> str:
    with pytest.raises(EpithreBeamError) as caught:
        ask()
    return str(caught.value)


def check_names(message: str, caller: Caller, *named: str) -> None:
    assert all(name in message for name in named), message
    mine = {caller.name("base_url"), caller.name("api_key_env")}
    theirs = {"embed.base_url", "--base-url", "embed.api_key_env", "--api-key-env", "in `embed`"} - mine
    if caller is not SEARCH_TRANSFORM:
        assert not [name for name in theirs if name in message], message


@pytest.mark.parametrize(("caller", "address", "key"), CALLERS.values(), ids=CALLERS)
def test_errors_of_the_api_name_settings_as_the_caller_does(
    caller: Caller, address: str, key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with serve() as emulator:
        settings = settings_for(emulator)
        check_names(message_of(lambda: probe(settings, "wrong", caller=caller)), caller, f"({key})")
        https = settings.model_copy(update={"base_url": settings.base_url.replace("http", "https")})
        message = message_of(lambda: probe(https, "key", tries=1, caller=caller))
        check_names(message, caller, f"{address} https://")
        unknown = settings.model_copy(update={"model": "other"})
        message = message_of(lambda: probe(unknown, emulator.api_key, caller=caller))
        assert message.startswith(f"{caller.name('model')}: ")
        monkeypatch.delenv("NO_KEY", raising=False)
        without = settings.model_copy(update={"api_key_env": "NO_KEY"})

        def open_without() -> None:
            with open_endpoint(without, Store(str(tmp_path)), caller=caller):
                pass

        message = message_of(open_without)
        assert message.startswith(f"{key}: the environment variable NO_KEY is not set.")
    with hostile.serve(lambda _: hostile.answer(307, b"")) as server:
        moved = settings.model_copy(update={"base_url": server.base_url})
        check_names(message_of(lambda: probe(moved, "key", caller=caller)), caller, f"Change {address}.")
    check_names(message_of(lambda: probe(settings, "key", tries=1, pause_s=0.01, caller=caller)), caller)


@pytest.mark.parametrize("caller", [ARGUMENTS, COMMAND], ids=["arguments", "command"])
def test_a_search_names_the_setting_of_the_job_where_it_has_none_itself(caller: Caller) -> None:
    with Emulator(EmulatorSettings(dimension=32)) as emulator:
        settings = settings_for(emulator, model="other")
        message = message_of(lambda: probe(settings, emulator.api_key, caller=caller))
    assert message.startswith("embed.model of the catalog's job: ")


@pytest.mark.parametrize("caller", [ARGUMENTS, COMMAND], ids=["arguments", "command"])
def test_an_invalid_address_is_named_as_it_was_given(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: dict[str, Any] = {"base_url": "ftp://x", "api_key_env": "sk-1234 5678"}
    variables = {"base_url": BASE_URL_VARIABLE, "api_key_env": API_KEY_ENV_VARIABLE}
    for name, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"^{caller.name(name)} must be ") as caught:
            ApiAddress(**{name: value}, caller=caller).said()
        assert "5678" not in str(caught.value)
        with monkeypatch.context() as patched:
            patched.setenv(variables[name], value)
            with pytest.raises(ConfigError, match=rf"^{variables[name]} must be "):
                ApiAddress(caller=caller).said()


def test_only_a_job_says_that_finished_work_is_kept() -> None:
    def refuses(request: Any) -> Any:
        return hostile.answer(429, {"error": {"message": "slow"}}, {"retry-after": "7200"})

    with hostile.serve(refuses) as server:
        settings = settings_for(server)
        for caller in (caller for caller, *_ in CALLERS.values()):
            with contextlib.ExitStack() as stack:
                caught = stack.enter_context(pytest.raises(ApiError))
                probe(settings, "key", caller=caller)
            message = str(caught.value)
            assert ("work is kept" in message) is (caller is JOB)
            assert ("that a query waits" in message) is caller.sends_queries
