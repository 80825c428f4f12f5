"""Real servers, started by `epithre-beam serve`, over small catalogs with hash vectors."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import numpy as np
import pytest

from ..conftest import Place, write_images, write_texts

DIMENSION = 64
WITHOUT_API = ("--base-url", "https://api.example/v1")
"""Without a key the server does not embed, needs no emulator and starts faster."""


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen
    url: str
    """The address in the start line, with the prefix below a proxy."""
    version: str
    place: Place
    token: str | None = None
    client: httpx.Client = field(init=False)

    def __post_init__(self):
        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        self.client = httpx.Client(base_url=self.origin, headers=headers, timeout=60)

    @property
    def origin(self):
        return f"http://127.0.0.1:{httpx.URL(self.url).port}"

    @property
    def address(self):
        return "127.0.0.1", httpx.URL(self.url).port

    def search(self, **asked):
        return self.client.post("/api/search", json=asked)

    def search_image(self, data, name="p.jpg", **options):
        return self.client.post(
            "/api/search/image", files={"image": (name, data)}, data={"options": json.dumps(options)}
        )

    def connect(self, source="127.0.0.1"):
        return socket.create_connection(self.address, 30, source_address=(source, 0))

    def stop(self) -> int:
        self.client.close()
        self.process.terminate()
        return self.process.wait(30)


@contextlib.contextmanager
def serving(place: Place, *arguments, token=None, start=None, **environment) -> Iterator[Served]:
    """Run `epithre-beam serve` on a free port; `start` starts another program with the same output line."""
    arguments = ("serve", place.catalog, "--port", 0, "--json", "--rate", 0, *arguments)
    process = start() if start else place.start(*arguments, imports_itself=True, **environment)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Served(process=process, place=place, token=token, **json.loads(line))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def hashed(tmp_path_factory) -> Place:
    """A job of 12 images and 20 texts and its catalog, read-only."""
    place = Place(tmp_path_factory.mktemp("hashed"))
    write_images(place.folder / "pictures", 12)
    write_texts(place.folder / "texts.csv", 20)
    place.write_job(gates__max_shrinkage=1.0)
    done = place.cli("run", "job.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="session")
def served(hashed) -> Iterator[Served]:
    """A server without a token that accepts images of at most one megabyte."""
    with serving(hashed, "--max-upload-mb", 1) as server:
        yield server


@pytest.fixture
def image(hashed) -> bytes:
    return (hashed.folder / "pictures" / "p003.jpg").read_bytes()


@pytest.fixture
def vector() -> list[float]:
    drawn = np.random.default_rng(3).standard_normal(DIMENSION)
    return (drawn / np.linalg.norm(drawn)).tolist()


def read_all(connection):
    """Read from a connection until it is closed."""
    connection.settimeout(20)
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: connection.recv(65536), b""))
    return b""


def fault(answer: httpx.Response, status: int) -> str:
    """Return the message of an error response, after checking its shape."""
    assert answer.status_code == status, (answer.status_code, answer.text)
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message"}
    sentence = body["error"]["message"]
    assert sentence.endswith(".")
    assert "Traceback" not in sentence
    assert "site-packages" not in sentence
    return sentence
