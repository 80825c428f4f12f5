"""Run the application until a signal stops it, and drop clients that are slow on purpose."""

import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ...configs.errors import ConfigError
from .connection_limits import Connections, Door, connections_for
from .settings import ServeSettings, prefix_of

_MOST_HEADER_BYTES = 65_536
_GRACE_S = 30
_BACKLOG = 2048
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AFTER_BODY_S = 5.0
"""Time for a client whose body was too slow to receive the error response."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with a limit of 64 kB on headers, which the parser itself does not have.

    It also tracks deadlines for the header, the body and the next request, so that slow clients can be dropped.
    """

    _non_body_bytes = 0
    """Bytes of the current request other than its body: header, chunk framing, trailers."""
    _is_idle = False
    """Whether the last request was answered and nothing has arrived since."""

    def __init__(self, *arguments: Any, settings: ServeSettings, counted: Connections) -> None:
        super().__init__(*arguments)
        self._settings = settings
        self._counted = counted
        self.peer = ""
        self._waits_until: float | None = self.loop.time() + settings.header_timeout_s

    def drop(self) -> None:
        self.transport.abort()

    def is_late(self, now: float) -> bool:
        """Return whether the client missed a deadline; requests in progress have their own timeout."""
        return self._waits_until is not None and now > self._waits_until

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        self._counted.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._counted.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_idle:
            self._is_idle = False
            self._waits_until = self.loop.time() + self._settings.header_timeout_s
        self._non_body_bytes += len(data)
        super().data_received(data)
        if self._non_body_bytes > _MOST_HEADER_BYTES:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._waits_until is not None:
            self._waits_until = self.loop.time() + self._settings.body_timeout_s + _AFTER_BODY_S

    def on_body(self, body: bytes) -> None:
        self._non_body_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._non_body_bytes = 0
        super().on_message_complete()
        if self.cycle.response_complete:  # the response was sent before the request was complete
            self._wait_for_next()
        else:
            self._waits_until = None
            self._counted.wait_for(self, is_waited_for=False)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # and no other request has started
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        self._is_idle = True
        self._waits_until = self.loop.time() + self._settings.keep_alive_s
        self._counted.wait_for(self, is_waited_for=True)


class Forwarded:
    """ASGI middleware that applies the client, scheme and path prefix from headers of trusted proxies."""

    def __init__(self, app: Any, counted: Connections, proxies: list[str]) -> None:
        self._app = ProxyHeadersMiddleware(app, trusted_hosts=proxies)
        self._counted = counted

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Any]) -> None:
        if scope["type"] == "http":
            stated = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
            client = scope.get("client")
            if stated and client and self._counted.is_proxy(client[0]):
                prefix = prefix_of(stated[-1].decode("latin-1"))
                if prefix is not None:
                    scope = {**scope, "root_path": prefix}
        await self._app(scope, receive, send)


class Server(uvicorn.Server):
    """uvicorn's server, which finishes requests in progress on a signal and then ends without an error."""

    def __init__(self, app: FastAPI, settings: ServeSettings) -> None:
        most, proxies = connections_for(settings.max_connections), list(settings.trusted_proxies)
        self._settings = settings
        self._counted = Connections(most, settings.max_client_connections, proxies)
        super().__init__(
            uvicorn.Config(
                Forwarded(app, self._counted, proxies) if proxies else app,
                lifespan="off",  # the command enters it, so that its errors become messages
                log_config=None,
                log_level="error",
                access_log=False,
                http=BoundedProtocol,
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # only passed to call_later
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs a useless line for each malformed form

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Finish requests in progress on SIGTERM or Ctrl-C; a second signal stops at once."""

        def stop(_: int, __: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = True

        before = {number: signal.signal(number, stop) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections at the sockets, subject to the connection limits."""

        def protocol() -> BoundedProtocol:
            return BoundedProtocol(self.config, self.server_state, {}, settings=self._settings, counted=self._counted)

        doors = [Door(listening, protocol, self._counted) for listening in sockets or ()]
        for door in doors:
            door.open()
        self.servers = doors  # type: ignore[assignment]  # uvicorn only closes them
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._drop_slow()
        return await super().on_tick(counter)

    def _drop_slow(self) -> None:
        """Close connections that missed a deadline, such as a header sent one byte at a time."""
        connections: Any = self.server_state.connections
        for connection in [one for one in connections if one.is_late(one.loop.time())]:
            connection.drop()


def listen(settings: ServeSettings) -> socket.socket:
    """Return a listening socket, before its address is announced.

    Raises:
        ConfigError: When the address cannot be used.
    """
    try:
        # asyncio disables Nagle's algorithm (a delay of 40 ms) only if the protocol is explicit.
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
            f"--host {settings.host} --port {settings.port}: cannot listen here ({error.strerror or error}). "
            "Choose another host or port."
        ) from error
    return listening


def url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
