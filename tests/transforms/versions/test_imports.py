"""A worker with another working folder than the launcher finds a folder of vectors."""

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.transforms.versions.imports import scan_folder

pytestmark = pytest.mark.core


def test_relative_folder_is_resolved_in_launchers_working_folder(tmp_path, monkeypatch):
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
