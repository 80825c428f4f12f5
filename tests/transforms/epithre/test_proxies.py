"""Local addresses never use a proxy; for others the rules of httpx apply, and errors name the proxy."""

import asyncio
import ssl
from pathlib import Path

import certifi
import httpx
import pytest

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import ApiError, ConfigError
from epithre_beam.transforms.epithre.client import Client
from epithre_beam.transforms.epithre.probe import probe
from epithre_beam.transforms.epithre.proxies import way_to

from ...ports import free_port
from .answering import answering, error
from .asking import DIMENSION, assert_right, embed, serve, texts

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
KEY = "sk-proxied-0123456789"

LOOPBACK = [
    "http://127.0.0.1:8000/v1", "http://127.8.9.10/v1", "https://127.0.0.1/v1", "http://localhost:8000/v1",
    "http://LOCALHOST/v1", "http://localhost./v1", "http://[::1]:8000/v1", "http://[0:0:0:0:0:0:0:1]/v1",
    "http://[::ffff:127.0.0.1]/v1", "http://[::FFFF:7f00:1]/v1", "http://127.1:8000/v1", "http://0x7f.0.0.1/v1",
    "http://0177.0.0.1/v1", "http://2130706433/v1", "https://api.localhost/v1", "https://a.b.LocalHost.:9/v1",
    "http://0.0.0.0:8000/v1",
]  # fmt: skip
ELSEWHERE = [
    "http://128.0.0.1/v1", "http://10.0.0.1/v1", "http://[::ffff:10.0.0.1]/v1", "http://[fe80::1]/v1",
    "http://127.0.0.1.example.com/v1", "https://localhost.example.com/v1", "https://notlocalhost/v1", "http://128.1/v1",
    "https://xlocalhost./v1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"])
def test_only_loopback_addresses_bypass_the_proxy(monkeypatch, name):
    monkeypatch.setenv(name, "http://proxy.example:3128")
    assert [url for url in LOOPBACK if way_to(url).proxy] == []
    scheme = name.lower().removesuffix("_proxy")
    chosen = [url for url in ELSEWHERE if scheme in {"all", url.partition(":")[0]}]
    assert [url for url in ELSEWHERE if way_to(url).proxy] == chosen


PROXIES = [
    {"HTTPS_PROXY": "http://p:1"},
    {"https_proxy": "q:2"},
    {"ALL_PROXY": "http://user:pw@a:3"},
    {"HTTP_PROXY": "http://h:4", "HTTPS_PROXY": "http://p:1"},
    {"HTTPS_PROXY": "http://P:1", "https_proxy": "http://lower:2"},
    {"HTTPS_PROXY": "http://P:1", "https_proxy": ""},
    {"http_proxy": "http://h:4", "ALL_PROXY": "https://a:3"},
]
EXCEPTIONS = [
    "", "*", "example.com", ".example.com", "EXAMPLE.com", "api.example.com", "example.com:8443", "ample.com", "com",
    "api.example.com:8443", "10.0.0.1", "10.0.0.0/8", "10.0.0.1:8080", "https://example.com", "https://api.example.com",
    "http://api.example.com", "http://*.example.com", "*.example.com", "fd00::1", "foo, ,example.com",
    " api.example.com ", "localhost", "example.com.",
]  # fmt: skip
ADDRESSES = [
    "https://api.example.com/v1", "http://api.example.com/v1", "https://example.com/v1", "https://api.example.com:8443/v1",
    "http://10.0.0.1:8080/v1", "http://10.0.0.1/v1", "http://[fd00::1]:9/v1", "https://API.EXAMPLE.COM/v1",
]  # fmt: skip


@pytest.mark.parametrize("proxies", PROXIES, ids=str)
def test_the_proxy_is_the_one_that_httpx_chooses(monkeypatch, proxies):
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    for exceptions in EXCEPTIONS:
        monkeypatch.setenv("NO_PROXY", exceptions)
        with httpx.Client(verify=False) as client:
            for url in ADDRESSES:
                pool = client._transport_for_url(httpx.URL(url))._pool  # httpx has no public way to get it
                taken = getattr(pool, "_proxy_url", None)
                expected = None if taken is None else (taken.host.decode(), taken.port)
                ours = way_to(url).proxy
                chosen = None if ours is None else (httpx.URL(ours).host, httpx.URL(ours).port)
                assert chosen == expected, (exceptions, url)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_no_request_to_a_local_server_reaches_the_proxy(monkeypatch, name, host):
    with answering(lambda _: error(401, "no")) as proxy, serve() as emulator:
        monkeypatch.setenv(name, proxy.url)
        emulator_url = emulator.base_url.replace("127.0.0.1", host)
        settings = EmbedConfig(base_url=emulator_url, dimension=DIMENSION)
        assert probe(settings, emulator.api_key).emulator == emulator.model.fingerprint
        contents = texts(4)
        results, _ = embed(emulator, contents)
    assert_right(contents, results)
    assert proxy.asked == []


def ask(settings):
    async def go():
        async with Client(settings, KEY, seed=1) as client:
            return await client.embed([client.encode("text", b"a")])

    return asyncio.run(go())


def test_an_error_over_plain_http_names_the_proxy_without_its_password(monkeypatch):
    settings = EmbedConfig(base_url="http://api.test/v1", allow_plain_http=True, dimension=DIMENSION, max_sends=1)
    with answering(lambda asked: error(404 if asked.method == "GET" else 401, "ask the desk")) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:hidden@127.0.0.1:{proxy.port}")
        probe(settings, KEY)
        with pytest.raises(
            ApiError, match=rf"through the proxy http://127.0.0.1:{proxy.port} \(from http_proxy\)"
        ) as said:
            ask(settings)
    assert "hidden" not in str(said.value)
    assert [asked.target for asked in proxy.asked] == ["http://api.test/v1/models", "http://api.test/v1/embeddings"]
    assert all(asked.headers["proxy-authorization"].startswith("Basic ") for asked in proxy.asked)


def test_probe_fails_if_the_proxy_requires_a_password(monkeypatch):
    settings = EmbedConfig(base_url="http://api.test/v1", allow_plain_http=True, dimension=DIMENSION)
    with answering(lambda _: error(407, "who are you")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with pytest.raises(ApiError, match=rf"does not answer \(407: who are you through the proxy {proxy.url} "):
            probe(settings, KEY, pause_s=0.001)


@pytest.mark.parametrize("answer", ["refused", "forbidden"])
def test_a_proxy_failure_names_the_proxy_and_does_not_leak_the_key(monkeypatch, answer):
    settings = EmbedConfig(base_url="https://api.test/v1", dimension=DIMENSION, max_sends=1)
    with answering(lambda _: error(403, "not from here")) as proxy:
        port = proxy.port if answer == "forbidden" else free_port()
        monkeypatch.setenv("HTTPS_PROXY", f"me:hidden@127.0.0.1:{port}")
        with pytest.raises(ApiError, match="does not answer") as said:
            probe(settings, KEY, pause_s=0.001)
        (refusal,) = ask(settings)
    for words in (str(said.value), refusal.detail):
        assert f"through the proxy http://127.0.0.1:{port} (from HTTPS_PROXY)" in words
        assert "hidden" not in words
    assert all(asked.method == "CONNECT" and "authorization" not in asked.headers for asked in proxy.asked)


@pytest.mark.parametrize("proxy", ["htp://me:hidden@proxy:3128", "http://proxy:port", "socks5://me:hidden@proxy:1080"])
def test_an_invalid_proxy_variable_raises_config_error(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match=r"^ALL_PROXY: .*proxy.*\. .*(Set|Install)|is a SOCKS proxy") as said:
        Client(EmbedConfig(dimension=DIMENSION), KEY)
    assert "hidden" not in str(said.value)


@pytest.mark.parametrize("url", ["https://localhost:1/v1", "https://api.test/v1"])
def test_certificates_are_read_from_the_environment_without_a_proxy(monkeypatch, tmp_path, url):
    first = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----\n"
    (tmp_path / "one.pem").write_text(first[first.index("-----BEGIN") :])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "one.pem"))
    tls = way_to(url).client_options()["verify"]
    assert len(tls.get_ca_certs()) == 1
    assert tls.verify_mode is ssl.CERT_REQUIRED
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"^SSL_CERT_FILE: the certificates cannot be read"):
        probe(settings_of(url), KEY)


def settings_of(url):
    return EmbedConfig(base_url=url, dimension=DIMENSION)
