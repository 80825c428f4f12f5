"""Responses of the API match the catalog and the OpenAPI description."""

import base64
import json
import subprocess
import sys

import numpy as np
import pytest

from epithre_beam import __version__
from epithre_beam.index import open_catalog
from epithre_beam.pipelines.serve.metrics import Metrics

from .conftest import DIMENSION


@pytest.fixture(scope="module")
def catalog(hashed):
    with open_catalog(hashed.catalog) as opened:
        yield opened


def pairs(answer):
    assert answer.status_code == 200, answer.text
    return [(hit["kind"], hit["asset_id"], hit["score"]) for hit in answer.json()["hits"]]


def expected(found):
    return [(hit.kind, hit.asset_id, pytest.approx(hit.score, abs=1e-6)) for hit in found[0]]


def test_vector_searches_equal_searches_of_the_catalog(served, catalog, vector):
    found = expected(catalog.search(np.array(vector, np.float32), k=5))
    assert pairs(served.search(vector=vector, k=5)) == found
    as_base64 = base64.b64encode(np.array(vector, "<f4").tobytes()).decode()
    assert pairs(served.search(vector_base64=as_base64, k=5)) == found
    assert pairs(served.search(vector=[1000 * number for number in vector], k=5)) == found


def test_a_text_and_an_image_find_their_own_asset_first(served, image):
    answer = served.search(text="text number 3", k=3, kinds=["text"])
    assert pairs(answer)[0] == ("text", "t003", pytest.approx(1, abs=1e-3))
    body = answer.json()
    assert body["query_kind"] == "text"
    assert body["took_ms"]["embed"] > 0
    first = body["hits"][0]
    assert (first["rank"], first["text"], first["metadata"]) == (1, "text number 3", {"price": 3.5})
    assert first["thumbnail"] is None
    answer = served.search_image(image, k=2, kinds=["image"])
    assert pairs(answer)[0] == ("image", "p003.jpg", pytest.approx(1, abs=1e-3))
    assert answer.json()["hits"][0]["thumbnail"] == "/api/thumbnails/image?id=p003.jpg"


def test_an_asset_finds_similar_assets_and_itself_on_request(served, catalog):
    asset = {"kind": "image", "id": "p003.jpg"}
    row = catalog.find_asset("image", "p003.jpg")
    found = expected(catalog.search(catalog.vectors("image", [row])[0], k=6))
    assert pairs(served.search(asset=asset, k=6, exclude_self=False)) == found
    assert found[0][1] == "p003.jpg"
    assert pairs(served.search(asset=asset, k=5)) == found[1:]


def test_kinds_where_merge_and_recall_work_as_in_the_catalog(served, catalog, vector):
    import pyarrow.compute as pc

    query = np.array(vector, np.float32)
    answer = served.search(vector=vector, k=4, kinds=["text"], where={"price": {"$lt": 8}}, recall=0.5)
    where = pc.field("metadata", "price") < 8
    assert pairs(answer) == expected(catalog.search(query, k=4, kinds=("text",), where=where, recall=0.5))
    for merge in ("quota", "standardised"):
        answer = served.search(vector=vector, k=8, merge=merge, query_kind="text")
        assert pairs(answer) == expected(catalog.search(query, k=8, merge=merge, query_kind="text"))


def test_the_catalog_route_describes_the_version(served, catalog):
    reported = served.client.get("/api/catalog").json()
    assert reported["version"] == catalog.version == served.version
    assert reported["kinds"] == {"image": 12, "text": 20}
    assert reported["metadata"] == {"price": "double"}
    assert (reported["dimension"], reported["can_embed"]) == (DIMENSION, True)
    assert reported["merges"] == ["score", "quota", "standardised"]
    assert reported["limits"] == {
        "max_k": 1000,
        "max_upload_bytes": 1_000_000,
        "max_text_chars": 32_000,
        "max_body_bytes": 2_000_000,
    }


def test_an_asset_is_shown_with_its_metadata(served):
    reported = served.client.get("/api/assets/text", params={"id": "t005"}).json()
    assert (reported["asset_id"], reported["text"], reported["metadata"]) == ("t005", "text number 5", {"price": 5.5})
    reported = served.client.get("/api/assets/image", params={"id": "p001.jpg"}).json()
    assert (reported["width"], reported["height"], reported["media_type"]) == (48, 36, "image/jpeg")


def test_health_and_metrics_report_the_state(served, vector):
    assert served.client.get("/health/live").json() == {"status": "alive", "software": f"epithre-beam {__version__}"}
    ready = {"status": "ready", "version": served.version, "embedding_api": "answers", "retry_after_s": None}
    assert served.client.get("/health/ready").json() == ready
    served.search(vector=vector)
    text = served.client.get("/metrics").text
    assert f'version="{served.version}"' in text
    assert 'epithre_beam_catalog_assets{kind="text"} 20.0' in text
    assert 'epithre_beam_queries_total{query="vector"}' in text
    assert 'epithre_beam_requests_total{method="POST",route="/api/search",status="200"}' in text
    assert "epithre_beam_catalog_refresh_failing 0.0" in text
    (age,) = [
        float(line.split()[1]) for line in text.splitlines() if line.startswith("epithre_beam_catalog_age_seconds")
    ]
    assert 0 <= age < 86_400
    served.client.get("/no/such/place/of/mine")
    assert "of/mine" not in served.client.get("/metrics").text


def test_counters_have_every_label_before_the_first_event():
    text = Metrics().exposition().decode()
    for counter, label, values in (
        ("queries", "query", ("text", "image", "vector", "asset")),
        ("embeds", "result", ("done", "refused", "failed")),
        ("thumbnails", "result", ("made", "kept", "refused")),
    ):
        for value in values:
            assert f'epithre_beam_{counter}_total{{{label}="{value}"}} 0.0' in text


def test_without_fastapi_the_import_names_the_extra():
    program = "import sys; sys.modules['fastapi'] = None; import epithre_beam.pipelines.serve.app"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "fastapi is not installed, and the server needs it. Install the extra `serve`" in done.stderr


def test_openapi_describes_every_route_with_responses_and_errors(served):
    description = served.client.get("/openapi.json").json()
    assert set(description["paths"]) == {
        "/api/search",
        "/api/search/image",
        "/api/catalog",
        "/api/assets/{kind}",
        "/api/thumbnails/image",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    search = description["paths"]["/api/search"]["post"]
    reference = search["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    asked = description["components"]["schemas"][reference.rpartition("/")[2]]
    assert {"text", "vector", "vector_base64", "asset", "k", "where", "exclude_self"} <= set(asked["properties"])
    assert set(search["responses"]) >= {"200", "400", "401", "404", "413", "415", "422", "429", "503"}
    for example in asked["examples"]:
        assert served.client.post("/api/search", content=json.dumps(example)).status_code == 415
        assert served.search(**example).status_code in {200, 404, 422}


def test_every_response_has_the_security_headers(served):
    paths = ("/", "/page/app.js", "/api/catalog", "/no/such", "/metrics", "/openapi.json", "/api/assets/text?id=none")
    for path in paths:
        headers = served.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; img-src 'self' blob: data:;"), path
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        assert headers["cache-control"] == ("no-store" if path.startswith("/api/") else "no-cache")


def test_head_and_options_work_and_wrong_methods_name_the_right_one(served):
    head = served.client.head("/api/catalog")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(served.client.get("/api/catalog").content)
    options = served.client.options("/api/search")
    assert (options.status_code, options.headers["allow"]) == (204, "POST")
    for method, path, right in (("GET", "/api/search", "POST"), ("PUT", "/api/catalog", "GET"), ("DELETE", "/", "GET")):
        answer = served.client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, right)
        assert answer.json()["error"]["code"] == "method_not_allowed"
