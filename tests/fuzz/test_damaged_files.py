"""Damaged FAISS, Arrow and Parquet files with matching checksums give valid rows or an error, and never a crash."""

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from .budget import fuzz, fuzzing
from .worker import make_catalog

pytestmark = fuzzing

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60
FILES = {
    "codes": ["index/image-00000-of-00001.codes.faiss"],
    "vectors": ["index/text-00000-of-00001.faiss", "index/image-00000-of-00001.faiss"],
    "assets": ["index/text-assets.arrow", "index/image-assets.arrow"],
    "parquet": ["vectors/text-00000-of-00001.parquet", "dead_letters/dead-00000-of-00001.parquet"],
}
HEADERS = st.integers(0, 3000) | st.integers(-3000, -1)
"""Positions of headers and footers, in bytes from the start or the end."""
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["bit", "byte", "int32", "int64", "cut", "drop", "double", "move"]),
        HEADERS | st.floats(0, 1, exclude_max=True),
        st.integers(0, 100_000),
    ),
    min_size=1,
    max_size=4,
)


class Worker:
    """The process that opens the files, restarted after a crash."""

    def __init__(self, whole: Path, folder: Path) -> None:
        self._whole, self._folder = whole, folder
        self._process: subprocess.Popen[str] | None = None

    def ask(self, name: str, edits: Any) -> str:
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, edits]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._whole, self._folder / "catalog")
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "EPITHRE_BEAM_CACHE": str(self._folder / "cache")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", str(self._folder / "catalog")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        line = self._process.stdout.readline() if readable else ""
        if line:
            return line.strip()
        process, self._process = self._process, None
        process.kill()
        _, reported = process.communicate()
        return f"died with {process.returncode}{'' if readable else ' of waiting'}: {reported[-2000:]}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "catalog"
    make_catalog(folder)
    return folder


@pytest.fixture
def worker(whole: Path, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(whole, tmp_path / "own")
    yield worker
    worker.close()


@pytest.mark.parametrize("sort", FILES)
def test_damaged_file_never_crashes_or_gives_invalid_rows(worker: Worker, sort: str) -> None:
    def target(name: str, edits: list[Any]) -> None:
        answer = worker.ask(name, edits)
        if not answer.startswith(("good", "refused")):
            pytest.fail(f"{name} with {edits}: {answer}")

    fuzz(target, st.sampled_from(FILES[sort]), EDITS)
