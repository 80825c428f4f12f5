"""The gate: ASGI middleware that checks every request and adds headers to every response.

It is plain ASGI, so that body limits apply while a body is read, and so that it takes only microseconds.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse
from starlette.routing import Match

from .bodies import Bodies, Body
from .faults import Fault, defect
from .metrics import Metrics
from .rates import Rates
from .settings import MAX_BODY_BYTES, MAX_OPTIONS_BYTES, ServeSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)

IMAGE_SEARCH = "/api/search/image"
_SEARCHES = ("/api/search", IMAGE_SEARCH)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_POLICY = (
    b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'"
)
_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


class Gate:
    """ASGI middleware: checks host, origin, token, rate, concurrency and sizes; adds headers; records metrics."""

    def __init__(self, app: Any, *, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self.settings = settings
        self._metrics = metrics
        self._rates = Rates(settings.requests_per_minute)
        self._hosts = settings.answered_hosts
        self._names = frozenset(map(str.lower, settings.allowed_hosts))
        self.bodies = Bodies(max(settings.max_bodies_bytes, 2 * settings.max_upload_bytes))
        self._token = None if settings.token is None else hashlib.sha256(settings.token.encode()).digest()
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # uvicorn sends no body for HEAD
            scope = {**scope, "method": "GET"}
        path = scope["path"]
        if root := scope.get("root_path") or self.settings.root_path:
            path = path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else path
            # Starlette needs the prefix in the path to find files, and most proxies remove it.
            scope = {**scope, "root_path": root, "path": root + path}
        passage = _Passage(scope, receive, send, self, path)
        started = time.perf_counter()
        self._metrics.under_way.inc()
        try:
            await self._pass(scope, passage)
        except ClientDisconnect:
            pass
        except Exception:
            _log.exception("a request failed unexpectedly")
            if passage.status:
                raise  # closing the connection ends a partial response
            await passage.answer(defect())
        finally:
            self._metrics.under_way.dec()
            self._metrics.report_request(scope, _route_of(scope), passage.status, time.perf_counter() - started)

    async def _pass(self, scope: Scope, passage: "_Passage") -> None:
        try:
            self._check(scope, passage)
            if passage.is_api and scope["method"] != "POST":
                passage.take_slot()  # a search takes its slot when its body is complete
        except Fault as fault:
            await passage.answer(fault)
            return
        if not passage.path:  # a prefix without its trailing slash: the page's links are relative to it
            await RedirectResponse(f"{scope['root_path']}/")(scope, passage.receive, passage.send)
            return
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                await self._app(scope, passage.receive, passage.send)
        except TimeoutError:
            if passage.status:
                raise  # closing the connection ends a partial response
            await passage.answer(Fault(503, "timeout", "The request took too long. Try again later."))
        finally:
            passage.close()

    def _check(self, scope: Scope, passage: "_Passage") -> None:
        """Raise Fault for a request that is refused."""
        headers, path = passage.headers, passage.path
        # Probes and Prometheus ask by the address of a pod. They get nothing of the catalog, or have the token.
        if not (path.startswith("/health/") or (path == "/metrics" and self._token is not None)):
            self._check_host(headers)
        if not passage.is_api and path != "/metrics":
            return
        self._check_token(headers)
        if not passage.is_api:
            return
        self._check_site(headers)
        if scope["method"] == "POST" and path in _SEARCHES and (wait_s := self._rates.take(_client(scope))):
            message = f"Too many requests from this client. Try again in {wait_s} s."
            raise Fault(429, "too_often", message, {"Retry-After": str(wait_s)})
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            message = "Content-Encoding is not supported. Send the body without encoding."
            raise Fault(415, "content_encoding", message, {"Accept-Encoding": "identity"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > passage.most_bytes:
            raise passage.too_large()

    def take_slot(self) -> None:
        """Take a slot for one request. Raises Fault when all are in use."""
        if self._under_way >= self.settings.max_concurrency:
            message = "The server is at its limit of concurrent requests. Try again in a second."
            raise Fault(503, "busy", message, {"Retry-After": "1"})
        self._under_way += 1

    def give_slot_back(self) -> None:
        self._under_way -= 1

    def _check_site(self, headers: dict[bytes, bytes]) -> None:
        """Raise Fault for a request from a page of another site, by the headers that browsers add."""
        site = headers.get(b"sec-fetch-site")  # only browsers can set it, and only on HTTPS or loopback
        if site == b"same-origin":
            return
        origin = headers.get(b"origin")
        if site in {None, b"none"} and (origin is None or self._is_ours(origin, headers.get(b"host", b""))):
            return
        raise Fault(403, "other_site", "Requests from pages of other sites are not allowed.")

    def _is_ours(self, origin: bytes, host: bytes) -> bool:
        """Return whether an Origin matches the Host header or an allowed name."""
        scheme, _, authority = origin.decode("latin-1").lower().partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        if port is None or not authority:
            return False
        asked = host.decode("latin-1").lower()
        return authority.removesuffix(port) == asked.removesuffix(port) or _name(authority) in self._names

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if self._hosts is None:
            return
        if _name(headers.get(b"host", b"").decode("latin-1").lower()) not in self._hosts:
            raise Fault(
                400,
                "wrong_host",
                "The name in the Host header is not allowed. Start the server with --allow-host to allow it.",
            )

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        if self._token is None:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(
            given.strip()
        ).digest()  # of fixed length, so that timing does not reveal the token's length
        if scheme.lower() != b"bearer" or not hmac.compare_digest(digest, self._token):
            message = "The token is missing or wrong. Send `Authorization: Bearer TOKEN`."
            raise Fault(401, "token", message, {"WWW-Authenticate": "Bearer"})


class _Passage:
    """One request: limits its body in bytes and time, and adds our headers to its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, gate: Gate, path: str) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status = 0
        self.path = path
        """The path without the prefix."""
        self.is_api = path.startswith("/api/")
        self._scope = scope
        self._receive = receive
        self._send = send
        self._gate = gate
        self._settings = gate.settings
        self._is_read = False
        self._has_slot = False
        self._body: Body | None = None

    @property
    def most_bytes(self) -> int:
        """Limit of the body."""
        if self.path == IMAGE_SEARCH:
            return self._settings.max_upload_bytes + MAX_OPTIONS_BYTES
        return MAX_BODY_BYTES

    def too_large(self) -> Fault:
        if self.path == IMAGE_SEARCH:
            message = f"image must have at most {self._settings.max_upload_bytes:,} bytes. Send a smaller image."
        else:
            message = f"A request must have at most {MAX_BODY_BYTES:,} bytes."
        return Fault(413, "too_large", message)

    def take_slot(self) -> None:
        self._gate.take_slot()
        self._has_slot = True

    def close(self) -> None:
        """Release what the request holds."""
        if self._body is not None:
            self._body.end()
        if self._has_slot:
            self._gate.give_slot_back()

    async def receive(self) -> Message:
        if self._is_read:
            return await self._receive()
        if self._body is None:
            self._body = self._gate.bodies.begin(self._settings.body_timeout_s, self._settings.body_pause_s)
        message = await self._body.next(self._receive)
        if message["type"] == "http.request":
            if self._body.size_bytes > self.most_bytes:
                raise self.too_large()
            self._is_read = not message.get("more_body", False)
            if self._is_read:
                self._body.end()
                if self.is_api:
                    self.take_slot()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *_HEADERS]
            if not any(name == b"cache-control" for name, _ in headers):
                headers.append((b"cache-control", b"no-store" if self.is_api else b"no-cache"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def answer(self, fault: Fault) -> None:
        await fault.response()(self._scope, self.receive, self.send)


def _name(authority: str) -> str:
    """Return the name without its port."""
    return authority.partition("]")[0].lstrip("[") if authority.startswith("[") else authority.partition(":")[0]


def _route_of(scope: Scope) -> str | None:
    """Return the path of the route that a request has or, if it was refused before, would have had."""
    route = scope.get("route")
    if route is None and (app := scope.get("app")) is not None:
        # A mount, such as the files of the page, has no path of its own and counts as no route.
        routes = (one for one in app.routes if hasattr(one, "methods"))
        route = next((one for one in routes if one.matches(scope)[0] is not Match.NONE), None)
    path: str | None = getattr(route, "path", None)
    return path


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
