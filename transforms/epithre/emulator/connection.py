"""The emulator's HTTP/1.1 server: reads requests, and writes answers in full, in part or not at all.

It is the standard library's threading server with one thread per connection. For speed it sets TCP_NODELAY and sends
head and body in one write (two writes would wait 40 ms for a delayed acknowledgement).
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .admission import Admission
from .wire import Answer, RefusedError

_logger = logging.getLogger(__name__)

OWNER = "epithre-beam-emulator"
# A body refused for its size is still read to its end: otherwise closing the connection would reset it and lose the
# answer. A longer body than this is cut off.
_DRAINED_BYTES = 256 * 2**20

ReadBody = Callable[[int | None, bool], bytes]
"""Reads the request's body: (maximum bytes or None, whether its length must be declared) → bytes."""

Serve = Callable[[str, str, str | None, ReadBody], tuple[Answer, Admission]]
"""Answers a request: (method, target, Authorization header, body reader) → (answer, record)."""


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], serve: Serve) -> None:
        self.serve = serve
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, Connection)

    def server_bind(self) -> None:
        # Skip HTTPServer.server_bind, which looks up the host's name and can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._connections_lock:
            self._connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def close_connections(self) -> None:
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log at debug level with a traceback: clients often disconnect early."""
        _logger.debug("connection from %s ended early", client_address, exc_info=True)


class Connection(BaseHTTPRequestHandler):
    """One client connection: reads requests, calls the emulator and writes its answers."""

    server: HttpServer
    protocol_version = "HTTP/1.1"
    server_version = OWNER
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        authorization = self.headers.get("authorization")
        answer, record = self.server.serve(self.command, self.path, authorization, self._read_body)
        if answer.delivery == "none":
            self.close_connection = True
            return
        body = b"" if self.command == "HEAD" else answer.body
        if answer.delivery == "half":
            body = body[: len(body) // 2]
            self.close_connection = True
        try:
            self.connection.sendall(self._head(answer) + body)
        except OSError:
            record.delivered = False
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve  # noqa: N815

    def _head(self, answer: Answer) -> bytes:
        lines = [
            f"{self.protocol_version} {answer.status} {_phrase(answer.status)}",
            f"server: {OWNER}",
            f"date: {self.date_time_string()}",
            f"content-type: {answer.content_type}",
            f"content-length: {len(answer.body)}",
            *(f"{name}: {value}" for name, value in answer.headers.items()),
        ]
        if self.close_connection:
            lines.append("connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _read_body(self, max_bytes: int | None, required: bool) -> bytes:
        """Read the body, by its length or in chunks, to its end even if it is refused.

        Args:
            max_bytes: A longer body is refused with 413.
            required: Whether a POST without a length is refused with 411.
        """
        try:
            return self._read_whole_body(max_bytes, required=required)
        except OSError:
            self.close_connection = True
            raise RefusedError(400, "The connection broke.", code="incomplete_body") from None

    def _read_whole_body(self, max_bytes: int | None, *, required: bool) -> bytes:
        if "chunked" in (self.headers.get("transfer-encoding") or "").lower():
            return self._read_chunks(max_bytes)
        length = self.headers.get("content-length")
        if length is None:
            if required and self.command in ("POST", "PUT", "PATCH"):
                self.close_connection = True
                raise RefusedError(411, "A Content-Length is required.", code="length_required")
            return b""
        if not length.isdecimal():
            self.close_connection = True
            raise RefusedError(400, "Content-Length must be a number.", code="invalid_header")
        size = int(length)
        if max_bytes is not None and size > max_bytes:
            self._skip(size)
            raise _too_large(size, max_bytes)
        body = self.rfile.read(size)
        if len(body) < size:
            self.close_connection = True
            raise RefusedError(400, "The body ended early.", code="incomplete_body")
        return body

    def _read_chunks(self, max_bytes: int | None) -> bytes:
        most = _DRAINED_BYTES if max_bytes is None else max_bytes
        body = bytearray()
        read = 0
        while True:
            size = self._chunk_size()
            read += size
            if read > _DRAINED_BYTES:
                self.close_connection = True
                raise _too_large(read, most)
            chunk = self.rfile.read(size)
            if size == 0:
                while self.rfile.readline(65537) not in (b"\r\n", b"\n", b""):
                    pass  # trailers
                break
            self.rfile.readline(3)
            if read <= most:
                body += chunk
        if read > most:
            raise _too_large(read, most)
        return bytes(body)

    def _chunk_size(self) -> int:
        line = self.rfile.readline(65537).partition(b";")[0].strip()
        try:
            size = int(line, 16)
        except ValueError:
            size = -1
        if size < 0:
            self.close_connection = True
            raise RefusedError(400, "The chunked body is malformed.", code="incomplete_body")
        return size

    def _skip(self, size: int) -> None:
        if size > _DRAINED_BYTES:
            self.close_connection = True
            return
        while size > 0:
            read = len(self.rfile.read(min(size, 2**20)))
            if read == 0:
                self.close_connection = True
                return
            size -= read

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send the base class's errors (a malformed request line, an unknown method) in the API's format."""
        self.close_connection = True
        self.command = self.command or ""
        headers = {"x-request-id": "req_emulator_malformed"}
        refusal = RefusedError(code, explain or message or _phrase(code), code="bad_request", headers=headers)
        answer = refusal.answer()
        with contextlib.suppress(OSError):
            self.connection.sendall(self._head(answer) + answer.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: the admission log has more detail."""


def _too_large(size: int, most: int) -> RefusedError:
    message = f"Request body too large: {size} bytes, at most {most} are allowed."
    return RefusedError(413, message, code="request_too_large")


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in http.client.responses else "Unknown"
