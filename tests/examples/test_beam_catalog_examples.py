"""The example pipelines with a catalog run unchanged, one after the other."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from epithre_beam.index import open_catalog
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings

from .conftest import EXAMPLES

pytestmark = pytest.mark.slow  # processes that import Beam
KEY = "catalog-examples-key"


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorSettings(api_keys=(KEY,))) as started:
        yield started


def run_example(folder: Path, name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments, "--runner=FnApiRunner"]
    environment = {**os.environ, "EPITHRE_KEY": KEY, "EPITHRE_BEAM_TRUST": str(folder / "trust")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_nightly_upsert_and_enrichment_by_search(emulator: Emulator, tmp_path: Path) -> None:
    (tmp_path / "changed.csv").write_text("sku,title\n" + "".join(f"p{i},product {i}\n" for i in range(5)))
    (tmp_path / "gone.csv").write_text("sku\n")
    upsert = ("beam_nightly_upsert.py", "changed.csv", "gone.csv", "catalog", "--base-url", emulator.base_url)
    assert run_example(tmp_path, *upsert) == "5 embedded, 0 reused, 0 removed\n"
    (tmp_path / "changed.csv").write_text("sku,title\np3,another product\np9,product 9\n")
    (tmp_path / "gone.csv").write_text("sku\np1\n")
    assert run_example(tmp_path, *upsert) == "2 embedded, 3 reused, 1 removed\n"
    questions = [{"id": "q1", "text": "another product"}, {"id": "q2", "text": "product 9"}]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    run_example(tmp_path, "beam_search_enrichment.py", "questions.jsonl", "catalog", "enriched.jsonl", "-k", "1")
    lines = sorted(map(json.loads, (tmp_path / "enriched.jsonl").read_text().splitlines()), key=lambda row: row["id"])
    assert [row["found"][0] for row in lines] == [{"id": "p3", "score": 1.0}, {"id": "p9", "score": 1.0}]


def test_catalog_of_vectors(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((10, 32)).tolist()
    rows = [{"id": f"v{i}", "text": f"row {i}", "vector": vector} for i, vector in enumerate(vectors)]
    rows.append({"id": "zero", "text": "nothing", "vector": [0.0] * 32})
    (tmp_path / "vectors.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = run_example(tmp_path, "beam_catalog_of_vectors.py", "vectors.jsonl", "catalog")
    assert "10 rows in 000001-" in said
    assert "zero: the vector must not be zero" in said
    with open_catalog(tmp_path / "catalog") as opened:
        ((hit,),) = opened.search(np.array(vectors[3], np.float32) / np.linalg.norm(vectors[3]), k=1)
        assert hit.asset_id == "v3"
