"""The same jobs make the same catalog, byte for byte, and the same hits on every engine."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.index import open_catalog

from ..pipelines.conftest import Place
from ..pipelines.scene import change_sources, current_rows, found_in, write_sources
from .engine import KEY

REFERENCE = ("--runner=FnApiRunner",)


def digests(catalog: Path) -> dict[str, str]:
    """Return the SHA-256 of the published version's files, except files with times."""
    version = catalog / "versions" / open_catalog(catalog).version
    timed = {"manifest.json", "report.json", "report.html"}
    names = (path for path in sorted(version.rglob("*")) if path.is_file() and path.name not in timed)
    files = [path for path in names if not path.name.endswith(".partial")]  # left by a killed worker
    return {str(path.relative_to(version)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class Jobs:
    """Three jobs with fixed sources: a first run, a run after changes, and an import of vectors."""

    def __init__(self, folder: Path, base_url: str) -> None:
        self.place = Place(folder)
        self.base_url = base_url
        write_sources(folder)
        self.base = folder / "base"
        self.run(self.base, REFERENCE, lanes=1)
        change_sources(folder)
        rng = np.random.default_rng(3)
        vectors = rng.standard_normal((700, 64)).astype(np.float32)
        vectors[5] = np.nan
        (folder / "vectors").mkdir()
        for i, rows in enumerate(np.array_split(np.arange(700), 3)):
            kinds = ["image" if row % 3 else "text" for row in rows]
            table = {"id": [f"v{row}" for row in rows], "kind": kinds, "embedding": list(vectors[rows])}
            pq.write_table(pa.table(table), folder / "vectors" / f"{i}.parquet", row_group_size=100)

    def run(self, catalog: Path, options: tuple[str, ...], lanes: int) -> None:
        self.place.write_job(
            catalog=str(catalog),
            embed__base_url=self.base_url,
            embed__unit_references=4,
            embed__lanes=lanes,
            embed__rate_limiter="host" if lanes > 1 else "memory",
            index__rows_per_file=24,
        )
        self._call("run", "job.yaml", "--", *options)

    def index(self, catalog: Path, options: tuple[str, ...]) -> None:
        settings = ("index.rows_per_file=150", "index.exact_up_to_mb=0", "index.rows_per_index=256")
        settings = tuple(f"--set={setting}" for setting in settings)
        self._call("index", catalog, "--from=vectors", "--set=gates.max_dead_share=0.1", *settings, "--", *options)

    def _call(self, *arguments: str | Path) -> None:
        has_other_hashes = REFERENCE[0] in arguments
        done = self.place.cli(*arguments, key=KEY, timeout=170, imports_itself=has_other_hashes)
        assert done.returncode == 0, done.stderr[-3000:]


JOBS = ("first", "changed", "index")


@pytest.fixture(scope="session")
def jobs(tmp_path_factory, emulator):
    return Jobs(tmp_path_factory.mktemp("jobs"), emulator.base_url)


def do(jobs: Jobs, job: str, catalog: Path, options: tuple[str, ...], lanes: int) -> None:
    if job == "index":
        jobs.index(catalog, options)
        return
    if job == "changed":
        shutil.copytree(jobs.base, catalog)
    jobs.run(catalog, options, lanes)


@pytest.fixture(scope="session")
def expected(jobs):
    """Return the result of each job on the reference: FnApiRunner in one process, with one lane."""
    found = {}
    for job in JOBS:
        catalog = jobs.place.folder / f"expected-{job}"
        do(jobs, job, catalog, REFERENCE, lanes=1)
        found[job] = (digests(catalog), current_rows(catalog), found_in(catalog))
        assert len(found[job][0]) >= 6
    return found


@pytest.mark.parametrize("job", JOBS)
def test_every_engine_makes_same_catalog_and_hits(engine, job, jobs, expected, emulator, tmp_path):
    emulator.reset()
    do(jobs, job, tmp_path / "catalog", engine.options, lanes=2)
    assert (tmp_path / "catalog" / "LATEST.json").exists()
    rows = current_rows(tmp_path / "catalog")
    assert rows == expected[job][1]
    assert digests(tmp_path / "catalog") == expected[job][0]
    assert found_in(tmp_path / "catalog") == expected[job][2]
    assert set(emulator.payments().values()) <= {1}
