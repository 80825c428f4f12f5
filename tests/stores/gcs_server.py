"""A small Google Cloud Storage server: the JSON API as clients use it, with generations and preconditions.

It has the guarantees of the real service that the tests need: uploads are atomic, `ifGenerationMatch` is compared and
the object replaced in one step, and listings are sorted by name and paged.
"""

import base64
import bisect
import dataclasses
import datetime
import email
import hashlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

PAGE = 1000
"""Largest number of names in a page of a listing."""


@dataclasses.dataclass(frozen=True)
class GcsObject:
    data: bytes
    generation: int
    updated: str


class RefusedError(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GcsServer:
    """Serves on a free port from threads of this process. Use it in a `with` block."""

    def __init__(self, buckets: tuple[str, ...] = ("bucket",)) -> None:
        self.buckets: dict[str, dict[str, GcsObject]] = {name: {} for name in buckets}
        self.requests: list[tuple[str, str]] = []
        """Method and path with query of every request."""
        self.refuse: Callable[[str, str], int | None] = lambda method, path: None
        """Receives method and path, and returns the status to refuse the request with, or None."""
        self.ignores_conditions = False
        self.token: str | None = None
        """The bearer token that requests need, if any; `/token` issues it to a service account."""
        self.lock = threading.Lock()
        self.sessions: dict[str, tuple[str, str, str | None, bytearray]] = {}
        self.generations = itertools.count(1_700_000_000_000_000)
        handler = type("Handler", (_Handler,), {"gcs": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "GcsServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def objects(self, bucket: str) -> dict[str, GcsObject]:
        if bucket not in self.buckets:
            raise RefusedError(404, "The specified bucket does not exist.")
        return self.buckets[bucket]

    def get(self, bucket: str, name: str) -> GcsObject:
        found = self.objects(bucket).get(name)
        if found is None:
            raise RefusedError(404, f"No such object: {bucket}/{name}")
        return found

    def put(self, bucket: str, name: str, data: bytes, condition: str | None) -> dict[str, Any]:
        """Compare the condition and write in one step."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self.lock:
            objects = self.objects(bucket)
            self._check(objects.get(name), condition)
            objects[name] = GcsObject(data, next(self.generations), now)
            return resource(bucket, name, objects[name])

    def delete(self, bucket: str, name: str, condition: str | None) -> None:
        with self.lock:
            self._check(self.get(bucket, name), condition)
            del self.objects(bucket)[name]

    def _check(self, found: GcsObject | None, condition: str | None) -> None:
        generation = 0 if found is None else found.generation
        if condition is not None and int(condition) != generation and not self.ignores_conditions:
            raise RefusedError(412, "At least one of the pre-conditions you specified did not hold.")

    def list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        with self.lock:
            objects = dict(self.objects(bucket))
        names = sorted(name for name in objects if name.startswith(prefix))
        entries: dict[str, str | None] = {}  # listed name, and the name of the object if it is one
        for name in names:
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entries[name if cut < 0 else name[: cut + len(delimiter)]] = name if cut < 0 else None
        listed = list(entries)
        start = bisect.bisect_right(listed, base64.b64decode(query.get("pageToken", "")).decode())
        size = min(int(query.get("maxResults", PAGE)), PAGE)
        page = listed[start : start + size]
        answer: dict[str, Any] = {"kind": "storage#objects"}
        if items := [resource(bucket, name, objects[name]) for name in page if entries[name] is not None]:
            answer["items"] = items
        if prefixes := [name for name in page if entries[name] is None]:
            answer["prefixes"] = prefixes
        if start + size < len(listed):
            answer["nextPageToken"] = base64.b64encode(page[-1].encode()).decode()
        return answer


def resource(bucket: str, name: str, found: GcsObject) -> dict[str, Any]:
    """Return an object as the API describes it."""
    return {
        "kind": "storage#object",
        "bucket": bucket,
        "name": name,
        "size": str(len(found.data)),
        "generation": str(found.generation),
        "metageneration": "1",
        "etag": base64.b64encode(b"%d" % found.generation).decode(),
        "md5Hash": base64.b64encode(hashlib.md5(found.data).digest()).decode(),
        "updated": found.updated,
        "timeCreated": found.updated,
    }


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of clients that close the connection early."""


class _Handler(http.server.BaseHTTPRequestHandler):
    gcs: GcsServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.gcs.requests.append((self.command, self.path))
        path, _, text = self.path.partition("?")
        query = dict(urllib.parse.parse_qsl(text))
        try:
            if (status := self.gcs.refuse(self.command, self.path)) is not None:
                raise RefusedError(status, "try again" if status in {429, 500, 503} else "refused")
            if path == "/token":
                self._json({"access_token": self.gcs.token, "expires_in": 3600, "token_type": "Bearer"})
                return
            if self.gcs.token is not None and self.headers.get("Authorization") != f"Bearer {self.gcs.token}":
                raise RefusedError(401, "Anonymous caller does not have access")
            self._route(path, query, body)
        except RefusedError as refused:
            reported = {"error": {"code": refused.status, "message": str(refused)}}
            self._answer(refused.status, json.dumps(reported).encode())

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815 - http.server's names

    def _route(self, path: str, query: dict[str, str], body: bytes) -> None:
        condition = query.get("ifGenerationMatch")
        if path.startswith("/upload/session/"):
            self._go_on(path.rpartition("/")[2], body)
            return
        if found := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", path):
            self._upload(urllib.parse.unquote(found[1]), query, body)
            return
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)", path):
            self.gcs.objects(urllib.parse.unquote(found[1]))
            self._json({"kind": "storage#bucket", "name": found[1]})
            return
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o", path):
            self._json(self.gcs.list(urllib.parse.unquote(found[1]), query))
            return
        if found := re.fullmatch(
            r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)(?:/(?:rewrite|copy)To/b/(.+)/o/(.+))?", path
        ):
            bucket, name, *target = (urllib.parse.unquote(part or "") for part in found.groups())
            if self.command == "DELETE":
                self.gcs.delete(bucket, name, condition)
                self._answer(204, b"")
                return
            stored = self.gcs.get(bucket, name)
            if self.command == "POST":
                copy = self.gcs.put(target[0], target[1], stored.data, condition)
                self._json({"kind": "storage#rewriteResponse", "done": True, "resource": copy})
                return
            if query.get("alt") == "media":
                self._media(stored)
                return
            self._json(resource(bucket, name, stored))
            return
        raise RefusedError(501, f"{self.command} {path} is not part of this server")

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        condition = query.get("ifGenerationMatch")
        kind = query.get("uploadType")
        if kind == "media":
            self._json(self.gcs.put(bucket, query["name"], body, condition))
            return
        if kind == "multipart":
            whole = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
            boundary = email.message_from_bytes(whole).get_boundary() or ""
            _, described, content, *_ = body.split(b"--" + boundary.encode())
            name = json.loads(_after_headers(described))["name"]
            self._json(self.gcs.put(bucket, name, _after_headers(content).removesuffix(b"\n"), condition))
            return
        name = query.get("name") or json.loads(body)["name"]
        self.gcs.objects(bucket)
        number = f"{len(self.gcs.sessions):032d}"
        self.gcs.sessions[number] = (bucket, name, condition, bytearray())
        self._answer(200, b"", {"Location": f"http://{self.headers['Host']}/upload/session/{number}"})

    def _go_on(self, number: str, body: bytes) -> None:
        """Receive a part of a resumable upload. The last part creates the object."""
        if self.command == "DELETE":
            self.gcs.sessions.pop(number, None)
            self._answer(499, b"")
            return
        if number not in self.gcs.sessions:
            raise RefusedError(404, "no such upload")
        bucket, name, condition, data = self.gcs.sessions[number]
        span, _, total = self.headers["Content-Range"].removeprefix("bytes ").partition("/")
        if span != "*":
            start = int(span.partition("-")[0])
            if start > len(data):
                raise RefusedError(400, "a piece is missing")
            data[start:] = body
        if total == "*":
            self._answer(308, b"", {"Range": f"bytes=0-{len(data) - 1}"})
            return
        if int(total) != len(data):
            raise RefusedError(400, "the upload has the wrong length")
        answer = self.gcs.put(bucket, name, bytes(data), condition)
        del self.gcs.sessions[number]
        self._json(answer)
        return

    def _media(self, stored: GcsObject) -> None:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self._answer(200, stored.data, {"X-Goog-Generation": str(stored.generation)})
            return
        length = len(stored.data)
        start = int(asked[1]) if asked[1] else max(0, length - int(asked[2]))
        end = min(int(asked[2]) + 1, length) if asked[1] and asked[2] else length
        if start >= length:
            raise RefusedError(416, "The requested range cannot be satisfied: not satisfiable")
        span = {"Content-Range": f"bytes {start}-{end - 1}/{length}"}
        self._answer(206, stored.data[start:end], span)
        return

    def _json(self, answer: dict[str, Any]) -> None:
        self._answer(200, json.dumps(answer).encode())

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _after_headers(part: bytes) -> bytes:
    """Return the body of a part after its headers, with either kind of line ending."""
    return re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
