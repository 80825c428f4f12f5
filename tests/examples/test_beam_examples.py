"""The example pipelines run unchanged: each asset has its vector, or is dead with a reason."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector

from .conftest import EXAMPLES, KEY

pytestmark = pytest.mark.slow  # a process that imports Beam
DIMENSION = 4000


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(EmulatorSettings(api_keys=(KEY,))) as started:
        yield started


def run_example(folder: Path, environment: dict[str, str], name: str, *arguments: str) -> None:
    command = [sys.executable, EXAMPLES / name, *arguments, "--runner=FnApiRunner"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_table_becomes_vectors_and_dead_products(
    emulator: Emulator, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "products.csv").write_text("sku,title,price\np1,a red ceramic mug,12.5\np2,a shirt,25\np3,,1\n")
    run_example(tmp_path, environment, "beam_embed_table.py", "products.csv", "out", "--base-url", emulator.base_url)
    table = ds.dataset(tmp_path / "out" / "vectors", format="parquet").to_table()
    rows = {row["id"]: row for row in table.to_pylist()}
    assert {name: (row["text"], row["price"]) for name, row in rows.items()} == {
        "p1": ("a red ceramic mug", 12.5),
        "p2": ("a shirt", 25.0),
    }
    assert len(rows["p1"]["embedding"]) == DIMENSION
    dead = [json.loads(line) for line in (tmp_path / "out" / "dead.jsonl").read_text().splitlines()]
    assert [(letter["id"], letter["reason"]) for letter in dead] == [("p3", "empty_text")]
    assert emulator.stats()["requests"] == 1


def test_files_of_a_folder_become_lines_with_vectors(
    emulator: Emulator, environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "inbox").mkdir()
    texts = {f"{i}.txt": f"text {i}" for i in range(3)}
    for name, text in texts.items():
        (tmp_path / "inbox" / name).write_text(text)
    arguments = ["inbox", "vectors.jsonl", "--base-url", emulator.base_url, "--seconds", "1", "--max-buffering-s", "1"]
    run_example(tmp_path, environment, "beam_stream.py", *arguments)
    lines = [json.loads(line) for line in (tmp_path / "vectors.jsonl").read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == sorted(texts)
    for line in lines:
        wanted = hash_vector("text", texts[line["file"]].encode(), DIMENSION)
        np.testing.assert_allclose(line["vector"], wanted, atol=1e-6)
    assert emulator.stats()["requests"] <= len(texts)
