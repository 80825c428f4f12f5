"""HTTP servers whose answers a test scripts byte by byte."""

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector

DIMENSION = 64


@dataclass(frozen=True)
class Request:
    """A received request."""

    path: str
    headers: Any
    items: list[Any]
    """The texts of `input`; empty for a GET."""
    number: int
    """Number among the POSTs, from 0."""


Respond = Callable[[Request], "bytes | Iterable[bytes] | None"]
"""Maps a request to the bytes of its answer, whole or in pieces; None closes the connection without an answer."""


@dataclass
class Hostile:
    """The items of the requests that a server received, and the number of bytes that it sent per answer."""

    base_url: str
    posts: list[list[Any]] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)


def answer(status: int, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> bytes:
    """A whole HTTP answer. The content-length is correct unless `headers` overrides it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"content-length": str(len(content)), **(headers or {})}
    head = f"HTTP/1.1 {status} Said\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    return head.encode("latin-1") + content


def vector_of(text: str) -> np.ndarray:
    return hash_vector("text", text.encode(), DIMENSION)


def good(items: list[Any], **more: Any) -> dict[str, Any]:
    """The body of a valid answer, with vectors in base64."""
    data = [
        {"index": i, "embedding": base64.b64encode(vector_of(item).tobytes()).decode()} for i, item in enumerate(items)
    ]
    return {"data": data, "usage": {"total_tokens": 7 * len(items)}, **more}


def serves(request: Request) -> bytes:
    """A valid answer; 404 for a GET, like a server without a list of models."""
    return answer(200, good(request.items)) if request.items else answer(404, b"{}")


@contextmanager
def serve(respond: Respond) -> Iterator[Hostile]:
    lock = threading.Lock()
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _respond(self) -> None:
            raw = self.rfile.read(int(self.headers.get("content-length") or 0))
            items = json.loads(raw)["input"] if raw else []
            with lock:
                request = Request(self.path, self.headers, items, len(server.posts))
                if items:
                    server.posts.append(items)
            sent = 0
            reported = respond(request)
            if reported is None:
                self.close_connection = True
                return
            with contextlib.suppress(OSError):
                for piece in [reported] if isinstance(reported, bytes) else reported:
                    if stopping.is_set():
                        break
                    self.connection.sendall(piece)
                    sent += len(piece)
            self.close_connection = not isinstance(reported, bytes)
            with lock:
                server.sent.append(sent)

        do_GET = do_POST = _respond  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 512

        def handle_error(self, *_: Any) -> None:
            pass

    http = Server(("127.0.0.1", 0), Handler)
    server = Hostile(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        stopping.set()
        http.shutdown()
        thread.join()
        http.server_close()
