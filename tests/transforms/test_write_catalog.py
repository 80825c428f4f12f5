"""WriteCatalog publishes one verified version of what came in, or leaves the version before."""

import datetime
import hashlib
import io
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import test_stream
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from PIL import Image

from epithre_beam import transforms as epithre
from epithre_beam.configs import GateConfig, RunConfig
from epithre_beam.errors import (
    ArgumentError,
    CatalogBusyError,
    CatalogError,
    ConfigError,
    GateError,
    LeaseLostError,
    OtherJobError,
    SourceError,
)
from epithre_beam.index import Store, open_catalog
from epithre_beam.index.publish.verify import verify_versions
from epithre_beam.index.versions.lease import LEASE, hold
from epithre_beam.pipelines.jobs.run import run as run_job
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings
from epithre_beam.transforms.versions.begun import PipelineSetup, begin
from epithre_beam.transforms.versions.incoming_rows import IncomingWriter
from epithre_beam.transforms.versions.pipeline_version import plan_version

from .pipeline_runs import BUNDLES, IN_MEMORY, PROCESSES, REPEATED, RUNNERS, run
from .test_write_vectors import FailsOnce, embed, embedded, vector

TYPES = {"price": "double"}


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    monkeypatch.setenv("EPITHRE_BEAM_TRUST", str(tmp_path / "trust"))
    return tmp_path / "catalog"


def text(number, **changes):
    return embed(number)._replace(kind="text", **changes)


def texts(*numbers):
    return [text(number) for number in numbers]


def write(folder, rows, options=IN_MEMORY, **arguments):
    """Write rows, and return the outcome and the dead assets."""

    def build(pipeline):
        for name in {"delete", "dead"} & arguments.keys():
            arguments[name] = pipeline | f"Create_{name}" >> beam.Create(arguments[name])
        elements = pipeline | beam.Create(rows, reshuffle=False)
        if not rows:
            elements = elements | beam.Map(embed).with_output_types(epithre.EmbeddedAsset)
        result = elements | epithre.WriteCatalog(folder, **arguments)
        return {"outcome": result.outcome, "dead": result.dead}

    found = run(build, folder.parent, options)
    (outcome,) = found["outcome"]
    return outcome, found["dead"]


def assert_whole(folder, versions=1):
    """Every version is verified, nothing else is there, and nobody holds the catalog."""
    verdicts = list(verify_versions(Store(str(folder)), every=True))
    assert [verdict.damage for verdict in verdicts] == [()] * versions
    assert len(list((folder / "versions").iterdir())) == versions
    assert list((folder / "runs").rglob("*")) == []
    assert not (folder / LEASE).exists()


def rows_of(folder):
    """Return the ids of the published version by kind, each found by its own vector."""
    found = {}
    with open_catalog(folder) as opened:
        for kind in opened.kinds:
            ids = opened.assets(kind).column("asset_id").to_pylist()
            hits = opened.search(opened.vectors(kind, range(len(ids))), k=1, kinds=[kind])
            assert [hit.score > 0.999 for (hit,) in hits] == [True] * len(ids)
            found[kind] = sorted(ids)
    return found


@pytest.mark.parametrize("runner", RUNNERS)
def test_one_verified_version_has_every_row_on_every_runner(runner, catalog, tmp_path):
    def build(pipeline):
        result = embedded(pipeline) | epithre.WriteCatalog(catalog, metadata=TYPES)
        return {"outcome": result.outcome, "dead": result.dead}

    found = run(build, tmp_path, RUNNERS[runner])
    (outcome,) = found["outcome"]
    assert found["dead"] == []
    assert (outcome["is_published"], outcome["embedded"], outcome["gate_failures"]) == (True, 40, [])
    assert_whole(catalog)
    with open_catalog(catalog) as opened:
        assert opened.version == outcome["version"]
        for number in range(40):
            ((hit,),) = opened.search(np.array([vector(number)], np.float32), k=1, kinds=[embed(number).kind])
            assert (hit.asset_id, hit.metadata) == (f"a{number}", {"price": number / 2})
            asset = opened.asset(hit.kind, hit.row)
            assert (asset.content_sha256, asset.size_bytes) == (f"{number:064d}", number)


def test_same_rows_in_any_order_and_bundles_are_the_same_bytes(tmp_path, catalog):
    rows = [embed(number) for number in range(40)]
    write(tmp_path / "a", rows, metadata=TYPES)
    write(tmp_path / "b", rows[::-1], BUNDLES, metadata=TYPES)
    assert data_files(tmp_path / "a") == data_files(tmp_path / "b")


def data_files(folder, version=None):
    """Return the sums of the files of a version, or of the only one, without its manifest and report."""
    (only,) = [folder / "versions" / version] if version else (folder / "versions").iterdir()
    files = [path for path in only.rglob("*") if path.is_file() and path.parent != only]
    return {str(path.relative_to(only)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_sources(folder):
    (folder / "photos").mkdir()
    for seed in range(12):
        pixels = np.random.default_rng(seed % 10).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        (folder / "photos" / f"{seed}.png").write_bytes(file.getvalue())
    lines = [f"p{i},text number {i % 25},{i / 2}" for i in range(40)]
    (folder / "products.csv").write_text("\n".join(["sku,title,price", *lines]))
    table = str(folder / "products.csv")
    return [
        {"kind": "image", "files": str(folder / "photos" / "*.png")},
        {"kind": "text", "table": table, "id": "sku", "text": "title", "metadata": TYPES},
    ]


@pytest.fixture
def emulator(monkeypatch):
    with Emulator(EmulatorSettings(dimension=16)) as started:
        monkeypatch.setenv("WRITE_CATALOG_KEY", started.api_key)
        yield started


def api_of(emulator, **others):
    return {"base_url": emulator.base_url, "dimension": 16, "api_key_env": "WRITE_CATALOG_KEY", **others}


@pytest.mark.parametrize("runner", ["in_memory", "bundles"])
def test_catalog_of_a_job_and_of_the_transforms_have_the_same_bytes(runner, emulator, catalog, tmp_path):
    sources, embed_config = write_sources(tmp_path), api_of(emulator, unit_references=8)
    config = {"catalog": str(tmp_path / "job"), "sources": sources, "embed": embed_config}
    run_job(RunConfig.model_validate(config))

    def build(pipeline):
        assets = (pipeline | epithre.ReadAssets(sources)).assets
        result = assets | epithre.EmbedAssets(embed=embed_config, rate_limiter="memory")
        return {"o": (result.embedded | epithre.WriteCatalog(catalog, metadata=TYPES, dead=result.dead)).outcome}

    run(build, tmp_path, RUNNERS[runner])
    assert len(data_files(catalog)) == 6
    assert data_files(catalog) == data_files(tmp_path / "job")
    assert open_catalog(catalog).manifest.made_by == open_catalog(tmp_path / "job").manifest.made_by


def test_settings_of_embed_assets_are_those_of_the_catalog_so_that_a_job_carries_on_without_sending(
    emulator, catalog, tmp_path
):
    sources, embed_config = write_sources(tmp_path), api_of(emulator)

    def build(pipeline):
        assets = (pipeline | epithre.ReadAssets(sources)).assets
        result = assets | epithre.EmbedAssets(embed=embed_config, rate_limiter="memory")
        return {"o": (result.embedded | epithre.WriteCatalog(catalog, metadata=TYPES)).outcome}

    run(build, tmp_path)
    before = emulator.stats()["billed_items"]
    config = {"catalog": str(catalog), "sources": sources, "embed": embed_config}
    report = run_job(RunConfig.model_validate(config))
    assert (report["unchanged"], emulator.stats()["billed_items"]) == (True, before)


def test_bundle_that_fails_once_is_written_once(catalog, tmp_path):
    flag = tmp_path / "failed"

    def build(pipeline):
        poisoned = FailsOnce(vector(37), str(flag))
        rows = pipeline | beam.Create(range(40)) | beam.Map(embed)
        rows |= beam.Map(lambda row: row._replace(embedding=poisoned) if row.id == "a37" else row)
        return {"outcome": (rows | epithre.WriteCatalog(catalog)).outcome}

    (outcome,) = run(build, tmp_path, BUNDLES)["outcome"]
    assert flag.exists()
    assert outcome["embedded"] == 40
    assert_whole(catalog)


@pytest.mark.parametrize("options", [IN_MEMORY, REPEATED], ids=["once", "repeated"])
def test_upsert_keeps_the_others_replaces_its_own_and_deletes(options, catalog):
    write(catalog, [embed(number) for number in range(40)], metadata=TYPES)
    before = {name: data for name, data in vectors_of(catalog).items() if name != ("image", "a39")}
    rows = [embed(39)._replace(embedding=vector(1000)), text(40), text(41)]
    ids = ["a1", ("image", "a3"), ("text", "a6"), "a41", "never there"]
    outcome, _ = write(catalog, rows, options, mode="upsert", delete=ids)
    counts = {name: outcome[name] for name in ("embedded", "reused", "deleted", "is_published")}
    assert counts == {"embedded": 3, "reused": 37, "deleted": 2, "is_published": True}
    found = vectors_of(catalog)
    expected = {name: data for name, data in before.items() if name not in {("text", "a1"), ("image", "a3")}}
    assert {name: data for name, data in found.items() if name in expected} == expected
    new = {("image", "a39"): vector(1000), ("text", "a40"): vector(40), ("text", "a41"): vector(41)}
    others = {name: data for name, data in found.items() if name not in expected}
    assert others.keys() == new.keys()
    assert all(np.allclose(others[name], new[name], atol=1e-3) for name in new)
    assert_whole(catalog, versions=2)
    with open_catalog(catalog) as opened:
        assert opened.metadata_types == TYPES
        assert opened.asset("text", opened.find_asset("text", "a2")).metadata == {"price": 1.0}


def vectors_of(folder):
    with open_catalog(folder) as opened:
        return {
            (kind, name): tuple(opened.vectors(kind, [row])[0].tolist())
            for kind in opened.kinds
            for row, name in enumerate(opened.assets(kind).column("asset_id").to_pylist())
        }


@pytest.mark.parametrize("options", [IN_MEMORY, REPEATED, BUNDLES], ids=["once", "repeated", "bundles"])
def test_upsert_without_changes_writes_no_version(options, catalog):
    written, _ = write(catalog, texts(*range(30)))
    outcome, _ = write(catalog, [], options, mode="upsert", delete=["never there"])
    assert (outcome["version"], outcome["is_published"], outcome["reused"]) == (written["version"], True, 30)
    assert_whole(catalog)


def test_upsert_of_a_new_catalog_writes_it(catalog):
    assert write(catalog, texts(1, 2, 3), mode="upsert")[0]["embedded"] == 3
    assert rows_of(catalog) == {"text": ["a1", "a2", "a3"]}


def test_replace_leaves_nothing_of_the_version_before(catalog):
    write(catalog, texts(*range(30)))
    outcome, _ = write(catalog, texts(*range(1, 31)))
    assert (outcome["embedded"], outcome["reused"], outcome["deleted"]) == (30, 0, 1)
    assert rows_of(catalog) == {"text": sorted(f"a{i}" for i in range(1, 31))}


def test_duplicate_id_is_refused_with_the_id_and_nothing_is_published(catalog):
    write(catalog, texts(1, 2, 3))
    with pytest.raises(SourceError, match=r"text 'a5' came in 2 times"):
        write(catalog, [*texts(4, 5), *texts(5)])
    assert rows_of(catalog) == {"text": ["a1", "a2", "a3"]}
    write(catalog, texts(1, 2, 3, 4))  # the lease is free


def test_same_id_in_two_kinds_is_two_assets(catalog):
    write(catalog, [text(1), embed(1)._replace(kind="image")])
    assert rows_of(catalog) == {"image": ["a1"], "text": ["a1"]}


def dead(number, reason="missing", kind="text"):
    return epithre.DeadAsset(f"a{number}", kind, None, "read", reason, "the file is missing", 0)


def test_dead_assets_are_stored_and_counted_and_replace_their_rows(catalog):
    write(catalog, texts(*range(30)))
    outcome, _ = write(catalog, texts(30), mode="upsert", dead=[dead(3), dead(31, "empty_text")])
    assert (outcome["dead"], outcome["deleted"], outcome["is_published"]) == (2, 1, True)
    assert letters_of(catalog) == [("a3", "missing"), ("a31", "empty_text")]
    outcome, _ = write(catalog, texts(3), mode="upsert", delete=["a4"])
    assert letters_of(catalog) == [("a31", "empty_text")]
    assert len(rows_of(catalog)["text"]) == 30


def letters_of(folder):
    version = folder / "versions" / open_catalog(folder).version
    rows = pq.read_table(version / "dead_letters").to_pylist()
    return sorted((row["asset_id"], row["reason"]) for row in rows)


def test_asset_that_is_dead_and_alive_is_refused(catalog):
    with pytest.raises(SourceError, match="text 'a3' is dead and came in once more"):
        write(catalog, texts(1, 2, 3), dead=[dead(3)])


def test_gates_hold_a_version_as_an_outcome_or_an_error(catalog):
    write(catalog, texts(*range(30)))
    outcome, _ = write(catalog, texts(1, 2))
    assert outcome["is_published"] is False
    assert "gates.max_shrinkage allows a kind to lose 20%" in outcome["gate_failures"][0]
    assert len(rows_of(catalog)["text"]) == 30
    with pytest.raises(GateError, match=r"was written, but not published\. gates\.max_dead_share"):
        write(catalog, texts(*range(30)), dead=[dead(i) for i in range(100, 130)], fail_if_held=True)
    assert len(rows_of(catalog)["text"]) == 30
    assert write(catalog, texts(1, 2), gates={"max_shrinkage": 1, "max_turnover": 1})[0]["is_published"] is True


def test_held_version_is_written_once_by_bundles_that_are_repeated(catalog):
    write(catalog, texts(*range(30)))
    outcome, _ = write(catalog, texts(1, 2), REPEATED)
    assert outcome["is_published"] is False
    assert_whole(catalog, versions=2)


def test_turnover_is_a_gate_too(catalog):
    write(catalog, texts(*range(30)))
    changed = [text(number, content_sha256=f"{number + 1:064d}") for number in range(30)]
    assert "gates.max_turnover" in write(catalog, changed)[0]["gate_failures"][0]


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ([0.0] * 16, "the vector must not be zero"),
        ([float("nan")] * 16, "the vector must be finite"),
        ([1.0] * 15, "the vector must have 16 dimensions, got 15"),
        (None, "the vector is missing"),
    ],
)
def test_invalid_vector_is_a_dead_asset_alone(numbers, why, catalog):
    rows = [*texts(*range(30)), beam.Row(id="bad", kind="text", embedding=numbers)]
    embed_config = {"model": "mine", "dimension": 16}
    outcome, found = write(catalog, [row_of(row) for row in rows], embed=embed_config)
    assert [(asset["id"], asset["stage"], asset["reason"], asset["detail"]) for asset in found] == [
        ("bad", "import", "broken_vector", why)
    ]
    assert (outcome["embedded"], outcome["dead"]) == (30, 1)
    assert letters_of(catalog) == [("bad", "broken_vector")]


def row_of(row):
    values = row._asdict()
    return beam.Row(**{name: values[name] for name in ("id", "kind", "embedding")})


def test_vectors_of_two_dimensions_are_refused_if_none_is_known(catalog):
    with pytest.raises(ArgumentError, match="must have the same dimension, got 16 and 15"):
        write(catalog, [text(1), text(2, embedding=[0.5] * 15)])


def test_vector_that_is_not_normalised_is_normalised(catalog):
    write(catalog, [text(1, embedding=[3.0] * 16)])
    assert np.allclose(vectors_of(catalog)["text", "a1"], [0.25] * 16)


def test_rows_with_only_id_kind_and_embedding_get_the_hash_of_what_is_there(catalog):
    rows = [beam.Row(id=f"r{i}", kind="text", text=f"row {i}", embedding=vector(i)) for i in range(3)]
    write(catalog, rows)
    with open_catalog(catalog) as opened:
        asset = opened.asset("text", opened.find_asset("text", "r2"))
        assert asset.content_sha256 == hashlib.sha256(b"row 2").hexdigest()
        assert (asset.media_type, asset.size_bytes, opened.manifest.model) == ("text/plain", 5, "unknown")


def test_metadata_keeps_its_types(catalog):
    metadata = {"n": 1, "on": datetime.date(2026, 1, 2), "ok": True}
    asset = epithre.Asset.of_text("a1", "mug", metadata=metadata)
    write(catalog, [text(1, metadata=asset.metadata)], metadata={"n": "int", "on": "date", "ok": "bool"})
    with open_catalog(catalog) as opened:
        assert opened.asset("text", 0).metadata == metadata


def test_a_name_of_metadata_that_no_asset_has_is_logged(tmp_path, caplog):
    rows = [text(1, metadata='{"price":1}'), text(2, metadata=None)]
    write(tmp_path / "c", rows, metadata={"price": "int", "prise": "int"})
    words = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert words == ["WriteCatalog: no asset has metadata 'prise', so its column is empty. Check the name."]


def test_metadata_of_a_wrong_type_names_the_asset(catalog):
    with pytest.raises(SourceError, match=r"Asset 'a2': metadata\.price must be of type double, got 'cheap'"):
        write(catalog, [text(1), text(2, metadata='{"price":"cheap"}')], metadata=TYPES)


def test_windows_and_empty_input(catalog, tmp_path):
    def build(pipeline):
        numbers = pipeline | beam.Create(range(40)) | beam.Map(lambda i: TimestampedValue(i, i))
        rows = numbers | beam.WindowInto(FixedWindows(7)) | beam.Map(embed)
        return {"outcome": (rows | epithre.WriteCatalog(catalog)).outcome}

    assert run(build, tmp_path)["outcome"][0]["embedded"] == 40
    outcome, _ = write(tmp_path / "empty", [])
    assert (outcome["is_published"], outcome["embedded"]) == (True, 0)


def test_catalog_that_somebody_holds_is_refused_before_anything_is_embedded(catalog, tmp_path):
    calls = tmp_path / "calls"

    def embed_noted(number):
        calls.touch()
        return embed(number)

    def build(pipeline):
        rows = pipeline | beam.Create(range(3), reshuffle=False) | beam.Map(embed_noted)
        return {"outcome": (rows | epithre.WriteCatalog(catalog)).outcome}

    with hold(Store(str(catalog)), "run"), pytest.raises(CatalogBusyError, match="another run is under way"):
        run(build, tmp_path)
    assert not calls.exists()
    run(build, tmp_path)
    assert_whole(catalog)


PROGRAM = """
import os, pathlib, sys, time
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from epithre_beam import transforms as epithre
from tests.transforms.test_write_vectors import embed

def slow(number):
    pathlib.Path(os.environ["BEGAN"]).touch()
    while not pathlib.Path(os.environ["GO"]).exists():
        time.sleep(0.01)
    return embed(number)

if __name__ == "__main__":
    with beam.Pipeline(options=PipelineOptions(sys.argv[2:])) as p:
        rows = p | beam.Create(range(5), reshuffle=False) | beam.Map(slow)
        _ = rows | epithre.WriteCatalog(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", [IN_MEMORY, PROCESSES], ids=["in_memory", "processes"])
def test_job_and_pipeline_are_refused_while_another_pipeline_embeds(options, emulator, catalog, tmp_path):
    program, began, go = tmp_path / "program.py", tmp_path / "began", tmp_path / "go"
    program.write_text(textwrap.dedent(PROGRAM))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "BEGAN": str(began), "GO": str(go)}
    sources = write_sources(tmp_path)
    command = [sys.executable, program, catalog, *options]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as first:
        while not began.exists():
            assert first.poll() is None, first.stderr.read().decode()[-2000:]
        with pytest.raises(CatalogBusyError, match="another pipeline is under way"):
            write(catalog, texts(1, 2))
        config = {"catalog": str(catalog), "sources": sources, "embed": api_of(emulator)}
        with pytest.raises(CatalogBusyError, match="another pipeline is under way"):
            run_job(RunConfig.model_validate(config))
        go.touch()
        assert first.wait() == 0, first.stderr.read().decode()[-2000:]
    assert_whole(catalog)
    assert rows_of(catalog) == {"image": ["a0", "a3"], "text": ["a1", "a2", "a4"]}


def test_pipeline_that_fails_before_it_leaves_the_catalog_free(catalog, tmp_path):
    def fail(_):
        raise OSError("no products today")

    def build(pipeline):
        rows = pipeline | beam.Create([1]) | beam.Map(fail).with_output_types(epithre.EmbeddedAsset)
        return {"outcome": (rows | epithre.WriteCatalog(catalog)).outcome}

    with pytest.raises(OSError, match="no products today"):
        run(build, tmp_path)
    write(catalog, texts(1))
    assert_whole(catalog)


def test_rows_that_are_lost_or_doubled_on_the_way_are_noticed(catalog):
    """Also files that are gone, as when another run takes over the catalog of a pipeline whose machine slept."""
    setup = PipelineSetup(
        url=str(catalog), nonce="n", mode="replace", embed=None, prepare=None, index=None, gates=GateConfig(),
        metadata=None, job=None, adopt=False,
    )  # fmt: skip
    begun = begin(setup)
    part = _part(begun, catalog)
    assert plan_version(begun, [part], {"text": 3}, setup).groups[0].rows == 3
    with pytest.raises(CatalogError, match="4 text assets came in, but 3 were written"):
        plan_version(begun, [part], {"text": 4}, setup)
    with pytest.raises(SourceError, match="text 'a0' came in 2 times"):
        plan_version(begun, [part, part], {"text": 6}, setup)
    (catalog / f"{part.name}.parquet").unlink()
    with pytest.raises(LeaseLostError, match="Another run took over the catalog"):
        plan_version(begun, [part], {"text": 3}, setup)


def _part(begun, catalog):
    writer = IncomingWriter(Store(str(catalog)), begun.run.version, {}, None)
    for number in range(3):
        writer.add(text(number)._asdict(), vector(number))
    part, _ = writer.finish()
    return part


def test_catalog_of_another_job_is_refused_unless_it_is_adopted(catalog):
    write(catalog, texts(*range(30)), job="shop")
    with pytest.raises(OtherJobError, match="belongs to the job shop, and this pipeline is the job news"):
        write(catalog, texts(*range(30)), job="news")
    with pytest.raises(OtherJobError, match="belongs to the job shop"):
        write(catalog, texts(31), mode="upsert", job="news")
    assert write(catalog, texts(31), mode="upsert")[0]["is_published"] is True
    assert open_catalog(catalog).manifest.job.name == "shop"
    assert write(catalog, texts(*range(50, 60)), job="news", adopt=True)[0]["gate_failures"] != []


def test_upsert_of_another_model_is_refused_before_anything_is_embedded(emulator, catalog, tmp_path):
    write(catalog, texts(1, 2))
    asset = epithre.Asset.of_text("a3", "mug")

    def build(pipeline):
        result = pipeline | beam.Create([asset]) | epithre.EmbedAssets(**api_of(emulator), rate_limiter="memory")
        return {"o": (result.embedded | epithre.WriteCatalog(catalog, mode="upsert")).outcome}

    with pytest.raises(ConfigError, match=r"model was 'unknown' and is 'epithre-embed'"):
        run(build, tmp_path)
    assert emulator.stats()["billed_items"] == 0
    with pytest.raises(ConfigError, match="metadata must be that of the catalog"):
        write(catalog, texts(3), mode="upsert", metadata=TYPES)
    outcome, found = write(catalog, [text(3, embedding=[0.5] * 8)], mode="upsert")
    assert (outcome["dead"], found[0]["detail"]) == (1, "the vector must have 16 dimensions, got 8")


def test_several_embed_assets_of_different_models_need_a_stated_one(catalog):
    pipeline = beam.Pipeline()
    asset = pipeline | beam.Create([epithre.Asset.of_text("a", "mug")])
    one, two = (
        (asset | f"Embed{size}" >> epithre.EmbedAssets(base_url="emulator", dimension=size)).embedded
        for size in (16, 32)
    )
    both = (one, two) | beam.Flatten()
    with pytest.raises(ConfigError, match="several EmbedAssets with different models"):
        _ = both | epithre.WriteCatalog(catalog)
    _ = one | "fine" >> epithre.WriteCatalog(catalog)


def test_unbounded_input_is_refused_when_the_pipeline_is_built():
    pipeline = beam.Pipeline(options=PipelineOptions(["--streaming"]))
    stream = pipeline | test_stream.TestStream().advance_watermark_to_infinity()
    rows = stream | beam.Map(embed).with_output_types(epithre.EmbeddedAsset)
    with pytest.raises(ArgumentError, match="takes bounded PCollections, got an unbounded one"):
        _ = rows | epithre.WriteCatalog("/catalog")
    bounded = pipeline | beam.Create([embed(1)])
    with pytest.raises(ArgumentError, match="takes bounded PCollections"):
        _ = bounded | "delete" >> epithre.WriteCatalog("/catalog", mode="upsert", delete=stream)


def test_dask_is_refused_when_the_pipeline_is_built():
    dask = pytest.importorskip("apache_beam.runners.dask.dask_runner")
    pipeline = beam.Pipeline(runner=dask.DaskRunner())
    with pytest.raises(ArgumentError, match="does not run on Dask"):
        _ = pipeline | beam.Create([embed(1)]) | epithre.WriteCatalog("/catalog")


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        (["a"], "takes a PCollection of EmbeddedAsset, got one of str"),
        ([epithre.Asset.of_text("a", "mug")], "got one of Asset"),
    ],
)
def test_other_elements_are_refused_when_the_pipeline_is_built(elements, words):
    with pytest.raises(ArgumentError, match=words):
        _ = beam.Pipeline() | beam.Create(elements) | epithre.WriteCatalog("/catalog")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"catalog": ""}, "catalog must be a path or URL"),
        ({"catalog": "s3://user:secret-word@bucket/x"}, "without a password"),
        ({"mode": "append"}, "mode must be 'replace' or 'upsert', got 'append'"),
        ({"metadata": {"price": "float"}}, "got 'price': 'float'"),
        ({"gates": {"max_shrinkage": 2}}, "WriteCatalog: gates.max_shrinkage must .* got 2"),
        ({"index": {"target": 1}}, "WriteCatalog: index.target"),
        ({"delete": object()}, "delete needs mode='upsert'"),
    ],
)
def test_wrong_argument_is_refused_at_construction(arguments, words):
    with pytest.raises(ConfigError, match=words) as raised:
        epithre.WriteCatalog(**{"catalog": "x", **arguments})
    assert "secret-word" not in str(raised.value)


@pytest.mark.parametrize("wrong", [7, ("photo", "a1"), ""])
def test_wrong_ids_to_delete_are_one_sentence(wrong, catalog):
    write(catalog, texts(1))
    with pytest.raises(ArgumentError, match="delete takes ids, or pairs of kind"):
        write(catalog, texts(2), mode="upsert", delete=[wrong])


def test_display_data_metrics_and_types(catalog):
    transform = epithre.WriteCatalog(catalog, metadata=TYPES)
    shown = {item.key: item.value for item in DisplayData.create_from(transform).items}
    assert shown == {"catalog": str(catalog), "mode": "replace", "metadata": "price"}
    pipeline = beam.Pipeline()
    result = embedded(pipeline, 5) | transform
    assert result.outcome.element_type == epithre.CatalogOutcome
    assert result.dead.element_type == epithre.DeadAsset
    counters = {c.key.metric.name: c.committed for c in pipeline.run().metrics().query()["counters"]}
    assert counters["vectors_written"] == 5
