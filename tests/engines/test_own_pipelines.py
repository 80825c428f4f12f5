"""The transforms give the same rows in a pipeline of a user on every engine, or are refused with a sentence."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap

import pyarrow.dataset as ds
import pytest

from epithre_beam.index import Store, open_catalog
from epithre_beam.index.publish.verify import verify_versions
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector

from .engine import KEY, Engine

ASSETS = 60
PROGRAM = """
import hashlib, json, sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from epithre_beam import transforms as epithre

def embed(asset):
    data = asset.content or asset.text.encode()
    digest = hashlib.sha256(data).hexdigest()
    numbers = [byte / 256 for byte in bytes.fromhex(digest)]
    return epithre.EmbeddedAsset(
        asset.id, asset.kind, None, asset.text, digest, asset.fingerprint, None, len(data), None, None, None,
        asset.metadata, numbers,
    )

def main(sources, out, options):
    with beam.Pipeline(options=PipelineOptions(options)) as p:
        result = p | epithre.ReadAssets(sources, content=True)
        rows = result.assets | beam.Map(embed).with_output_types(epithre.EmbeddedAsset)
        _ = rows | epithre.WriteVectors(out, metadata={"price": "double"})

if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:])
"""


@pytest.fixture
def sources(tmp_path):
    """Files of texts, and a table in three files."""
    (tmp_path / "texts").mkdir()
    for i in range(ASSETS // 2):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"file {i}")
    for table in range(3):
        rows = [f"t{i},row {i},{i / 2}" for i in range(ASSETS // 2) if i % 3 == table]
        (tmp_path / f"table-{table}.csv").write_text("\n".join(["sku,title,price", *rows]))
    return [
        {"kind": "text", "files": f"{tmp_path}/texts/*.txt"},
        {
            "kind": "text",
            "table": f"{tmp_path}/table-*.csv",
            "id": "sku",
            "text": "title",
            "metadata": {"price": "double"},
        },
    ]


def test_reading_and_writing_give_each_asset_once_on_every_engine(engine: Engine, sources, tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(textwrap.dedent(PROGRAM))
    done = subprocess.run(
        [sys.executable, program, json.dumps(sources), out, *engine.options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if engine.name == "dask":
        assert done.returncode != 0
        assert "WriteVectors does not run on Dask" in done.stderr
        assert not out.exists()
        return
    assert done.returncode == 0, done.stderr[-3000:]
    rows = ds.dataset(str(out), format="parquet").to_table().to_pylist()
    contents = {f"{i}.txt": f"file {i}" for i in range(ASSETS // 2)} | {f"t{i}": f"row {i}" for i in range(ASSETS // 2)}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in contents.items()}
    assert {row["id"]: row["content_sha256"] for row in rows} == digests
    assert len(rows) == ASSETS
    for row in rows:
        assert row["price"] == (int(row["id"][1:]) / 2 if row["id"].startswith("t") else None)
    assert json.loads((out / "_vectors.json").read_text())["rows"] == ASSETS
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


EMBEDDING = """
import hashlib, json, pathlib, sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from epithre_beam import transforms as epithre

def describe(element):
    if hasattr(element, "embedding"):
        return element.id, [round(number, 4) for number in element.embedding], json.loads(element.made_by)["server"]
    return element.id, element.stage, element.reason

def keep(row, folder):
    text = json.dumps(row)
    pathlib.Path(folder, hashlib.sha256(text.encode()).hexdigest()).write_text(text)

def main(sources, out, base_url, options):
    with beam.Pipeline(options=PipelineOptions(options)) as p:
        assets = (p | epithre.ReadAssets(sources)).assets
        result = assets | epithre.EmbedAssets(base_url=base_url, dimension=8, batch_items=7)
        embedded = result.embedded | "Vectors" >> beam.Map(describe)
        dead = result.dead | "Reasons" >> beam.Map(describe)
        _ = (embedded, dead) | "All" >> beam.Flatten() | beam.Map(keep, out)

if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
"""


def test_embedding_gives_each_asset_its_vector_or_its_reason_on_every_engine(engine: Engine, sources, tmp_path):
    """Dask runs one leaf of a pipeline only, so the two outputs are joined."""
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(textwrap.dedent(EMBEDDING))
    out.mkdir()
    settings = EmulatorSettings(dimension=8, api_keys=(KEY,), faults=Faults(poison_marker="row 7"))
    with Emulator(settings) as emulator:
        done = subprocess.run(
            [sys.executable, program, json.dumps(sources), out, emulator.base_url, *engine.options],
            cwd=tmp_path,
            env={**os.environ, "EPITHRE_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    contents = {f"{i}.txt": f"file {i}" for i in range(ASSETS // 2)} | {f"t{i}": f"row {i}" for i in range(ASSETS // 2)}
    expected = [
        [name, [round(float(number), 4) for number in hash_vector("text", text.encode(), 8)], "emulator-hash-1-8"]
        for name, text in contents.items()
        if text != "row 7"
    ]
    found = [json.loads(file.read_text()) for file in out.iterdir()]
    assert sorted(found) == sorted([*expected, ["t7", "embed", "refused"]], key=lambda row: row[0])


CATALOG_PROGRAM = """
import json, sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from epithre_beam import transforms as epithre

def vector(number):
    return [float((number * 7 + i * 3) % 11 - 5) or 0.5 for i in range(16)]

def row(number):
    return beam.Row(id=f"r{number}", kind="text", text=f"row {number}", embedding=vector(number))

def query(number):
    return epithre.Query.of_vector(f"q{number}", vector(number))

def main(catalog, out, options):
    with beam.Pipeline(options=PipelineOptions(options)) as p:
        rows = p | beam.Create(range(60)) | beam.Reshuffle() | beam.Map(row)
        result = rows | epithre.WriteCatalog(catalog)
    with beam.Pipeline(options=PipelineOptions(options)) as p:
        rows = p | "New" >> beam.Create(range(60, 66)) | beam.Map(row)
        gone = p | "Gone" >> beam.Create(["r0", ("text", "r1")])
        result = rows | epithre.WriteCatalog(catalog, mode="upsert", delete=gone)
    for groups, size in enumerate([None, 0.0001]):
        with beam.Pipeline(options=PipelineOptions(options)) as p:
            queries = p | beam.Create(range(66)) | beam.Reshuffle() | beam.Map(query)
            hits = (queries | epithre.SearchCatalog(catalog, k=2, worker_index_mb=size)).hits
            lines = hits | beam.Map(lambda hit: json.dumps(hit._asdict()))
            _ = lines | beam.io.WriteToText(f"{out}-{groups}", shard_name_template="")

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
"""


def test_catalog_is_written_brought_up_to_date_and_searched_on_every_engine(engine: Engine, tmp_path):
    program, catalog, out = tmp_path / "program.py", tmp_path / "catalog", tmp_path / "hits"
    program.write_text(CATALOG_PROGRAM)
    done = subprocess.run(
        [sys.executable, program, catalog, out, *engine.options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    if engine.name == "dask":
        assert done.returncode != 0
        assert "WriteCatalog does not run on Dask" in done.stderr
        assert not catalog.exists()
        return
    assert done.returncode == 0, done.stderr[-3000:]
    with open_catalog(catalog) as opened:
        assert set(opened.assets("text").column("asset_id").to_pylist()) == {f"r{i}" for i in range(2, 66)}
    assert [verdict.damage for verdict in verify_versions(Store(str(catalog)), every=True)] == [(), ()]
    found = [sorted((tmp_path / f"hits-{groups}").read_text().splitlines()) for groups in range(2)]
    assert found[0] == found[1]
    assert len(found[0]) == 66 * 2


CHATTING = """
import json, pathlib, sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from epithre_beam import transforms as epithre

def describe(element):
    return element.id, getattr(element, "answer", None), getattr(element, "reason", None)

def keep(row, folder):
    pathlib.Path(folder, row[0]).write_text(json.dumps(row))

def main(out, base_url, options):
    with beam.Pipeline(options=PipelineOptions(options)) as p:
        rows = p | beam.Create([epithre.ChatRow.of(f"{i:02d}", {"n": i} if i % 10 else {}) for i in range(60)])
        result = rows | epithre.ChatAssets("Say {{ n }}.", base_url=base_url)
        answered = result.answered | "Answers" >> beam.Map(describe)
        dead = result.dead | "Reasons" >> beam.Map(describe)
        _ = (answered, dead) | "All" >> beam.Flatten() | beam.Map(keep, out)

if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
"""


def test_chatting_gives_each_row_its_answer_or_its_reason_on_every_engine(engine: Engine, tmp_path):
    program, out = tmp_path / "program.py", tmp_path / "out"
    program.write_text(textwrap.dedent(CHATTING))
    out.mkdir()
    with Emulator(EmulatorSettings(dimension=8, api_keys=(KEY,))) as emulator:
        done = subprocess.run(
            [sys.executable, program, out, emulator.base_url, *engine.options],
            cwd=tmp_path,
            env={**os.environ, "EPITHRE_KEY": KEY},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        billed = emulator.stats()["billed_items"]
    rows = [json.loads(path.read_text()) for path in sorted(out.iterdir())]
    assert [row[0] for row in rows] == [f"{i:02d}" for i in range(60)]
    for i, (_, answer, reason) in enumerate(rows):
        assert (reason == "bad_prompt") if i % 10 == 0 else (f"Say {i}." in answer)
    assert billed == 54 * (2 if engine.name == "repeated" else 1)
