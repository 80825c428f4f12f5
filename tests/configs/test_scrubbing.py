"""Known secrets are found in every encoding, other text is not changed, and URLs show no credentials."""

import base64
import html
import json
import random
import re
import time
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs.errors import all_errors
from epithre_beam.configs.scrubbing import Scrubber, without_credentials

KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=60)
JUNK = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)


def in_pieces(key, rng, escape):
    """The key with a random half of its characters escaped."""
    return "".join(escape(c) if rng.random() < 0.5 else c for c in key)


def either_case(text, rng):
    return "".join(rng.choice((c.upper(), c.lower())) for c in text)


ESCAPES = {
    "as it is": lambda key, rng: key,
    "in other letters": either_case,
    "in a URL": lambda key, rng: urllib.parse.quote(key, safe=""),
    "in a URL, anything escaped": lambda key, rng: in_pieces(
        key, rng, lambda c: "%" + either_case(f"{ord(c):02x}", rng)
    ),
    "in a URL, twice": lambda key, rng: urllib.parse.quote(urllib.parse.quote(key, safe=""), safe=""),
    "in JSON": lambda key, rng: json.dumps(key)[1:-1],
    "in JSON, anything escaped": lambda key, rng: in_pieces(
        key, rng, lambda c: f"\\u{either_case(f'{ord(c):04x}', rng)}"
    ),
    "in JSON within JSON": lambda key, rng: json.dumps(json.dumps(key))[1:-1],
    "in JSON, with slashes escaped": lambda key, rng: json.dumps(key)[1:-1].replace("/", "\\/"),
    "as Python shows bytes": lambda key, rng: in_pieces(key, rng, lambda c: f"\\x{ord(c):02x}"),
    "in HTML": lambda key, rng: html.escape(key),
    "in HTML, anything escaped": lambda key, rng: in_pieces(
        key, rng, lambda c: rng.choice((f"&#{ord(c)};", f"&#x{ord(c):x};", f"&#X{ord(c):04X};"))
    ),
    "as hex": lambda key, rng: either_case(key.encode().hex(), rng),
    "as hex with colons": lambda key, rng: key.encode().hex(":"),
}


@pytest.mark.parametrize("way", ESCAPES)
@given(key=KEYS, before=JUNK, after=JUNK, seed=st.integers(0, 999))
@settings(max_examples=10, deadline=None)
def test_a_key_is_found_in_every_encoding(way, key, before, after, seed):
    written = ESCAPES[way](key, random.Random(seed))
    shown = Scrubber(key).text(f"{before} {written} {after}")
    assert "***" in shown
    assert written.lower() not in shown.lower().replace("***", "\0")


@given(
    key=KEYS,
    before=st.binary(max_size=7),
    after=st.binary(max_size=7),
    urlsafe=st.booleans(),
    coded=st.sampled_from(["plain", "in a URL", "in JSON", "on two lines"]),
)
@settings(max_examples=60, deadline=None)
def test_a_key_is_found_in_base64_at_any_offset(key, before, after, urlsafe, coded):
    encode = base64.urlsafe_b64encode if urlsafe else base64.b64encode
    text = encode(before + key.encode() + after).decode()
    if coded == "in a URL":
        text = urllib.parse.quote(text, safe="")
    elif coded == "in JSON":
        text = json.dumps(text).replace("/", "\\/")
    elif coded == "on two lines":
        text = f"{text[: len(text) // 2]}\r\n{text[len(text) // 2 :]}"
    shown = Scrubber(key).text(f"Basic {text}.")
    assert "***" in shown
    # However the rest is decoded, it contains less than six characters of the key.
    rest = re.sub(r"\s", "", urllib.parse.unquote(shown).replace("\\", "")).replace("-", "+").replace("_", "/")
    for run in re.findall(r"[A-Za-z0-9+/]{6,}", rest):
        for start in range(4):
            part = run[start : start + (len(run) - start) // 4 * 4]
            read = base64.b64decode(part).decode("latin-1")
            assert not any(key[i : i + 6] in read for i in range(len(key) - 5) if len(set(key[i : i + 6])) > 3), shown


def test_a_text_without_the_key_is_not_changed():
    rng = random.Random(5)
    scrubber = Scrubber("sk-live-0123456789abcdef")
    texts = [
        base64.b64encode(rng.randbytes(30_000)).decode(),
        rng.randbytes(10_000).hex(),
        "sk-live- %73%6b &amp; \\u0073",
    ]
    for text in texts:
        assert scrubber.text(text) == text
    everything = bytes(range(256)) * 4
    assert scrubber.body(everything) == everything


def test_json_stays_valid_and_headers_keep_their_names():
    key = 'quote"back\\slash/plus+é'
    body = json.dumps({"error": {"message": f"key {key} and {key}", "code": None}}).encode()
    assert json.loads(Scrubber(key).body(body)) == {"error": {"message": "key *** and ***", "code": None}}
    assert Scrubber("sk-12345678").headers({"Retry-After": "3", "X-Said": "sk-12345678"}) == {
        "retry-after": "3", "x-said": "***"
    }  # fmt: skip


def test_several_secrets_are_hidden_and_short_ones_ignored():
    assert (
        Scrubber("first-secret", "", "abc", "second-secret").text("abc first-secret, second-secret") == "abc ***, ***"
    )
    assert Scrubber("", "abcde").text("abcde") == "abcde"


@pytest.mark.parametrize(
    "unit", ["\\", "s", "%25", "&amp;", "&#000000", "sk-live-0123456789abcde", "c2stbGl2ZS0w\n", "\n"]
)
def test_hostile_texts_take_linear_time(unit):
    scrubber = Scrubber("sk-live-0123456789abcdef")
    started = time.process_time()
    scrubber.text(unit * (200_000 // len(unit)))
    assert time.process_time() - started < 5  # some 50 ms; in proportion to the square it would be hours


URLS = {
    "s3://AKIA:secret@bucket/x": "s3://***@bucket/x",
    "redis://:secret@host:6379/0": "redis://***@host:6379/0",
    "ftp://me:p@ss:word@host/x": "ftp://***@host/x",
    "'https://token@host/x'": "'https://***@host/x'",
    "HTTP://me:secret@host:8080": "HTTP://***@host:8080",
    "sftp://me@host/x": "sftp://me@host/x",
    "https://host:8080/a@b:c@d": "https://host:8080/a@b:c@d",
    "s3://bucket/a?versionId=3#row=7": "s3://bucket/a?versionId=3#row=7",
    "no url, but me:secret@host": "no url, but me:secret@host",
    "https://a.blob.core.windows.net/c/p.jpg?sv=2022&se=2030&sig=ab%2Fc%3D&sr=b": (
        "https://a.blob.core.windows.net/c/p.jpg?sv=2022&se=2030&sig=***&sr=b"
    ),
    "https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Security-Token=t/t==&x-amz-signature=ff00) and more": (
        "https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Security-Token=***&x-amz-signature=***) and more"
    ),
    "https://storage.googleapis.com/b/k?X-Goog-Credential=a@b&X-Goog-Signature=0a": (
        "https://storage.googleapis.com/b/k?X-Goog-Credential=***&X-Goog-Signature=***"
    ),
    "https://x/y?AWSAccessKeyId=A&Signature=s&Expires=1": "https://x/y?AWSAccessKeyId=***&Signature=***&Expires=1",
    "https://x/y?access_token=a.b.c, https://x/z?api-key=1;token=2": (
        "https://x/y?access_token=*** https://x/z?api-key=***;token=***"
    ),
}


@pytest.mark.parametrize("text", URLS)
def test_urls_are_shown_without_credentials(text):
    assert without_credentials(text) == URLS[text]
    assert without_credentials(URLS[text]) == URLS[text]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.code)
def test_no_error_shows_a_password_or_signature_of_a_url(kind):
    error = kind("https://me:hidden-1@host/a?sig=hidden-2: cannot be read.", file="x")
    assert "hidden" not in str(error) + repr(error)
