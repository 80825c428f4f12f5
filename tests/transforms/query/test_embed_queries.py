"""Invalid queries are refused by name before anything is sent."""

from typing import Any

import pytest

from epithre_beam.configs import EmbedConfig, PrepareConfig
from epithre_beam.configs.errors import ApiError, ApiPausedError, ArgumentError, QueryError
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults
from epithre_beam.transforms.query.embed_queries import embed_queries

KEY = "key-for-tests-0123456789"


@pytest.mark.parametrize("queries", ["abc", b"abc", None, 5, {"a"}], ids=str)
def test_queries_that_are_not_a_list_are_refused(queries: Any) -> None:
    """A text is also a sequence of texts: each letter would be sent and billed."""
    with Emulator(EmulatorSettings(dimension=8, api_keys=(KEY,))) as emulator:
        embed = EmbedConfig(base_url=emulator.base_url, dimension=8)
        with pytest.raises(ArgumentError, match=r"^queries must be a list of texts and images, got"):
            embed_queries(queries, embed, PrepareConfig(), KEY)
        assert not emulator.payments()


@pytest.mark.parametrize("query", [5, None, ["a"], ("image", "id")], ids=str)
def test_query_of_unsupported_type_is_named_in_error(query: Any) -> None:
    with Emulator(EmulatorSettings(dimension=8, api_keys=(KEY,))) as emulator:
        embed = EmbedConfig(base_url=emulator.base_url, dimension=8)
        with pytest.raises(QueryError, match=r"^Query 1 must be a text, the bytes of an image or its path, got"):
            embed_queries(["a", query], embed, PrepareConfig(), KEY)
        assert not emulator.payments()


def test_an_outage_of_the_api_does_not_speak_of_a_run() -> None:
    with Emulator(EmulatorSettings(dimension=8, api_keys=(KEY,), faults=Faults(refuse_all=400))) as emulator:
        embed = EmbedConfig(base_url=emulator.base_url, dimension=8, batch_items=1)
        with pytest.raises(ApiError, match=r"requests in a row failed \(last: .*\)\. Search again when"):
            embed_queries([f"text {i}" for i in range(100)], embed, PrepareConfig(), KEY)
        emulator.reset(faults=Faults(rate_429=1.0, rate_429_retry_after_s=10_000))
        with pytest.raises(ApiPausedError, match=r" that a query waits\. Search again after "):
            embed_queries(["a"], embed, PrepareConfig(), KEY)
