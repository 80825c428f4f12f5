"""The gate: what every request passes on its way in and every answer on its way out.

It is plain ASGI, so that a body is bounded while it is read, and so that it costs microseconds.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect

from .faults import Fault, defect
from .metrics import Metrics
from .rates import Rates
from .settings import MAX_BODY_BYTES, MAX_OPTIONS_BYTES, ServeSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)

PICTURE_SEARCH = "/api/search/picture"
_SEARCHES = ("/api/search", PICTURE_SEARCH)
_OF_THE_SAME_SITE = (b"same-origin", b"none")
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
    """ASGI middleware. Checks host, origin, token, rate, concurrency and sizes; adds headers; counts."""

    def __init__(self, app: Any, *, settings: ServeSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._rates = Rates(settings.requests_per_minute)
        self._hosts = settings.answered_hosts
        self._token = None if settings.token is None else hashlib.sha256(settings.token.encode()).digest()
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server below sends no body to a HEAD
            scope = {**scope, "method": "GET"}
        passage = _Passage(scope, receive, send, self._settings)
        started = time.perf_counter()
        self._metrics.under_way.inc()
        try:
            await self._pass(scope, passage)
        except ClientDisconnect:
            pass
        except Exception:
            _log.exception("a request failed as nobody foresaw")
            if passage.status:
                raise  # half an answer is ended by closing the connection
            await passage.answer(defect())
        finally:
            self._metrics.under_way.dec()
            self._metrics.tell_request(scope, passage.status, time.perf_counter() - started)

    async def _pass(self, scope: Scope, passage: "_Passage") -> None:
        is_api = scope["path"].startswith("/api/")
        try:
            self._check(scope, passage.headers, is_api=is_api)
        except Fault as fault:
            await passage.answer(fault)
            return
        if not is_api:
            await self._app(scope, passage.receive, passage.send)
            return
        self._under_way += 1
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await self._app(scope, passage.receive, passage.send)
        except TimeoutError:
            if passage.status:
                raise  # half an answer is ended by closing the connection
            await passage.answer(Fault(503, "timeout", "The answer took too long; try again later."))
        finally:
            self._under_way -= 1

    def _check(self, scope: Scope, headers: dict[bytes, bytes], *, is_api: bool) -> None:
        """Raises Fault for a request that goes no further."""
        self._check_host(headers)
        if not is_api and scope["path"] != "/metrics":
            return
        self._check_token(headers)
        if not is_api:
            return
        if headers.get(b"sec-fetch-site", b"none") not in _OF_THE_SAME_SITE:
            raise Fault(403, "other_site", "A page of another site may not ask this server.")
        if scope["method"] == "POST" and scope["path"] in _SEARCHES and (wait_s := self._rates.take(_client(scope))):
            message = f"This client has asked too often; come back in {wait_s} s."
            raise Fault(429, "too_often", message, {"Retry-After": str(wait_s)})
        if self._under_way >= self._settings.max_concurrency:
            message = "The server answers as many requests as it can; come back in a second."
            raise Fault(503, "busy", message, {"Retry-After": "1"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > _most_bytes(scope, self._settings):
            raise too_large(scope, self._settings)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if self._hosts is None:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if name not in self._hosts:
            raise Fault(400, "wrong_host", "The server does not answer to the name in the Host header.")

    def _check_token(self, headers: dict[bytes, bytes]) -> None:
        if self._token is None:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(given.strip()).digest()  # of one length, so that no length can be told by the time
        if scheme.lower() != b"bearer" or not hmac.compare_digest(digest, self._token):
            message = "This needs the server's token, as `Authorization: Bearer …`."
            raise Fault(401, "token", message, {"WWW-Authenticate": "Bearer"})


class _Passage:
    """One request through the gate: its body bounded in bytes and time, its answer with our headers."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: ServeSettings) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._settings = settings
        self._bytes = 0
        self._is_read = False
        self._deadline: float | None = None

    async def receive(self) -> Message:
        if self._is_read:
            return await self._receive()
        loop = asyncio.get_running_loop()
        self._deadline = self._deadline or loop.time() + self._settings.body_timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise Fault(408, "too_slow", "The request's body came too slowly.", {"Connection": "close"}) from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._is_read = not message.get("more_body", False)
            if self._bytes > _most_bytes(self._scope, self._settings):
                raise too_large(self._scope, self._settings)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), *_HEADERS]
            if not any(name == b"cache-control" for name, _ in headers):
                is_api = self._scope["path"].startswith("/api/")
                headers.append((b"cache-control", b"no-store" if is_api else b"no-cache"))
            message = {**message, "headers": headers}
        await self._send(message)

    async def answer(self, fault: Fault) -> None:
        await fault.response()(self._scope, self.receive, self.send)


def too_large(scope: Scope, settings: ServeSettings) -> Fault:
    if scope["path"] == PICTURE_SEARCH:
        message = f"A picture may have {settings.max_upload_bytes:,} bytes at most; send a smaller one."
    else:
        message = f"A request may have {MAX_BODY_BYTES:,} bytes at most."
    return Fault(413, "too_large", message)


def _most_bytes(scope: Scope, settings: ServeSettings) -> int:
    if scope["path"] == PICTURE_SEARCH:
        return settings.max_upload_bytes + MAX_OPTIONS_BYTES
    return MAX_BODY_BYTES


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
