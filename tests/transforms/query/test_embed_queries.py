"""Queries of a wrong sort are refused before anything is sent, by what they are called."""

from typing import Any

import pytest

from epithre_beam.configs import EmbedConfig, PrepareConfig
from epithre_beam.configs.errors import ArgumentError, QueryError
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings
from epithre_beam.transforms.query.embed_queries import embed_queries

KEY = "key-for-tests-0123456789"


@pytest.mark.parametrize("queries", ["abc", b"abc", None, 5, {"a"}], ids=str)
def test_what_is_no_list_of_queries_is_not_taken_for_one(queries: Any) -> None:
    """A text is a sequence of texts: each letter would be sent, and paid."""
    with Emulator(EmulatorSettings(dimension=8, api_keys=(KEY,))) as emulator:
        embed = EmbedConfig(base_url=emulator.base_url, dimension=8)
        with pytest.raises(ArgumentError, match=r"^queries must be a list of texts and pictures, got"):
            embed_queries(queries, embed, PrepareConfig(), KEY)
        assert not emulator.payments()


@pytest.mark.parametrize("query", [5, None, ["a"], ("image", "id")], ids=str)
def test_a_query_that_is_neither_text_nor_picture_is_named(query: Any) -> None:
    with Emulator(EmulatorSettings(dimension=8, api_keys=(KEY,))) as emulator:
        embed = EmbedConfig(base_url=emulator.base_url, dimension=8)
        with pytest.raises(QueryError, match=r"^Query 1 must be a text, a picture's bytes or its path, got"):
            embed_queries(["a", query], embed, PrepareConfig(), KEY)
        assert not emulator.payments()
