"""The example services run unchanged, follow a new version, and stop on a signal."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from epithre_beam.index import open_catalog
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..pipelines.conftest import KEY, Place, write_images, write_texts
from .conftest import EXAMPLES

DIMENSION = 64


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorSettings(dimension=DIMENSION, api_keys=(KEY,))) as started:
        yield started


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, emulator: Emulator) -> Place:
    place = Place(tmp_path_factory.mktemp("published"))
    write_images(place.folder / "pictures", 10)
    write_texts(place.folder / "texts.csv", 20)
    place.write_job(embed__base_url=emulator.base_url, embed__max_sends=1)
    done = place.cli("run", "job.yaml")
    assert done.returncode == 0, done.stderr
    return place


def publish_another(place: Place) -> None:
    texts = place.folder / "texts.csv"
    texts.write_text(texts.read_text() + f"u{time.time_ns()},another text,1\n")
    done = place.cli("run", "job.yaml")
    assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def serving(*command: Any, **environment: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """Run the service as a process. It must stop on a signal."""
    variables = {**os.environ, "EPITHRE_KEY": KEY, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, *map(str, command)], **pipes, text=True, env=variables)  # type: ignore[call-overload]
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+(?!\d|/v1)", line):
                break
        else:
            pytest.fail("".join(lines))
        threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True).start()
        with httpx.Client(base_url=found[0], timeout=20) as client:
            yield client, process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in {0, -signal.SIGTERM}, "".join(lines)
        assert "Traceback" not in "".join(lines)
    finally:
        process.kill()
        process.wait()


def wait_until(is_so: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_fastapi_service_searches_and_follows_new_version(published: Place, emulator: Emulator) -> None:
    image = published.folder / "pictures" / "p003.jpg"
    command = ("-m", "uvicorn", "--app-dir", EXAMPLES, "--port", 0, "service_fastapi:app")
    settings = {"CATALOG": str(published.catalog), "FOLLOW_EVERY_S": "0.1", "HOLD_S": "60"}
    with serving(*command, **settings) as (client, _):
        assert list((published.catalog / "readers").iterdir())
        wait_until(lambda: client.get("/ready").json()["api_answers"])
        found = client.get("/search", params={"text": "text number 3", "k": 2, "kind": ["text"]}).json()
        assert [hit["kind"] for hit in found["hits"]] == ["text", "text"]
        assert (found["hits"][0]["text"], found["hits"][0]["score"] > 0.99) == ("text number 3", True)
        found = client.post("/search", params={"k": 1}, content=image.read_bytes()).json()
        assert found["hits"][0]["id"] == image.name
        where = {"k": 20, "where": '{"price": {"$gt": 15}}'}
        for found in (
            client.get("/search", params={**where, "text": "text number 3"}).json(),
            client.post("/search", params=where, content=image.read_bytes()).json(),
        ):
            assert sorted(hit["id"] for hit in found["hits"]) == ["t015", "t016", "t017", "t018", "t019"]

        for answer, sentence in (
            (client.get("/search", params={"text": " "}), "empty_text"),
            (client.post("/search", content=b"no picture"), "not_a_picture"),
            (client.post("/search", params={"kind": "image"}, content=b""), "empty_file"),
            (client.get("/search", params={"text": "a", "where": '{"colour": 1}'}), "where.colour"),
            (client.get("/search", params={"text": "a", "where": "{"}), "where must be JSON"),
            (client.get("/search", params={"text": "a", "k": 0}), "k: Input should be greater than or equal to 1"),
            (client.get("/search"), "text: Field required"),
        ):
            assert answer.status_code == 400
            assert sentence in answer.json()["error"]
        assert client.post("/search", content=b"0" * 10_000_001).status_code == 413
        emulator.reset(faults=Faults(refuse_all=503))
        answer = client.get("/search", params={"text": "unheard of"})
        assert (answer.status_code, "retries_exhausted" in answer.text) == (503, True)
        assert client.get("/ready").json()["api_answers"] is False
        emulator.reset(faults=Faults(refuse_all=401))
        assert client.get("/search", params={"text": "unheard of"}).status_code == 503
        assert client.get("/ready").json()["api_retry_after_s"] > 0
        emulator.reset(faults=Faults())

        publish_another(published)
        wait_until(lambda: client.get("/ready").json()["version"] != found["version"])
        wait_until(lambda: client.get("/ready").json()["api_retry_after_s"] == 0)
        assert client.get("/search", params={"text": "after the outage"}).status_code == 200
        assert client.get("/ready").json() == {
            "version": client.get("/search", params={"text": "text number 3"}).json()["version"],
            "assets": 31,
            "refresh_error": None,
            "api_answers": True,
            "api_retry_after_s": 0.0,
        }


def test_fastapi_service_starts_during_an_outage(published: Place, emulator: Emulator) -> None:
    emulator.reset(faults=Faults(refuse_all=503))
    command = ("-m", "uvicorn", "--app-dir", EXAMPLES, "--port", 0, "service_fastapi:app")
    settings = {"CATALOG": str(published.catalog), "CONNECT_EVERY_S": "0.1"}
    with serving(*command, **settings) as (client, _):
        assert client.get("/ready").json()["api_answers"] is False
        answer = client.get("/search", params={"text": "a"})
        assert (answer.status_code, "does not answer yet" in answer.text) == (503, True)
        emulator.reset(faults=Faults())
        wait_until(lambda: client.get("/ready").json()["api_answers"])
        assert client.get("/search", params={"text": "a"}).status_code == 200


def test_every_process_of_threaded_service_follows_new_version(published: Place) -> None:
    with open_catalog(published.catalog) as catalog:
        vector = catalog.vectors("image", [4])[0]
        (expected,) = catalog.search(vector, 5)
        old = catalog.version
    asked = {"vector": vector.tolist(), "k": 5}
    command = (EXAMPLES / "service_threads.py", published.catalog, 0, "--processes", 3, "--follow-every", 0.1)
    with serving(*command) as (client, process):

        def versions() -> Counter[tuple[int, str]]:
            """Count answers by process and version, over several connections."""
            answers = [httpx.get(client.base_url).json() for _ in range(20)]
            return Counter((answer["process"], answer["version"]) for answer in answers)

        seen: set[int] = set()

        def all_are(version: str) -> bool:
            counted = versions()
            seen.update(number for number, _ in counted)
            return {found for _, found in counted} == {version} and len(seen) == 3

        wait_until(lambda: all_are(old))
        assert process.pid in seen
        hits = client.post("/search", json=asked).json()["hits"]
        assert [(hit["id"], hit["kind"]) for hit in hits] == [(hit.asset_id, hit.kind) for hit in expected]
        np.testing.assert_allclose([hit["score"] for hit in hits], [hit.score for hit in expected], atol=1e-6)
        for wrong in ({"vector": [1.0]}, {"vector": [None] * DIMENSION}, {**asked, "k": 0}, {}, [], "x"):
            answer = client.post("/search", json=wrong)
            assert (answer.status_code, bool(answer.json()["error"])) == (400, True)

        publish_another(published)
        with open_catalog(published.catalog) as catalog:
            new = catalog.version
        assert new != old
        wait_until(lambda: all_are(new))
    for number in seen:
        wait_until(lambda number=number: not Path(f"/proc/{number}").exists())  # type: ignore[misc]
