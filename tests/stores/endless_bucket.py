"""A server that lists a bucket with any number of images, as S3, GCS and Azure, over HTTP.

    python tests/stores/endless_bucket.py 1000000

It prints its port. The names are photos/FOLDER/NUMBER.jpg, in a hundred folders of equal size. Objects cannot be read.
"""

import bisect
import http.server
import json
import sys
import urllib.parse
import zlib
from typing import Any
from xml.sax.saxutils import escape

FOLDERS = 100
TIME = "2026-01-02T03:04:05.000Z"
HTTP_TIME = "Fri, 02 Jan 2026 03:04:05 GMT"


def tag(name: str) -> str:
    return f"{zlib.crc32(name.encode()):032x}"


class Handler(http.server.BaseHTTPRequestHandler):
    count: int
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def name(self, number: int) -> str:
        return f"photos/{number * FOLDERS // self.count:03d}/{number:08d}.jpg"

    def page(self, prefix: str, delimiter: str, token: str, size: int) -> tuple[list[str], list[str], str]:
        """Return files, folders, and the token of the next page."""
        numbers = range(self.count)
        first = bisect.bisect_left(numbers, prefix, key=self.name)
        end = bisect.bisect_left(numbers, prefix + "\U0010ffff", key=self.name)
        if delimiter and prefix.count("/") < 2:
            rest = {self.name(n)[: self.name(n).index("/", len(prefix)) + 1] for n in self._one_of_each(first, end)}
            return [], sorted(rest), ""
        start = max(first, int(token or 0))
        last = min(start + size, end)
        return [self.name(number) for number in range(start, last)], [], str(last) if last < end else ""

    def _one_of_each(self, first: int, end: int) -> range:
        return range(first, end, max(1, self.count // FOLDERS // 2))

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        asked = query.get("prefix", ""), query.get("delimiter", "")
        if query.get("list-type") == "2":
            self._answer(
                200, self._s3(*self.page(*asked, query.get("continuation-token", ""), 1000)), "application/xml"
            )
        elif url.path == "/storage/v1/b/bucket/o":
            self._answer(200, self._gcs(*self.page(*asked, query.get("pageToken", ""), 1000)), "application/json")
        elif query.get("comp") == "list":
            size = int(query.get("maxresults", 5000))
            self._answer(200, self._azure(*self.page(*asked, query.get("marker", ""), size)), "application/xml")
        else:
            self._answer(404, "{}", "application/json")

    def do_HEAD(self) -> None:
        self._answer(404, "", "application/xml")

    def _s3(self, files: list[str], folders: list[str], token: str) -> str:
        items = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>{TIME}</LastModified><ETag>&quot;{tag(name)}&quot;"
            "</ETag><Size>200000</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for name in files
        )
        items += "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in folders)
        more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
        return (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
            f"<IsTruncated>{'true' if token else 'false'}</IsTruncated>{more}{items}</ListBucketResult>"
        )

    def _gcs(self, files: list[str], folders: list[str], token: str) -> str:
        answer: dict[str, Any] = {"kind": "storage#objects", "prefixes": folders}
        answer["items"] = [
            {
                "name": name,
                "size": "200000",
                "etag": tag(name),
                "updated": TIME,
            }
            for name in files
        ]
        return json.dumps(answer | ({"nextPageToken": token} if token else {}))

    def _azure(self, files: list[str], folders: list[str], token: str) -> str:
        items = "".join(
            f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{HTTP_TIME}</Last-Modified><Etag>"
            f"0x{tag(name)}</Etag><Content-Length>200000</Content-Length><BlobType>BlockBlob</BlobType></Properties>"
            "</Blob>"
            for name in files
        )
        items += "".join(f"<BlobPrefix><Name>{name}</Name></BlobPrefix>" for name in folders)
        return (
            '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="http://127.0.0.1/" '
            f'ContainerName="bucket"><Blobs>{items}</Blobs><NextMarker>{token}</NextMarker></EnumerationResults>'
        )

    def _answer(self, status: int, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of clients that close the connection early."""


if __name__ == "__main__":
    Handler.count = int(sys.argv[1])
    server = Server(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
