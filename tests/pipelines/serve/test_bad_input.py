"""Invalid input gets a 4xx response with a message."""

import io
import json
import struct
import zlib

import pytest
from PIL import Image

from .conftest import DIMENSION, fault


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(side):
    """A PNG of some kilobytes that decodes to gigabytes."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"no picture at all", "is not an image"),
        (b"/etc/passwd", "is not an image"),
        (b"http://127.0.0.1/picture.jpg", "is not an image"),
        (b"%PDF-1.7 and so on", "is not an image"),
        (b"\xff\xd8\xff\xe0 begins as one", "cut off"),
        (bomb(40_000), "the server allows 50000000 pixels, got 40000x40000"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image"),
    ],
)
def test_an_upload_that_is_not_an_image_is_refused(served, data, words):
    assert words in fault(served.search_image(data), 422)


@pytest.mark.parametrize("value", ["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x.jpg"])
def test_a_path_or_url_instead_of_a_file_is_refused(served, value):
    answer = served.client.post("/api/search/image", data={"image": value})
    assert "must be a file, not text" in fault(answer, 422)


def test_an_option_as_a_form_field_is_refused(served, image):
    answer = served.client.post("/api/search/image", files={"image": image}, data={"k": "2"})
    assert fault(answer, 422) == "k is not a field of this form. Put it into `options`."


def test_a_body_that_is_not_json_is_refused_with_line_and_column(served):
    answer = served.client.post(
        "/api/search", content=b'{"text": \n "a",}', headers={"content-type": "application/json"}
    )
    assert "must be valid JSON, line 2, column" in fault(answer, 400)


def test_a_long_text_is_refused_in_words_for_clients(served):
    sentence = fault(served.search(text="x" * 1_000_000), 422)
    assert sentence == "The text has 1,000,000 characters, the maximum is 32,000."


def test_refused_requests_are_counted_with_their_route(served):
    assert served.client.get("/api/catalog", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    text = served.client.get("/metrics").text
    assert 'epithre_beam_requests_total{method="GET",route="/api/catalog",status="403"}' in text


@pytest.mark.parametrize(
    "options", ['{"k": 0}', "{", "[]", '{"k": 1e9}', '{"text": "x"}', '{"where": {"nope": 1}}', "\x00", '{"k": NaN}']
)
def test_invalid_options_of_an_image_search_are_refused(served, image, options):
    answer = served.client.post("/api/search/image", files={"image": image}, data={"options": options})
    assert answer.status_code in {400, 422}
    assert fault(answer, answer.status_code)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "A search must have exactly one of text, vector, vector_base64, asset, got none."),
        ({"text": "a", "vector": [1]}, "A search must have exactly one of"),
        ({"text": ""}, "text must have at least 1 character"),
        ({"text": " \n"}, "empty"),
        ({"text": "x" * 32_001}, "the maximum is 32,000"),
        ({"text": 5}, "text must be a valid string, got 5."),
        ({"text": "a", "k": 0}, "k must be greater than or equal to 1, got 0."),
        ({"text": "a", "k": 1_000_000}, "k must be less than or equal to 1000, got 1000000."),
        ({"text": "a", "k": "10"}, "k must be a valid integer, got '10'."),
        ({"text": "a", "k": True}, "k must be a valid integer, got True."),
        ({"text": "a", "kinds": ["video"]}, "kinds[0] must be 'image' or 'text', got 'video'."),
        ({"text": "a", "kinds": []}, "kinds must have at least one kind, got []."),
        ({"text": "a", "kinds": "text"}, "kinds must be a list, got 'text'."),
        ({"text": "a", "merge": "best"}, "merge must be 'score', 'quota' or 'standardised', got 'best'."),
        ({"text": "a", "recall": 2}, "recall must be less than or equal to 1, got 2"),
        (
            {"text": "a", "colour": "red"},
            "colour is not a field of a search. Fields: k, kinds, where, merge, recall, text, ",
        ),
        ({"asset": {"kind": "text", "id": "a", "x": 1}}, "asset.x is not a field of an asset. Fields: kind, id."),
        ({"text": "a", "query_kind": "text"}, "query_kind is only for vectors"),
        ({"text": "a", "where": {"price": {"$lt": "x"}}}, "where.price.$lt must be a number, got 'x'."),
        ({"text": "a", "where": {"nope": 1}}, "where.nope: there is no column nope. Columns: price, asset_id"),
        ({"text": "a", "where": "price < 5"}, "where must be an object, got 'price < 5'."),
        ({"text": "a", "where": {"$or": [{"price": 1}] * 200}}, "where must have at most 100 terms"),
        ({"vector": [1.0] * (DIMENSION - 1)}, "vector must have 64 numbers, got 63."),
        ({"vector": []}, "vector must"),
        ({"vector": 5}, "vector must be a list of numbers."),
        ({"vector": "1,2"}, "vector must be a list of numbers."),
        ({"vector": ["1.0"] * DIMENSION}, "vector must be a list of numbers."),
        ({"vector": [None] * DIMENSION}, "vector must be a list of numbers."),
        ({"vector": [True] * DIMENSION}, "vector must be a list of numbers."),
        ({"vector": [[1.0]] * DIMENSION}, "vector must be a list of numbers."),
        ({"vector": [[1.0], [1.0, 2.0]]}, "vector must be a list of numbers."),
        ({"vector": {"a": 1}}, "vector must be a list of numbers."),
        ({"vector": [10**400] + [0] * (DIMENSION - 1)}, "vector must be"),
        ({"vector": [0] * DIMENSION}, "vector must be finite and not all zeros"),
        ({"vector": [1e308] * DIMENSION}, "vector must be finite"),
        ({"vector_base64": "*"}, "vector_base64 must be valid base64"),
        ({"vector_base64": "AAA="}, "vector_base64 must contain float32 values of 4 bytes"),
        ({"vector_base64": "AAAA" * 8}, "vector_base64 must have 64 numbers, got 6."),
        ({"vector": [0.1] * DIMENSION, "merge": "standardised"}, "query_kind is missing"),
        ({"asset": {"kind": "video", "id": "x"}}, "asset.kind must be 'image' or 'text', got 'video'."),
        ({"asset": {"kind": "text"}}, "asset.id is missing."),
        ({"asset": {"kind": "text", "id": 5}}, "asset.id must be a valid string, got 5."),
        ({"asset": "t003"}, "asset must be an object, got 't003'."),
    ],
)
def test_an_invalid_search_reports_the_rule(served, asked, sentence):
    assert sentence in fault(served.search(**asked), 422)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_non_finite_numbers_are_refused(served, number):
    body = f'{{"vector": [{",".join([number] * DIMENSION)}]}}'
    answer = served.client.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    fault(answer, answer.status_code)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"null", b"[1]", b'"x"', b'{"text": "\\ud800"}', b"[" * 100_000, b'{"k": 1}']
)
def test_an_invalid_body_is_refused(served, body):
    answer = served.client.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    fault(answer, answer.status_code)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_a_search_with_another_content_type_is_refused(served, media_type):
    answer = served.client.post("/api/search", content=b'{"text": "a"}', headers={"content-type": media_type})
    assert "application/json" in fault(answer, 415)


@pytest.mark.parametrize(
    "asset_id",
    ["none", "../texts.csv", "../../etc/passwd", "/etc/passwd", "p001.jpg/../p002.jpg", "p001.jpg\x00", "é☃"],
)
def test_unknown_ids_are_not_found(served, asset_id):
    for path in ("/api/assets/image", "/api/assets/text", "/api/thumbnails/image"):
        assert asset_id not in fault(served.client.get(path, params={"id": asset_id}), 404)
    assert fault(served.search(asset={"kind": "image", "id": asset_id}), 404)


@pytest.mark.parametrize(
    "path", ["/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/..%2fapp.py", "/api", "/api/", "//"]
)
def test_no_path_leaves_the_page_folder(served, path):
    with served.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"create_app" not in answer


def test_invalid_query_parameters_are_reported(served):
    assert "id is missing" in fault(served.client.get("/api/assets/image"), 422)
    assert "id must have at most 4096" in fault(served.client.get("/api/assets/image", params={"id": "x" * 5000}), 422)
    assert "kind must be" in fault(served.client.get("/api/assets/video", params={"id": "x"}), 422)
    for size in ("0", "321", "1e3", "-1"):
        answer = served.client.get("/api/thumbnails/image", params={"id": "p001.jpg", "size": size})
        assert fault(answer, 422).startswith("size ")


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served):
    """Content-Length is sufficient."""
    for path in ("/api/search", "/api/search/image"):
        with served.connect() as connection:
            lines = [
                f"POST {path} HTTP/1.1",
                "Host: localhost",
                "Content-Length: 100000000",
                "Content-Type: x/y",
                "",
                "",
            ]
            connection.sendall("\r\n".join(lines).encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_a_body_without_content_length_is_limited_while_it_is_read(served):
    head = ["POST /api/search/image HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked"]
    head += ["Content-Type: multipart/form-data; boundary=b", "", ""]
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="p"\r\n\r\n'
    block = bytes(65_536)
    sent = 0
    with served.connect() as connection:
        connection.sendall("\r\n".join(head).encode() + f"{len(part):x}\r\n".encode() + part + b"\r\n")
        connection.settimeout(0.02)
        answer = b""
        while not answer and sent < 100_000_000:
            connection.settimeout(10)
            connection.sendall(f"{len(block):x}\r\n".encode() + block + b"\r\n")
            sent += len(block)
            connection.settimeout(0.02)
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 413")
    assert sent < 20_000_000  # socket buffers are sent before the server reads


def test_an_image_slightly_above_the_limit_is_refused(served):
    answer = served.search_image(b"\xff\xd8\xff" + bytes(1_000_000))
    assert "at most 1,000,000 bytes" in fault(answer, 413)
    assert served.search_image(bytes(1_900_000)).status_code == 413


def test_an_invalid_form_is_refused(served):
    for headers, body in (
        ({"content-type": "multipart/form-data"}, b"x"),
        ({"content-type": "multipart/form-data; boundary=b"}, b"--c\r\n\r\n"),
        (
            {"content-type": "multipart/form-data; boundary=b"},
            b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--",
        ),
        ({"content-type": "application/json"}, b"{}"),
        ({}, b""),
    ):
        answer = served.client.post("/api/search/image", content=body, headers=headers)
        assert answer.status_code in {400, 422}
        fault(answer, answer.status_code)


def test_an_image_that_is_not_in_a_form_is_refused(served):
    headers = {"content-type": "application/x-www-form-urlencoded"}  # as curl's --data-binary sends it
    answer = served.client.post("/api/search/image", content=b"x", headers=headers)
    assert fault(answer, 422) == "image is missing. Send multipart/form-data with a field `image`."
    answer = served.search_image(b"x", txt="a")
    assert fault(answer, 422) == "options.txt is not a field of a search. Fields: k, kinds, where, merge, recall."
    answer = served.client.post("/api/search", json=[])
    assert fault(answer, 422).endswith("got [].")


def test_an_image_with_many_pixels_and_few_bytes_is_searched(served):
    buffer = io.BytesIO()
    Image.new("L", (6000, 4000)).save(buffer, "PNG")
    assert served.search_image(buffer.getvalue(), k=1).status_code == 200


def test_client_input_is_not_reflected_as_markup(served):
    answer = served.search(text="a", merge="<script>alert(1)</script>")
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.content)["error"]["message"].startswith("merge must be")
