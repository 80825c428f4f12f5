"""Answers are read up to a size limit, compressed or not, and slow answers time out."""

import asyncio
import functools
import gzip
import json
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import ApiError
from epithre_beam.transforms.epithre.bodies import MOST_ERROR_BYTES, MOST_MODELS_BYTES, most_answer_bytes
from epithre_beam.transforms.epithre.client import Client, Refusal, RefusalReason
from epithre_beam.transforms.epithre.dialects import DIALECTS
from epithre_beam.transforms.epithre.probe import probe

from .asking import quick
from .hostile import DIMENSION, answer, good, serve, serves, vector_of

MEGABYTE = 1 << 20
HEAD = "HTTP/1.1 {status} Said\r\ntransfer-encoding: chunked\r\n{more}\r\n"


def chunks(piece, *, status=200, more=""):
    """An endless answer, in chunks."""
    yield HEAD.format(status=status, more=more).encode()
    while True:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)


@functools.cache  # created before the memory is measured
def bomb(megabytes, *encodings, status=200):
    """Zeros that compress to a small body."""
    if encodings[0] == "deflate":
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)  # without the header, as many servers send it
    else:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join(squeeze.compress(b"0" * MEGABYTE) for _ in range(megabytes)) + squeeze.flush()
    for _ in encodings[1:]:
        body = gzip.compress(body)
    return answer(status, body, {"content-encoding": ", ".join(encodings)})


def embed(server, count=2, **changes):
    """The results, the client, and Python's peak memory in bytes."""

    async def go():
        settings = EmbedConfig(base_url=server.base_url, dimension=DIMENSION, **{"max_sends": 1, **changes})
        async with Client(settings, "key", seed=1, sleep=quick) as client:
            tracemalloc.start()
            results = await client.embed([client.encode("text", b"text %d" % i) for i in range(count)])
            return results, client, tracemalloc.get_traced_memory()[1]

    try:
        return asyncio.run(go())
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: None, "longer than the"),
        (lambda: answer(200, b" " * 30 * MEGABYTE), "longer than the"),
        (lambda: bomb(100, "gzip"), "longer than the"),
        (lambda: bomb(100, "deflate"), "longer than the"),
        (lambda: bomb(100, "gzip", "gzip"), "content-encoding 'gzip, gzip'"),
        (lambda: answer(200, b"\x28\xb5\x2f\xfd" * 100, {"content-encoding": "zstd"}), "content-encoding 'zstd'"),
        (lambda: answer(200, b"{}", {"content-encoding": "gzip"}), "is not valid gzip"),
        (lambda: answer(200, b"\xff{}", {"content-encoding": "deflate"}), "is not valid deflate"),
        (lambda: answer(200, gzip.compress(b"{}")[:-9], {"content-encoding": "gzip"}), "answer is incomplete"),
        (lambda: answer(200, b'{"data":[' + b'{"index":0,"embedding":""},' * 10**6 + b"{}]}"), "longer than the"),
    ],
    ids=[
        "endless",
        "long",
        "gzip",
        "deflate",
        "gzip-gzip",
        "zstd",
        "no-gzip",
        "no-deflate",
        "half-gzip",
        "a-million",
    ],
)
def test_a_too_long_or_undecodable_answer_is_broken(make, words):
    whole, piece = make(), b" " * MEGABYTE
    with serve(lambda _: whole or chunks(piece)) as server:
        results, _, most = embed(server)
    assert {result.reason for result in results} == {RefusalReason.BROKEN_ANSWER}
    assert words in results[0].detail
    assert most < 8 * MEGABYTE


@pytest.mark.parametrize("status", [400, 401, 404, 500])
@pytest.mark.parametrize("form", ["endless", "gzip"])
def test_an_endless_error_is_truncated_and_keeps_its_status(status, form):
    words = b'{"error":{"message":"these are the words", "more": "'

    squeezed = answer(status, gzip.compress(words + b"0" * 50 * MEGABYTE), {"content-encoding": "gzip"})

    def respond(_):
        if form == "gzip":
            return squeezed
        return chunks(words + b" " * 100_000, status=status)

    with serve(respond) as server:
        if status in {401, 404}:
            with pytest.raises(
                ApiError, match=f"{status}.*longer than the limit of {MOST_ERROR_BYTES:,} bytes.*the words"
            ):
                embed(server)
            return
        results, client, most = embed(server)
    expected = RefusalReason.REFUSED if status == 400 else RefusalReason.RETRIES_EXHAUSTED
    assert {result.reason for result in results} == {expected}
    assert "these are the words" in results[0].detail
    assert client.meter.bytes_down <= len(server.posts) * MOST_ERROR_BYTES
    assert most < 16 * MEGABYTE


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity", "GZIP", ""])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_answers_are_read_in_any_encoding_and_transfer(encoding, is_chunked):
    def respond(request):
        assert request.headers["accept-encoding"] == "gzip, deflate"
        body = json.dumps(good(request.items)).encode()
        if "gzip" in encoding.lower():
            body = gzip.compress(body)
        if encoding == "deflate":
            body = zlib.compress(body)
        headers = {"content-encoding": encoding} if encoding else {}
        if not is_chunked:
            return answer(200, body, headers)
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        pieces = [body[i : i + 100] for i in range(0, len(body), 100)]
        return b"".join(
            [
                HEAD.format(status=200, more=more).encode(),
                *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces),
                b"0\r\n\r\n",
            ]
        )

    with serve(respond) as server:
        results, _, _ = embed(server, 40)
    for i, vector in enumerate(results):
        np.testing.assert_allclose(vector, vector_of(f"text {i}"), atol=1e-5)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize(("items", "dimension"), [(5, 8), (8, 4000), (1, 65_536)])
def test_most_answer_bytes_covers_every_valid_answer(name, items, dimension):
    """The longest answer: indented lists of float64, with the request repeated in escapes."""
    numbers = [-1.2345678901234567e-300] * dimension
    text = "語" * 500
    settings = EmbedConfig(
        dialect=name, base_url="http://127.0.0.1:1/v1", model="m", api_key_env="K", dimension=dimension
    )
    dialect = DIALECTS[name](settings)
    pieces = [dialect.encode_item("text", text.encode())] * (1 if name == "vllm" else items)
    request = dialect.body(pieces)
    if name == "cohere":
        body = {"embeddings": {"float": [numbers] * len(pieces)}, "texts": [text] * len(pieces)}
    else:
        body = {"data": [{"object": "embedding", "index": i, "embedding": numbers} for i in range(len(pieces))]}
    body |= {"usage": {"total_tokens": 1}, "meta": {"billed_units": {"input_tokens": 1}}}
    assert len(json.dumps(body, indent=2)) <= most_answer_bytes(len(pieces), dimension, len(request))


def test_the_error_for_a_larger_model_names_its_dimension():
    def respond(request):
        vector = np.random.default_rng(0).standard_normal(4096)
        return answer(200, {"data": [{"embedding": vector.tolist()} for _ in request.items]})

    with serve(respond) as server, pytest.raises(ApiError, match=r"Set embed\.dimension=4096"):
        embed(server)


def drip(first):
    yield first
    while True:
        time.sleep(0.02)
        yield b" "


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n", b"HTTP/1.1 200 OK\r\nx: "])
def test_a_dripping_answer_times_out(first):
    started = time.monotonic()
    with serve(lambda _: drip(first)) as server:
        results, client, _ = embed(server, timeout_s=0.5)
        with pytest.raises(ApiError, match="timeout: no answer in time"):
            probe(EmbedConfig(base_url=server.base_url, dimension=DIMENSION, timeout_s=0.5), "key", tries=1)
    assert time.monotonic() - started < 10
    assert isinstance(results[0], Refusal)
    assert "no answer in time" in results[0].detail
    assert client.meter.items_embedded == 0


def hints():
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 100


def headers():
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"x-a: " + b"b" * 60_000 + b"\r\n"


@pytest.mark.parametrize("respond", [hints, headers])
def test_endless_headers_are_failures(respond):
    with serve(lambda _: respond()) as server:
        results, _, most = embed(server, timeout_s=0.5)
        with pytest.raises(ApiError, match="does not answer"):
            probe(EmbedConfig(base_url=server.base_url, dimension=DIMENSION, timeout_s=0.5), "key", tries=1)
    assert all(isinstance(result, Refusal) for result in results)
    assert most < 16 * MEGABYTE


@pytest.mark.parametrize("form", ["gzip", "endless"])
def test_an_endless_list_of_models_is_truncated_and_ignored(form, caplog):
    def respond(request):
        if request.items:
            return serves(request)
        return squeezed if form == "gzip" else chunks(piece)

    squeezed, piece = bomb(100, "gzip"), b" " * MEGABYTE
    with serve(respond) as server:
        tracemalloc.start()
        try:
            probed = probe(EmbedConfig(base_url=server.base_url, dimension=DIMENSION), "key")
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        results, _, _ = embed(server)
    assert probed.emulator is None
    assert f"longer than the limit of {MOST_MODELS_BYTES:,} bytes" in caplog.text
    assert most < 4 * MOST_MODELS_BYTES
    assert not any(isinstance(result, Refusal) for result in results)
