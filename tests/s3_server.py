"""An S3 server on a free port (moto), and a proxy in front of it that simulates network failures."""

import contextlib
import http.client
import http.server
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from epithre_beam.index import Store

BUCKET = "bucket"


class S3Server:
    def __init__(self, port: int) -> None:
        self.port = port
        program = shutil.which("moto_server", path=str(Path(sys.executable).parent)) or "moto_server"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], **quiet)

    def wait(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                connection.request("PUT", f"/{BUCKET}")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError("moto_server did not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


Fault = Callable[[str, dict[str, str]], str]
"""Receives method and headers of a request, may change the headers, and returns what happens to the request: `pass`,
`lose answer`, `lose request`, `error` (executed, but answered with a server error), `damage` (one byte of the answer is
changed), or the status of a refusal, such as `503`."""


class Proxy:
    """Forwards requests to the server, except as `fault` says."""

    def __init__(self, port: int) -> None:
        self.fault: Fault = lambda method, headers: "pass"
        self.requests: list[str] = []
        self.paths: list[str] = []
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = dict(self.headers.items())
                proxy.requests.append(self.command)
                proxy.paths.append(self.path)
                what = proxy.fault(self.command, headers)
                if what == "lose request":
                    self.close_connection = True
                    return
                if what.isdigit():
                    self.send_response_only(int(what))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if what == "lose answer":
                    self.close_connection = True
                    return
                if what == "damage":
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if what == "error":
                    data = b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"
                    self.send_response_only(500)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(b"" if self.command == "HEAD" else data)
                    return
                self.send_response_only(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815 - http.server's names

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def s3_store(port: int, folder: str, *, attempts: int = 1) -> Store:
    """Open a store; `attempts` is the number of times the client sends a request whose answer is lost."""
    options = {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "key": "key",
        "secret": "secret",
        "config_kwargs": {"retries": {"total_max_attempts": attempts}, "region_name": "us-east-1"},
    }
    return Store(f"s3://{BUCKET}/{folder}", options)
