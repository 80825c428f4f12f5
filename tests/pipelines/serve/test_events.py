"""A server reports new versions and outages as events with fields, which programs read."""

import json
import shutil
import time

import httpx
import pytest

from epithre_beam.index import Store, read_latest, read_manifest
from epithre_beam.index.publish.publish import publish
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults

from ..conftest import KEY, Place
from .conftest import DIMENSION, WITHOUT_API, serving


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def events_of(server):
    """Stop the server and return the events that it logged, each without what all have."""
    server.process.terminate()
    lines = [json.loads(line) for line in server.process.communicate(timeout=60)[1].splitlines()]
    assert all({"time", "level", "event", "message"} <= line.keys() for line in lines)
    return [line for line in lines if line["event"] != "log"]


def test_an_outage_and_its_end_are_events(hashed):
    settings = EmulatorSettings(model="hash", dimension=DIMENSION, api_keys=(KEY,))
    options = ("--log-format", "json")
    with Emulator(settings) as emulator, serving(hashed, "--base-url", emulator.base_url, *options) as server:
        emulator.reset(faults=Faults(refuse_all=401))
        assert server.search(text="text number 5").status_code == 503
        emulator.reset(faults=Faults())
        wait_for(lambda: server.search(text="text number 5").status_code == 200)
        failed, recovered = events_of(server)
    assert (failed["event"], failed["level"], failed["code"]) == ("api_fails", "ERROR", "key_refused")
    assert "refused the API key" in failed["error"]
    assert "--api-key-env" in failed["error"]
    assert (recovered["event"], recovered["level"]) == ("api_recovered", "INFO")


def test_a_server_without_a_key_reports_that_it_embeds_nothing(hashed):
    with serving(hashed, *WITHOUT_API, "--log-format", "json", key=None) as server:
        (disabled,) = events_of(server)
    assert (disabled["event"], disabled["code"]) == ("embedding_disabled", "config")
    assert disabled["error"].startswith("--api-key-env: ")


@pytest.mark.slow
def test_a_version_of_another_model_is_not_loaded_until_the_restart(hashed, tmp_path, vector):
    """The old version stays, also for sentences, and a version of the old model is loaded again."""
    place = Place(tmp_path)
    for name in ("catalog", "pictures", "texts.csv"):
        source = hashed.folder / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, place.folder / name)
    store = Store(str(place.catalog))
    with serving(place, "--log-format", "json", "--follow-every", 0.05) as server:
        first = read_manifest(store, server.version)
        place.write_job(embed__emulator_model="attributes")
        done = place.cli("run", "job.yaml", "--quiet")
        assert done.returncode == 0, done.stderr
        latest = read_latest(store)
        assert latest.version != server.version
        metrics = httpx.URL(server.origin).join("/metrics")
        wait_for(lambda: "epithre_beam_catalog_refresh_failing 1.0" in httpx.get(metrics).text)
        for asked in ({"text": "text number 3"}, {"vector": vector}):
            answer = server.search(**asked)
            assert (answer.status_code, answer.json()["version"]) == (200, server.version)
        with serving(place) as other:
            assert other.version == latest.version
            assert other.search(text="text number 3").status_code == 200
        publish(store, first, latest.data)
        wait_for(lambda: "epithre_beam_catalog_refresh_failing 0.0" in httpx.get(metrics).text)
        failed, recovered = events_of(server)
    assert (failed["event"], failed["version"]) == ("reload_failed", server.version)
    assert "Their vectors cannot be compared" in failed["error"]
    assert (recovered["event"], recovered["version"]) == ("reload_recovered", server.version)


@pytest.mark.slow
def test_a_new_version_is_an_event_that_names_both_versions(hashed, tmp_path):
    place = Place(tmp_path)
    for name in ("catalog", "pictures"):
        shutil.copytree(hashed.folder / name, place.folder / name)
    texts = (hashed.folder / "texts.csv").read_text().splitlines()
    (place.folder / "texts.csv").write_text("\n".join(texts[:-1]) + "\n")
    place.write_job()
    with serving(place, *WITHOUT_API, "--log-format", "json", "--follow-every", 0.05, key=None) as server:
        done = place.cli("run", "job.yaml", "--quiet")
        assert done.returncode == 0, done.stderr
        version = read_latest(Store(str(place.catalog))).version
        wait_for(lambda: server.client.get("/health/ready").json()["version"] == version)
        _, loaded = events_of(server)
    assert (loaded["event"], loaded["version"], loaded["previous"]) == ("version_loaded", version, server.version)
    assert loaded["level"] == "INFO"
