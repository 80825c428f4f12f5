"""Access checks, rate and time limits, and shutdown of the server."""

import contextlib
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..conftest import KEY
from .conftest import DIMENSION, WITHOUT_API, fault, read_all, serving

TOKEN = "a-token-for-tests-0123456789"
_IMPATIENT = """
import asyncio, sys
from epithre_beam.pipelines.commands.serve import _serve
from epithre_beam.pipelines.serve.settings import ServeSettings
settings = ServeSettings(catalog=sys.argv[1], port=0, requests_per_minute=0, base_url=sys.argv[2], max_concurrency=1,
                         header_timeout_s=0.5, body_timeout_s=2.5)
asyncio.run(_serve(settings, as_json=True))
"""


@pytest.fixture(scope="module")
def guarded(hashed):
    """A server with a token and a limit of six searches per minute."""
    options = ("--token-env", "SERVE_TOKEN", "--rate", 6, "--allow-host", "pictures.example")
    with serving(hashed, *WITHOUT_API, *options, token=TOKEN, key=None, SERVE_TOKEN=TOKEN) as server:
        yield server


@pytest.fixture(scope="module")
def impatient(hashed):
    """A server with one slot that waits 0.5 s for a header and 2.5 s for a body."""

    def start():
        program = [sys.executable, "-c", _IMPATIENT, str(hashed.catalog), WITHOUT_API[1]]
        return subprocess.Popen(program, **hashed.process(None, {}))

    with serving(hashed, start=start) as server:
        yield server


@pytest.fixture(scope="module")
def get():
    """Send a request without the token."""
    with httpx.Client() as client:
        yield lambda server, path, **headers: client.get(f"{server.url.rstrip('/')}{path}", headers=headers)


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", TOKEN, "é"]
)
def test_a_wrong_token_gets_no_data_and_is_not_echoed(guarded, get, given):
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    for path in (
        "/api/catalog",
        "/api/assets/text?id=t001",
        "/api/thumbnails/image?id=p001.jpg",
        "/metrics",
        "/api/no",
    ):
        answer = get(guarded, path, **headers)
        sentence = fault(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in sentence
        assert given is None or len(given) < 8 or given not in answer.text
    answer = httpx.post(f"{guarded.url}api/search", json={"text": "a"}, headers=headers)
    assert fault(answer, 401)


def test_the_token_gives_access_and_health_and_page_need_none(guarded, get):
    assert guarded.client.get("/api/catalog").status_code == 200
    assert guarded.client.get("/metrics").status_code == 200
    assert get(guarded, "/api/catalog", authorization=f"bearer {TOKEN}").status_code == 200
    for path in ("/", "/page/app.js", "/health/live", "/health/ready"):
        assert get(guarded, path).status_code == 200
    description = get(guarded, "/openapi.json").json()
    assert description["security"] == [{"token": []}]
    assert TOKEN not in str(description)


def test_too_many_searches_get_retry_after(guarded, vector):
    answers = [guarded.search(vector=vector) for _ in range(3)]
    assert answers[0].status_code == 200
    for answer in answers[1:]:
        assert "Too many requests" in fault(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert guarded.client.get("/api/catalog").status_code == 200  # only searches are counted
    pretended = guarded.client.post("/api/search", json={"vector": vector}, headers={"x-forwarded-for": "192.0.2.7"})
    assert pretended.status_code == 429  # this client is not a trusted proxy


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]"])
def test_a_foreign_host_name_on_loopback_is_refused(served, get, host):
    for path in ("/", "/api/catalog", "/metrics"):
        assert "Host header" in fault(get(served, path, host=host), 400)


def test_probes_and_scrapers_with_the_token_may_use_any_host_name(served, guarded, get):
    for path in ("/health/live", "/health/ready"):
        assert get(served, path, host="10.1.2.3:8124").status_code == 200
    assert fault(get(guarded, "/metrics", host="10.1.2.3:8124"), 401)
    assert get(guarded, "/metrics", host="10.1.2.3:8124", authorization=f"Bearer {TOKEN}").status_code == 200


def test_loopback_and_allowed_host_names_are_accepted(served, guarded, get):
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:80"):
        assert get(served, "/", host=host).status_code == 200
    assert get(guarded, "/", host="pictures.example").status_code == 200
    assert get(served, "/", host="pictures.example").status_code == 400


def test_requests_from_pages_of_other_sites_are_refused(served, image):
    for site in ("cross-site", "same-site"):
        headers = {"sec-fetch-site": site}
        answer = served.client.post("/api/search/image", files={"image": image}, headers=headers)
        assert "other sites" in fault(answer, 403)
        assert fault(served.client.get("/api/thumbnails/image?id=p001.jpg", headers=headers), 403)
    for site in ("same-origin", "none"):
        assert served.client.get("/api/catalog", headers={"sec-fetch-site": site}).status_code == 200
    assert (
        "access-control-allow-origin" not in served.client.get("/api/catalog", headers={"origin": "http://x"}).headers
    )


def test_a_client_that_sends_its_header_slowly_is_dropped(impatient):
    started = time.monotonic()
    with impatient.connect() as connection:
        with contextlib.suppress(OSError):  # dropped
            for byte in b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n" * 3:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert read_all(connection) == b""
    assert time.monotonic() - started < 6
    assert impatient.client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"x" * 1_000_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 1_000_000,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-Many: x\r\n" * 100_000,
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\nx\r\n0\r\n" + b"X-Many: x\r\n" * 100_000,
    ],
    ids=["path", "value", "headers", "trailers"],
)
def test_the_size_of_headers_is_limited(served, endless):
    started = time.monotonic()
    with served.connect() as connection:
        connection.settimeout(20)
        with contextlib.suppress(ConnectionError):
            connection.sendall(endless)
        assert b" 200 " not in read_all(connection)
    assert time.monotonic() - started < 8  # well before the header timeout
    assert served.client.get("/health/live").status_code == 200


def wait_until_under_way(server, requests):
    """Includes the request that reads it."""
    deadline = time.monotonic() + 20
    while f"requests_under_way {requests}.0" not in server.client.get("/metrics").text:
        assert time.monotonic() < deadline


def head(length):
    lines = [
        "POST /api/search HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_slow_body_is_an_error_and_holds_no_slot(impatient, vector):
    with impatient.connect() as connection:
        connection.sendall(head(100) + b'{"text"')
        wait_until_under_way(impatient, 2)
        assert impatient.search(vector=vector).status_code == 200
        assert impatient.client.get("/health/ready").status_code == 200
        assert read_all(connection).startswith(b"HTTP/1.1 408")
    assert impatient.search(vector=vector).status_code == 200


def test_requests_above_the_concurrency_limit_get_retry_after(hashed, vector):
    settings = EmulatorSettings(dimension=DIMENSION, model="hash", api_keys=(KEY,))
    with Emulator(settings) as emulator:
        arguments = ("--base-url", emulator.base_url, "--max-concurrency", 1)
        with serving(hashed, *arguments) as server, ThreadPoolExecutor(1) as pool:
            emulator.reset(faults=Faults(latency_s=2.0))
            slow = pool.submit(server.search, text="a sentence that takes its time")
            wait_until_under_way(server, 2)
            busy = server.search(vector=vector)
            assert "limit of concurrent requests" in fault(busy, 503)
            assert busy.headers["retry-after"] == "1"
            assert fault(server.client.get("/api/catalog"), 503)
            assert server.client.get("/health/ready").status_code == 200
            assert slow.result().status_code == 200
            assert server.search(vector=vector).status_code == 200


def test_a_client_that_disconnects_leaves_nothing_behind(impatient, vector):
    for _ in range(5):
        with impatient.connect() as connection:
            connection.sendall(head(100) + b'{"text"')
    deadline = time.monotonic() + 5
    while impatient.search(vector=vector).status_code != 200:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_requests_in_progress_and_exits_with_0(hashed, number):
    with serving(hashed, *WITHOUT_API, key=None) as server:
        body = b'{"asset": {"kind": "text", "id": "t003"}}'
        with server.connect() as connection:
            connection.sendall(head(len(body)) + body[:10])
            wait_until_under_way(server, 2)
            server.process.send_signal(number)
            with contextlib.suppress(OSError):
                while True:  # until connections are refused
                    server.connect().close()
            connection.sendall(body[10:])
            answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert server.process.wait(20) == 0
        assert "WARNING" in server.process.stderr.readline()  # the missing key
        assert server.process.stderr.read() == ""


def test_many_clients_at_once_are_all_answered(served, vector):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: served.search(vector=vector, k=3), range(80)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({str(answer.json()["hits"]) for answer in answers}) == 1
