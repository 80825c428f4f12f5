"""A small server on loopback with scripted answers, for APIs and proxies that the emulator does not cover."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np


@dataclass
class Asked:
    """A received request."""

    method: str
    target: str
    """The path, or the whole URL in a request to a proxy."""
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes
    number: int
    """Number among the requests of this method, from 0."""

    @property
    def items(self) -> list[Any]:
        return json.loads(self.body)["input"]


@dataclass
class CannedReply:
    """An answer. `body` is bytes, or a value that is sent as JSON."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """The bytes to send instead of everything above."""


@dataclass
class Hostile:
    """A running server."""

    port: int
    asked: list[Asked]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def count(self, method: str = "POST") -> int:
        return sum(asked.method == method for asked in self.asked)


def good(asked: Asked, dimension: int = 64) -> CannedReply:
    """A valid answer with equal unit vectors."""
    vector = np.eye(1, dimension, dtype=np.float32)[0].tolist()
    return CannedReply(body={"data": [{"index": i, "embedding": vector} for i in range(len(asked.items))]})


def error(status: int, message: str, **headers: str) -> CannedReply:
    """An error in OpenAI's format; `retry_after="3"` becomes a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return CannedReply(status=status, body={"error": {"message": message}}, headers=named)


@contextlib.contextmanager
def answering(answer: Callable[[Asked], CannedReply]) -> Iterator[Hostile]:
    """Answer each request with the result of `answer`."""
    seen: list[Asked] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            with lock:
                headers = {name.lower(): value for name, value in self.headers.items()}
                number = sum(one.method == self.command for one in seen)
                asked = Asked(self.command, self.path, headers, body, number)
                seen.append(asked)
            reported = answer(asked)
            if reported.raw is not None:
                self.wfile.write(reported.raw)
                self.close_connection = True
                return
            data = reported.body if isinstance(reported.body, bytes) else json.dumps(reported.body).encode()
            self.send_response_only(reported.status)  # sends no date header
            for name, value in reported.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_CONNECT = _serve  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield Hostile(port=server.server_port, asked=seen)
        finally:
            server.shutdown()
            thread.join()


def without_models(answer: Callable[[Asked], CannedReply]) -> Callable[[Asked], CannedReply]:
    """`answer` for every POST; 404 for a GET, like a server that lists no models."""
    return lambda asked: answer(asked) if asked.method == "POST" else CannedReply(status=404)
