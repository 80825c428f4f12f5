"""`epithre-beam serve` reports errors and its address in one line."""

import contextlib
import json
import shlex
import socket
import subprocess
import time

import httpx
import pytest

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ...ports import free_port
from ...transforms.epithre.answering import CannedReply, answering, error, good
from ..conftest import KEY, command, sentences
from .conftest import DIMENSION, WITHOUT_API, fault, serving


def refused(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    text = " ".join(sentences(done.stderr)) or done.stderr
    for word in words:
        assert word in text, text
    assert "Traceback" not in done.stderr


def test_wrong_usage_and_a_missing_catalog_exit_with_2(hashed, tmp_path):
    catalog = hashed.catalog
    refused(hashed.cli("serve", tmp_path / "none"), 2, "there is no catalog here")
    done = hashed.cli("serve", catalog, "--token-env", "SHORT", SHORT="hunter2")
    refused(done, 2, "SHORT", "at least 16")
    assert "hunter2" not in done.stderr
    refused(hashed.cli("serve", catalog, "--token-env", "NOPE"), 2, "--token-env NOPE", "NOPE is not set")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = hashed.cli("serve", catalog, "--port", port, *WITHOUT_API, key=None)
        refused(done, 2, f"--port {port}: cannot listen here (Address already in use")


def test_the_search_command_accepts_the_same_conditions(hashed):
    asked = ("search", hashed.catalog, "--text", "text number 3", "--kind", "text", "--json")
    done = hashed.cli(*asked, "--where", '{"price": {"$gt": 15}}')
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert sorted(hit["asset_id"] for hit in result["hits"]) == ["t015", "t016", "t017", "t018", "t019"]
    refused(hashed.cli(*asked, "--where", '{"price": "cheap"}'), 2, "where.price must be a number, got 'cheap'.")


def test_without_a_key_only_vectors_and_assets_are_searched(hashed, vector):
    """A remote API needs a key, and none is set."""
    with serving(hashed, *WITHOUT_API, key=None) as server:
        assert server.client.get("/api/catalog").json()["can_embed"] is False
        refused_text = server.search(text="a")
        assert "does not embed queries" in fault(refused_text, 503)
        assert (refused_text.json()["error"]["code"], "retry-after" in refused_text.headers) == ("cannot_embed", False)
        assert server.client.get("/health/ready").json()["embedding_api"] == "none"
        assert "epithre_beam_can_embed 0.0" in server.client.get("/metrics").text
        assert server.search(vector=vector).status_code == 200
        assert server.search(asset={"kind": "text", "id": "t001"}).status_code == 200


def test_with_require_embedding_a_server_without_a_key_does_not_start(hashed):
    done = hashed.cli("serve", hashed.catalog, "--port", 0, "--require-embedding", *WITHOUT_API, key=None)
    refused(done, 2, "EPITHRE_KEY is not set")


def test_a_server_that_starts_in_an_outage_embeds_when_the_api_answers(hashed, vector):
    settings = EmulatorSettings(model="hash", dimension=DIMENSION, api_keys=(KEY,), port=free_port())
    with serving(hashed, "--base-url", f"http://127.0.0.1:{settings.port}/v1") as server:
        ready = server.client.get("/health/ready").json()
        assert (ready["status"], ready["embedding_api"]) == ("degraded", "fails")
        assert server.client.get("/api/catalog").json()["can_embed"] is True
        answer = server.search(text="text number 3")
        assert "The embedding API is unavailable" in fault(answer, 503)
        assert 1 <= int(answer.headers["retry-after"]) <= 5
        assert server.search(vector=vector).status_code == 200
        with Emulator(settings):
            deadline = time.monotonic() + 60
            while server.search(text="text number 3").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert server.client.get("/health/ready").json()["status"] == "ready"
        assert server.stop() == 0
        log = server.process.stderr.read()
        assert "until the embedding API answers" in log
        assert KEY not in log


def test_a_key_that_is_refused_after_an_outage_ends_the_attempts(hashed, vector):
    other = EmulatorSettings(model="hash", dimension=DIMENSION, api_keys=("another-key-0123456789",), port=free_port())
    with serving(hashed, "--base-url", f"http://127.0.0.1:{other.port}/v1") as server, Emulator(other):
        deadline = time.monotonic() + 60
        while (answer := server.search(text="text number 3")).json()["error"]["code"] != "embedding_api_refused":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "Try again" not in fault(answer, 503)
        assert server.client.get("/health/ready").json()["embedding_api"] == "refuses"
        assert server.client.get("/api/catalog").json()["can_embed"] is False
        assert server.search(vector=vector).status_code == 200
        assert server.stop() == 0
        log = server.process.stderr.read()
        assert "refused the API key" in log
        assert KEY not in log


def test_a_server_stops_while_the_api_does_not_answer(hashed):
    with serving(hashed, "--base-url", f"http://127.0.0.1:{free_port()}/v1") as server:
        assert server.stop() == 0
        assert "Traceback" not in server.process.stderr.read()


def test_an_api_outage_fails_only_text_searches(hashed, vector):
    settings = EmulatorSettings(model="hash", dimension=DIMENSION, api_keys=(KEY,))
    with contextlib.ExitStack() as stack:
        with Emulator(settings) as emulator:
            port = httpx.URL(emulator.base_url).port
            options = ("--base-url", emulator.base_url, "--trust-proxy", "127.0.0.1")
            server = stack.enter_context(serving(hashed, *options, "--rate", 6))
            assert ask_from(server, "192.0.2.1", text="text number 3").status_code == 200
            assert ask_from(server, "192.0.2.1", text="text number 3").status_code == 429
        with Emulator(settings.model_copy(update={"api_keys": ("another-key-0123456789",), "port": port})):
            answer = ask_from(server, "192.0.2.2", text="text number 4")
            assert "it refuses this server" in fault(answer, 503)
            assert answer.json()["error"]["code"] == "embedding_api_refused"
            assert "retry-after" not in answer.headers
            assert KEY not in answer.text
            assert ask_from(server, "192.0.2.3", text="text number 3").status_code == 200  # from the cache
            assert ask_from(server, "192.0.2.4", vector=vector).status_code == 200
        assert 'epithre_beam_embeds_total{result="failed"} 1.0' in server.client.get("/metrics").text
        assert server.stop() == 0
        assert KEY not in server.process.stderr.read()


@pytest.mark.slow
def test_health_recovers_after_an_outage_without_a_query(hashed):
    settings = EmulatorSettings(model="hash", dimension=DIMENSION, api_keys=(KEY,))
    with Emulator(settings) as emulator, serving(hashed, "--base-url", emulator.base_url) as server:
        emulator.reset(faults=Faults(refuse_all=503))
        assert server.search(text="text number 5").status_code == 503
        assert server.client.get("/health/ready").json()["embedding_api"] == "fails"
        emulator.reset(faults=Faults())
        deadline = time.monotonic() + 120
        while server.client.get("/health/ready").json()["embedding_api"] != "answers":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "epithre_beam_embedding_api_failing 0.0" in server.client.get("/metrics").text


def ask_from(server, address, **asked):
    """Send a search through a trusted proxy."""
    return server.client.post("/api/search", json=asked, headers={"x-forwarded-for": address})


def test_a_pause_of_the_api_is_reported_and_retried(hashed, vector):
    """For any length of pause, text searches fail at once, others succeed, and the state is reported."""
    (manifest,) = hashed.catalog.glob("versions/*/manifest.json")
    models = CannedReply(
        body={"data": []}, headers={"x-emulator-fingerprint": json.loads(manifest.read_text())["model_fingerprint"]}
    )

    def answer(asked):
        if asked.method == "GET":
            return models
        if asked.number == 0:
            return error(429, f"no more today, {KEY}", retry_after="5.5")
        return good(asked, DIMENSION)

    with answering(answer) as api, serving(hashed, "--base-url", api.base_url) as server:
        ready = {"status": "ready", "version": server.version, "embedding_api": "answers", "retry_after_s": None}
        assert server.client.get("/health/ready").json() == ready
        for text in ("one", "two"):
            answered = server.search(text=text)
            assert KEY not in answered.text
            assert "Try again in" in fault(answered, 503)
            assert 1 <= int(answered.headers["retry-after"]) <= 6
        assert api.count() == 1
        reported = server.client.get("/health/ready")
        assert reported.status_code == 200
        assert (reported.json()["status"], reported.json()["embedding_api"]) == ("degraded", "fails")
        assert 1 <= reported.json()["retry_after_s"] <= 6
        assert "epithre_beam_embedding_api_failing 1.0" in server.client.get("/metrics").text
        assert server.search(vector=vector).status_code == 200
        assert server.search(asset={"kind": "text", "id": "t001"}).status_code == 200
        deadline = time.monotonic() + 60
        while server.search(text="three").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert server.client.get("/health/ready").json() == ready
        assert "epithre_beam_embedding_api_failing 0.0" in server.client.get("/metrics").text
        server.process.terminate()
        assert KEY not in server.process.communicate(timeout=60)[1]


@pytest.mark.parametrize("closed", [">&- 2>&-", "> /dev/full"])
def test_the_server_runs_with_closed_output_streams(hashed, closed):
    port = free_port()
    line = " ".join(map(shlex.quote, map(str, command("serve", hashed.catalog, "--port", port, *WITHOUT_API))))
    options = hashed.process(None, {}) | {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(["bash", "-c", f"exec {line} {closed}"], **options)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                assert httpx.get(f"http://127.0.0.1:{port}/health/live").status_code == 200
                break
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
