"""Answers of an emulator are not those of an API."""

import pytest

from epithre_beam.configs.chat_schema import ChatConfig
from epithre_beam.transforms.chat.answer_cache import AnswerCache
from epithre_beam.transforms.chat.rows import Answer

SHA = "ab" * 32


def cache_of(folder, base_url):
    return AnswerCache(str(folder), ChatConfig(prompt="x", base_url=base_url))


def answer(emulator):
    return Answer(
        text="yes",
        parsed=None,
        finish_reason="stop",
        model="epithre-omni",
        emulator=emulator,
        input_tokens=3,
        output_tokens=4,
        cost=None,
        requests=1,
        request_sha256=SHA,
    )


@pytest.mark.parametrize(
    ("emulator", "found_by"),
    [
        ("emulator-hash-1", {"emulator", "http://127.0.0.1:8080/v1"}),
        (None, {"https://api.epithre.com/v1", "http://127.0.0.1:8080/v1"}),
    ],
)
def test_answers_of_an_emulator_are_not_used_for_an_api(tmp_path, emulator, found_by):
    cache_of(tmp_path, "emulator").keep(answer(emulator))
    urls = ("emulator", "http://127.0.0.1:8080/v1", "https://api.epithre.com/v1")
    assert {url for url in urls if cache_of(tmp_path, url).find(SHA) is not None} == found_by


def test_an_answer_of_another_request_is_not_used(tmp_path):
    cache = cache_of(tmp_path, "emulator")
    cache.keep(answer("emulator-hash-1"))
    (file,) = tmp_path.rglob("*.json")
    other = "ab" + "cd" * 31
    file.rename(file.with_name(f"{other}.json"))
    assert cache.find(other) is None
    assert cache.find(SHA) is None
