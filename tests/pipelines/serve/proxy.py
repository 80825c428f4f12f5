"""A small proxy that serves a server below a path, and optionally removes the path from requests."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_OWN = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@contextlib.contextmanager
def proxied(port: int, prefix: str, *, strips: bool = True, **headers: str) -> Iterator[str]:
    """Yield the proxy's URL with the prefix. Headers are added to each request, with `_` for `-`."""
    added = {name.replace("_", "-"): value for name, value in headers.items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            if not self.path.startswith(prefix):
                self.send_error(404)
                return
            path = self.path.removeprefix(prefix) if strips else self.path
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            with contextlib.closing(asked):
                asked.request(self.command, path or "/", body, {**dict(self.headers), **added})
                answer = asked.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _OWN:
                        self.send_header(name, value)
                if answer.status != 304:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        do_GET = do_POST = handle_one  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{prefix}/"
        finally:
            server.shutdown()
