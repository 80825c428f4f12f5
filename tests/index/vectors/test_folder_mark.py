"""The mark of a folder is read only as it was written, and damaged files of the folder give no wrong vectors."""

import hashlib
import json
import random

import numpy as np
import pytest

from epithre_beam.index import Store
from epithre_beam.index.vectors.folder_mark import MARK, MadeVectors, read_mark, write_mark
from epithre_beam.index.vectors.reusable import ReusableVectors
from epithre_beam.index.vectors.vector_files import PartWriter, VectorsSetup, finish_folder, plan_files, write_file

DIMENSION = 8
MADE_BY = json.dumps(
    {"dialect": "epithre", "dimension": DIMENSION, "input_type": "document", "model": "m", "server": None},
    separators=(",", ":"),
)


def content(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def vector(number):
    found = np.random.default_rng(number).standard_normal(DIMENSION).astype(np.float32)
    return found / np.linalg.norm(found)


@pytest.fixture
def folder(tmp_path):
    """Texts and images in turn, the last of each without a hash, and one vector that is not of norm 1."""
    store = Store(str(tmp_path))
    setup = VectorsSetup(store=store, hidden=".writing-x", metadata={}, file_bytes=10**6)
    writer = PartWriter(setup)
    for i in range(20):
        row = {"id": str(i), "kind": "image" if i % 2 else "text", "media_type": "x/y", "made_by": MADE_BY}
        row["content_sha256"] = content(i) if i < 18 else None
        writer.add(row, (vector(i) * (2 if i == 5 else 1)).tolist())
    finish_folder([write_file(task, setup) for task in plan_files([writer.finish()], 10**6)], setup)
    return store


def test_mark_is_read_as_it_was_written(folder):
    mark = read_mark(folder)
    assert (mark.rows, mark.dimension, mark.made_by_json) == (20, DIMENSION, MADE_BY)
    assert mark.made_by == MadeVectors.of_json(MADE_BY)
    ((name, rows),) = [(file.name, file.rows) for file in mark.files]
    assert (folder.size(name), rows) == (mark.files[0].size_bytes, 20)


@pytest.mark.parametrize(
    "change",
    [
        {"files": [{"name": "../x.parquet", "rows": 1, "size_bytes": 1, "sha256": "0" * 64}]},
        {"dimension": 0},
        {"dimension": 10**9},
        {"made_by": {"model": "m"}},
        {"made_by": "m"},
        {"rows": -1},
    ],
)
def test_mark_with_other_values_is_not_used(folder, change):
    folder.write(MARK, json.dumps({**json.loads(folder.read(MARK)), **change}).encode())
    assert read_mark(folder) is None


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"null"])
def test_mark_that_is_something_else_is_not_used(tmp_path, data):
    store = Store(str(tmp_path))
    assert read_mark(store) is None
    store.write(MARK, data)
    assert read_mark(store) is None
    assert read_mark(Store(str(tmp_path / MARK))) is None


def test_vectors_are_found_by_kind_and_content(folder):
    reusable = ReusableVectors(folder, [], "", folder=read_mark(folder))
    for i in range(18):
        kind, other = ("image", "text") if i % 2 else ("text", "image")
        found = reusable.find(kind, content(i))
        assert reusable.find(other, content(i)) is None
        assert (found is None) == (i == 5)  # its norm is not 1
        if found is not None:
            np.testing.assert_array_equal(found.vector, vector(i))
    assert reusable.find("text", content(18)) is None


def test_damaged_file_gives_no_wrong_vector(folder):
    mark, rng = read_mark(folder), random.Random(3)
    path = folder.local_path(mark.files[0].name)
    whole = path.read_bytes()
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        reusable = ReusableVectors(folder, [], "", folder=mark)
        for i in range(0, 18, 3):
            found = reusable.find("image" if i % 2 else "text", content(i))
            assert found is None or found.vector.tolist() == vector(i).tolist()
    path.write_bytes(whole[:-1])
    assert ReusableVectors(folder, [], "", folder=mark).find("text", content(0)) is None


def test_folder_of_nothing_has_no_dimension(tmp_path):
    write_mark(Store(str(tmp_path)), [], None, None)
    mark = read_mark(Store(str(tmp_path)))
    assert (mark.rows, mark.dimension, mark.made_by_json, mark.files) == (0, None, None, ())
