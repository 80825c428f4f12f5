"""A folder of vectors is found by a worker whose working folder is another than the launcher's."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.transforms.versions.imports import scan_folder

pytestmark = pytest.mark.core


def test_a_relative_folder_starts_where_the_job_was_launched(tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pq.write_table(pa.table({"id": ["a"], "kind": ["text"], "embedding": [[1.0, 0.0]]}), "old.parquet")
    folder = pickle.dumps(scan_folder("old.parquet").folder)
    monkeypatch.chdir(tmp_path / "there")
    found = pickle.loads(folder)
    assert found.place(0) == "old.parquet"
    with found.open(0) as file:
        assert file.read().num_rows == 1
