"""Runs the application until it is told to stop, and does not wait for who is slow on purpose."""

import contextlib
import logging
import signal
import socket
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ...configs.errors import ConfigError
from .settings import ServeSettings

_MOST_CONNECTIONS = 1000
_MOST_HEADER_BYTES = 65_536
_GRACE_S = 30
_BACKLOG = 2048
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class BoundedProtocol(HttpToolsProtocol):
    """HTTP that is read in C, by a parser that would keep a header of any length: here it may take 64 kB."""

    _beside_bodies = 0
    """Bytes of the request under way that are no body: its header, the frames of chunks, what follows them."""

    def data_received(self, data: bytes) -> None:
        self._beside_bodies += len(data)
        super().data_received(data)
        if self._beside_bodies > _MOST_HEADER_BYTES:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        self._beside_bodies -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._beside_bodies = 0
        super().on_message_complete()


class Server(uvicorn.Server):
    """uvicorn's server, which ends without an error when it is told to stop, after what is under way."""

    def __init__(self, app: FastAPI, settings: ServeSettings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",  # entered by the command, so that what goes wrong in it is a sentence
                log_config=None,
                log_level="error",
                access_log=False,
                http=BoundedProtocol,
                ws="none",
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # one line for each broken form is for nobody
        self._header_timeout_s = settings.header_timeout_s
        self._idle: dict[Any, tuple[Any, float]] = {}

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C let what is under way end; a second one does not."""

        def stop(_: int, __: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

        before = {number: signal.signal(number, stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._drop_slow()
        return await super().on_tick(counter)

    def _drop_slow(self) -> None:
        """Closes connections on which no request has begun for long: who sends a header a byte at a time holds one."""
        now, idle = time.monotonic(), {}
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_complete:
                continue
            last, since = self._idle.get(connection, (cycle, now))
            if last is not cycle:
                since = now
            idle[connection] = (cycle, since)
            if now - since > self._header_timeout_s and connection.transport is not None:
                connection.transport.abort()
        self._idle = idle


def listen(settings: ServeSettings) -> socket.socket:
    """A socket that takes connections from now on, before anybody is told of its address.

    Raises:
        ConfigError: When the address cannot be used.
    """
    try:
        # With its protocol named, or asyncio would not turn Nagle's delay of 40 ms off.
        kind = {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP, "flags": socket.AI_PASSIVE}
        family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, **kind)[0]
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
            stack.pop_all()  # open from here on
    except OSError as error:
        raise ConfigError(
            f"--host {settings.host} --port {settings.port} cannot be served: {error.strerror or error}."
        ) from error
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
