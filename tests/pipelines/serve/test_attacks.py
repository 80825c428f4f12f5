"""Clients that are slow, silent or many on purpose do not affect normal clients."""

import contextlib
import http.client
import io
import json
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from epithre_beam.pipelines.serve.settings import ServeSettings
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..conftest import KEY, command
from .attacker import KINDS
from .conftest import DIMENSION, WITHOUT_API, fault, read_all, serving

pytestmark = pytest.mark.slow  # attacks up to the server's limits

_WITH_SETTINGS = """
import asyncio, json, sys
from epithre_beam.pipelines.commands.serve import _serve
from epithre_beam.pipelines.serve.settings import ServeSettings
asyncio.run(_serve(ServeSettings(catalog=sys.argv[1], port=0, **json.loads(sys.argv[2])), as_json=True))
"""


@contextlib.contextmanager
def serving_with(place, files=None, **settings):
    """A server in a process with a limit of open files; `server.log` is its log file."""
    settings = {"requests_per_minute": 0, "base_url": WITHOUT_API[1], **settings}
    program = [sys.executable, "-c", _WITH_SETTINGS, str(place.catalog), json.dumps(settings)]
    if files is not None:
        program = ["bash", "-c", f'ulimit -n {files}; exec "$@"', "bash", *program]
    with tempfile.NamedTemporaryFile("w", suffix=".log", dir=place.folder) as log:
        options = place.process(None, {}) | {"stderr": log}
        with serving(place, start=lambda: subprocess.Popen(program, **options)) as server:
            server.log = Path(log.name)
            yield server


@contextlib.contextmanager
def attacked(server, kind, count, addresses=1):
    """Run the attack while the block runs."""
    arguments = [server.address[1], kind, count, addresses]
    program = [sys.executable, Path(__file__).with_name("attacker.py"), *map(str, arguments)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as attacker:
        assert attacker.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            attacker.kill()


def ask(server, vector, times=12):
    """Send normal requests, each on its own connection."""
    body = json.dumps({"vector": vector, "k": 3})
    for _ in range(times):
        connection = http.client.HTTPConnection(*server.address, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", "/api/search", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said
            assert len(json.loads(said)["hits"]) == 3


@pytest.mark.parametrize("files", [320, 1024])
def test_idle_connections_beyond_the_file_limit_do_no_harm(hashed, vector, files):
    with serving_with(hashed, files) as server:
        ask(server, vector, 2)
        with attacked(server, "idle", 1100):
            ask(server, vector)
            opened = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        ask(server, vector, 2)
        assert opened < files
        server.stop()
        said = server.log.read_text("utf-8")
    assert "ulimit -n" in said
    assert "Traceback" not in said
    assert len(said) < 2000


@pytest.fixture(scope="module")
def small(hashed):
    with serving_with(hashed, max_concurrency=2, max_client_connections=40) as server:
        yield server
        server.stop()
        said = server.log.read_text("utf-8")
    assert "Traceback" not in said
    assert len(said) < 5000


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "idle"])
def test_endless_requests_hold_no_slots_or_connections_of_others(small, vector, kind):
    with attacked(small, kind, 150):
        ask(small, vector)


def test_a_flood_of_connections_makes_room_for_real_requests(hashed, vector):
    with serving_with(hashed, max_connections=60, max_client_connections=8) as server:
        with attacked(server, "body", 300, addresses=100):
            ask(server, vector)
            count = len(psutil.Process(server.process.pid).net_connections())
        assert count <= 62


def test_requests_in_progress_are_not_dropped_for_new_connections(hashed):
    settings = EmulatorSettings(dimension=DIMENSION, model="hash", api_keys=(KEY,))
    with Emulator(settings) as emulator:
        arguments = ("--base-url", emulator.base_url, "--max-client-connections", 12, "--max-concurrency", 20)
        with serving(hashed, *arguments) as server, ThreadPoolExecutor(8) as pool:
            emulator.reset(faults=Faults(latency_s=4.0))
            asked = [pool.submit(server.search, text=f"sentence {i}") for i in range(8)]
            deadline = time.monotonic() + 20
            while "requests_under_way 9.0" not in server.client.get("/metrics").text:
                assert time.monotonic() < deadline
            with attacked(server, "idle", 200):
                assert [one.result().status_code for one in asked] == [200] * 8


def test_the_connection_limit_applies_per_address(hashed):
    with serving_with(hashed, max_client_connections=3) as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(server.connect())
        for _ in range(3):
            stack.enter_context(server.connect())
        assert read_all(first) == b""  # the longest idle one
        other = stack.enter_context(server.connect("127.0.0.9"))
        other.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert read_all(other).startswith(b"HTTP/1.1 200")


def test_a_trusted_proxy_is_only_limited_in_total(hashed):
    settings = {"max_client_connections": 2, "trusted_proxies": ["127.0.0.0/8"]}
    with serving_with(hashed, **settings) as server, contextlib.ExitStack() as stack:
        kept = [stack.enter_context(server.connect()) for _ in range(12)]
        for connection in kept:
            connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.1 200")


def test_total_body_size_is_limited_and_slow_bodies_make_room(hashed, image):
    settings = {"max_bodies_bytes": 1_000_000, "max_upload_bytes": 400_000}
    head = b"POST /api/search/image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400000\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    with serving_with(hashed, **settings) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(5)]
        for connection in slow:
            connection.sendall(head + b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + bytes(300_000))
        reported = read_all(slow[0])
        assert reported.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in reported.lower()
        assert fault(server.search_image(image), 503)  # read completely; this server does not embed


def test_a_pause_between_body_chunks_is_an_error(hashed):
    with serving_with(hashed, body_pause_s=0.3) as server, server.connect() as connection:
        connection.sendall(KINDS["body"])
        reported = read_all(connection)
        assert reported.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in reported.lower()


def ask_live(connection):
    connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    reported = b""
    while not reported.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, reported
        reported += piece
    assert reported.startswith(b"HTTP/1.1 200")


def test_idle_connections_close_after_keep_alive(hashed):
    assert ServeSettings(catalog="c").keep_alive_s > 60  # the idle timeout of most proxies
    with serving_with(hashed, header_timeout_s=0.2, keep_alive_s=60) as server, server.connect() as kept:
        ask_live(kept)
        with server.connect() as silent:
            assert read_all(silent) == b""  # dropped
        ask_live(kept)
    with serving_with(hashed, header_timeout_s=60, keep_alive_s=0.2) as server, server.connect() as kept:
        ask_live(kept)
        assert read_all(kept) == b""


def png(width, height, rows):
    """A grey PNG with a number of rows that may differ from its header."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compressobj(9)
    data = b"".join([*(packed.compress(bytes(1 + width)) for _ in range(rows)), packed.flush()])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def webp(side):
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def embedding(hashed):
    """A server with an embedding API."""
    with (
        Emulator(EmulatorSettings(dimension=DIMENSION, model="hash", api_keys=(KEY,))) as emulator,
        serving(hashed, "--base-url", emulator.base_url) as server,
    ):
        server.emulator = emulator
        yield server


def test_small_files_of_huge_images_are_refused_by_their_header(embedding, image):
    bombs = [png(60_000_000, 1, 1), png(1, 60_000_000, 0), png(9000, 9000, 2), webp(9000)]
    assert max(map(len, bombs)) < 200_000
    before = psutil.Process(embedding.process.pid).memory_info().rss
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(embedding.search_image, bomb, k=1 + i) for i, bomb in enumerate(bombs * 3)]
        assert embedding.search(text="a sentence meanwhile").status_code == 200
        assert embedding.search_image(image).status_code == 200
        for one in asked:
            assert "pixels" in fault(one.result(), 422)
    assert psutil.Process(embedding.process.pid).memory_info().rss - before < 200e6


def test_a_failing_api_writes_only_a_few_log_lines(hashed):
    with Emulator(EmulatorSettings(dimension=DIMENSION, model="hash", api_keys=(KEY,))) as emulator:
        log = hashed.folder / "failing.log"
        with log.open("w") as errors:
            options = hashed.process(KEY, {}) | {"stderr": errors}
            program = command(
                "serve", hashed.catalog, "--port", 0, "--json", "--rate", 0, "--base-url", emulator.base_url
            )
            with serving(hashed, start=lambda: subprocess.Popen(program, **options)) as server:
                emulator.reset(faults=Faults(refuse_all=401))
                for i in range(150):
                    assert server.search(text=f"sentence {i}").status_code == 503
        said = log.read_text("utf-8").splitlines()
    assert 1 <= sum("the embedding API fails" in line for line in said) <= 8


FOREIGN = [
    "http://evil.example", "https://evil.example:8000", "null", "http://localhost:1", "file://", "http://",
    "http://127.0.0.1.evil.example", "http://evil.example/127.0.0.1", "chrome-extension://abc", "http://[::1", "é",
]  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_another_origin_sends_no_query_to_the_api(embedding, image, origin):
    """Over plain HTTP to another machine, browsers send Origin without Sec-Fetch-Site."""
    embedding.emulator.reset()
    headers = {"origin": origin.encode()}
    client = embedding.client
    assert "other sites" in fault(client.post("/api/search", json={"text": "paid?"}, headers=headers), 403)
    form = {"files": {"image": image}, "headers": headers}
    assert fault(client.post("/api/search/image", **form), 403)
    assert fault(client.get("/api/thumbnails/image?id=p001.jpg", headers=headers), 403)
    assert embedding.emulator.payments() == {}


def test_our_own_page_works_under_any_host_name(embedding, vector):
    port = embedding.address[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        for scheme in ("http", "https"):  # a proxy may end TLS
            headers = {"host": host, "origin": f"{scheme}://{host}"}
            assert embedding.client.post("/api/search", json={"vector": vector}, headers=headers).status_code == 200
    headers = {"host": "localhost", "origin": "http://localhost:80"}
    assert embedding.client.post("/api/search", json={"vector": vector}, headers=headers).status_code == 200
    # A proxy may have changed Host; Sec-Fetch-Site still identifies the page.
    headers = {"host": "localhost", "origin": "https://pictures.example", "sec-fetch-site": "same-origin"}
    assert embedding.client.post("/api/search", json={"vector": vector}, headers=headers).status_code == 200


def test_an_allowed_name_works_through_a_proxy_that_hides_it(hashed, vector):
    with serving(hashed, *WITHOUT_API, "--allow-host", "pictures.example", key=None) as server:
        for origin, status in (("https://pictures.example", 200), ("https://pictures.example:8443", 200),
                               ("https://pictures.example.evil", 403)):  # fmt: skip
            answer = server.client.post("/api/search", json={"vector": vector}, headers={"origin": origin})
            assert answer.status_code == status


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP", "gzip, identity", "zstd"])
def test_an_encoded_body_is_refused(served, vector, encoding):
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    body = zlib.compress(json.dumps({"vector": vector}).encode())
    for path in ("/api/search", "/api/search/image"):
        answer = served.client.post(path, content=body, headers=headers)
        assert "Content-Encoding" in fault(answer, 415)
        assert answer.headers["accept-encoding"] == "identity"
    headers["content-encoding"] = "identity"
    assert served.client.post("/api/search", json={"vector": vector}, headers=headers).status_code == 200
