"""A bug in a worker is reported once, as a defect with the worker's traceback, on every engine."""

import json

import pytest

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings

from ..pipelines.conftest import Place, sentences, write_texts
from .engine import BROKEN, ENGINES, KEY


@pytest.mark.parametrize("engine", ENGINES, indirect=True, scope="session")
def test_bug_in_worker_is_reported_with_only_its_traceback(engine, tmp_path):
    place = Place(tmp_path)
    write_texts(place.folder / "texts.csv", 20)
    with Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,))) as emulator:
        source = {"kind": "text", "table": "texts.csv", "id": "id", "text": "text"}
        place.write_job(sources=[source], embed__base_url=emulator.base_url)
        place.catalog.mkdir()
        (place.catalog / "BUG").touch()
        command = ("run", "job.yaml", "--json", "--", *engine.options)
        done = place.cli(*command, imports_itself=True, PYTHONPATH=str(BROKEN))
        (place.catalog / "BUG").unlink()
        again = place.cli("run", "job.yaml", "--", *engine.options)
    assert again.returncode == 0, again.stderr[-3000:]
    assert done.returncode == 1, done.stderr[-3000:]
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert "in write_shard\n" in done.stderr
    assert "return 1 / 0\n" in done.stderr
    (sentence,) = sentences(done.stderr)
    assert sentence.startswith("epithre-beam: ZeroDivisionError: division by zero: this is a defect of epithre-beam")
    assert len(done.stderr.splitlines()) < 60
    document = json.loads(done.stdout)
    assert (document["exit_code"], document["status"], document["code"]) == (1, "failed", "defect")
