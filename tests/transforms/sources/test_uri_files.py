"""No redirect, and no link that changed, leads outside of the allowed folders."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from epithre_beam.configs import PrepareConfig, SourceConfig
from epithre_beam.index.versions.layout import Reason
from epithre_beam.transforms.sources.reading import Reader
from epithre_beam.transforms.sources.references import Reference
from epithre_beam.transforms.sources.unpreparable import Unpreparable
from epithre_beam.transforms.sources.uri_files import OutsideError, check_opened

from .listing import Row, listed

CAP = 100_000


class Site(http.server.ThreadingHTTPServer):
    """A server with a body or a redirect (status, URL) for each path. It records its requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, bytes | tuple[int, str]] = {}
        self.received: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.received.append(f"{self.command} {self.path}")
        page = self.server.pages.get(self.path)
        if isinstance(page, tuple):
            self.send_response(page[0])
            self.send_header("location", page[1])
            self.send_header("content-length", "0")
            self.end_headers()
            return
        self.send_response(404 if page is None else 200)
        if page != b"endless":
            self.send_header("content-length", str(len(page or b"")))
        self.end_headers()
        if self.command == "GET" and page == b"endless":
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                return
        if self.command == "GET" and page:
            self.wfile.write(page)


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    """A server that the source allows, and one that it does not."""
    both = Site(), Site()
    yield both
    for site in both:
        site.shutdown()
        site.server_close()


def source_of(folder: Path, *uris: str, within: tuple[str, ...]) -> SourceConfig:
    (folder / "t.csv").write_text("id,u\n" + "".join(f"{i},{uri}\n" for i, uri in enumerate(uris)))
    return SourceConfig(kind="image", table=str(folder / "t.csv"), id="id", uri="u", within=within)


def outcomes(source: SourceConfig) -> tuple[list[bytes | Reason], list[Row]]:
    rows = listed(source)
    reader = Reader([source], PrepareConfig(max_file_bytes=CAP))
    found: list[bytes | Reason] = []
    for row in rows:
        try:
            found.append(reader.read(Reference(**{name: row[name] for name in Reference.__dataclass_fields__})))
        except Unpreparable as failure:
            found.append(failure.reason)
    return found, rows


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("hops", [0, 1, 3])
def test_a_redirect_outside_of_within_is_not_followed(
    tmp_path: Path, sites: tuple[Site, Site], status: int, hops: int
) -> None:
    allowed, forbidden = sites
    forbidden.pages["/secret.jpg"] = b"secret"
    target = f"{forbidden.url}/secret.jpg"
    for hop in range(hops):
        allowed.pages[f"/hop{hop}.jpg"] = (status, target)
        target = f"/hop{hop}.jpg"
    allowed.pages["/a.jpg"] = (status, target)
    found, rows = outcomes(source_of(tmp_path, f"{allowed.url}/a.jpg", within=(f"{allowed.url}/",)))
    assert found == [Reason.URI_NOT_ALLOWED]
    assert forbidden.received == []
    assert (rows[0]["fingerprint"], rows[0]["size_bytes"]) == ("unknown", None)
    assert "GET /a.jpg" in allowed.received


@pytest.mark.parametrize(
    "elsewhere",
    [
        "//{host}/s.jpg",
        "http://{host}/p/../s.jpg",
        "http://{host}\\@{ours}/s.jpg",
        "/other/s.jpg",
        "file:///etc/passwd",
    ],
)
def test_a_redirect_out_of_the_folder_is_refused_in_any_spelling(
    tmp_path: Path, sites: tuple[Site, Site], elsewhere: str
) -> None:
    allowed, forbidden = sites
    allowed.pages["/other/s.jpg"] = forbidden.pages["/s.jpg"] = b"secret"
    place = elsewhere.format(host=forbidden.url.removeprefix("http://"), ours=allowed.url.removeprefix("http://"))
    allowed.pages["/p/a.jpg"] = (302, place)
    found, _ = outcomes(source_of(tmp_path, f"{allowed.url}/p/a.jpg", within=(f"{allowed.url}/p",)))
    assert found[0] in {Reason.URI_NOT_ALLOWED, Reason.UNREADABLE}
    assert forbidden.received == []
    assert not any("s.jpg" in request for request in allowed.received)


def test_a_redirect_that_stays_within_is_followed(tmp_path: Path, sites: tuple[Site, Site]) -> None:
    one, other = sites
    one.pages |= {"/a.jpg": (302, "/b.jpg"), "/b.jpg": (307, f"{other.url}/c.jpg")}
    other.pages["/c.jpg"] = b"a picture"
    found, rows = outcomes(source_of(tmp_path, f"{one.url}/a.jpg", within=(one.url, other.url)))
    assert found == [b"a picture"]
    assert rows[0]["size_bytes"] == 9


def test_a_response_of_unknown_length_is_read_up_to_the_limit(tmp_path: Path, sites: tuple[Site, Site]) -> None:
    site, _ = sites
    site.pages |= {"/endless.jpg": b"endless", "/cap.jpg": bytes(CAP)}
    uris = (f"{site.url}/endless.jpg", f"{site.url}/cap.jpg", f"{site.url}/gone.jpg")
    assert outcomes(source_of(tmp_path, *uris, within=(site.url,)))[0] == [
        Reason.FILE_TOO_LARGE,
        bytes(CAP),
        Reason.MISSING,
    ]


def test_a_link_that_changes_after_the_check_is_detected(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "shop/a.jpg").symlink_to(tmp_path / "secret")
    source = source_of(tmp_path / "shop", "a.jpg", within=())
    with (tmp_path / "shop/a.jpg").open("rb") as file:
        # The link now points to an allowed file, but the open file is the other one.
        (tmp_path / "shop/b.jpg").write_bytes(b"b")
        (tmp_path / "shop/a.jpg").unlink()
        (tmp_path / "shop/a.jpg").symlink_to(tmp_path / "shop/b.jpg")
        if Path("/proc/self/fd").exists():
            with pytest.raises(OutsideError):
                check_opened(file, str(tmp_path / "shop/a.jpg"), source)
    with (tmp_path / "shop/a.jpg").open("rb") as file:
        check_opened(file, str(tmp_path / "shop/a.jpg"), source)
