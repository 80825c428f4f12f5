"""Damaged multipart forms get a documented error, and the server continues to answer."""

import contextlib
import http.client
import json
import os
import random
import time

import psutil
import pytest

from ..pipelines.conftest import Place, write_images
from ..pipelines.serve.conftest import serving

SECONDS = float(os.environ.get("EPITHRE_BEAM_FUZZ_S", "20"))
SEED = 20_261_130
BOUNDARY = b"boundary-0123456789"
EXPECTED = {200, 400, 408, 413, 415, 422}
_PIECES = (
    b"--", b"\r\n", b"\n", b"\r", b"\0", b'"', b";", b"--" + BOUNDARY, b"--" + BOUNDARY + b"--", b"Content-Disposition",
    b"form-data; name=", b"filename*=utf-8''%ff%00", b"Content-Transfer-Encoding: base64\r\n", b"\xff" * 40,
    b"x" * 9000, b"Content-Type: multipart/mixed; boundary=b", b"[" * 3000, b'{"k": 1e999}', b"image",
)  # fmt: skip
_OPTIONS = (
    "{}", '{"k": 3}', '{"k": 0}', "", "null", "[]", '{"kinds": ["image"]}', '{"where": {"asset_id": "p001.jpg"}}', "{",
    '{"k": 3, "k": 4}', '{"recall": 2}', "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1"), " " * 70_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = Place(tmp_path_factory.mktemp("fuzz"))
    write_images(found.folder / "pictures", 12)
    found.write_job(sources=[{"kind": "image", "files": "pictures/**/*.jpg"}])
    done = found.cli("run", "job.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    return found


def part(name, content, *, file=None, more=b""):
    head = b'Content-Disposition: form-data; name="' + name + b'"'
    head += b"" if file is None else b'; filename="' + file + b'"'
    return b"--" + BOUNDARY + b"\r\n" + head + b"\r\n" + more + b"\r\n" + content + b"\r\n"


def drawn_form(rng, image):
    """Draw a form, often damaged."""
    parts = [
        part(b"image", image, file=b"p.jpg", more=b"Content-Type: image/jpeg\r\n"),
        part(b"options", rng.choice(_OPTIONS).encode("utf-8", "replace")),
    ]
    match rng.randrange(6):
        case 0:
            parts = [rng.choice(parts) for _ in range(rng.randrange(5))]
        case 1:
            parts += [part(b"x%d" % i, b"y", file=rng.choice([None, b"f"])) for i in range(rng.choice([1, 50, 1500]))]
        case 2:
            parts.insert(0, part(rng.randbytes(8).replace(b'"', b""), rng.randbytes(30), file=rng.randbytes(5)))
    body = bytearray(b"".join(parts) + b"--" + BOUNDARY + b"--\r\n")
    for _ in range(rng.choice([0, 1, 1, 2, 6])):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(5):
            case 0:
                body[at:at] = rng.choice(_PIECES)
            case 1:
                del body[at : at + rng.choice([1, 2, 10, 1000])]
            case 2:
                body[at : at + 1] = rng.randbytes(1)
            case 3:
                body[at:] = b""
            case 4:
                other = rng.randrange(len(body) + 1)
                body[at:at] = body[other : other + rng.randrange(400)]
    return bytes(body)


def drawn_type(rng):
    usual = b"multipart/form-data; boundary=" + BOUNDARY
    odd = (b"multipart/form-data", usual + b"x", b'multipart/form-data; boundary=""', usual + b"; charset=utf-7",
           b"multipart/form-data; boundary=" + b"b" * 300, b"application/x-www-form-urlencoded", usual.upper(),
           b"multipart/mixed; boundary=" + BOUNDARY)  # fmt: skip
    return usual if rng.random() < 0.85 else rng.choice(odd)


def chunked(rng, body):
    """Split the body into chunks, as a client that does not know the length sends it."""
    while body:
        size = rng.choice([1, 3, 17, 1000, 100_000])
        yield body[:size]
        body = body[size:]


@pytest.mark.fuzz
@pytest.mark.timeout(SECONDS + 160)
def test_any_form_gets_a_documented_answer(place):
    rng = random.Random(SEED)
    images = sorted((place.folder / "pictures").glob("*.jpg"))
    honest = images[3].read_bytes()
    asked = found = 0
    with serving(place, "--max-upload-mb", 0.2) as server:
        process = psutil.Process(server.process.pid)
        connection = http.client.HTTPConnection(*server.address, timeout=30)
        before, deadline = None, time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            body = drawn_form(rng, rng.choice(images).read_bytes())
            is_chunked = rng.random() < 0.2
            content = chunked(rng, body) if is_chunked else body
            headers = {"content-type": drawn_type(rng)}
            seen = (asked, headers, body[:3000])
            try:
                connection.request("POST", "/api/search/image", content, headers, encode_chunked=is_chunked)
                answer = connection.getresponse()
                said = answer.read()
            except (ConnectionError, http.client.HTTPException):  # refused before the whole body was sent
                connection.close()
                assert server.process.poll() is None, seen
                continue
            assert answer.status in EXPECTED, (seen, said)
            document = json.loads(said)
            assert ("hits" in document) == (answer.status == 200), (seen, said)
            assert answer.status == 200 or document["error"]["message"].endswith((".", "?")), (seen, said)
            asked, found = asked + 1, found + (answer.status == 200)
            if asked % 100 == 0:
                assert server.search_image(honest, k=2).status_code == 200, seen
                before = before or process.memory_info().rss
        assert server.search_image(honest, k=2).status_code == 200
        if before is not None:
            assert process.memory_info().rss - before < 100e6
            assert process.num_fds() < 60  # the files of all forms are closed
        connection.close()
        assert server.stop() == 0
        with contextlib.closing(server.process.stderr) as errors:
            assert "Traceback" not in errors.read()
    assert asked > 20
    assert found > 0
