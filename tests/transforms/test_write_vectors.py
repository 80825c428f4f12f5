"""WriteVectors writes each vector once, in files that other tools and `index --from` read."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import apache_beam as beam
import duckdb
import numpy as np
import polars as pl
import pyarrow.dataset as ds
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from epithre_beam import transforms as epithre
from epithre_beam.configs.errors import ArgumentError, ConfigError
from epithre_beam.index import open_catalog
from epithre_beam.index.vectors import vector_files
from epithre_beam.index.vectors.folder_mark import MARK
from epithre_beam.pipelines.jobs.build_index import import_vectors

from .pipeline_runs import BUNDLES, RUNNERS, run

_DIMENSION = 16


def vector(number):
    found = np.random.default_rng(number).standard_normal(_DIMENSION).astype(np.float32)
    return (found / np.linalg.norm(found)).tolist()


def embed(number):
    return epithre.EmbeddedAsset(
        id=f"a{number}",
        kind="text" if number % 3 else "image",
        uri=None if number % 3 else f"/images/{number}.png",
        text=f"text {number}" if number % 3 else None,
        content_sha256=f"{number:064d}",
        fingerprint=None,
        media_type="text/plain",
        size_bytes=number,
        width=None,
        height=None,
        prepared=None,
        metadata=json.dumps({"price": number / 2}),
        embedding=vector(number),
    )


def embedded(pipeline, count=40):
    numbers = pipeline | beam.Create(range(count)) | beam.Reshuffle()
    return numbers | beam.Map(embed).with_output_types(epithre.EmbeddedAsset)


def rows_in(folder):
    return ds.dataset(str(folder), format="parquet").to_table().sort_by("size_bytes")


def assert_whole(folder, files, count=40):
    """The folder has each vector once, and nothing but its files and the mark."""
    table = rows_in(folder)
    assert table.column("id").to_pylist() == [f"a{i}" for i in range(count)]
    assert np.allclose(table.column("embedding").to_pylist(), [vector(i) for i in range(count)], atol=0)
    assert sum(file["rows"] for file in files) == count
    assert sorted(path.name for path in folder.iterdir()) == sorted([MARK, *(Path(f["path"]).name for f in files)])


@pytest.mark.core
@pytest.mark.parametrize("runner", RUNNERS)
def test_each_vector_is_written_once_on_every_runner(runner, tmp_path):
    out = tmp_path / "out"
    files = run(lambda p: {"files": embedded(p) | epithre.WriteVectors(out)}, tmp_path, RUNNERS[runner])["files"]
    assert_whole(out, files)


def test_elements_have_the_types_that_are_declared(tmp_path):
    options = ["--runner=FnApiRunner", "--runtime_type_check"]
    files = run(lambda p: {"files": embedded(p) | epithre.WriteVectors(tmp_path / "out")}, tmp_path, options)["files"]
    assert_whole(tmp_path / "out", files)


def test_names_of_files_come_from_their_content(tmp_path):
    def write(out, first):
        numbers = range(first, first + 5)
        run(lambda p: {"f": p | beam.Create([embed(i) for i in numbers]) | epithre.WriteVectors(out)}, tmp_path)
        return sorted(path.name for path in out.glob("*.parquet"))

    assert write(tmp_path / "a", 0) == write(tmp_path / "b", 0) != write(tmp_path / "c", 1)


def test_stock_tools_read_the_folder(tmp_path):
    out = tmp_path / "out"
    run(lambda p: {"f": embedded(p) | epithre.WriteVectors(out, metadata={"price": "double"}, file_bytes=1)}, tmp_path)
    query = f"SELECT count(*), sum(price), any_value(len(embedding)) FROM '{out}/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(40, 390.0, _DIMENSION)]
    frame = pl.read_parquet(f"{out}/*.parquet")
    assert frame.schema["embedding"] == pl.Array(pl.Float32, _DIMENSION)
    assert frame.filter(pl.col("kind") == "image").height == 14


def test_catalog_of_the_files_finds_each_asset_by_its_vector(tmp_path):
    out = tmp_path / "out"
    run(lambda p: {"f": embedded(p) | epithre.WriteVectors(out, metadata={"price": "double"})}, tmp_path)
    import_vectors(str(tmp_path / "catalog"), str(out), metadata=["price:double"])
    with open_catalog(tmp_path / "catalog") as catalog:
        assert catalog.manifest.counts.per_kind == {"image": 14, "text": 26}
        for number in range(40):
            ((hit,),) = catalog.search(np.array([vector(number)], np.float32), k=1, kinds=[embed(number).kind])
            assert (hit.asset_id, hit.score > 0.999) == (f"a{number}", True)
            assert hit.metadata == {"price": number / 2}


def test_a_name_of_metadata_that_no_asset_has_is_logged(tmp_path, caplog):
    metadata = {"price": "double", "prise": "double"}
    run(lambda p: {"f": embedded(p) | epithre.WriteVectors(tmp_path / "out", metadata=metadata)}, tmp_path)
    words = [record.getMessage() for record in caplog.records if record.name.startswith("epithre")]
    assert words == ["WriteVectors: no asset has metadata 'prise', so its column is empty. Check the name."]


class FailsOnce:
    """An embedding that cannot be read the first time it is."""

    def __init__(self, numbers, flag):
        self.numbers, self.flag = numbers, flag

    def __array__(self, dtype=None, copy=None):
        if not Path(self.flag).exists():
            Path(self.flag).touch()
            raise OSError("not yet")
        return np.array(self.numbers, dtype)


@pytest.mark.core
def test_bundle_that_fails_once_is_written_once(tmp_path):
    flag = tmp_path / "failed"

    def build(pipeline):
        poisoned = FailsOnce(vector(37), str(flag))
        rows = pipeline | beam.Create(range(40)) | beam.Map(embed)
        rows |= beam.Map(lambda row: row._replace(embedding=poisoned) if row.id == "a37" else row)
        return {"files": rows | epithre.WriteVectors(tmp_path / "out")}

    files = run(build, tmp_path, BUNDLES)["files"]
    assert flag.exists()
    assert_whole(tmp_path / "out", files)


def test_killed_pipeline_leaves_no_vectors_in_sight_and_the_next_one_writes_all(tmp_path):
    """The process is killed with a part open, and a complete one that no step knows of."""
    out, flag = tmp_path / "out", tmp_path / "killed"
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import os, pathlib, signal
            import apache_beam as beam
            from epithre_beam import transforms as epithre
            from epithre_beam.index.vectors.vector_files import PartWriter
            from tests.transforms.test_write_vectors import embed

            def killed(row):
                if row.id == "a39":
                    pathlib.Path({str(flag)!r}).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return row

            from epithre_beam.index.vectors import vector_files
            vector_files._GROUP_BYTES, size = 1000, 4000
            with beam.Pipeline() as p:
                rows = p | beam.Create(range(40), reshuffle=False) | beam.Map(embed) | beam.Map(killed)
                _ = rows | epithre.WriteVectors({str(out)!r}, file_bytes=size)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, program], env=environment, capture_output=True, check=False)
    assert (done.returncode, flag.exists()) == (-signal.SIGKILL, True), done.stderr.decode()[-2000:]
    assert list(out.glob(".writing-*/*.parquet"))
    assert list(out.glob(".writing-*/.*.partial"))
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
    (left,) = out.iterdir()
    files = run(lambda p: {"files": embedded(p) | epithre.WriteVectors(out)}, tmp_path)["files"]
    assert list(left.iterdir())  # of a pipeline that may still run somewhere
    subprocess.run(["rm", "-r", left], check=True)
    assert_whole(out, files)


def test_no_elements_write_only_the_mark(tmp_path):
    def build(pipeline):
        nothing = pipeline | beam.Create([]).with_output_types(epithre.EmbeddedAsset)
        return {"files": nothing | epithre.WriteVectors(tmp_path / "out")}

    assert run(build, tmp_path) == {"files": []}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARK]
    assert json.loads((tmp_path / "out" / MARK).read_text())["rows"] == 0


@pytest.mark.parametrize("runner", ["in_memory", "bundles"])
def test_windows_do_not_split_or_lose_rows(runner, tmp_path):
    def build(pipeline):
        numbers = pipeline | beam.Create(range(40)) | beam.Map(lambda i: TimestampedValue(i, i))
        rows = numbers | beam.WindowInto(FixedWindows(7)) | beam.Map(embed)
        return {"files": rows | epithre.WriteVectors(tmp_path / "out")}

    files = run(build, tmp_path, RUNNERS[runner])["files"]
    assert_whole(tmp_path / "out", files)


def test_rows_with_only_id_kind_and_embedding_are_written(tmp_path):
    def build(pipeline):
        rows = pipeline | beam.Create(range(3))
        rows |= beam.Map(lambda i: beam.Row(id=f"r{i}", kind="text", embedding=vector(i)))
        return {"files": rows | epithre.WriteVectors(tmp_path / "out")}

    run(build, tmp_path)
    table = rows_in(tmp_path / "out")
    assert sorted(table.column("id").to_pylist()) == ["r0", "r1", "r2"]
    assert table.column("text").null_count == 3


def test_folder_with_vectors_is_refused_before_anything_is_embedded(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.parquet").write_bytes(b"")
    calls = tmp_path / "calls"

    def sent(number):
        calls.touch()
        return embed(number)

    def build(pipeline):
        rows = pipeline | beam.Create(range(3), reshuffle=False) | beam.Map(sent)
        return {"files": rows | epithre.WriteVectors(tmp_path / "out")}

    with pytest.raises(ConfigError, match=r"already has vectors \(old\.parquet\)"):
        run(build, tmp_path)
    assert not calls.exists()


@pytest.mark.core
def test_unbounded_input_is_refused_when_the_pipeline_is_built():
    stream = (
        beam.Pipeline(options=PipelineOptions(["--streaming"]))
        | test_stream.TestStream().advance_watermark_to_infinity()
    )
    with pytest.raises(ArgumentError, match="takes a bounded PCollection, got an unbounded one"):
        _ = stream | beam.Map(embed).with_output_types(epithre.EmbeddedAsset) | epithre.WriteVectors("/out")


def test_dask_is_refused_when_the_pipeline_is_built():
    dask = pytest.importorskip("apache_beam.runners.dask.dask_runner")
    pipeline = beam.Pipeline(runner=dask.DaskRunner())
    with pytest.raises(ArgumentError, match="does not run on Dask"):
        _ = pipeline | beam.Create([embed(1)]) | epithre.WriteVectors("/out")


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        (["a"], "takes a PCollection of EmbeddedAsset, got one of str"),
        ([epithre.Asset.of_text("a", "mug")], "got one of Asset"),
        ([epithre.DeadAsset("a", "image", None, "read", "missing", "", 0)], "got one of DeadAsset"),
    ],
)
def test_other_elements_are_refused_when_the_pipeline_is_built(elements, words):
    with pytest.raises(ArgumentError, match=words):
        _ = beam.Pipeline() | beam.Create(elements) | epithre.WriteVectors("/out")


def test_element_of_a_wrong_type_that_only_shows_at_run_time_is_one_sentence(tmp_path):
    def build(pipeline):
        rows = pipeline | beam.Create([{"id": "a"}]) | beam.Map(lambda row: row).with_output_types(beam.typehints.Any)
        return {"files": rows | epithre.WriteVectors(tmp_path / "out")}

    with pytest.raises(ArgumentError, match=r"takes elements of type EmbeddedAsset, .* got dict"):
        run(build, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"folder": ""}, "folder must be a path or URL"),
        ({"folder": None}, "folder must be a path or URL"),
        ({"folder": "s3://user:secret-word@bucket/x"}, "without a password"),
        ({"folder": "x", "file_bytes": 0}, "file_bytes must be from 1"),
        ({"folder": "x", "metadata": {"price": "float"}}, "got 'price': 'float'"),
        ({"folder": "x", "metadata": {"uri": "string"}}, "must not have the name of another column, got 'uri'"),
    ],
)
def test_wrong_argument_is_refused_at_construction(arguments, words):
    with pytest.raises(ConfigError, match=words) as raised:
        epithre.WriteVectors(**arguments)
    assert "secret-word" not in str(raised.value)


def test_relative_folder_starts_where_the_pipeline_is_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transform = epithre.WriteVectors("out")
    monkeypatch.chdir("/")
    run(lambda p: {"f": embedded(p, 3) | transform}, tmp_path)
    assert len(rows_in(tmp_path / "out")) == 3


def test_display_data_metrics_and_types(tmp_path):
    transform = epithre.WriteVectors(tmp_path / "out", metadata={"price": "double"}, file_bytes=1000)
    shown = {item.key: item.value for item in DisplayData.create_from(transform).items}
    assert shown == {"folder": str(tmp_path / "out"), "file_bytes": 1000, "metadata": "price"}
    pipeline = beam.Pipeline()
    files = embedded(pipeline, 5) | transform
    assert files.element_type == epithre.VectorFile
    counters = {c.key.metric.name: c.committed for c in pipeline.run().metrics().query()["counters"]}
    assert (counters["vectors_written"], counters["vector_files_written"]) == (5, 1)


@pytest.mark.parametrize("runner", ["bundles", "repeated"])
def test_no_row_is_lost_or_doubled_by_a_bundle_that_fails_after_a_part(runner, tmp_path, monkeypatch):
    """Parts are small, so that the failed attempt leaves complete ones."""
    monkeypatch.setattr(vector_files, "_GROUP_BYTES", 1000)
    flag = tmp_path / "failed"

    def build(pipeline):
        poisoned = FailsOnce(vector(37), str(flag))
        rows = pipeline | beam.Create(range(40), reshuffle=False) | beam.Map(embed)
        if runner == "bundles":
            rows |= beam.Map(lambda row: row._replace(embedding=poisoned) if row.id == "a37" else row)
        return {"files": rows | epithre.WriteVectors(tmp_path / "out", file_bytes=4000)}

    files = run(build, tmp_path, RUNNERS[runner])["files"]
    assert flag.exists() == (runner == "bundles")
    assert len(files) > 2
    assert_whole(tmp_path / "out", files)


def test_what_a_killed_pipeline_left_is_named_and_deleted_after_a_week(tmp_path, caplog):
    out = tmp_path / "out"
    for name, days in (("dead", 8), ("young", 6)):
        part = out / f".writing-{name}" / "part.parquet"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"x")
        os.utime(part, (time.time() - days * 86_400,) * 2)
    with caplog.at_level("WARNING", "epithre_beam.vectors"):
        run(lambda p: {"files": embedded(p, 3) | epithre.WriteVectors(out)}, tmp_path)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [".writing-young"]
    (message,) = [record.getMessage() for record in caplog.records if record.name == "epithre_beam.vectors"]
    assert message.startswith(
        f"{out}/.writing-young was left by a pipeline that was killed, or belongs to one that runs."
    )


MADE_BY = json.dumps({"dialect": "epithre", "dimension": _DIMENSION, "model": "one", "server": None})


@pytest.mark.parametrize(
    ("made_by", "expected"),
    [
        ([MADE_BY, MADE_BY], json.loads(MADE_BY)),
        ([MADE_BY, None], None),
        ([MADE_BY.replace(str(_DIMENSION), "99")] * 2, None),
        ([None, None], None),
    ],
)
def test_folder_says_what_made_its_vectors_if_all_rows_say_the_same(made_by, expected, tmp_path):
    """Rows that were cut to another dimension, and rows of unknown origin, make the model unknown."""
    rows = [embed(i)._replace(made_by=made_by[i]) for i in range(2)]
    run(lambda p: {"f": p | beam.Create(rows) | epithre.WriteVectors(tmp_path / "out")}, tmp_path)
    assert json.loads((tmp_path / "out" / MARK).read_text())["made_by"] == expected


@pytest.mark.parametrize(
    ("made_by", "words"),
    [
        (MADE_BY.replace("one", "two"), 'made by the same model and request, got {.*"one".*} and {.*"two".*}'),
        ("epithre-embed", "Asset 'a1': made_by must be as EmbedAssets wrote it, or None, got 'epithre-embed'"),
    ],
)
def test_vectors_of_two_models_are_refused(made_by, words, tmp_path):
    rows = [embed(0)._replace(made_by=MADE_BY), embed(1)._replace(made_by=made_by)]
    with pytest.raises(ArgumentError, match=words):
        run(lambda p: {"f": p | beam.Create(rows) | epithre.WriteVectors(tmp_path / "out")}, tmp_path)
