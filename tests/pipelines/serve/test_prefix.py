"""Below a proxy's path prefix, all paths in responses are valid for the client."""

import httpx
import pytest

from epithre_beam.pipelines.serve.settings import ServeSettings, prefix_of

from .conftest import WITHOUT_API, fault, serving
from .proxy import proxied


@pytest.fixture(scope="module")
def prefixed(hashed):
    with serving(hashed, "--base-url", "emulator", "--root-path", "/search/", "--trust-proxy", "127.0.0.9") as server:
        yield server


def go_through(client):
    """Follow all paths that the server returns; `client` sends requests below the prefix."""
    found = client.post("api/search", json={"asset": {"kind": "image", "id": "p003.jpg"}, "kinds": ["image"], "k": 3})
    paths = [hit["thumbnail"] for hit in found.json()["hits"]]
    asset = client.get("api/assets/image", params={"id": "p003.jpg"}).json()
    description = client.get("openapi.json").json()
    for path in [*paths, asset["thumbnail"]]:
        assert client.get(client.base_url.join(path)).headers["content-type"] == "image/jpeg"
    (server,) = description["servers"]
    return paths[0].partition("/api/")[0], server["url"]


@pytest.mark.parametrize("strips", [True, False])
def test_thumbnails_and_openapi_have_the_prefix(prefixed, strips):
    with proxied(prefixed.address[1], "/search", strips=strips) as url, httpx.Client(base_url=url) as client:
        assert go_through(client) == ("/search", "/search")
        for path in ("", "page/app.js", "health/ready", "api/catalog"):
            assert client.get(path).status_code == 200
        assert fault(client.get("api/nothing"), 404).endswith("See /search/openapi.json.")
        redirected = httpx.get(url.rstrip("/"))
        assert redirected.status_code == (200 if strips else 307)
        if not strips:
            assert redirected.headers["location"] == "/search/"


def test_the_start_line_has_the_prefix(prefixed):
    assert prefixed.url == f"{prefixed.origin}/search/"
    assert httpx.get(f"{prefixed.url}health/ready").status_code == 200


def test_the_prefix_matches_whole_path_segments(prefixed):
    assert prefixed.client.get("/searching/api/catalog").status_code == 404
    assert prefixed.client.get("/search/search/api/catalog").status_code == 404


def test_only_a_trusted_proxy_can_set_the_prefix(hashed):
    with serving(hashed, *WITHOUT_API, "--trust-proxy", "127.0.0.1", key=None) as server:
        port = server.address[1]
        for prefix in ("/a", "/a/b-c.d", "/x~1"):
            with proxied(port, prefix, x_forwarded_prefix=prefix) as url, httpx.Client(base_url=url) as client:
                assert go_through(client) == (prefix, prefix)
        for prefix in ("//evil.example", "/a/../b", "javascript:x", "/a?b", "/a#b", '/"><script>', "/" + "a" * 300):
            answer = server.client.get("/api/assets/image?id=p003.jpg", headers={"x-forwarded-prefix": prefix})
            assert answer.json()["thumbnail"].startswith("/api/thumbnails/")
    with serving(hashed, *WITHOUT_API, "--trust-proxy", "127.0.0.9", key=None) as server:
        answer = server.client.get("/api/assets/image?id=p003.jpg", headers={"x-forwarded-prefix": "/a"})
        assert answer.json()["thumbnail"].startswith("/api/thumbnails/")
        assert "servers" not in server.client.get("/openapi.json", headers={"x-forwarded-prefix": "/a"}).json()


@pytest.mark.parametrize(("path", "prefix"), [("", ""), ("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/a/b", "/a/b")])
def test_a_prefix_is_a_path_without_trailing_slash(path, prefix):
    assert prefix_of(path) == prefix


@pytest.mark.parametrize("path", ["a", "//a", "/a//b", "/..", "/a/./b", "/a b", "/é", "http://x/a", "/a%2f", "/a\n"])
def test_an_invalid_prefix_is_refused(hashed, path):
    assert prefix_of(path) is None
    done = hashed.cli("serve", "catalog", "--root-path", path)
    assert done.returncode == 2
    rule = "contain only letters, digits and .~_-" if path[0] == "/" else "start with `/`"
    assert f"--root-path must {rule}" in done.stderr
    assert "Give the path at which the proxy serves this server" in done.stderr


def test_token_and_host_are_checked_below_a_prefix(hashed):
    token = "a-token-for-tests-0123456789"
    options = (*WITHOUT_API, "--root-path", "/search", "--token-env", "SERVE_TOKEN")
    with serving(hashed, *options, token=token, key=None, SERVE_TOKEN=token) as server:
        for path in ("/search/api/catalog", "/api/catalog", "/search/metrics", "/metrics"):
            assert fault(httpx.get(f"{server.origin}{path}"), 401)
            assert server.client.get(path).status_code == 200
        for path in ("/search//api/catalog", "//api/catalog", "/search/search/metrics", "/api/search/api/catalog"):
            assert httpx.get(f"{server.origin}{path}").status_code in {401, 404}
    assert ServeSettings(catalog="c").root_path == ""
