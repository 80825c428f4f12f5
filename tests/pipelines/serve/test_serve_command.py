"""`epithre-beam serve` says what is wrong in a sentence, and where it serves in a line."""

import json
import socket

from ..conftest import sentences
from .conftest import WITHOUT_API, serving


def refused(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    text = " ".join(sentences(done.stderr)) or done.stderr
    for word in words:
        assert word in text, text
    assert "Traceback" not in done.stderr


def test_wrong_usage_ends_with_2_and_a_missing_catalog_with_1(hashed, tmp_path):
    catalog = hashed.catalog
    refused(hashed.cli("serve", tmp_path / "none"), 1, "LATEST.json is missing")
    done = hashed.cli("serve", catalog, "--token-env", "SHORT", SHORT="hunter2")
    refused(done, 2, "SHORT", "at least 16")
    assert "hunter2" not in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = hashed.cli("serve", catalog, "--port", port, *WITHOUT_API, key=None)
        refused(done, 2, f"--port {port} cannot be served: Address already in use")


def test_a_search_of_the_command_line_takes_the_same_conditions(hashed):
    asked = ("search", hashed.catalog, "--text", "text number 3", "--kind", "text", "--json")
    done = hashed.cli(*asked, "--where", '{"price": {"$gt": 15}}')
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert sorted(hit["asset_id"] for hit in result["hits"]) == ["t015", "t016", "t017", "t018", "t019"]
    refused(hashed.cli(*asked, "--where", '{"price": "cheap"}'), 2, "where.price must be a number, got 'cheap'.")


def test_without_a_key_vectors_and_assets_are_searched_and_sentences_are_not(hashed, vector):
    """An API that is elsewhere wants a key, and none is set."""
    with serving(hashed, *WITHOUT_API, key=None) as server:
        assert server.client.get("/api/catalog").json()["can_embed"] is False
        assert server.search(text="a").status_code == 422
        assert server.search(vector=vector).status_code == 200
        assert server.search(asset={"kind": "text", "id": "t001"}).status_code == 200
