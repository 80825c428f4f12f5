"""ReadAssets lists what a job lists, by reference, and reads content only if it is told to."""

import http.server
import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.transforms.display import DisplayData
from PIL import Image

from epithre_beam import transforms as epithre
from epithre_beam.configs import PrepareConfig, SourceConfig
from epithre_beam.configs.errors import ArgumentError, ConfigError, SourceError
from epithre_beam.transforms.elements import to_asset
from epithre_beam.transforms.sources.list_sources import list_references

from .pipeline_runs import RUNNERS, run


@pytest.fixture
def sources(tmp_path):
    """Images in a folder, an image outside of it, texts in two tables, and images in the cells of a table."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.new("RGB", (8 + i, 8)).save(images / f"{i}.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    (tmp_path / "rows-1.csv").write_text("sku,title,price,day\np1,mug,3.5,2026-11-30\np2,jug,,\n")
    (tmp_path / "rows-2.csv").write_text("sku,title,price,day\np3,cup,nan,2026-01-01\n")
    uris = [*(f"images/{i}.png" for i in range(3)), str(tmp_path / "secret.png"), "images/none.png"]
    (tmp_path / "images" / "uris.csv").write_text(
        "id,uri\n" + "".join(f"u{i},{uri.removeprefix('images/')}\n" for i, uri in enumerate(uris))
    )
    cells = [(images / f"{i}.png").read_bytes() for i in range(3)]
    pq.write_table(pa.table({"id": ["c0", "c1", "c2"], "data": cells}), tmp_path / "cells.parquet", row_group_size=2)
    return [
        {"kind": "image", "files": f"{images}/*.png"},
        {
            "kind": "text",
            "table": f"{tmp_path}/rows-*.csv",
            "id": "sku",
            "text": "title",
            "metadata": {"price": "double", "day": "date"},
        },
        {"kind": "image", "table": f"{images}/uris.csv", "id": "id", "uri": "uri"},
        {"kind": "image", "table": f"{tmp_path}/cells.parquet", "id": "id", "bytes": "data"},
    ]


def read(sources, folder, *options, **arguments):
    return run(lambda p: (p | epithre.ReadAssets(sources, **arguments))._asdict(), folder, *options)


def test_assets_are_those_that_a_job_lists(sources, tmp_path):
    found = read(sources, tmp_path)
    listed = [
        row
        for position, source in enumerate(sources)
        for table in list_references(SourceConfig.model_validate(source), position, {})
        for row in table.to_pylist()
    ]
    names = {"id": "asset_id"}
    for asset, row in zip(found["assets"], sorted(listed, key=lambda r: r["asset_id"]), strict=True):
        for name in ("id", "kind", "uri", "text", "fingerprint", "size_bytes"):
            assert asset[name] == row[names.get(name, name)]
        assert asset["content"] is None
        assert (asset["source"] is None) == (asset["uri"] is None)
    assert found["dead"] == []


def test_metadata_of_a_table_travels_as_json(sources, tmp_path):
    found = {a["id"]: a["metadata"] for a in read(sources, tmp_path)["assets"]}
    assert json.loads(found["p1"]) == {"day": "2026-11-30", "price": 3.5}
    assert json.loads(found["p2"]) == {"day": None, "price": None}
    assert json.loads(found["p3"]) == {"day": "2026-01-01", "price": None}  # JSON has no NaN
    assert found["0.png"] is None


def test_elements_have_the_types_that_the_schema_says(sources, tmp_path):
    assert len(read(sources, tmp_path, ["--runner=FnApiRunner", "--runtime_type_check"], content=True)["assets"]) == 12


@pytest.mark.core
@pytest.mark.parametrize("runner", RUNNERS)
def test_content_is_read_by_the_rules_of_its_source(runner, sources, tmp_path):
    found = read(sources, tmp_path, RUNNERS[runner], content=True)
    content = {asset["id"]: asset["content"] for asset in found["assets"] if asset["kind"] == "image"}
    for i in range(3):
        data = (tmp_path / "images" / f"{i}.png").read_bytes()
        assert content[f"{i}.png"] == content[f"u{i}"] == content[f"c{i}"] == data
    assert {asset["text"] for asset in found["assets"] if asset["kind"] == "text"} == {"mug", "jug", "cup"}
    assert [(d["id"], d["stage"], d["reason"]) for d in found["dead"]] == [
        ("u3", "read", "uri_not_allowed"),
        ("u4", "read", "missing"),
    ]
    assert len(content) + len(found["dead"]) == 11


def test_too_large_file_is_a_dead_asset_and_the_others_are_read(sources, tmp_path):
    (tmp_path / "images" / "0.png").write_bytes(bytes(2000))
    found = read(sources[0], tmp_path, prepare=PrepareConfig(max_file_bytes=1999), content=True)
    assert [asset["id"] for asset in found["assets"]] == ["1.png", "2.png"]
    assert [(d["id"], d["reason"], d["attempts"]) for d in found["dead"]] == [("0.png", "file_too_large", 0)]


def test_row_without_a_uri_is_a_dead_asset_and_not_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("id,uri\na,\n")
    source = {"kind": "image", "table": f"{tmp_path}/t.csv", "id": "id", "uri": "uri"}
    (asset,) = read(source, tmp_path)["assets"]
    assert to_asset(epithre.Asset(**asset)).uri == ""
    (dead,) = read(source, tmp_path, content=True)["dead"]
    assert (dead["reason"], dead["detail"]) == ("missing", "the row has no uri")


def test_two_columns_of_bytes_in_one_table_are_not_confused(tmp_path):
    table = {"id": ["a", "b"], "front": [b"f0", b"f1"], "back": [b"b0", b"b1"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    sources = [
        {"kind": "image", "table": f"{tmp_path}/t.parquet", "id": "id", "bytes": column} for column in ("front", "back")
    ]
    assets = read(sources, tmp_path, content=True)["assets"]
    assert sorted((a["id"], a["content"]) for a in assets) == [("a", b"b0"), ("a", b"f0"), ("b", b"b1"), ("b", b"f1")]


def test_relative_paths_start_where_the_pipeline_is_built(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transform = epithre.ReadAssets({"kind": "image", "files": "images"})
    monkeypatch.chdir("/")
    found = run(lambda p: (p | transform)._asdict(), tmp_path)
    assert [asset["id"] for asset in found["assets"]] == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"kind": "text"}, r"sources\[0\]: the source needs either `files` or `table`."),
        ({"kind": "video", "files": "x"}, r"sources\[0\].kind must be 'image' or 'text', got 'video'"),
        ({"kind": "text", "tabel": "x"}, "tabel is not a known key. Did you mean 'table'"),
        ([], "sources must have at least 1 entry"),
        (["images"], r"sources\[0\] must be a mapping of keys, got 'images'"),
        ({"kind": "image", "files": "s3://b/*", "storage_options": {"secret": "x"}}, "looks like a credential"),
    ],
)
def test_wrong_source_is_refused_at_construction(sources, words):
    with pytest.raises(ConfigError, match=words):
        epithre.ReadAssets(sources)


def test_wrong_prepare_is_refused_at_construction():
    with pytest.raises(ConfigError, match=r"prepare\.max_file_bytes must be at least 1, got 0"):
        epithre.ReadAssets({"kind": "image", "files": "x"}, {"max_file_bytes": 0})


def test_it_is_refused_after_another_transform():
    with pytest.raises(ArgumentError, match="begins a pipeline, so apply it to the pipeline itself, got PCollection"):
        _ = beam.Pipeline() | beam.Create(["x"]) | epithre.ReadAssets({"kind": "image", "files": "x"})


def test_pattern_that_matches_nothing_stops_the_pipeline_with_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"matches the pattern|does not exist"):
        read({"kind": "image", "files": f"{tmp_path}/*.png"}, tmp_path)


def test_invalid_value_in_a_table_stops_the_pipeline_and_names_its_row(tmp_path):
    (tmp_path / "t.csv").write_text("id,title,price\na,mug,3\nb,jug,cheap\n")
    source = {"kind": "text", "table": f"{tmp_path}/t.csv", "id": "id", "text": "title", "metadata": {"price": "int"}}
    with pytest.raises(SourceError, match="cheap"):
        read(source, tmp_path)


def test_table_without_rows_gives_no_assets(tmp_path):
    pq.write_table(pa.table({"id": pa.array([], pa.string()), "t": pa.array([], pa.string())}), tmp_path / "t.parquet")
    source = {"kind": "text", "table": f"{tmp_path}/t.parquet", "id": "id", "text": "t"}
    assert read(source, tmp_path) == {"assets": [], "dead": []}


def test_display_data_names_the_sources():
    transform = epithre.ReadAssets({"kind": "image", "files": "/images"}, content=True)
    shown = {item.key: item.value for item in DisplayData.create_from(transform).items}
    assert shown == {"sources": "/images", "content": True}


def test_output_has_types_and_counts(sources, tmp_path):
    pipeline = beam.Pipeline()
    result = pipeline | epithre.ReadAssets(sources)
    assert (result.assets.element_type, result.dead.element_type) == (epithre.Asset, epithre.DeadAsset)
    assert result.assets.is_bounded
    counters = pipeline.run().metrics().query()["counters"]
    assert sum(c.committed for c in counters if c.key.metric.name == "assets_listed") == 14


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--save_main_session", "--no_save_main_session"])
def test_program_of_a_user_runs_with_and_without_its_main_session(flag, sources, tmp_path):
    """The function that the program maps is defined in `__main__`, and workers are other processes."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(f"""
            import sys
            import apache_beam as beam
            from apache_beam.options.pipeline_options import PipelineOptions
            from epithre_beam import transforms as epithre

            def name(asset):
                return asset.id if isinstance(asset, tuple) else epithre.Asset

            if __name__ == "__main__":
                with beam.Pipeline(options=PipelineOptions(sys.argv[1:])) as p:
                    result = p | epithre.ReadAssets({sources!r}, content=True)
                    _ = result.assets | beam.Map(name) | beam.io.WriteToText({str(tmp_path / "names")!r})
        """)
    )
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2", flag, "--runner=FnApiRunner"]
    done = subprocess.run(
        [sys.executable, program, *options], capture_output=True, text=True, env=os.environ, cwd="/", check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = [line for path in tmp_path.glob("names-*") for line in path.read_text().split()]
    assert sorted(names) == ["0.png", "1.png", "2.png", "c0", "c1", "c2", "p1", "p2", "p3", "u0", "u1", "u2"]


class SlowServer(http.server.ThreadingHTTPServer):
    """Answers each request for a file after a while, and counts how many of a file's content it has at once."""

    daemon_threads = True

    def __init__(self, latency_s=0.1, size=300_000):
        server = self
        self.lock, self.now, self.peak, self.ends = threading.Lock(), 0, 0, []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                with server.lock:
                    server.now += self.command == "GET"
                    server.peak = max(server.peak, server.now)
                time.sleep(latency_s)
                with server.lock:
                    server.now -= self.command == "GET"
                    server.ends.append(time.monotonic())
                self.send_response(200)
                body = self.path.encode().ljust(size)
                self.send_header("Content-Length", str(size))
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body)

            do_HEAD = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def slow(tmp_path):
    """A table of 24 files on a slow server."""
    server = SlowServer()
    place = f"http://127.0.0.1:{server.server_address[1]}"
    lines = [f"{i:02d},{place}/{i:02d}.png" for i in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["id,uri", *lines]))
    source = {"kind": "image", "table": f"{tmp_path}/t.csv", "id": "id", "uri": "uri", "within": [f"{place}/"]}
    yield server, source
    server.shutdown()
    server.server_close()


@pytest.mark.core
@pytest.mark.parametrize("runner", ["in_memory", "bundles", "repeated"])
def test_several_files_are_read_at_once(runner, slow, tmp_path):
    server, source = slow
    found = read(source, tmp_path, RUNNERS[runner], content=True, readers=6)
    assert [(a["id"], a["content"].split()[0]) for a in found["assets"]] == [
        (f"{i:02d}", f"/{i:02d}.png".encode()) for i in range(24)
    ]
    assert found["dead"] == []
    assert 4 <= server.peak <= 6


def test_bytes_of_files_that_are_read_at_once_are_limited(slow, tmp_path):
    server, source = slow
    found = read(source, tmp_path, content=True, readers=20, memory_mb=1)
    assert len(found["assets"]) == 24
    assert server.peak <= 3


@pytest.mark.alone
def test_files_of_a_slow_server_are_read_several_times_as_fast(slow, tmp_path):
    """From the first answer to the last one; starting a pipeline takes longer than 24 files."""
    server, source = slow
    took = {}
    for readers in (1, 12):
        server.ends.clear()
        assert len(read(source, tmp_path, content=True, readers=readers)["assets"]) == 24
        gets = server.ends[-24:]
        took[readers] = gets[-1] - gets[0]
    assert took[1] > 4 * took[12]


@pytest.mark.parametrize("arguments", [{"readers": 0}, {"readers": 1.5}, {"memory_mb": 0}])
def test_wrong_number_is_refused_at_construction(arguments):
    with pytest.raises(ConfigError, match="must be an int of at least 1, got"):
        epithre.ReadAssets({"kind": "image", "files": "x"}, content=True, **arguments)
