"""No search fails while versions are published, pruned and damaged under a running server."""

import shutil
import threading
import time

import pytest

from epithre_beam.index import Store, read_latest, read_manifest
from epithre_beam.index.publish.publish import publish

from ..conftest import Place
from .conftest import WITHOUT_API, serving


@pytest.fixture(scope="module")
def two_versions(hashed, tmp_path_factory):
    """The catalog with a second version that has half of the texts."""
    place = Place(tmp_path_factory.mktemp("two"))
    for name in ("catalog", "pictures"):
        shutil.copytree(hashed.folder / name, place.folder / name)
    texts = (hashed.folder / "texts.csv").read_text().splitlines()
    (place.folder / "texts.csv").write_text("\n".join(texts[:11]) + "\n")
    place.write_job(gates__max_shrinkage=1.0)
    done = place.cli("run", "job.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    return place


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline


def test_queries_succeed_while_versions_change(two_versions, vector):
    store = Store(str(two_versions.catalog))
    manifests = [read_manifest(store, path.name) for path in sorted((two_versions.catalog / "versions").iterdir())]
    texts = {manifest.version: manifest.counts.per_kind["text"] for manifest in manifests}
    assert sorted(texts.values()) == [10, 20]
    with serving(two_versions, *WITHOUT_API, "--follow-every", 0.05, key=None) as server:
        answers, over = [], threading.Event()

        def ask(**query):
            while not over.is_set():
                answer = server.search(**query, kinds=["text"], k=30, exclude_self=False)
                body = answer.json()
                answers.append((answer.status_code, body.get("version"), len(body.get("hits", ()))))

        queries = ({"vector": vector}, {"asset": {"kind": "text", "id": "t003"}}) * 2
        threads = [threading.Thread(target=ask, kwargs=query) for query in queries]
        for thread in threads:
            thread.start()
        try:
            for turn in range(8):
                manifest = manifests[turn % 2]
                publish(store, manifest, read_latest(store).data)
                wait_for(lambda version=manifest.version: answers and answers[-1][1] == version)
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert {status for status, _, _ in answers} == {200}
        assert all(count == texts[version] for _, version, count in answers)  # each response has one version only
        assert {version for _, version, _ in answers} == set(texts)


def test_a_deleted_catalog_is_still_served_and_shown_in_metrics(hashed, tmp_path, vector):
    place = Place(tmp_path)
    shutil.copytree(hashed.catalog, place.catalog)
    with serving(place, *WITHOUT_API, "--follow-every", 0.05, key=None) as server:
        before = server.search(vector=vector).json()["hits"]
        place.catalog.rename(tmp_path / "gone")
        wait_for(lambda: "epithre_beam_catalog_refresh_failing 1.0" in server.client.get("/metrics").text)
        assert server.search(vector=vector).json()["hits"] == before
        assert server.search(asset={"kind": "text", "id": "t003"}).status_code == 200
        assert server.client.get("/health/ready").json()["version"] == server.version
        (tmp_path / "gone").rename(place.catalog)
        wait_for(lambda: "epithre_beam_catalog_refresh_failing 0.0" in server.client.get("/metrics").text)
        assert server.stop() == 0
        reported = server.process.stderr.read()
        assert (
            reported.count("there is no catalog here") == reported.count("keeping version") == 1
        )  # not at every refresh
        assert "Traceback" not in reported
