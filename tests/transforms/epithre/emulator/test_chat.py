"""Chats of the emulator over real HTTP: the guide's lines run unchanged, and the answers are what it sees."""

import base64
import io
import json
import shutil
import subprocess

import httpx
import jsonschema
import numpy as np
import openai
import pytest
from pydantic import BaseModel

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults, Limits
from epithre_beam.transforms.epithre.emulator.captions import Attributes, describe
from epithre_beam.transforms.epithre.emulator.draw import draw_image, sample_attributes

SEEN = Attributes(colour="red", shape="circle", texture="plain", ground="grass")


def png(attributes, seed=0):
    file = io.BytesIO()
    draw_image(np.random.default_rng(seed), attributes, 192).save(file, "PNG")
    return file.getvalue()


RED_CIRCLE = png(SEEN)
COLOUR = {
    "type": "json_schema",
    "json_schema": {"name": "answer", "schema": {"type": "object", "properties": {"colour": {}}}},
}


def image_part(content):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(content).decode()}"}}


def messages(text, *images):
    return [{"role": "user", "content": [{"type": "text", "text": text}, *map(image_part, images)]}]


@pytest.fixture(scope="module")
def emulator():
    with Emulator(EmulatorSettings(model="attributes", dimension=16)) as started:
        yield started


@pytest.fixture
def start():
    started = []

    def begin(faults=None, limits=None, **settings):
        one = Emulator(EmulatorSettings(dimension=16, faults=faults or Faults(), limits=limits or Limits(), **settings))
        started.append(one.start())
        return one

    yield begin
    for one in started:
        one.close()


def post(emulator, **body):
    body = {"model": "epithre-omni", **body}
    headers = {"authorization": f"Bearer {emulator.api_key}"}
    return httpx.post(f"{emulator.base_url}/chat/completions", json=body, headers=headers, timeout=60)


def client_of(emulator):
    return openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=0)


def test_the_lines_of_the_guide_run_unchanged(emulator, tmp_path, monkeypatch):
    (tmp_path / "invoice.jpg").write_bytes(RED_CIRCLE)
    monkeypatch.chdir(tmp_path)
    client = client_of(emulator)
    img_b64 = base64.b64encode(open("invoice.jpg", "rb").read()).decode()  # noqa: PTH123, SIM115 - as in the guide

    resp = client.chat.completions.create(
        model="epithre-omni",
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Ekstrak vendor, total, dan tanggal dari invoice ini."},
                    {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{img_b64}"}},
                ],
            }
        ],
    )
    assert resp.choices[0].message.content == "Lingkaran merah di atas rumput."
    assert resp.choices[0].finish_reason == "stop"
    assert resp.usage is not None
    assert resp.usage.total_tokens == resp.usage.prompt_tokens + resp.usage.completion_tokens
    assert (resp.system_fingerprint or "").startswith("emulator-")


@pytest.mark.parametrize("language", ["en", "id"])
def test_it_says_what_the_image_shows_in_the_language_of_the_question(emulator, language):
    question = {"en": "What is in this picture?", "id": "Apa yang ada di gambar ini?"}[language]
    rng = np.random.default_rng(11)
    right = 0
    for seed in range(20):
        attributes = sample_attributes(rng)
        answer = post(emulator, messages=messages(question, png(attributes, seed))).json()
        said = answer["choices"][0]["message"]["content"]
        right += said.lower() == f"{describe(attributes, language)}.".lower()
    assert right >= 15


def test_several_images_are_described_by_their_numbers(emulator):
    blue = png(Attributes(colour="blue", shape="star", texture="plain", ground="sand"))
    said = post(emulator, messages=messages("Compare.", RED_CIRCLE, blue)).json()["choices"][0]["message"]["content"]
    first, second = said.split(" Image 2: ")
    assert first.startswith("Image 1: ")
    assert "red" in first
    assert "blue" in second


def test_without_an_image_it_says_that_it_is_an_emulator(emulator):
    client = client_of(emulator)
    resp = client.chat.completions.create(
        model="epithre-lyt",
        messages=[{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who are you?"}],
    )
    assert "emulator" in (resp.choices[0].message.content or "")


def test_a_stream_has_the_same_words(emulator):
    body = messages("What is this?", RED_CIRCLE)
    whole = post(emulator, messages=body).json()
    chunks = list(
        client_of(emulator).chat.completions.create(
            model="epithre-omni", messages=body, stream=True, stream_options={"include_usage": True}
        )
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole["choices"][0]["message"]["content"]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.total_tokens == whole["usage"]["total_tokens"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_reads_an_answer(emulator, tmp_path):
    (tmp_path / "body.json").write_text(
        json.dumps({"model": "epithre-omni", "messages": messages("What is this?", RED_CIRCLE)})
    )
    command = ["curl", "-sS", "-d", "@body.json", "-H", f"Authorization: Bearer {emulator.api_key}"]
    command += ["-H", "Content-Type: application/json", f"{emulator.base_url}/chat/completions"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert "circle" in json.loads(done.stdout)["choices"][0]["message"]["content"]


SCHEMAS = [
    {"properties": {"caption": {"type": "string"}, "colour": {"type": "string"}}},
    {"properties": {"main_colour": {"enum": ["blue", "red", "green"]}, "background": {"type": "string"}}},
    {"properties": {"shape": {"enum": ["square", "circle"]}, "is_red": {"type": "boolean"}}},
    {"properties": {"count": {"type": "integer", "minimum": 1, "maximum": 5}}},
    {"properties": {"items": {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 3}}},
    {"properties": {"warna": {"type": "string"}, "bentuk": {"type": "string"}, "bahasa": {"type": "string"}}},
    {"properties": {"total": {"type": "number", "minimum": 2.5}, "date": {"type": "string", "format": "date"}}},
    {"properties": {"a": {"const": 7}, "b": {"type": "null"}, "c": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}},
    {"properties": {"title": {"type": "string", "maxLength": 5}, "text": {"type": "string", "minLength": 80}}},
    {"properties": {"part": {"$ref": "#/$defs/P"}}, "$defs": {"P": {"type": "object", "properties": {"x": {}}}}},
    {"properties": {"needs_render": {"type": "boolean"}, "next_steps": {"type": "array", "items": {"type": "string"}}}},
    {"properties": {"list": {"type": "array", "items": {"type": "object", "properties": {"color": {}}}}}},
    {"properties": {"n": {"type": ["integer", "null"], "exclusiveMinimum": 3}}},
]


@pytest.mark.parametrize("properties", SCHEMAS, ids=lambda schema: "+".join(schema["properties"]))
def test_a_schema_is_filled_and_valid(emulator, properties):
    schema = {"type": "object", "required": list(properties["properties"]), **properties}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = post(emulator, messages=messages("Describe it.", RED_CIRCLE), response_format=form).json()
    filled = json.loads(answer["choices"][0]["message"]["content"])
    jsonschema.validate(filled, schema)
    expected = {"main_colour": "red", "shape": "circle", "is_red": True, "count": 1, "needs_render": False}
    assert {name: value for name, value in filled.items() if name in expected} == {
        name: value for name, value in expected.items() if name in filled
    }


def test_the_official_client_parses_a_pydantic_model(emulator):
    class Product(BaseModel):
        colour: str
        is_striped: bool

    found = client_of(emulator).chat.completions.parse(
        model="epithre-omni", messages=messages("What is it?", RED_CIRCLE), response_format=Product
    )
    assert found.choices[0].message.parsed == Product(colour="red", is_striped=False)


def test_a_schema_in_the_prompt_is_obeyed_too(emulator):
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}
    text = f"Answer as JSON:\n```json\n{json.dumps(schema)}\n```"
    for form in ({"type": "json_object"}, {"type": "text"}):
        answer = post(emulator, messages=messages(text, RED_CIRCLE), response_format=form).json()
        assert json.loads(answer["choices"][0]["message"]["content"]) == {"colour": "red"}


def test_equal_requests_have_equal_answers(emulator):
    body = {"messages": messages("What is this?", RED_CIRCLE), "seed": 3, "temperature": 1.5}
    first, second = (post(emulator, **body).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert first["usage"] == second["usage"]


def test_max_tokens_cuts_the_answer(emulator):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = post(emulator, messages=messages("What is this?", RED_CIRCLE), **{name: 2}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 2


BAD = {
    "no model": ({"model": None}, 400, "model"),
    "another model": ({"model": "epithre-none"}, 404, "model"),
    "no messages": ({"messages": None}, 400, "messages"),
    "empty messages": ({"messages": []}, 400, "messages"),
    "a message that is none": ({"messages": ["hello"]}, 400, "messages[0].role"),
    "a role": ({"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role"),
    "no content": ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content"),
    "a part": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, 400, "messages[0].content[0]"),
    "a url": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
        400,
        "messages[0].content[0].image_url",
    ),
    "no base64": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,%%"}}],
                }
            ]
        },
        400,
        "messages[0].content[0].image_url",
    ),
    "no image": ({"messages": messages("x", b"not an image")}, 400, "messages[0].content[1].image_url"),
    "temperature": ({"temperature": 3}, 400, "temperature"),
    "n": ({"n": 2}, 400, "n"),
    "max_tokens": ({"max_tokens": 0}, 400, "max_tokens"),
    "seed": ({"seed": "x"}, 400, "seed"),
    "response_format": ({"response_format": {"type": "xml"}}, 400, "response_format"),
    "json_schema": ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema"),
}


@pytest.mark.parametrize(("change", "status", "param"), BAD.values(), ids=BAD)
def test_a_wrong_request_is_refused_with_its_parameter(emulator, change, status, param):
    reply = post(emulator, **{"messages": messages("What is this?"), **change})
    assert reply.status_code == status
    assert reply.json()["error"]["param"] == param


def test_it_is_guarded_as_embeddings_are(start):
    emulator = start(limits=Limits(max_pixels=100, requests_per_minute=2, window_s=5))
    refused = httpx.post(f"{emulator.base_url}/chat/completions", json={}, headers={"authorization": "Bearer x"})
    assert refused.status_code == 401
    assert post(emulator, messages=messages("x", RED_CIRCLE)).status_code == 400
    statuses = [post(emulator, messages=messages("x")).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert emulator.worst_window().requests == 2


def test_tokens_of_questions_and_answers_count(start):
    emulator = start(limits=Limits(tokens_per_minute=1100, window_s=5))
    first = post(emulator, messages=messages("What is this?", RED_CIRCLE))
    assert first.status_code == 200
    assert post(emulator, messages=messages("What is this?", RED_CIRCLE)).status_code == 429
    assert emulator.worst_window().tokens == first.json()["usage"]["total_tokens"]


@pytest.mark.parametrize(
    ("faults", "check"),
    [
        ({"chat_refusal": 1}, lambda m, f: m["refusal"] and m["content"] is None),
        ({"chat_filter": 1}, lambda m, f: f == "content_filter"),
        ({"chat_cut": 1}, lambda m, f: f == "length"),
        ({"chat_empty": 1}, lambda m, f: m["content"] == ""),
        ({"chat_prose": 1}, lambda m, f: "```json" in m["content"]),
        ({"chat_not_json": 1}, lambda m, f: m["content"].startswith("{") and not m["content"].endswith("}")),
        ({"chat_wrong_schema": 1}, lambda m, f: json.loads(m["content"]) == {"wrong": True}),
        ({"response_format": "ignored"}, lambda m, f: not m["content"].startswith("{")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_fault_changes_the_answer(start, faults, check):
    emulator = start(Faults(**faults))
    choice = post(emulator, messages=messages("What?", RED_CIRCLE), response_format=COLOUR).json()["choices"][0]
    assert check(choice["message"], choice["finish_reason"])


@pytest.mark.parametrize(
    ("support", "statuses"), [("object", [400, 200]), ("refused", [400, 400]), ("full", [200, 200])]
)
def test_a_server_may_not_take_a_response_format(start, support, statuses):
    emulator = start(Faults(response_format=support))
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"a": {}}}},
    }
    forms = (schema, {"type": "json_object"})
    assert [post(emulator, messages=messages("x"), response_format=form).status_code for form in forms] == statuses


def test_a_schema_that_cannot_be_filled_is_refused(emulator):
    schema = {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    reply = post(emulator, messages=messages("x"), response_format=form)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
