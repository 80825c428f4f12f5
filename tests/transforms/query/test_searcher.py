"""A searcher finds the same hits as the command line, sends each query once, and does not block its event loop."""

import asyncio
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import pytest

from epithre_beam.configs import EmbedConfig, PrepareConfig
from epithre_beam.configs.errors import (
    ApiError,
    ApiPausedError,
    ArgumentError,
    CatalogError,
    ConfigError,
    QueryError,
    UnknownAssetError,
)
from epithre_beam.index import Hit, open_catalog
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults
from epithre_beam.transforms.query import searcher as searcher_module
from epithre_beam.transforms.query.searcher import Searcher

from ...index.conftest import make, unit_vectors
from ...pipelines.conftest import KEY, Place, write_images, write_texts
from ..epithre.answering import Asked, CannedReply, answering, error, good

DIMENSION = 64
EQUALS = 20

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A published catalog, and the emulator that embedded it, in this process."""

    place: Place
    emulator: Emulator

    @property
    def requests(self) -> int:
        return len(self.emulator.log)

    def image(self, number: int = 0) -> Path:
        return self.place.folder / "pictures" / f"p{number:03d}.jpg"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    place = Place(tmp_path_factory.mktemp("published"))
    write_images(place.folder / "pictures", 20)
    write_texts(place.folder / "texts.csv", 30)
    with Emulator(EmulatorSettings(dimension=DIMENSION, api_keys=(KEY,))) as emulator:
        place.write_job(embed__base_url=emulator.base_url)
        done = place.cli("run", "job.yaml")
        assert done.returncode == 0, done.stderr
        yield Scene(place=place, emulator=emulator)


@pytest.fixture
def scene(published: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setenv("EPITHRE_KEY", KEY)
    yield published
    published.emulator.reset(faults=Faults())


def asked(scene: Scene, ask: Callable[[Searcher], Awaitable[_T]], **options: Any) -> _T:
    """Return the result of `ask` with a new searcher. The emulator's log starts with its first query."""

    async def main() -> _T:
        with open_catalog(scene.place.catalog) as catalog:
            async with Searcher.from_catalog(catalog, **options) as searcher:
                scene.emulator.reset(faults=Faults())
                return await ask(searcher)

    return asyncio.run(main())


def plain(hits: list[Hit]) -> list[tuple[Any, ...]]:
    return [(hit.asset_id, hit.kind, round(hit.score, 6), hit.text, dict(hit.metadata)) for hit in hits]


# ---------------------------------------------------------------------------------------------------- hits


@pytest.mark.parametrize("merge", ["score", "standardised"])
def test_searcher_finds_same_hits_as_command_line(scene: Scene, merge: Any) -> None:
    command = ("search", "catalog", "--text", "text number 3", "--image", scene.image(), "-k", "7", "--json")
    done = scene.place.cli(*command, "--merge", merge)
    assert done.returncode == 0, done.stderr
    expected = [
        [(hit["asset_id"], hit["kind"], hit["score"], hit["text"], hit["metadata"]) for hit in result["hits"]]
        for result in json.loads(done.stdout)["results"]
    ]

    async def ask(searcher: Searcher) -> list[list[Hit]]:
        return [await searcher.search(q, 7, merge=merge) for q in ("text number 3", scene.image().read_bytes())]

    assert [plain(hits) for hits in asked(scene, ask)] == expected


def test_where_and_kinds_filter_hits_also_for_vector_queries(scene: Scene) -> None:
    where = pc.field("metadata", "price") < 10

    async def ask(searcher: Searcher) -> None:
        catalog = searcher.catalog
        hits = await searcher.search("text number 3", 30, kinds="text", where=where)
        assert len(hits) == 10
        assert {hit.kind for hit in hits} == {"text"}
        vector = await searcher.embed("text number 3")
        assert (vector.dtype, vector.shape, vector.flags.writeable) == (np.float32, (DIMENSION,), False)
        assert await searcher.search(vector, 30, kinds="text", where=where) == hits
        assert catalog.search(vector, 30, kinds="text", where=where) == [hits]
        with pytest.raises(ValueError, match=r"one vector of shape \(64,\), got ndarray of shape \(2, 64\)"):
            await searcher.search(np.zeros((2, DIMENSION), np.float32))

    asked(scene, ask)


def test_asset_query_omits_itself_unless_exclude_self_is_false(scene: Scene) -> None:
    async def ask(searcher: Searcher) -> None:
        catalog = searcher.catalog
        for kind in catalog.kinds:
            asset_id = catalog.asset(kind, 5).asset_id  # type: ignore[arg-type]
            vector = catalog.vectors(kind, [5])  # type: ignore[arg-type]
            (expected,) = catalog.search(vector, 8)
            found = await searcher.search((kind, asset_id), 8, exclude_self=False)  # type: ignore[arg-type]
            assert found == expected
            assert (found[0].asset_id, found[0].kind) == (asset_id, kind)
            assert await searcher.search((kind, asset_id), 7) == expected[1:]  # type: ignore[arg-type]
        assert scene.requests == 0
        with pytest.raises(UnknownAssetError, match=r"Version 000001-.* has no image asset 'none'\."):
            await searcher.search(("image", "none"))

    asked(scene, ask)


def test_pinned_version_is_searched(tmp_path: Path) -> None:
    numbers = [{"text": range(20)}, {"text": range(100, 120)}]
    names = ("000001-20250102T030405Z-abcdef", "000002-20250102T030405Z-abcdef")
    make(tmp_path / "c", {"text": unit_vectors(20, DIMENSION, 1)}, version=names[0], numbers=numbers[0])
    query = unit_vectors(1, DIMENSION, 3)[0]

    async def main() -> None:
        settings = EmbedConfig(base_url="http://127.0.0.1:9/v1", dimension=DIMENSION)
        with open_catalog(tmp_path / "c", follow=True, follow_every_s=3600) as catalog:
            async with Searcher(catalog, settings, PrepareConfig(), KEY) as searcher:
                with catalog.pinned() as version:
                    make(tmp_path / "c", {"text": unit_vectors(20, DIMENSION, 2)}, version=names[1], numbers=numbers[1])
                    assert catalog.refresh()
                    old = await searcher.search(query, within=version)
                    new = await searcher.search(query)
        assert max(hit.asset_id for hit in old) < "text 00100" <= min(hit.asset_id for hit in new)

    asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- requests


def test_equal_concurrent_queries_are_sent_once(scene: Scene) -> None:
    image = scene.image(3).read_bytes()

    async def ask(searcher: Searcher) -> None:
        scene.emulator.reset(faults=Faults(latency_s=0.2))
        found = await asyncio.gather(
            *(searcher.search("a red bicycle") for _ in range(EQUALS)),
            *(searcher.search(bytes(bytearray(image))) for _ in range(EQUALS)),
        )
        assert all(hits == found[0] for hits in found[:EQUALS])
        assert all(hits == found[-1] for hits in found[EQUALS:])
        assert scene.requests == 2
        await searcher.search("a red bicycle", 3, kinds="image")
        assert scene.requests == 2

    asked(scene, ask)


def test_text_and_image_with_same_bytes_are_different_queries(scene: Scene) -> None:
    async def ask(searcher: Searcher) -> None:
        await searcher.embed("not a picture")
        with pytest.raises(QueryError, match="not_a_picture") as raised:
            await searcher.embed(b"not a picture")
        assert raised.value.reason == "not_a_picture"

    asked(scene, ask)


@pytest.mark.parametrize(("remembered", "requests"), [(0, 8), (2, 5), (3, 4)])
def test_cache_keeps_at_most_cache_queries_recently_used(scene: Scene, remembered: int, requests: int) -> None:
    async def ask(searcher: Searcher) -> int:
        for query in "abacaba":
            await searcher.embed(query)
            assert len(searcher._remembered) <= remembered
        await searcher.embed("d")
        assert not searcher._asked
        return scene.requests

    assert asked(scene, ask, cache_queries=remembered) == requests
    with (
        open_catalog(scene.place.catalog) as catalog,
        pytest.raises(ValueError, match="cache_queries must be a whole number, at le"),
    ):
        Searcher(catalog, EmbedConfig(), PrepareConfig(), KEY, cache_queries=-1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cache_queries": "many"}, "cache_queries must be a whole number"),
        ({"threads": 0}, "threads must be a whole number, at least 1, got 0"),
        ({"decode_pixels": 0.5}, "decode_pixels must be a whole number"),
        ({"base_url": b"http://x"}, "base_url must be a str"),
        ({"api_key_env": 5}, "api_key_env must be a str"),
        ({"base_url": "x"}, "base_url must be an http"),
    ],
)
def test_a_wrong_argument_is_named_before_a_request_is_sent(
    scene: Scene, options: dict[str, Any], sentence: str
) -> None:
    async def ask(_: Searcher) -> None:
        raise AssertionError

    with pytest.raises((ArgumentError, ConfigError), match=f"^{sentence}"):
        asked(scene, ask, **options)


def test_a_closed_searcher_raises_a_clear_error_to_every_caller(scene: Scene) -> None:
    async def main() -> None:
        with open_catalog(scene.place.catalog) as catalog:
            scene.emulator.reset(faults=Faults())
            async with Searcher.from_catalog(catalog) as searcher:
                kept = await searcher.search("text number 3")
                scene.emulator.reset(faults=Faults(latency_s=60.0))
                waiting = asyncio.create_task(searcher.search("not asked before"))
                while not searcher._asked:  # noqa: ASYNC110 - the searcher has no event for it
                    await asyncio.sleep(0)
            assert kept
            with pytest.raises(ArgumentError, match="The searcher is closed"):
                await waiting
            for query in ("text number 3", "another", ("image", "x"), np.ones(DIMENSION)):
                with pytest.raises(ArgumentError, match="The searcher is closed"):
                    await searcher.search(query)  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match="The searcher is closed"):
                await searcher.embed("text number 3")
            unopened = Searcher(catalog, EmbedConfig(), PrepareConfig(), KEY)
            with pytest.raises(ArgumentError, match="is not open"):
                await unopened.search("x")

    asyncio.run(main())


def test_invalid_search_sends_no_request(scene: Scene) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"k": 0}, "k must be a whole number from 1 to 10000, got 0"),
        ({"k": 10_001}, "k must be a whole number"),
        ({"kinds": "audio"}, "kinds must be among"),
        ({"merge": "best"}, "merge must be"),
        ({"recall": 1.5}, "recall must be from 0 to 1, got 1.5"),
        ({"where": pc.field("nope") == 1}, "where must be a condition"),
    ]

    async def ask(searcher: Searcher) -> None:
        asset = ("image", searcher.catalog.asset("image", 0).asset_id)
        for options, sentence in wrong:
            for query in ("a sentence", scene.image().read_bytes(), asset, np.ones(DIMENSION, np.float32)):
                with pytest.raises(ValueError, match=f"^{sentence}"):
                    await searcher.search(query, **options)  # type: ignore[arg-type]
        for given in ("text", ("image",), ("image", 3)):
            with pytest.raises(ArgumentError, match=r"^(within must be a catalog|query must be \(kind, id\))"):
                await searcher.search(given, within="x" if given == "text" else None)  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match=r"^query must be a str or the bytes of an image, got PosixPath"):
            await searcher.embed(scene.image())  # type: ignore[arg-type]
        for query in (np.ones(3), np.full(DIMENSION, np.nan)):
            with pytest.raises(ValueError, match=r"^vectors must"):
                await searcher.search(query)  # type: ignore[arg-type]
        assert scene.requests == 0

    asked(scene, ask)


def test_cancelling_one_caller_does_not_cancel_others(scene: Scene) -> None:
    async def ask(searcher: Searcher) -> None:
        scene.emulator.reset(faults=Faults(latency_s=0.5))
        other = asyncio.create_task(searcher.embed("slow"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await searcher.embed("slow")
        await other
        assert scene.requests == 1

    asked(scene, ask)


# ---------------------------------------------------------------------------------------------------- event loop


@pytest.mark.alone
def test_event_loop_is_not_blocked_while_faiss_searches(tmp_path: Path) -> None:
    made = make(tmp_path / "c", {"text": unit_vectors(8000, 128, 1)}, rows_per_unit=4000, rows_per_file=8000)
    gaps: list[float] = []

    async def tick() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    async def main() -> float:
        settings = EmbedConfig(base_url="http://127.0.0.1:9/v1", dimension=128)
        with made.open() as catalog:
            async with Searcher(catalog, settings, PrepareConfig(), KEY, threads=2) as searcher:
                ticker = asyncio.create_task(tick())
                began = time.perf_counter()
                vectors = unit_vectors(16, 128, 2)
                found = await asyncio.gather(*(searcher.search(vector, 8000) for vector in vectors))
                took = time.perf_counter() - began
                ticker.cancel()
        assert {len(hits) for hits in found} == {8000}
        return took

    took = asyncio.run(main())
    # Not the longest gap: garbage collection of so many hits sometimes stops all threads.
    assert len(gaps) > 20
    assert statistics.median(gaps) < took / 32  # half the time of one search


# ---------------------------------------------------------------------------------------------------- failures


def test_query_error_has_reason_and_is_not_cached(scene: Scene) -> None:
    async def ask(searcher: Searcher) -> None:
        for query, reason in (
            (" ", "empty_text"),
            ("\ud800", "not_utf8"),
            (b"", "empty_file"),
            (b"no", "not_a_picture"),
        ):
            with pytest.raises(QueryError, match=f"^The query cannot be sent \\({reason}\\): .*\\.$") as raised:
                await searcher.search(query)  # type: ignore[arg-type]
            assert raised.value.reason == reason
        assert scene.requests == 0
        scene.emulator.reset(faults=Faults(poison_marker="poison"))
        for _ in range(2):
            with pytest.raises(QueryError, match=r"^The query got no vector \(refused\).*[^.]\.$") as raised:
                await searcher.search("a poison")
            assert raised.value.reason == "refused"
        assert scene.requests == 2
        scene.emulator.reset(faults=Faults())
        assert await searcher.search("a poison")

    asked(scene, ask)


def test_queries_fail_fast_after_outage_and_recover_later(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searcher_module, "_PAUSE_S", 1.0)

    async def ask(searcher: Searcher) -> None:
        known = await searcher.search("known")
        for _ in range(3):  # more often than there are clients
            scene.emulator.reset(faults=Faults(refuse_all=401))
            with pytest.raises(ApiError, match="refused the API key"):
                await searcher.search("new")
            before = scene.requests
            with pytest.raises(ApiError, match="refused the API key"):
                await searcher.search("another")
            assert scene.requests == before
            assert await searcher.search("known") == known
            scene.emulator.reset(faults=Faults())
            async with asyncio.timeout(20):
                while len(searcher._remembered) == 1:
                    await asyncio.sleep(0.05)
                    with contextlib.suppress(ApiError):
                        await searcher.search("new")
            searcher._remembered.popitem()

    asked(scene, ask)


@pytest.mark.parametrize("wait", ["1000000000", "Tue, 31 Dec 2999 23:59:59 GMT", "1e308", "6"])
def test_queries_fail_fast_during_requested_pause_which_is_bounded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    monkeypatch.setattr(searcher_module, "_PAUSE_S", 0.1)
    monkeypatch.setattr(searcher_module, "_LONGEST_REST_S", 1.5)

    def answer(asked: Asked) -> CannedReply:
        return error(429, "not today", retry_after=wait) if asked.number == 0 else good(asked, DIMENSION)

    async def main() -> None:
        with open_catalog(scene.place.catalog) as catalog, answering(answer) as server:
            embed = EmbedConfig(base_url=server.base_url, dimension=DIMENSION)
            async with Searcher(catalog, embed, PrepareConfig(), KEY) as searcher:
                assert searcher.is_answered
                async with asyncio.timeout(20):
                    with pytest.raises(ApiPausedError, match="429: not today"):
                        await searcher.search("first")
                    assert not searcher.is_answered
                    assert 0 < searcher.rest_s <= 1.5
                    with pytest.raises(ApiPausedError):
                        await searcher.search("second")
                    assert server.count() == 1
                    assert len(await searcher.search(np.eye(1, DIMENSION, dtype=np.float32)[0], 3)) == 3
                    while not searcher.is_answered:
                        await asyncio.sleep(searcher.rest_s)
                        with contextlib.suppress(ApiPausedError):
                            await searcher.search("second")
                assert searcher.rest_s == 0
                assert server.count() == 2

    asyncio.run(main())


def test_answer_to_earlier_request_does_not_end_pause(scene: Scene) -> None:
    arrived, paused = threading.Event(), threading.Event()

    def answer(asked: Asked) -> CannedReply:
        if asked.items == ["slow"]:
            arrived.set()
            assert paused.wait(20)
            return good(asked, DIMENSION)
        return error(429, "not today", retry_after="1000")

    async def main() -> None:
        with open_catalog(scene.place.catalog) as catalog, answering(answer) as server:
            embed = EmbedConfig(base_url=server.base_url, dimension=DIMENSION)
            async with Searcher(catalog, embed, PrepareConfig(), KEY) as searcher:
                slow = asyncio.create_task(searcher.search("slow"))
                assert await asyncio.to_thread(arrived.wait, 20)
                with pytest.raises(ApiPausedError):
                    await searcher.search("other")
                paused.set()
                assert await slow
                assert searcher.rest_s > 500
                assert not searcher.is_answered

    asyncio.run(main())


def test_key_is_not_in_repr_errors_or_logs(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def ask(searcher: Searcher) -> str:
        scene.emulator.reset(faults=Faults(refuse_all=401))
        with pytest.raises(ApiError) as raised:
            await searcher.search("x")
        return repr(searcher) + repr(raised.value) + repr(searcher.catalog)

    assert KEY not in asked(scene, ask) + caplog.text


def test_opening_raises_for_other_model_and_missing_or_wrong_key(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def nothing(searcher: Searcher) -> None:
        raise AssertionError

    with (
        Emulator(EmulatorSettings(model="attributes", dimension=512, api_keys=(KEY,))) as other,
        pytest.raises(CatalogError, match="cannot be compared"),
    ):
        asked(scene, nothing, base_url=other.base_url)
    with pytest.raises(ConfigError, match="environment variable NO_KEY is not set"):
        asked(scene, nothing, api_key_env="NO_KEY")
    monkeypatch.setenv("EPITHRE_KEY", "wrong")
    with pytest.raises(ApiError, match="refused the API key"):
        asked(scene, nothing)


def test_emulator_is_started_for_base_url_emulator(scene: Scene) -> None:
    async def ask(searcher: Searcher) -> tuple[str, list[Hit]]:
        return searcher._embed.base_url, await searcher.search("text number 3", 1)

    url, hits = asked(scene, ask, base_url="emulator")
    assert url.startswith("http://127.0.0.1:")
    assert hits[0].text == "text number 3"


def test_searcher_does_not_import_beam() -> None:
    program = "import epithre_beam.transforms.query.searcher, sys; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=dict(os.environ), check=False).returncode == 0
