"""A server that repeats the key, in whatever place and form, finds it in nothing that we make of its answers."""

import asyncio
import base64
import json
import logging
import urllib.parse

import numpy as np
import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import ApiError
from epithre_beam.transforms.epithre.client import Client, Refusal
from epithre_beam.transforms.epithre.probe import probe

from .answering import CannedReply, answering, error

KEY = "Sk/ECHOED+0123456789_abcdef-Zz"
DIMENSION = 64

FORMS = {
    "plain": KEY,
    "bearer": f"Authorization: Bearer {KEY}",
    "upper case": KEY.upper(),
    "percent": urllib.parse.quote(KEY, safe=""),
    "percent, lower case": urllib.parse.quote(KEY, safe="").lower().replace("sk", "Sk"),
    "percent, all": "".join(f"%{byte:02x}" for byte in KEY.encode()),
    "base64": base64.b64encode(KEY.encode()).decode(),
    "basic": "Basic " + base64.b64encode(f"user:{KEY}".encode()).decode(),
    "basic, as the user": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode(),
    "base64, urlsafe": base64.urlsafe_b64encode(f"x={KEY}&y".encode()).decode().rstrip("="),
    "hex": KEY.encode().hex(),
    "behind many words": "no " * 60 + KEY + " no" * 60,
    "across the end of what is shown": "x" * (200 - len(KEY) // 2) + KEY,
    "across the end of what is shown, in base64": "x" * 180 + base64.b64encode(KEY.encode()).decode(),
}
"""What stands in the message."""


def traces(text):
    """The key's traces in a text, in the forms that this server knows: any eight characters in a row."""
    low = text.lower()
    forms = [KEY, KEY.encode().hex(), urllib.parse.quote(KEY, safe=""), FORMS["percent, all"]]
    forms += [base64.b64encode(b"\0" * shift + KEY.encode()).decode()[4:-4] for shift in range(3)]
    low = low.replace("-", "+").replace("_", "/")
    forms = [form.lower().replace("-", "+").replace("_", "/") for form in forms]
    return [form[i : i + 8] for form in forms for i in range(len(form) - 7) if form[i : i + 8] in low]


def settings_for(server, **changes):
    return EmbedConfig(base_url=server.base_url, dimension=DIMENSION, max_sends=1, **changes)


def embed(settings, count=2, key=KEY):
    async def quick(_):
        await asyncio.sleep(0)

    async def go():
        async with Client(settings, key, seed=1, sleep=quick) as client:
            return await client.embed([client.encode("text", f"text {i}".encode()) for i in range(count)])

    return asyncio.run(go())


def said_by(settings, count=2):
    """All that comes back in words: of refusals, or of the error."""
    try:
        results = embed(settings, count)
    except ApiError as failure:
        return f"{failure} {failure!r} {failure.facts}"
    return " ".join(f"{result} {result!r}" for result in results if isinstance(result, Refusal))


def reported_by_probe(server):
    """What the probe has to say of the server, whether that is an error or not."""
    try:
        return str(probe(settings_for(server), KEY, pause_s=0.001))
    except ApiError as failure:
        return f"{failure} {failure!r} {failure.facts}"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("status", [400, 401, 500])
def test_no_error_answer_shows_the_key(form, status):
    with answering(lambda _: error(status, f"rejected: {FORMS[form]}")) as server:
        said = said_by(settings_for(server))
    assert said
    assert traces(said) == []


BODIES = {
    "as the code": {"error": {"message": "no", "code": KEY}},
    "as the type": {"error": {"message": "no", "type": FORMS["basic"]}},
    "as the detail": {"detail": f"no {KEY}"},
    "in FastAPI's list": {"detail": [{"loc": ["body", KEY], "msg": f"no {KEY}"}]},
    "as the error": {"error": FORMS["percent"]},
    "in an object for the message": {"error": {"message": {"headers": {"authorization": f"Bearer {KEY}"}}}},
    "in a list for the code": {"error": {"message": "no", "code": [KEY, FORMS["base64"]]}},
    "escaped as JSON": json.dumps({"error": {"message": KEY}}).replace("E", "\\u0045").encode(),
    "slashes escaped": json.dumps({"message": KEY}).replace("/", "\\/").encode(),
    "escapes within escapes": {"error": {"message": KEY.replace("0", "%2530").replace("E", "\\u0045")}},
    "percent, the percent escaped as JSON": b'{"error":{"message":"%s"}}'
    % "".join(f"\\u0025{byte:02X}" for byte in KEY.encode()).encode(),
    "a page": f"<html>{KEY}</html>".encode(),
    "no JSON": KEY.encode(),
}


@pytest.mark.parametrize("place", BODIES)
@pytest.mark.parametrize("status", [403, 503])
def test_no_place_of_an_error_answer_shows_the_key(place, status):
    with answering(lambda _: CannedReply(status=status, body=BODIES[place])) as server:
        said = said_by(settings_for(server))
    assert said
    assert traces(said) == []


@pytest.mark.parametrize(
    "raw",
    [
        f"{KEY} 200 OK\r\n\r\n",
        f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n",
        f"HTTP/1.1 2x0 {KEY}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\ncontent-length: {KEY}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{KEY}\r\n",
        f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(KEY)}\r\n\r\n{KEY}",
    ],
)
def test_no_answer_that_is_no_http_shows_the_key(raw, caplog):
    with answering(lambda _: CannedReply(raw=raw.encode())) as server:
        said = said_by(settings_for(server))
        said += reported_by_probe(server)
    assert said
    assert traces(said + caplog.text) == []


IN_A_200 = ["", 400, 401, 403, 404, 422, 429, 503]
"""What an error in a 200 has for its code: it is as bad as that status, or an answer that cannot be used."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code", IN_A_200)
def test_no_error_in_a_200_shows_the_key(form, code, caplog):
    body = {"error": {"message": f"rejected: {FORMS[form]}", "code": code}}
    with answering(lambda _: CannedReply(body=body)) as server:
        said = said_by(settings_for(server))
        words = said + reported_by_probe(server)
    assert "rejected" in said
    assert traces(words + caplog.text) == []


@pytest.mark.parametrize("place", BODIES)
def test_no_place_of_a_200_without_vectors_shows_the_key(place, caplog):
    with answering(lambda _: CannedReply(body=BODIES[place])) as server:
        said = said_by(settings_for(server))
        words = said + reported_by_probe(server)
    assert said
    assert traces(words + caplog.text) == []


@pytest.mark.parametrize("code", [401, 503])
@pytest.mark.parametrize("before", ["", "x" * (200 - len(KEY) // 2 - len('{"error":{"message":"'))])
def test_no_long_error_in_a_200_shows_the_key(code, before):
    body = {"error": {"message": before + KEY + "x" * 270_000 + KEY, "code": code}}
    with answering(lambda _: CannedReply(body=body)) as server:
        said = said_by(settings_for(server), count=4)  # whose vectors may be longer than that
    assert "longer than 262,144 bytes" in said
    assert traces(said) == []


@pytest.mark.parametrize("named", [KEY, f"gzip, {KEY}", KEY.replace("+", ","), "x" * (80 - len(KEY) // 2) + KEY])
@pytest.mark.parametrize("status", [200, 400, 401, 503])
def test_no_name_of_a_compression_shows_the_key(named, status, caplog):
    reported = CannedReply(status=status, body=b"{}", headers={"content-encoding": named})
    with answering(lambda _: reported) as server:
        said = said_by(settings_for(server))
        words = said + reported_by_probe(server)
    assert "compressed" in said
    assert traces(words + caplog.text) == []


def test_vectors_are_taken_as_they_came_even_where_their_base64_has_the_key():
    vector = np.full(DIMENSION, DIMENSION**-0.5, np.float32)
    encoded = base64.b64encode(vector.tobytes()).decode()
    data = {"data": [{"index": i, "embedding": encoded} for i in range(2)]}
    with answering(lambda _: CannedReply(body=data)) as server:
        results = embed(settings_for(server), key=encoded[20:40])
    np.testing.assert_array_equal(results, [vector, vector])


@pytest.mark.parametrize("form", FORMS)
def test_the_probe_shows_the_key_in_no_model_name_error_or_fingerprint(form):
    said = ""
    for answer in (
        CannedReply(body={"data": [{"id": FORMS[form]}, {"id": "other"}]}),
        error(401, FORMS[form]),
        error(302, FORMS[form], location=f"https://elsewhere/{urllib.parse.quote(FORMS[form])}"),
        error(429, FORMS[form], retry_after="100000"),
    ):
        with answering(lambda _, answer=answer: answer) as server, pytest.raises(ApiError) as caught:
            probe(settings_for(server), KEY, pause_s=0.001)
        said += f" {caught.value} {caught.value.facts}"
    reported = CannedReply(body={"data": []}, headers={"x-emulator-fingerprint": FORMS[form]})
    with answering(lambda _: reported) as server:
        said += f" {probe(settings_for(server), KEY)}"
    assert traces(said) == []


def test_no_log_line_shows_the_key(caplog):
    """A pause is logged when the server asks for it; after the only send nobody has to keep it."""
    caplog.set_level(logging.INFO)
    with answering(lambda _: error(429, f"{KEY} and {FORMS['basic']}", retry_after="40")) as server:
        said = said_by(settings_for(server))
    assert said
    assert "the server asked for 40 s" in caplog.text
    assert traces(said + caplog.text) == []
