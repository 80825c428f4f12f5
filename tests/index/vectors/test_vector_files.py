"""A folder of vectors has each row once, in files that appear completely, whatever is repeated or killed."""

import itertools
import json
import secrets

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.configs.errors import ArgumentError, ConfigError, SourceError
from epithre_beam.index import Store
from epithre_beam.index.vectors.folder_mark import MARK, write_mark
from epithre_beam.index.vectors.hidden_folder import check_is_new, new_hidden_folder
from epithre_beam.index.vectors.vector_files import (
    PartWriter,
    VectorPart,
    VectorsSetup,
    finish_folder,
    metadata_columns,
    plan_files,
    vectors_schema,
    write_file,
)

from ...s3_server import s3_store

_MEMORY = itertools.count()


def setup_in(url, **changes):
    values = {"store": Store(str(url)), "hidden": new_hidden_folder(), "metadata": {}, "file_bytes": 1_000_000}
    return VectorsSetup(**{**values, **changes})


def row(number):
    return {"id": f"a{number}", "kind": "text", "text": f"text {number}", "metadata": json.dumps({"price": number})}


def write_parts(setup, *sizes, dimension=8):
    """Write a part for each size, and return them."""
    parts, rng, number = [], np.random.default_rng(sum(sizes)), 0
    for size in sizes:
        writer = PartWriter(setup)
        for _ in range(size):
            assert writer.add(row(number), rng.standard_normal(dimension).astype(np.float32).tolist()) is None
            number += 1
        parts.append(writer.finish())
    return parts


def rows_of(setup):
    names = [name for name in setup.store.names("") if name.endswith(".parquet")]
    tables = []
    for name in names:
        with setup.store.open_read(name) as file:
            tables.append(pq.read_table(pa.PythonFile(file, mode="r")))
    return pa.concat_tables(tables).sort_by("id")


@pytest.fixture(params=["local", "memory", "s3"])
def setup(request, tmp_path):
    metadata = {"price": "double"}
    if request.param == "s3":
        port = request.getfixturevalue("s3_server").port
        return setup_in("", store=s3_store(port, secrets.token_hex(8)), metadata=metadata)
    url = tmp_path / "out" if request.param == "local" else f"memory://vectors-{next(_MEMORY)}"
    return setup_in(url, metadata=metadata)


def test_small_parts_are_merged_and_each_row_is_there_once(setup):
    parts = write_parts(setup, 3, 1, 7)
    files = [write_file(task, setup) for task in plan_files(parts, 1_000_000)]
    assert [file.rows for file in finish_folder(files, setup)] == [11]
    table = rows_of(setup)
    assert sorted(table.column("id").to_pylist()) == sorted(f"a{i}" for i in range(11))
    assert table.schema.equals(vectors_schema(8, {"price": "double"}))
    for line in table.to_pylist():
        assert line["price"] == float(line["id"][1:])


def test_vectors_are_the_same_float32_as_before(setup):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5, 8)).astype(np.float32)
    kinds = [list, tuple, np.asarray, lambda v: v.tolist(), lambda v: np.asarray(v, np.float64)]
    writer = PartWriter(setup)
    for i, vector in enumerate(vectors):
        writer.add(row(i), kinds[i](vector))
    (task,) = plan_files([writer.finish()], 1)
    write_file(task, setup)
    assert np.array_equal(np.array(rows_of(setup).column("embedding").to_pylist(), np.float32), vectors)


def test_large_part_is_renamed_and_its_bytes_stay(setup):
    (part,) = write_parts(setup, 5)
    (task,) = plan_files([part], part.size_bytes)
    file = write_file(task, setup)
    assert (file.sha256, file.size_bytes) == (part.sha256, part.size_bytes)
    assert setup.store.size(part.name) is None
    assert setup.store.size(file.name) == part.size_bytes


def test_repeating_each_step_changes_nothing(setup):
    parts = write_parts(setup, 4, 4, 200)
    write_parts(setup, 9)  # of an attempt that failed
    tasks = plan_files(parts, max(part.size_bytes for part in parts))
    first = [write_file(task, setup) for task in tasks]
    assert [write_file(task, setup) for task in tasks] == first
    assert finish_folder(first, setup) == finish_folder(first, setup)
    assert len(rows_of(setup)) == 208
    names = [stored.name for stored in setup.store.listing("")]
    assert sorted(names) == sorted([MARK, *(task.name for task in tasks)])


def test_folder_without_rows_has_only_its_mark(setup):
    assert PartWriter(setup).finish() is None
    assert plan_files([], 1000) == []
    finish_folder([], setup)
    assert json.loads(setup.store.read(MARK)) == {"rows": 0, "dimension": None, "made_by": None, "files": []}


def test_mark_lists_files_with_their_sums(setup):
    files = [write_file(task, setup) for task in plan_files(write_parts(setup, 2, 3), 1)]
    finish_folder(files, setup)
    mark = json.loads(setup.store.read(MARK))
    assert (mark["rows"], mark["dimension"], len(mark["files"])) == (5, 8, 2)
    assert {f["name"]: f["sha256"] for f in mark["files"]} == {f.name: f.sha256 for f in files}


def test_abandoned_part_leaves_no_file(tmp_path):
    setup = setup_in(tmp_path, file_bytes=100_000_000)
    writer = PartWriter(setup)
    vector = np.zeros(4000, np.float32)
    for i in range(1500):  # more than a row group, so that the file is open
        writer.add(row(i), vector)
    assert list(tmp_path.rglob("*.partial"))
    writer.abandon()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_part_ends_when_it_has_its_size(tmp_path):
    setup = setup_in(tmp_path, file_bytes=20_000_000)
    writer = PartWriter(setup)
    vector = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    found = [writer.add(row(i), vector) for i in range(3000)]
    (part,) = [part for part in found if part is not None]
    rest = writer.finish()
    assert part.size_bytes >= 20_000_000
    assert part.rows + rest.rows == 3000


SIZES = st.lists(st.integers(1, 3000), max_size=30)


@given(SIZES, st.integers(1, 2000), st.randoms())
def test_plan_has_each_part_once_in_any_order_and_within_the_size(sizes, file_bytes, random):
    parts = [
        VectorPart(name=f"p{i}", rows=1, size_bytes=size, sha256=f"{size % 7:064d}", dimension=8)
        for i, size in enumerate(sizes)
    ]
    tasks = plan_files(parts, file_bytes)
    planned = [part.name for task in tasks for part in task.parts]
    assert sorted(planned) == sorted(part.name for part in parts)
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        assert len(task.parts) == 1 or sum(part.size_bytes for part in task.parts) <= file_bytes
    random.shuffle(parts)
    assert plan_files(parts, file_bytes) == tasks


@pytest.mark.parametrize("name", ["vectors.parquet", "below/A.PARQUET", MARK])
def test_folder_with_vectors_is_refused(name, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="the folder already has vectors"):
        check_is_new(Store(str(tmp_path)))


def test_folder_with_other_files_and_parts_of_a_killed_pipeline_is_new(tmp_path):
    (tmp_path / "README").write_bytes(b"x")
    write_parts(setup_in(tmp_path), 3)
    check_is_new(Store(str(tmp_path)))
    check_is_new(Store(str(tmp_path / "none")))


def test_types_of_metadata_columns_are_kept():
    rows = [{"id": "a", "metadata": '{"d":"2026-11-30","t":"2026-11-30T10:00:00","n":1,"b":true,"s":"x"}'}, {"id": "b"}]
    types = {"d": "date", "t": "timestamp", "n": "int", "b": "bool", "s": "string"}
    found = dict(zip(types, [column.to_pylist() for column in metadata_columns(rows, types)], strict=True))
    assert [str(found[name][0]) for name in types] == ["2026-11-30", "2026-11-30 10:00:00+00:00", "1", "True", "x"]
    assert [found[name][1] for name in types] == [None] * 5


def test_value_of_another_type_is_refused_with_its_asset():
    rows = [{"id": "a", "metadata": '{"n":1}'}, {"id": "b", "metadata": '{"n":"cheap"}'}]
    with pytest.raises(SourceError, match=r"Asset 'b': metadata\.n must be of type int64, got 'cheap'"):
        metadata_columns(rows, {"n": "int"})


@pytest.mark.parametrize(
    ("changes", "vector", "words"),
    [
        ({}, [1.0, float("nan")], "Asset 'a0': embedding must be a list of finite numbers"),
        ({}, [], "list of finite numbers"),
        ({}, ["x"], "must be numbers"),
        ({}, None, "finite numbers|must be numbers"),
        ({"id": ""}, [1.0], "id must be a str that is not empty"),
        ({"kind": "video"}, [1.0], "kind image or text, got 'video'"),
    ],
)
def test_row_that_is_nonsense_is_refused(changes, vector, words, tmp_path):
    def write() -> None:
        writer = PartWriter(setup_in(tmp_path))
        writer.add({**row(0), **changes}, vector)
        writer.finish()

    with pytest.raises(ArgumentError, match=words):
        write()


def test_value_of_the_wrong_type_is_refused_with_its_column(tmp_path):
    writer = PartWriter(setup_in(tmp_path))
    writer.add({**row(0), "width": "wide"}, [1.0])
    with pytest.raises(ArgumentError, match="width must be of type int64"):
        writer.finish()


def test_vectors_of_two_dimensions_are_refused_in_a_part_and_between_parts(tmp_path):
    setup = setup_in(tmp_path)
    writer = PartWriter(setup)
    writer.add(row(0), [1.0, 0.0])
    with pytest.raises(ArgumentError, match="same dimension, got 2 and 3"):
        writer.add(row(1), [1.0, 0.0, 0.0])
    with pytest.raises(ArgumentError, match="same dimension, got 8 and 9"):
        plan_files([*write_parts(setup, 1), *write_parts(setup, 1, dimension=9)], 1000)


def test_a_folder_without_vectors_may_be_written_again(tmp_path):
    """A pipeline whose server did not answer leaves one."""
    store = Store(str(tmp_path))
    write_mark(store, [], None, None)
    check_is_new(store)
    write_mark(store, [{"name": "vectors-a.parquet", "rows": 1, "size_bytes": 1, "sha256": "a" * 64}], 8, None)
    with pytest.raises(ConfigError, match=r"already has vectors \(_vectors\.json\)"):
        check_is_new(store)
