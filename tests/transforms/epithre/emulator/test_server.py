"""The emulator over real HTTP: unchanged clients work, limits hold, and each fault occurs as configured."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from pydantic import ValidationError

from epithre_beam.transforms.epithre.emulator import (
    Emulator,
    EmulatorSettings,
    Faults,
    Limits,
    start_emulator_process,
)
from epithre_beam.transforms.epithre.emulator.admission import Admission, go_duration, worst_window
from epithre_beam.transforms.epithre.emulator.faults import draw
from epithre_beam.transforms.epithre.emulator.hash_model import content_digest, hash_vector

MODULE = "epithre_beam.transforms.epithre.emulator"
MODEL = "epithre-embed"
DIMENSION = 64
IMAGE = b"any bytes are accepted as an image"


@contextmanager
def running(
    limits: Limits | None = None, faults: Faults | None = None, **settings: Any
) -> Iterator[tuple[Emulator, httpx.Client]]:
    """An emulator and an HTTP client with its key."""
    settings.setdefault("dimension", DIMENSION)
    chosen = EmulatorSettings(limits=limits or Limits(), faults=faults or Faults(), **settings)
    with Emulator(chosen) as emulator, client_of(emulator) as client:
        yield emulator, client


def client_of(emulator: Any, **options: Any) -> httpx.Client:
    headers = {"authorization": f"Bearer {emulator.api_key}"}
    return httpx.Client(base_url=emulator.base_url, headers=headers, timeout=10, **options)


def image(data: bytes = IMAGE) -> dict[str, str]:
    return {"type": "image", "image": base64.b64encode(data).decode()}


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def embed(client: httpx.Client, items: Any, encoding: str | None = "base64", **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "input": items, **fields}
    if encoding is not None:
        body["encoding_format"] = encoding
    return client.post("/embeddings", json=body)


def vectors(answer: httpx.Response) -> list[tuple[int, np.ndarray]]:
    assert answer.status_code == 200, answer.text
    pairs = []
    for entry in answer.json()["data"]:
        value = entry["embedding"]
        if isinstance(value, str):
            pairs.append((entry["index"], np.frombuffer(base64.b64decode(value), "<f4")))
        else:
            pairs.append((entry["index"], np.array(value, dtype="f4")))
    return pairs


def text_vector(text: str, dimension: int = DIMENSION) -> np.ndarray:
    return hash_vector("text", text.encode(), dimension)


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def calm() -> Iterator[Emulator]:
    """A server without limits or faults, at the real dimension."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def client(calm: Emulator) -> Iterator[httpx.Client]:
    with client_of(calm) as client:
        yield client


# Unchanged clients


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
def test_the_official_client_embeds_mixed_input_in_both_encodings(calm: Emulator, encoding: Any) -> None:
    official = openai.OpenAI(base_url=calm.base_url, api_key=calm.api_key, max_retries=0)
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = official.embeddings.create(model=MODEL, input=["kucing oren", image()], **options)
    assert (answer.model, answer.object, len(answer.data)) == (MODEL, "list", 2)
    for entry, kind, content in zip(answer.data, ("text", "image"), (b"kucing oren", IMAGE), strict=True):
        value = entry.embedding
        got = np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else np.array(value)
        assert got.shape == (4000,)
        np.testing.assert_allclose(got, hash_vector(kind, content, 4000), atol=1e-7)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0


def test_the_official_client_lists_models_and_maps_errors(calm: Emulator) -> None:
    official = openai.OpenAI(base_url=calm.base_url, api_key=calm.api_key, max_retries=0)
    assert MODEL in [model.id for model in official.models.list()]
    assert "emulator" in official.models.retrieve(MODEL).owned_by
    with pytest.raises(openai.NotFoundError):
        official.models.retrieve("no-such-model")
    with pytest.raises(openai.NotFoundError) as unknown:
        official.embeddings.create(model="no-such-model", input="a")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        official.embeddings.create(model=MODEL, input=["a", ""])
    assert bad.value.param == "input[1]"
    assert bad.value.request_id
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=calm.base_url, api_key="wrong", max_retries=0).models.list()


def test_curl_works_with_expect_100_continue(calm: Emulator, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed: apt-get install curl")
    body = tmp_path / "body.json"  # beyond 1 MB curl sends Expect: 100-continue
    body.write_text(json.dumps({"model": MODEL, "input": ["a", image(bytes(1_500_000))]}))
    command = [
        curl,
        "-sS",
        "--fail",
        f"{calm.base_url}/embeddings",
        "-H",
        f"Authorization: Bearer {calm.api_key}",
    ]
    command += [
        "-H",
        "Content-Type: application/json",
        "-H",
        "Expect: 100-continue",
        "--data-binary",
        f"@{body}",
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=20)
    answer = json.loads(done.stdout)
    np.testing.assert_allclose(answer["data"][0]["embedding"], text_vector("a", 4000), atol=1e-7)


def test_a_data_uri_and_plain_base64_give_the_same_vector(client: httpx.Client) -> None:
    bare = image()
    uri = {"type": "image", "image": f"data:image/jpeg;base64,{bare['image']}"}
    (_, first), (_, second) = vectors(embed(client, [bare, uri]))
    assert first.tobytes() == second.tobytes() == hash_vector("image", IMAGE, 4000).tobytes()


def test_a_single_string_is_one_item(client: httpx.Client) -> None:
    ((index, vector),) = vectors(embed(client, "satu", encoding=None))
    assert index == 0
    np.testing.assert_allclose(vector, text_vector("satu", 4000), atol=1e-7)


def test_vectors_have_unit_norm_and_depend_on_kind_and_content() -> None:
    seen = {hash_vector(kind, content, 4000).tobytes() for kind in ("text", "image") for content in (b"a", b"b", b"")}
    assert len(seen) == 6
    norms = [np.linalg.norm(np.frombuffer(vector, "f4").astype("f8")) for vector in seen]
    np.testing.assert_allclose(norms, 1.0, atol=1e-6)


def test_every_answer_has_a_request_id_and_the_fingerprint(calm: Emulator, client: httpx.Client) -> None:
    answers = [embed(client, "a"), embed(client, ""), client.get("/models"), client.get("/nowhere")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
    assert {answer.headers["x-emulator-fingerprint"] for answer in answers} == {calm.model.fingerprint}
    assert answers[0].json()["system_fingerprint"] == calm.model.fingerprint
    assert "emulator" in calm.model.fingerprint


@pytest.mark.alone
def test_small_answers_do_not_wait_for_delayed_acknowledgements(client: httpx.Client) -> None:
    took = []
    for _ in range(20):
        start = time.perf_counter()
        embed(client, "a")
        took.append(time.perf_counter() - start)
    assert statistics.median(took) < 0.03


def test_two_hundred_slow_requests_are_served_concurrently() -> None:
    async def ask(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"model": MODEL, "input": "a"}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nauthorization: Bearer {key}\r\ncontent-length: {len(body)}\r\n"
        writer.write(f"{head}connection: close\r\n\r\n".encode() + body)
        answer = await reader.read()
        writer.close()
        return answer[:12]

    async def ask_all(port: int) -> list[bytes]:
        return await asyncio.gather(*(ask(port) for _ in range(200)))

    with running(faults=Faults(latency_s=1.0)) as (emulator, _):
        key = emulator.api_key
        start = time.monotonic()
        answers = asyncio.run(ask_all(int(emulator.url.rsplit(":", 1)[1])))
        wall = time.monotonic() - start
        assert set(answers) == {b"HTTP/1.1 200"}
        assert emulator.stats()["peak_in_service"] == 200
    assert 1.0 <= wall < 3.0


# Refused requests


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic emulator-key", "emulator-key", "Bearer"])
def test_every_path_below_v1_requires_the_key(calm: Emulator, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    with httpx.Client(base_url=calm.base_url, headers=headers) as stranger:
        for answer in (embed(stranger, "a"), stranger.get("/models"), stranger.get("/nowhere")):
            assert answer.status_code == 401
            assert error_of(answer)["code"] == "invalid_api_key"


def test_no_log_statistic_or_error_contains_a_key() -> None:
    own, foreign = "sk-of/the+emulator-0123", "sk-of/somebody-0123456"
    with running(api_keys=(own,), faults=Faults()) as (emulator, client):
        for key in (own, foreign):
            for written in (key, quote(key, safe=""), quote(quote(key, safe=""), safe=""), key.encode().hex()):
                headers = {"authorization": f"Bearer {key}"}
                for path in (f"/v1/models/{written}", f"/v1/{written}", f"/{written}?key={written}"):
                    answer = httpx.get(f"{emulator.url}{path}", headers=headers)
                    assert answer.status_code in {401, 404}
                    assert written.lower() not in answer.text.lower().replace("\\/", "/")
                answer = httpx.post(
                    f"{emulator.base_url}/embeddings", headers=headers, json={"model": written, "input": "a"}
                )
                assert answer.status_code in {401, 404}
                assert written not in answer.text
        said = json.dumps(client.get(f"{emulator.url}/emulator/log").json()) + repr(emulator.log)
        said += json.dumps(emulator.stats()) + repr(emulator.payments()) + repr(emulator.settings)
    for key in (own, foreign):
        assert not [trace for trace in (key, key[4:], quote(key, safe=""), key.encode().hex()) if trace in said]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"\xff", 400, None),
        ({"input": "a"}, 400, "model"),
        ({"model": MODEL}, 400, "input"),
        ({"model": "other", "input": "a"}, 404, "model"),
        ({"model": MODEL, "input": []}, 400, "input"),
        ({"model": MODEL, "input": {"type": "image", "image": "AAAA"}}, 400, "input"),
        ({"model": MODEL, "input": ""}, 400, "input[0]"),
        ({"model": MODEL, "input": ["a", ""]}, 400, "input[1]"),
        ({"model": MODEL, "input": ["a", 7]}, 400, "input[1]"),
        ({"model": MODEL, "input": ["a", {"type": "text", "text": "b"}]}, 400, "input[1]"),
        ({"model": MODEL, "input": [{"type": "image", "image": "a$b="}]}, 400, "input[0]"),
        ({"model": MODEL, "input": [{"type": "image", "image": "é"}]}, 400, "input[0]"),
        ({"model": MODEL, "input": [{"type": "image", "image": ""}]}, 400, "input[0]"),
        ({"model": MODEL, "input": [{"type": "image", "image": "data:image/png,AAAA"}]}, 400, "input[0]"),
        ({"model": MODEL, "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"model": MODEL, "input": "a", "dimensions": 7}, 400, "dimensions"),
    ],
)
def test_a_malformed_request_is_refused_with_the_parameter(
    client: httpx.Client, body: Any, status: int, param: str | None
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/embeddings", content=content)
    assert answer.status_code == status
    assert error_of(answer)["param"] == param
    assert embed(client, "a").status_code == 200  # the connection is still usable


def test_unknown_paths_and_methods_are_refused(client: httpx.Client) -> None:
    assert client.get("/nowhere").status_code == 404
    assert client.get("/models/a/b").status_code == 404
    for method in ("GET", "PUT", "DELETE", "PATCH", "HEAD"):
        answer = client.request(method, "/embeddings", content=b"{}" if method in ("PUT", "PATCH") else None)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    for path in ("/images/generations", "/images/edits"):
        answer = client.post(path, json={})
        assert answer.status_code == 501
        assert error_of(answer)["code"] == "not_implemented"


def test_a_body_needs_a_length_or_chunks(calm: Emulator, client: httpx.Client) -> None:
    connection = http.client.HTTPConnection(calm.url.removeprefix("http://"), timeout=5)
    connection.putrequest("POST", "/v1/embeddings")
    connection.putheader("authorization", f"Bearer {calm.api_key}")
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 411
    assert json.loads(answer.read())["error"]["code"] == "length_required"
    connection.close()

    content = json.dumps({"model": MODEL, "input": "terpotong"}).encode()
    chunked = client.post("/embeddings", content=(content[i : i + 7] for i in range(0, len(content), 7)))
    np.testing.assert_allclose(vectors(chunked)[0][1], text_vector("terpotong", 4000), atol=1e-7)
    assert embed(client, "a").status_code == 200


def test_malformed_http_is_refused_in_the_same_format(calm: Emulator) -> None:
    host, port = calm.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"BREW /v1/embeddings HTTP/1.1\r\n\r\n")
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 501")
    assert json.loads(body)["error"]["message"]


def test_images_are_decoded_only_if_configured() -> None:
    with running() as (_, client):
        assert embed(client, [image(b"no image")]).status_code == 200
    with running(validate_images=True) as (emulator, client):
        whole = png(600, 400)
        assert embed(client, [image(whole)]).json()["usage"]["prompt_tokens"] == 85 + 170 * 2
        for broken in (b"no image", whole[:-40]):
            refused = embed(client, ["a", image(broken)])
            assert (refused.status_code, error_of(refused)["param"]) == (400, "input[1]")
        assert not emulator.log[1].billed


def test_the_attributes_model_names_an_invalid_image() -> None:
    with running(model="attributes", dimension=4000) as (emulator, client):
        (_, text), (_, image_vector) = vectors(embed(client, ["lingkaran merah", image(png(96, 96))]))
        assert text.shape == image_vector.shape == (4000,)
        np.testing.assert_allclose([np.linalg.norm(text), np.linalg.norm(image_vector)], 1.0, atol=1e-3)
        refused = embed(client, ["a", image(b"no image")])
        assert (refused.status_code, error_of(refused)["param"]) == (400, "input[1]")
        assert emulator.model.fingerprint in refused.headers["x-emulator-fingerprint"]


# Limits


@pytest.mark.parametrize(
    ("limits", "code", "param"),
    [
        (Limits(max_inputs=2), "too_many_inputs", "input"),
        (Limits(max_tokens_per_input=3), "context_length_exceeded", "input[2]"),
    ],
)
def test_too_much_in_one_request_is_400(limits: Limits, code: str, param: str) -> None:
    with running(limits) as (_, client):
        answer = embed(client, ["a", "b", "thirteen byte"])
        assert answer.status_code == 400
        assert (error_of(answer)["code"], error_of(answer)["param"]) == (code, param)
        assert embed(client, ["a", "twelve bytes"]).status_code == 200


def test_an_image_with_too_many_pixels_is_named() -> None:
    with running(Limits(max_pixels=10_000)) as (_, client):
        assert embed(client, [image(png(100, 100))]).status_code == 200
        refused = embed(client, [image(png(100, 100)), image(png(101, 100))])
        assert (refused.status_code, error_of(refused)["param"]) == (400, "input[1]")
        assert error_of(refused)["code"] == "image_too_large"


@pytest.mark.parametrize("as_html", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413_and_the_connection_survives(as_html: bool, chunked: bool) -> None:
    with running(Limits(max_body_bytes=50_000), Faults(html_413=as_html)) as (_, client):
        content = json.dumps({"model": MODEL, "input": ["a" * 2_000_000]}).encode()
        answer = client.post("/embeddings", content=iter([content]) if chunked else content)
        assert answer.status_code == 413
        if as_html:
            assert answer.headers["content-type"] == "text/html"
            assert "413" in answer.text
        else:
            assert error_of(answer)["code"] == "request_too_large"
        assert embed(client, "a").status_code == 200


def test_a_request_heavier_than_the_limit_is_413() -> None:
    with running(Limits(items_per_minute=5)) as (_, client):
        refused = embed(client, ["a"] * 6)
        assert refused.status_code == 413
        assert "items" in error_of(refused)["message"]
        assert embed(client, ["a"] * 5).status_code == 200


@pytest.mark.parametrize(
    "limits",
    [
        Limits(requests_per_minute=9, window_s=0.25),
        Limits(items_per_minute=31, window_s=0.25),
        Limits(tokens_per_minute=40, window_s=0.25),
        Limits(requests_per_minute=9, items_per_minute=25, tokens_per_minute=60, concurrency=4, window_s=0.25),
    ],
)
def test_no_window_exceeds_the_limit_under_load(limits: Limits) -> None:
    def hammer(seed: int) -> None:
        generator = np.random.default_rng(seed)
        with client_of(emulator) as client:
            while not is_enough.is_set():
                items = ["x" * int(generator.integers(1, 20)) for _ in range(generator.integers(1, 6))]
                assert embed(client, items).status_code in (200, 429)

    caps = (limits.requests_per_minute, limits.items_per_minute, limits.tokens_per_minute)

    def is_nearly_full() -> bool:
        """Whether a limit is nearly reached and requests were refused."""
        seen = zip(emulator.worst_window(), caps, strict=True)
        is_full = any(cap is not None and count > 0.7 * cap for count, cap in seen)
        return is_full and emulator.stats()["decisions"]["refused"] > 0

    is_enough = threading.Event()
    with running(limits) as (emulator, _):
        started = time.monotonic()
        threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        while time.monotonic() < started + 0.9 or not is_nearly_full():  # at least some windows
            assert time.monotonic() < started + 100
            time.sleep(0.05)
        is_enough.set()
        for thread in threads:
            thread.join()
        worst = emulator.worst_window()
        stats = emulator.stats()
    for seen, cap in zip(worst, caps, strict=True):
        assert cap is None or seen <= cap
    assert stats["peak_in_service"] <= (limits.concurrency or 6)


def test_refused_requests_do_not_count() -> None:
    with running(Limits(requests_per_minute=3, window_s=0.4)) as (emulator, client):
        while (decisions := [record.decision for record in emulator.log]).count("admitted") < 6:
            assert len(decisions) < 100_000
            embed(client, "a")
    # Hammering did not push the window ahead: whoever was refused had three that were admitted in the window before.
    times = [(record.decision, record.decided_ns) for record in emulator.log]
    admitted = [at for decision, at in times if decision == "admitted"]
    refused = [at for decision, at in times if decision == "refused"]
    assert refused
    assert all(sum(now - 400_000_000 < at <= now for at in admitted) == 3 for now in refused)


def test_worst_window_equals_the_brute_force_count() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        times = np.sort(generator.integers(0, 400, size=30))
        log = [
            Admission(
                serial=serial,
                request_id="",
                method="POST",
                path="",
                arrived_ns=0,
                decided_ns=int(at),
                decision="admitted" if generator.random() < 0.8 else "refused",
                items=int(generator.integers(1, 9)),
                tokens=int(generator.integers(1, 99)),
            )
            for serial, at in enumerate(times)
        ]
        generator.shuffle(log)
        admitted = [record for record in log if record.decision == "admitted"]
        windows = [[r for r in admitted if end - 50 < (r.decided_ns or 0) <= end] for end in range(460)]
        expected = (
            max(len(window) for window in windows),
            max(sum(record.items for record in window) for window in windows),
            max(sum(record.tokens for record in window) for window in windows),
        )
        assert tuple(worst_window(log, 50e-9)) == expected


@pytest.mark.parametrize("form", ["seconds", "float", "date", "milliseconds", "absent"])
def test_retry_after_is_correct_in_every_form(form: Any) -> None:
    with running(Limits(requests_per_minute=2, window_s=0.8, retry_after=form)) as (emulator, client):
        assert [embed(client, "a").status_code for _ in range(2)] == [200, 200]
        refused = embed(client, "a")
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        reported = refused.headers.get("retry-after")
        if form == "absent":
            assert reported is None
            assert "retry-after-ms" not in refused.headers
            return
        if form == "date":
            date, until = refused.headers["date"], str(reported)
            wait_s = (parsedate_to_datetime(until) - parsedate_to_datetime(date)).total_seconds()
        elif form == "milliseconds":
            wait_s = int(refused.headers["retry-after-ms"]) / 1000
        else:
            assert reported is not None
            assert reported.isdecimal() == (form == "seconds")
            wait_s = float(reported)
        first, _, third = (record.decided_ns or 0 for record in emulator.log)
        really_s = (first - third) / 1e9 + 0.8  # until the first request is out of the window
        longest_s = {"float": 0.01, "milliseconds": 0.01, "seconds": 1.0, "date": 2.0}[form]  # as it is rounded up
        assert wait_s <= really_s + longest_s
        assert form == "date" or wait_s >= really_s  # the date header is written a little later
        time.sleep(wait_s)
        assert embed(client, "a").status_code == 200
        assert emulator.worst_window().requests == 2


def test_rate_limit_headers_count_down_and_state_the_reset() -> None:
    with running(Limits(requests_per_minute=5, tokens_per_minute=100)) as (_, client):
        embed(client, "12345678")
        headers = embed(client, "1234").headers
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == (
            "5",
            "3",
        )
        assert (headers["x-ratelimit-limit-tokens"], headers["x-ratelimit-remaining-tokens"]) == ("100", "97")
        assert headers["x-ratelimit-reset-requests"] == headers["x-ratelimit-reset-tokens"]
        assert headers["x-ratelimit-reset-requests"].startswith(("59.", "1m0s"))
    with running(Limits(requests_per_minute=5, send_headers=False)) as (_, client):
        assert not [name for name in embed(client, "a").headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (0, "0s"),
        (0.02, "20ms"),
        (0.0201, "21ms"),
        (1.5, "1.5s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3661.25, "1h1m1.25s"),
    ],
)
def test_go_duration_matches_gos_format(duration_s: float, text: str) -> None:
    assert go_duration(round(duration_s * 1e9)) == text


def test_one_concurrent_request_too_many_gets_slow_down() -> None:
    with running(Limits(concurrency=2), Faults(latency_s=0.4)) as (emulator, client):
        threads = [threading.Thread(target=embed, args=(client, "a")) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert eventually(lambda: emulator.stats()["in_service"] == 2)
        refused = embed(client, "b")
        assert (refused.status_code, error_of(refused)["code"]) == (429, "slow_down")
        for thread in threads:
            thread.join()
        assert embed(client, "b").status_code == 200
        assert emulator.stats()["peak_in_service"] == 2


def test_a_client_at_the_concurrency_limit_is_never_refused() -> None:
    """The gate is released before the answer is sent, so the next request is always admitted."""

    def ask() -> None:
        with client_of(emulator) as client:
            statuses.update(embed(client, "a").status_code for _ in range(60))

    statuses: set[int] = set()
    with running(Limits(concurrency=3)) as (emulator, _):
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == {200}


# The log


def test_payments_counts_how_often_each_content_was_billed() -> None:
    with running(Limits(requests_per_minute=3)) as (emulator, client):
        embed(client, ["a", "b", image()])
        embed(client, ["a", "a"])
        embed(client, "")
        embed(client, ["c"])
        assert embed(client, ["d"]).status_code == 429
        expected = {("text", b"a"): 3, ("text", b"b"): 1, ("image", IMAGE): 1, ("text", b"c"): 1}
        assert emulator.payments() == {
            content_digest(kind, content).hex(): count for (kind, content), count in expected.items()
        }
        assert content_digest("text", b"a") == hashlib.sha256(b"text\0a").digest()
        log = emulator.log
        assert [record.decision for record in log] == [
            "admitted",
            "admitted",
            "unmetered",
            "admitted",
            "refused",
        ]
        assert [record.status for record in log] == [200, 200, 400, 200, 429]
        assert [record.items for record in log] == [3, 2, 0, 1, 1]
        assert log[4].reason == "requests"
        for record in log:
            assert record.body_bytes > 0
            assert record.answered_ns is not None
            assert record.arrived_ns <= record.answered_ns


def test_log_and_totals_are_served_and_reset_over_http() -> None:
    with running(Limits(requests_per_minute=2)) as (emulator, client):
        for _ in range(3):
            embed(client, ["a", "b"])
        log = httpx.get(f"{emulator.url}/emulator/log").json()
        assert [record["decision"] for record in log] == ["admitted", "admitted", "refused"]
        assert log[0]["digests"] == [content_digest("text", text).hex() for text in (b"a", b"b")]
        assert httpx.get(f"{emulator.url}/emulator/log?since=2").json() == log[2:]
        stats = httpx.get(f"{emulator.url}/emulator/stats").json()
        assert (stats["billed_requests"], stats["billed_items"], stats["billed_distinct_items"]) == (2, 4, 2)
        assert stats["worst_window"] == {"requests": 2, "items": 4, "tokens": 4}
        assert httpx.post(f"{emulator.url}/emulator/reset").json() == {"reset": True}
        assert emulator.log == []
        assert embed(client, "a").status_code == 200
        reset = {"faults": {"error_500": 1.0}, "limits": {}}
        assert httpx.post(f"{emulator.url}/emulator/reset", json=reset).status_code == 200
        assert embed(client, "a").status_code == 500
        for wrong in ({"faults": {"no_such": 1}}, {"port": 1}, []):
            assert httpx.post(f"{emulator.url}/emulator/reset", json=wrong).status_code == 400


# Faults


@pytest.mark.parametrize(
    ("faults", "status", "code"),
    [
        (Faults(rate_429=1.0), 429, "rate_limit_exceeded"),
        (Faults(rate_429=1.0, rate_429_kind="slow_down"), 429, "slow_down"),
        (Faults(quota_429=1.0), 429, "insufficient_quota"),
        (Faults(error_500=1.0), 500, "server_error"),
        (Faults(error_503=1.0), 503, "server_is_overloaded"),
        (Faults(refuse_all=401), 401, "invalid_api_key"),
        (Faults(refuse_all=402), 402, "billing_hard_limit_reached"),
        (Faults(refuse_all=403), 403, "permission_denied"),
        (Faults(refuse_all=500), 500, "server_error"),
    ],
)
def test_error_answers(faults: Faults, status: int, code: str) -> None:
    with running(faults=faults) as (emulator, client):
        answer = embed(client, "a")
        assert (answer.status_code, error_of(answer)["code"]) == (status, code)
        assert emulator.payments() == {}
        if faults.refuse_all is not None:
            assert client.get("/models").status_code == status


def test_an_injected_429_has_the_configured_retry_after() -> None:
    faults = Faults(rate_429=1.0, rate_429_retry_after_s=1.25)
    for form, header, value in (
        ("seconds", "retry-after", "2"),
        ("float", "retry-after", "1.250"),
        ("milliseconds", "retry-after-ms", "1250"),
    ):
        with running(Limits.model_validate({"retry_after": form}), faults) as (_, client):
            assert embed(client, "a").headers[header] == value


def test_an_html_error_is_a_502_page() -> None:
    with running(faults=Faults(html_error=1.0)) as (emulator, client):
        answer = embed(client, "a")
        assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html")
        assert answer.text.startswith("<html>")
        assert emulator.log[0].faults == ("html_error",)


def test_a_dropped_connection_closes_without_an_answer() -> None:
    with running(faults=Faults(drop_connection=1.0)) as (emulator, client):
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            embed(client, "a")
        (record,) = emulator.log
        assert (record.decision, record.status, record.delivered) == ("admitted", None, False)
        assert record.faults == ("drop_connection",)


def test_a_hang_ends_without_an_answer() -> None:
    with running(faults=Faults(hang=1.0, hang_s=0.4)) as (emulator, client):
        start = time.monotonic()
        with pytest.raises(httpx.RemoteProtocolError):
            embed(client, "a")
        assert time.monotonic() - start >= 0.4
        emulator.reset(faults=Faults(hang=1.0, hang_s=60))
        with pytest.raises(httpx.ReadTimeout):
            client.post("/embeddings", json={"model": MODEL, "input": "a"}, timeout=0.3)


def test_close_ends_hangs_and_idle_connections_at_once() -> None:
    emulator = Emulator(EmulatorSettings(faults=Faults(hang=1.0, hang_s=60))).start()
    failures: list[Exception] = []

    def ask() -> None:
        try:
            with client_of(emulator) as client:
                embed(client, "a")
        except httpx.HTTPError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert eventually(lambda: emulator.stats()["in_service"] == 1)
    start = time.monotonic()
    emulator.close()
    emulator.close()
    thread.join(30)
    assert not thread.is_alive()
    assert time.monotonic() - start < 30  # less than the minute of the hang
    assert len(failures) == 1
    with pytest.raises(RuntimeError, match="not running"):
        _ = emulator.url


def test_a_truncated_body_is_shorter_than_its_content_length() -> None:
    with running(faults=Faults(truncate_body=1.0)) as (emulator, client):
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            embed(client, "a")
        (record,) = emulator.log
        assert (record.status, record.delivered, record.billed) == (200, False, True)


def test_out_of_order_answers_have_correct_vectors_per_index() -> None:
    texts = [f"t{i}" for i in range(8)]
    with running(faults=Faults(out_of_order=1.0)) as (_, client):
        pairs = vectors(embed(client, texts))
    assert [index for index, _ in pairs] != list(range(8))
    assert sorted(index for index, _ in pairs) == list(range(8))
    for index, vector in pairs:
        assert vector.tobytes() == text_vector(texts[index]).tobytes()


@pytest.mark.parametrize("size", [1, 2, 8])
def test_missing_items_and_duplicate_indexes_occur_at_any_size(size: int) -> None:
    texts = [f"t{i}" for i in range(size)]
    with running(faults=Faults(missing_item=1.0)) as (_, client):
        assert len(vectors(embed(client, texts))) == size - 1
    with running(faults=Faults(duplicate_index=1.0)) as (_, client):
        indices = [index for index, _ in vectors(embed(client, texts))]
        assert len(set(indices)) == len(indices) - 1


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_broken_vectors(encoding: str) -> None:
    texts = ["a", "b", "c"]
    with running(faults=Faults(nan=1.0)) as (_, client):
        assert sum(np.isnan(vector).any() for _, vector in vectors(embed(client, texts, encoding))) == 1
    with running(faults=Faults(wrong_dimension=1.0)) as (_, client):
        lengths = sorted(len(vector) for _, vector in vectors(embed(client, texts, encoding)))
        assert lengths == [DIMENSION, DIMENSION, DIMENSION + 1]
    with running(faults=Faults(unnormalised=1.0)) as (_, client):
        norms = sorted(float(np.linalg.norm(vector)) for _, vector in vectors(embed(client, texts, encoding)))
        np.testing.assert_allclose(norms, [1, 1, 3], rtol=1e-5)


def test_base64_can_be_ignored() -> None:
    with running(faults=Faults(ignore_base64=1.0)) as (_, client):
        answer = embed(client, "a", encoding="base64")
        assert isinstance(answer.json()["data"][0]["embedding"], list)
        np.testing.assert_allclose(vectors(answer)[0][1], text_vector("a"), atol=1e-7)


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("names", ["param", "prose", "nowhere"])
def test_a_poisoned_item_is_named_as_configured(names: Any, status: Any) -> None:
    faults = Faults(poison_marker="racun", poison_names=names, poison_status=status)
    poisoned = [["a", "b", "c racun"], ["a", "b", image(b"\xff\xd8 racun \xff")]]
    with running(faults=faults) as (emulator, client):
        for items in poisoned:
            answer = embed(client, items)
            assert answer.status_code == status
            error = error_of(answer)
            assert (error["param"] == "input[2]") == (names == "param")
            assert ("2" in error["message"]) == (names == "prose")
        assert embed(client, ["a", "b"]).status_code == 200
        assert len(emulator.payments()) == 2


@pytest.mark.alone
def test_latency_and_jitter_start_at_admission() -> None:
    with running(faults=Faults(latency_s=0.1, latency_jitter_s=0.08)) as (emulator, client):
        for _ in range(12):
            embed(client, "a")
        took = [((r.answered_ns or 0) - (r.decided_ns or 0)) / 1e9 for r in emulator.log]
    assert min(took) >= 0.02
    assert max(took) < 0.18 + 0.3
    assert max(took) - min(took) > 0.03


def test_faults_are_reproducible_and_depend_on_the_seed() -> None:
    faults = Faults(rate_429=0.2, error_500=0.2, html_error=0.1, drop_connection=0.1, nan=0.2, out_of_order=0.2)

    def storm(seed: int) -> list[tuple[str, ...]]:
        with running(faults=faults, seed=seed) as (emulator, client):
            for _ in range(60):
                client.get("/models")  # does not change the numbering
                with suppress(httpx.RemoteProtocolError):
                    embed(client, ["a", "b"])
            return [record.faults for record in emulator.log if record.number is not None]

    first = storm(1)
    assert first == storm(1)
    assert first != storm(2)
    assert {name for names in first for name in names} == {
        "rate_429",
        "error_500",
        "html_error",
        "drop_connection",
        "nan",
        "out_of_order",
    }


def test_raising_one_probability_does_not_change_other_faults() -> None:
    calmer, wilder = Faults(error_500=0.3), Faults(error_500=0.3, nan=0.5, error_503=0.4)
    struck = [draw(calmer, 3, number).replacing == "error_500" for number in range(200)]
    assert struck == [draw(wilder, 3, number).replacing == "error_500" for number in range(200)]
    assert 30 < sum(struck) < 90


def test_an_outage_starts_and_stops_at_the_configured_requests() -> None:
    with running(faults=Faults(error_503=1.0, start_at_request=2, stop_at_request=4)) as (_, client):
        assert [embed(client, "a").status_code for _ in range(6)] == [200, 200, 503, 503, 200, 200]


# Settings, processes, imports


def test_wrong_settings_name_the_field() -> None:
    for wrong in (
        {"prot": 1},
        {"faults": {"nan": 1.5}},
        {"limits": {"requests_per_minute": 0}},
        {"api_keys": []},
    ):
        with pytest.raises(ValidationError) as refusal:
            EmulatorSettings.model_validate(wrong)
        assert next(iter(wrong)) in str(refusal.value.errors()[0]["loc"])
    with pytest.raises(ValidationError):
        EmulatorSettings().port = 5  # type: ignore[misc]


def test_a_process_serves_the_given_settings_until_it_is_closed() -> None:
    settings = EmulatorSettings(
        dimension=DIMENSION,
        api_keys=("other",),
        limits=Limits(requests_per_minute=1),
        faults=Faults(latency_s=0.01),
    )
    with start_emulator_process(settings) as process:
        assert process.api_key == "other"
        with client_of(process) as client:
            assert vectors(embed(client, "a"))[0][1].tobytes() == text_vector("a").tobytes()
            assert embed(client, "a").status_code == 429
        assert httpx.get(f"{process.url}/emulator/stats").json()["billed_items"] == 1
    assert not process.is_running
    with pytest.raises(httpx.ConnectError):
        httpx.get(process.url)
    process.close()


def test_the_process_ends_when_its_parent_is_killed() -> None:
    parent_code = (
        f"import os, sys, time; from {MODULE} import start_emulator_process\n"
        "process = start_emulator_process(); print(process.base_url, flush=True)\n"
        "if os.fork() == 0: time.sleep(40); os._exit(0)\n"  # a child that holds the pipe open
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert httpx.get(f"{url}/models").status_code == 401
        parent.kill()
        parent.wait()

        def is_gone() -> bool:
            try:
                httpx.get(f"{url}/models", timeout=1)
            except httpx.TransportError:
                return True
            return False

        assert eventually(is_gone, within_s=30)


def test_the_command_reads_yaml_prints_one_line_and_ends_on_sigterm(tmp_path: Path) -> None:
    file = tmp_path / "emulator.yaml"
    file.write_text("dimension: 8\napi_keys: [k]\nfaults: {latency_s: 0.0}\n")
    command = [sys.executable, "-m", MODULE, "--settings", str(file), "--port", "0", "--model", "hash"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert set(ready) == {"base_url", "api_key"}
        official = openai.OpenAI(**ready)
        assert len(official.embeddings.create(model=MODEL, input="a").data[0].embedding) == 8
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(10) == 0
    assert rest == b""


def test_the_command_exits_2_for_invalid_settings(tmp_path: Path) -> None:
    file = tmp_path / "emulator.yaml"
    for text in ("dimension: -1", "- a", "{"):
        file.write_text(text)
        done = subprocess.run([sys.executable, "-m", MODULE, "--settings", str(file)], capture_output=True, timeout=30)
        assert done.returncode == 2
        assert b"invalid settings" in done.stderr
        assert done.stdout == b""


def test_the_import_loads_neither_beam_nor_pillow_nor_a_client() -> None:
    heavy = ("apache_beam", "PIL", "httpx", "openai")
    code = f"import sys, {MODULE}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_pybase64_the_bytes_are_the_same() -> None:
    code = (
        "import sys; sys.modules['pybase64'] = None\n"
        f"from {MODULE}.wire import decode_base64, encode_base64\n"
        "data = bytes(range(256)); text = encode_base64(data).decode()\n"
        "assert decode_base64(text) == data\n"
        "for wrong in ('a$b=', 'AAA', 'é', 'AA==AA'):\n"
        "    try: decode_base64(wrong)\n"
        "    except ValueError: continue\n"
        "    raise SystemExit(wrong)\n"
        "print(text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == base64.b64encode(bytes(range(256))).decode()
    assert os.linesep not in done.stdout.strip()
