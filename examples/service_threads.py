"""A service with threads and its own vectors: the standard library, the base package, no key.

    pip install -c constraints.txt .
    python examples/service_threads.py demo/catalog 8001 --processes 4
    curl -d '{"vector": [0.1, …], "k": 3, "kinds": ["image"]}' http://127.0.0.1:8001/search

Each request has a thread. The service opens the catalog once and then forks; each process follows new versions by
itself. GET returns the current version.
"""

import argparse
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from epithre_beam.index import FollowingCatalog, open_catalog

MAX_BODY_BYTES = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("catalog")
    parser.add_argument("port", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--follow-every", type=float, default=30.0, metavar="S")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with open_catalog(options.catalog, follow=True, follow_every_s=options.follow_every) as catalog:
        server = ThreadingHTTPServer(("127.0.0.1", options.port), handler_for(catalog))
        server.daemon_threads = True
        children = []
        for _ in range(options.processes - 1):  # all accept from the same socket
            child = os.fork()
            if not child:
                children = []
                break
            children.append(child)
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        try:
            server.serve_forever()
        finally:
            for child in children:
                os.kill(child, signal.SIGTERM)


def handler_for(catalog: FollowingCatalog) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.answer(200, {"version": catalog.version, "process": os.getpid()})

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if length > MAX_BODY_BYTES:
                self.close_connection = True
                self.answer(413, {"error": f"A body may have {MAX_BODY_BYTES} bytes, got {length}."})
                return
            try:
                asked = json.loads(self.rfile.read(length))
                (hits,) = catalog.search([asked["vector"]], asked.get("k", 10), kinds=asked.get("kinds"))
            except KeyError as error:
                self.answer(400, {"error": f"{error} is missing"})
                return
            except (ValueError, TypeError, AttributeError) as error:
                self.answer(400, {"error": str(error)})
                return
            self.answer(200, {"hits": [{"id": hit.asset_id, "kind": hit.kind, "score": hit.score} for hit in hits]})

        def answer(self, status: int, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: a service has its own log."""

    return Handler


if __name__ == "__main__":
    main()
