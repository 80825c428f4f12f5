"""Each dialect against a small server that accepts only its provider's JSON and answers in its format."""

import asyncio
import base64
import json
import random
import threading
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epithre_beam.configs import EmbedConfig, PrepareConfig
from epithre_beam.configs.errors import ApiError, ConfigError, QueryError
from epithre_beam.configs.load import parse_config
from epithre_beam.configs.schema import Dialect
from epithre_beam.transforms.epithre.answers import Verdict, read_error
from epithre_beam.transforms.epithre.client import Client, Refusal, RefusalReason
from epithre_beam.transforms.epithre.dialects import DIALECTS
from epithre_beam.transforms.epithre.dialects.shape import media_type
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector
from epithre_beam.transforms.epithre.probe import probe
from epithre_beam.transforms.planning.embedding_config import embedding_config_hash
from epithre_beam.transforms.planning.plan import unit_name
from epithre_beam.transforms.query.embed_queries import embed_queries

DIMENSION = 16
MODEL = 'a "model"/1'
KEY = "key-of-the-test"
NAMES = typing.get_args(Dialect)
Item = tuple[str, bytes]
Answer = tuple[int, dict[str, str], Any]

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
WEBP = b"RIFF\x10\0\0\0WEBPVP8 " + bytes(90)
TEXTS = ["kucing oren tidur", "日本語 🚲", 'a "quoted"\n\\ line\u2028', "x"]


def mixture(name: str) -> list[Item]:
    """Texts and images in turns; only texts for a dialect without images."""
    texts = [("text", text.encode()) for text in TEXTS]
    if name == "openai":
        return texts
    images = [("image", JPEG), ("image", PNG), ("image", WEBP), ("image", JPEG + b"2")]
    return [item for pair in zip(texts, images, strict=True) for item in pair]


# ------------------------------------------------------------------------------------------ the servers


def uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def from_uri(text: str) -> bytes:
    """The bytes of a data URI; its media type must match the bytes."""
    head, _, data = text.partition(";base64,")
    content = base64.b64decode(data, validate=True)
    kind = {JPEG[:3]: "jpeg", PNG[:3]: "png", WEBP[:3]: "webp"}[content[:3]]
    assert head == f"data:image/{kind}"
    return content


def only(mapping: dict[str, Any], *keys: str) -> list[Any]:
    """The values of a mapping that has exactly these keys."""
    assert sorted(mapping) == sorted(keys)
    return [mapping[key] for key in keys]


def read_epithre(body: dict[str, Any]) -> list[Item]:
    model, items, form = only(body, "model", "input", "encoding_format")
    assert (model, form) == (MODEL, "base64")
    found = []
    for item in items:
        if isinstance(item, str):
            found.append(("text", item.encode()))
            continue
        kind, data = only(item, "type", "image")
        assert kind == "image"
        found.append(("image", base64.b64decode(data, validate=True)))
    return found


def read_openai(body: dict[str, Any]) -> list[Item]:
    model, items, form = only(body, "model", "input", "encoding_format")
    assert (model, form) == (MODEL, "base64")
    assert all(isinstance(item, str) for item in items)
    return [("text", item.encode()) for item in items]


def read_jina(body: dict[str, Any]) -> list[Item]:
    keys = ("model", "input", "embedding_type", "normalized", "dimensions")
    model, items, kind, normalized, dimensions = only(body, *keys)
    assert (model, kind, normalized, dimensions) == (MODEL, "base64", True, DIMENSION)
    found = []
    for item in items:
        ((key, value),) = item.items()
        found.append((key, value.encode() if key == "text" else base64.b64decode(value, validate=True)))
    return found


def read_block(block: dict[str, Any]) -> Item:
    """A text or an `image_url`, as in a chat message."""
    if block["type"] == "text":
        return "text", only(block, "type", "text")[1].encode()
    kind, value = only(block, "type", "image_url")
    assert kind == "image_url"
    return "image", from_uri(only(value, "url")[0])


def read_voyage(body: dict[str, Any], input_type: str = "document") -> list[Item]:
    model, items, kind = only(body, "model", "inputs", "input_type")
    assert (model, kind) == (MODEL, input_type)
    found = []
    for item in items:
        ((block,),) = only(item, "content")
        if block["type"] == "text":
            found.append(read_block(block))
            continue
        kind, data = only(block, "type", "image_base64")
        assert kind == "image_base64"
        found.append(("image", from_uri(data)))
    return found


def read_cohere(body: dict[str, Any], input_type: str = "search_document") -> list[Item]:
    model, kind, types, items = only(body, "model", "input_type", "embedding_types", "inputs")
    assert (model, kind, types) == (MODEL, input_type, ["float"])
    blocks = [only(item, "content")[0] for item in items]
    return [read_block(block) for (block,) in blocks]


def read_vllm(body: dict[str, Any]) -> list[Item]:
    model, messages, form = only(body, "model", "messages", "encoding_format")
    assert (model, form) == (MODEL, "base64")
    (message,) = messages
    role, content = only(message, "role", "content")
    assert role == "user"
    (block,) = content
    return [read_block(block)]


def in_data(vectors: Sequence[np.ndarray], *, as_base64: bool, seed: int) -> dict[str, Any]:
    """OpenAI's format, in random order with indexes."""
    forms = [base64.b64encode(v.tobytes()).decode() if as_base64 else v.tolist() for v in vectors]
    data = [{"object": "embedding", "index": i, "embedding": form} for i, form in enumerate(forms)]
    random.Random(seed).shuffle(data)
    return {"object": "list", "data": data, "model": MODEL, "usage": {"total_tokens": 7 * len(vectors)}}


def in_cohere(vectors: Sequence[np.ndarray]) -> dict[str, Any]:
    return {
        "id": "1",
        "embeddings": {"float": [vector.tolist() for vector in vectors]},
        "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 7 * len(vectors)}},
    }


def error_openai(message: str, item: int | None = None) -> Any:
    param = None if item is None else f"input[{item}]"
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}


def error_detail(message: str, item: int | None = None) -> Any:
    """FastAPI's format if an item is named, otherwise the provider's."""
    if item is None:
        return {"detail": message}
    place = ["body", "inputs", item, "content", 0]
    return {"detail": [{"type": "value_error", "loc": place, "msg": message}]}


def error_cohere(message: str, item: int | None = None) -> Any:
    return {"id": "2", "message": message if item is None else f"invalid request: inputs[{item}]: {message}"}


def error_vllm(message: str, item: int | None = None) -> Any:
    return {"object": "error", "message": message, "type": "BadRequestError", "param": None, "code": 400}


@dataclass(frozen=True)
class Provider:
    path: str
    read: Callable[..., list[Item]]
    error: Callable[..., Any]
    as_base64: bool = True

    def answer(self, vectors: Sequence[np.ndarray], seed: int) -> Any:
        return in_cohere(vectors) if self.read is read_cohere else in_data(vectors, as_base64=self.as_base64, seed=seed)


PROVIDERS = {
    "epithre": Provider("/v1/embeddings", read_epithre, error_openai),
    "openai": Provider("/v1/embeddings", read_openai, error_openai),
    "jina": Provider("/v1/embeddings", read_jina, error_detail),
    "voyage": Provider("/v1/multimodalembeddings", read_voyage, error_detail, as_base64=False),
    "cohere": Provider("/v2/embed", read_cohere, error_cohere),
    "vllm": Provider("/v1/embeddings", read_vllm, error_vllm),
}


@dataclass
class Server:
    """The requests that a server received, and the faults that it answers first."""

    base_url: str = ""
    batches: list[list[Item]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    faults: list[Answer] = field(default_factory=list)
    poison: bytes | None = None
    names_poison: bool = True
    wrong: list[str] = field(default_factory=list)
    """Requests in a wrong format; must be empty at the end."""
    input_type: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serve(name: str, **reported: Any) -> Iterator[Server]:
    """A provider's server on loopback; on exit it checks that all requests had the right format."""
    provider = PROVIDERS[name]
    server = Server(**reported)

    def respond(path: str, authorization: str | None, raw: bytes) -> Answer:
        assert path == provider.path
        assert authorization == f"Bearer {KEY}"
        extra = {} if server.input_type is None else {"input_type": server.input_type}
        items = provider.read(json.loads(raw), **extra)
        assert items
        with server.lock:
            server.batches.append(items)
            server.times.append(time.monotonic())
            if server.faults:
                return server.faults.pop(0)
        at = [i for i, (_, content) in enumerate(items) if server.poison is not None and server.poison in content]
        if at:
            return 400, {}, provider.error("this one cannot be read", at[0] if server.names_poison else None)
        vectors = [hash_vector(kind, content, DIMENSION) for kind, content in items]
        return 200, {}, provider.answer(vectors, seed=len(server.batches))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            try:
                status, headers, answer = respond(self.path, self.headers["authorization"], raw)
            except Exception as error:
                server.wrong.append(f"{type(error).__name__} {error}: {raw[:500]!r}")
                status, headers, answer = 401, {}, "wrong"
            body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for key, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        server.base_url = f"http://127.0.0.1:{http.server_port}/{provider.path.split('/')[1]}"
        yield server
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
    assert server.wrong == []


def settings_for(name: str, base_url: str = "http://127.0.0.1:1/v1", **changes: Any) -> EmbedConfig:
    own = {"dialect": name, "base_url": base_url, "model": MODEL, "api_key_env": "A_KEY", "dimension": DIMENSION}
    return EmbedConfig(**{**own, **changes})


def embed(
    name: str, server: Server, items: Sequence[Item], *, is_query: bool = False, **changes: Any
) -> tuple[list[Any], Client]:
    """The results, and the client for its counts. The client's own waits are shortened; the rate limiter's are not."""

    async def quick(_: float) -> None:
        await asyncio.sleep(0.001)

    async def go() -> tuple[list[Any], Client]:
        settings = settings_for(name, server.base_url, **changes)
        async with Client(settings, KEY, seed=1, sleep=quick) as client:
            encoded = [client.encode(kind, content, is_query=is_query) for kind, content in items]
            return await client.embed(encoded), client

    return asyncio.run(go())


def assert_right(items: Sequence[Item], results: Sequence[Any], refused: Sequence[int] = ()) -> None:
    """Check that every vector belongs to its item and that only the items `refused` are refused."""
    assert [i for i, result in enumerate(results) if isinstance(result, Refusal)] == list(refused)
    for (kind, content), result in zip(items, results, strict=True):
        if not isinstance(result, Refusal):
            np.testing.assert_allclose(result, hash_vector(kind, content, DIMENSION), atol=1e-5)


# ------------------------------------------------------------------------------------------------- requests


def test_every_dialect_has_a_config_name_and_a_test_server() -> None:
    assert set(NAMES) == set(DIALECTS) == set(PROVIDERS)


@pytest.mark.parametrize("name", NAMES)
def test_requests_have_the_providers_format_and_vectors_match_their_items(name: str) -> None:
    items = mixture(name) * 5
    with serve(name) as server:
        results, client = embed(name, server, items, batch_items=7)
    assert_right(items, results)
    assert max(map(len, server.batches)) == (1 if name == "vllm" else 7)
    assert sorted(item for batch in server.batches for item in batch) == sorted(items)
    assert client.meter.tokens_billed == 7 * len(items)
    assert client.meter.renormalised == 0


def test_bodies_equal_the_documented_ones() -> None:
    """The bodies equal the providers' documentation except for the models, texts and images."""
    data = base64.b64encode(PNG).decode()
    text, url = {"type": "text", "text": "é"}, {"type": "image_url", "image_url": {"url": uri("png", PNG)}}
    image = {"type": "image_base64", "image_base64": uri("png", PNG)}
    expected: dict[str, Any] = {
        "epithre": {"input": ["é", {"type": "image", "image": data}], "encoding_format": "base64"},
        "openai": {"input": ["é", "é"], "encoding_format": "base64"},
        "jina": {
            "input": [{"text": "é"}, {"image": data}],
            "embedding_type": "base64",
            "normalized": True,
            "dimensions": DIMENSION,
        },
        "voyage": {"inputs": [{"content": [text]}, {"content": [image]}], "input_type": "document"},
        "cohere": {
            "input_type": "search_document",
            "embedding_types": ["float"],
            "inputs": [{"content": [text]}, {"content": [url]}],
        },
        "vllm": {"messages": [{"role": "user", "content": [url]}], "encoding_format": "base64"},
    }
    for name, body in expected.items():
        dialect = DIALECTS[name](settings_for(name))
        pieces = [
            dialect.encode_item("text", "é".encode()),
            dialect.encode_item(*(("text", "é".encode()) if name == "openai" else ("image", PNG))),
        ]
        pieces = pieces[1:] if name == "vllm" else pieces
        raw = dialect.body(pieces)
        assert json.loads(raw) == {"model": MODEL, **body}
        assert len(raw) <= dialect.overhead_bytes + sum(len(piece) + 1 for piece in pieces)


@pytest.mark.parametrize("name", NAMES)
def test_no_body_exceeds_batch_bytes(name: str) -> None:
    rng = random.Random(7)
    items = [("text", rng.choice(TEXTS).encode() * rng.randrange(1, 30)) for _ in range(200)]
    dialect = DIALECTS[name](settings_for(name))

    async def pack() -> list[int]:
        settings = settings_for(name, batch_bytes=1500, batch_items=1000)
        async with Client(settings, KEY) as client:
            encoded = [client.encode(*item) for item in items]
            packs = client._packer.pack(encoded)
            assert [i for pack in packs for i in pack] == list(range(len(items)))
            return [len(dialect.body([encoded[i].piece for i in pack])) for pack in packs if len(pack) > 1]

    assert all(length <= 1500 for length in asyncio.run(pack()))


@pytest.mark.parametrize(
    ("name", "document", "query"), [("voyage", "document", "query"), ("cohere", "search_document", "search_query")]
)
def test_documents_and_queries_have_their_own_input_types(name: str, document: str, query: str) -> None:
    items = mixture(name)
    for input_type, is_query, changes in (
        (document, False, {}),
        ("clustering", False, {"input_type": "clustering"}),
        (query, True, {}),
        (query, True, {"input_type": "clustering"}),
    ):
        with serve(name, input_type=input_type) as server:
            results, _ = embed(name, server, items, is_query=is_query, **changes)
        assert_right(items, results)


def test_no_request_mixes_queries_and_documents() -> None:
    async def pack() -> list[list[int]]:
        async with Client(settings_for("voyage"), KEY) as client:
            return client._packer.pack([client.encode("text", b"x", is_query=i in {2, 3, 6}) for i in range(8)])

    assert asyncio.run(pack()) == [[0, 1], [2, 3], [4, 5], [6], [7]]


def test_embed_queries_uses_the_query_input_type() -> None:
    for name, query in (("voyage", "query"), ("cohere", "search_query")):
        with serve(name, input_type=query) as server:
            vectors = embed_queries(["kucing"], settings_for(name, server.base_url), PrepareConfig(), KEY)
        np.testing.assert_allclose(vectors[0], hash_vector("text", b"kucing", DIMENSION), atol=1e-5)


def test_unit_names_depend_on_dialect_and_input_type() -> None:
    class NoReferences:
        def column(self, _: str) -> "NoReferences":
            return self

        def to_pylist(self) -> list[str]:
            return []

    def named(name: str, **changes: Any) -> str:
        return unit_name(NoReferences(), embedding_config_hash(settings_for(name, **changes), PrepareConfig(), None))

    assert len({named(name) for name in NAMES}) == len(NAMES)
    for name, default in (("voyage", "document"), ("cohere", "search_document")):
        assert named(name) == named(name, input_type=default) != named(name, input_type="clustering")


def test_media_type_is_read_from_the_first_bytes() -> None:
    known = {b"GIF89a": "image/gif", b"BM12": "image/bmp", b"II*\0": "image/tiff", b"MM\0*": "image/tiff"}
    known |= {JPEG: "image/jpeg", PNG: "image/png", WEBP: "image/webp"}
    assert {content: media_type(content).decode() for content in known} == known
    assert media_type(b"RIFF....WAVE") == media_type(b"") == b"application/octet-stream"


def test_openai_refuses_images_before_sending_a_request() -> None:
    with pytest.raises(ValueError, match="embeds texts only"):
        DIALECTS["openai"](settings_for("openai")).encode_item("image", PNG)
    image = (Path(__file__).parents[3] / "docs" / "results.png").read_bytes()
    with serve("openai") as server:
        with pytest.raises(QueryError, match=r"Query 1 .* texts only"):
            embed_queries(["a", image], settings_for("openai", server.base_url), PrepareConfig(), KEY)
        assert server.batches == []


def test_a_vllm_body_of_two_items_raises() -> None:
    with pytest.raises(ValueError, match="one item, got 2"):
        DIALECTS["vllm"](settings_for("vllm")).body([b"{}", b"{}"])


# ------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("names_poison", [True, False])
def test_one_invalid_item_is_refused_alone(name: str, names_poison: bool) -> None:
    items = [*mixture(name), ("text", b"poisoned"), *mixture(name)]
    bad = len(mixture(name))
    with serve(name, poison=b"poisoned", names_poison=names_poison) as server:
        results, client = embed(name, server, items)
    assert_right(items, results, [bad])
    assert results[bad].reason is RefusalReason.REFUSED
    assert "this one cannot be read" in results[bad].detail
    if names_poison and name != "vllm":
        assert client.meter.requests <= 3


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_key_stops_the_run_with_the_servers_message(name: str) -> None:
    fault = (401, {}, PROVIDERS[name].error("no such key here"))
    with serve(name, faults=[fault] * 20) as server, pytest.raises(ApiError, match=r"refused the API key.*no such key"):
        embed(name, server, mixture(name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("headers", [{"retry-after": "0.3"}, {"retry-after-ms": "300"}])
def test_a_429_is_retried_after_the_requested_pause(name: str, headers: dict[str, str]) -> None:
    items = mixture(name)[:1]
    fault = (429, headers, PROVIDERS[name].error("slow down, please"))
    with serve(name, faults=[fault]) as server:
        results, client = embed(name, server, items)
    assert_right(items, results)
    assert client.meter.answers_429 == 1
    refused, good = server.times
    assert good - refused >= 0.29


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("page", [b"<html>413 Request Entity Too Large</html>", None])
def test_a_too_large_request_is_halved_and_a_too_large_item_refused(name: str, page: bytes | None) -> None:
    items = mixture(name)
    fault = (413, {}, page or PROVIDERS[name].error("the request is too large"))
    with serve(name, faults=[fault]) as server:
        results, _ = embed(name, server, items)
    if name == "vllm":  # one item per request: the first one is refused
        refused = [i for i, result in enumerate(results) if isinstance(result, Refusal)]
        assert len(refused) == 1
    else:
        refused = []
        assert [len(batch) for batch in server.batches] == [len(items), len(items) // 2, len(items) // 2]
    assert_right(items, results, refused)
    with serve(name, faults=[fault]) as server:
        results, _ = embed(name, server, items[:1])
    assert results[0].reason is RefusalReason.TOO_LARGE


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", [{}, [], {"data": [{}]}, {"data": None, "embeddings": {"float": 1}}, b"{"])
def test_a_malformed_answer_is_retried(name: str, answer: Any) -> None:
    items = mixture(name)[:2]
    with serve(name, faults=[(200, {}, answer)]) as server:
        results, client = embed(name, server, items)
    assert_right(items, results)
    assert client.meter.retries["broken_answer"] == 1


def test_a_missing_vector_without_indexes_is_detected() -> None:
    items = mixture("cohere")
    short = in_cohere([hash_vector(*item, DIMENSION) for item in items[:-1]])
    with serve("cohere", faults=[(200, {}, short)]) as server:
        results, client = embed("cohere", server, items)
    assert_right(items, results)
    assert client.meter.retries["broken_answer"] == 1


def test_coheres_monthly_limit_stops_the_run_but_the_minutely_does_not() -> None:
    items = mixture("cohere")
    minute, month = (
        (429, {}, error_cohere(f"You are using a Trial key, which is limited to {calls}."))
        for calls in ("40 API calls / minute", "1000 API calls / month")
    )
    with serve("cohere", faults=[minute]) as server:
        assert_right(items, embed("cohere", server, items)[0])
    with serve("cohere", faults=[month]) as server, pytest.raises(ApiError, match="quota is used up"):
        embed("cohere", server, items)


@pytest.mark.parametrize("name", NAMES)
def test_a_server_that_refuses_everything_stops_the_run(name: str) -> None:
    items = mixture(name) * 100
    fault = (400, {}, PROVIDERS[name].error("this server embeds nothing"))
    with serve(name, faults=[fault] * 10_000) as server:
        with pytest.raises(ApiError, match="10 requests in a row failed"):
            embed(name, server, items, max_concurrency=4)
        assert len(server.batches) <= 120


@pytest.mark.parametrize(
    "message",
    [
        "Model voyage-9 is not supported. Supported models are …",
        "model 'x' not found, check",
        "Model: x does not exist",
    ],
)
def test_an_unknown_model_stops_the_run_in_every_format(message: str) -> None:
    for provider in PROVIDERS.values():
        error = read_error(400, {}, json.dumps(provider.error(message)).encode(), 4)
        assert error.verdict is Verdict.STOP
        assert error.message == message


def test_an_unsupported_image_format_is_not_an_unknown_model() -> None:
    for message in ("image format gif is not supported by the model", "the model cannot read this, not supported"):
        assert read_error(400, {}, json.dumps({"detail": message}).encode(), 4).verdict is Verdict.BATCH


@pytest.mark.parametrize(
    ("places", "item"),
    [
        ([["body", "inputs", 2, "content"]], 2),
        ([["body", "input", "list[union[str,Image]]", 1]], 1),
        ([["body", "input", 3, "str"], ["body", "input", 3, "Image", "image"]], 3),
        ([["body", "input", 0], ["body", "input", 1]], None),
        ([["body", "input", 9]], None),
        ([["body", "model"]], None),
        (["body", 3], None),
        ([None, 1, {}], None),
        ([], None),
    ],
)
def test_a_fastapi_error_names_an_item_only_if_it_is_unique(places: list[Any], item: int | None) -> None:
    body = {"detail": [{"type": "x", "loc": place, "msg": "Input should be a valid string"} for place in places]}
    error = read_error(422, {}, json.dumps(body).encode(), 4)
    assert (error.item, error.is_certain and error.item is not None) == (item, item is not None)
    assert error.verdict is (Verdict.BATCH if item is None else Verdict.ITEM)


# ------------------------------------------------------------------------------------------------- the config


@pytest.mark.parametrize("name", NAMES)
def test_probe_ignores_a_403_from_dialects_that_restrict_models(name: str) -> None:
    """These servers answer 403 to `GET /models`, like OpenAI for a key restricted to embeddings."""
    with serve(name) as server:
        settings = settings_for(name, server.base_url)
        if name in {"epithre", "vllm"}:
            with pytest.raises(ApiError, match="refused the API key"):
                probe(settings, KEY)
        else:
            assert probe(settings, KEY).emulator is None
    with pytest.raises(ApiError, match="does not answer"):
        probe(settings, KEY, pause_s=0.01)


def test_probe_detects_the_emulator_in_the_openai_dialect() -> None:
    with Emulator(EmulatorSettings(dimension=DIMENSION)) as emulator:
        settings = EmbedConfig(dialect="openai", base_url=emulator.base_url, dimension=DIMENSION)
        assert probe(settings, emulator.api_key).emulator == emulator.model.fingerprint


SOURCES = [{"kind": "text", "files": "texts/*.txt"}, {"kind": "image", "files": "images/*.jpg"}]


def refusal(sources: Any = (SOURCES[0],), **settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({"catalog": "c", "sources": list(sources), "embed": settings})
    return str(caught.value)


def test_images_in_a_text_only_dialect_are_a_config_error() -> None:
    own = {"base_url": "https://host/v1", "model": "m", "api_key_env": "K"}
    assert refusal(SOURCES, dialect="openai", **own) == (
        "the config: sources[1] has images, but embed.dialect 'openai' embeds texts only. "
        "Remove the source, or use another dialect."
    )
    parse_config({"catalog": "c", "sources": SOURCES[:1], "embed": {"dialect": "openai", **own}})
    parse_config({"catalog": "c", "sources": SOURCES, "embed": {"dialect": "jina", **own}})


def test_the_error_for_an_unknown_dialect_lists_the_known_ones() -> None:
    message = refusal(dialect="voyag")
    assert all(repr(name) in message for name in NAMES)
    assert message.endswith("Did you mean 'voyage'?")


def test_epithres_defaults_do_not_apply_to_other_dialects() -> None:
    assert refusal(dialect="cohere") == (
        "embed: dialect 'cohere' has no defaults for `base_url`, `model`, `api_key_env`. Set them."
    )
    assert "no defaults for `api_key_env`. Set it." in refusal(
        dialect="cohere", base_url="https://api.cohere.com/v2", model="m"
    )
    EmbedConfig(dialect="vllm", base_url="http://localhost:8000/v1")


def test_settings_that_a_dialect_does_not_support_are_refused() -> None:
    assert "applies only to the dialects voyage and cohere, not to 'epithre'" in refusal(input_type="document")
    assert "the emulator does not support dialect 'jina'. Use epithre or openai" in refusal(
        dialect="jina", base_url="emulator"
    )
    assert settings_for("vllm", batch_items=64).items_per_request == 1
    assert settings_for("jina", batch_items=64).items_per_request == 64
