"""SearchCatalog finds for each query what a search in Python finds, or gives out the query as dead, alone."""

import json
import time
import typing
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from epithre_beam import transforms as epithre
from epithre_beam.errors import ArgumentError, CatalogError, ConfigError, NoCatalogError
from epithre_beam.index import open_catalog
from epithre_beam.index.search.where import parse_where
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults
from epithre_beam.transforms.query import many_queries

from .pipeline_runs import IN_MEMORY, RUNNERS, run
from .test_embed_assets import png
from .test_write_vectors import embedded, vector

Query = epithre.Query
TYPES = {"price": "double"}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """Images and texts with vectors of an unknown model, in several index files."""
    folder = tmp_path_factory.mktemp("search") / "catalog"
    with beam.Pipeline(options=PipelineOptions(IN_MEMORY)) as pipeline:
        _ = embedded(pipeline, 60) | epithre.WriteCatalog(
            folder,
            metadata=TYPES,
            embed={"model": "unknown", "dimension": 16, "unit_references": 8},
            index={"rows_per_index": 10, "rows_per_file": 10},
        )
    return folder


def vectors(*numbers, **arguments):
    return [Query.of_vector(f"q{number}", vector(number + 500), **arguments) for number in numbers]


def search(folder, queries, tmp_path, options=IN_MEMORY, **arguments):
    """Return the hits by query, as (rank, kind, id, score), and the dead queries."""

    def build(pipeline):
        result = pipeline | beam.Create(queries) | epithre.SearchCatalog(folder, **arguments)
        return {"hits": result.hits, "dead": result.dead}

    found = run(build, tmp_path, options)
    hits = {}
    for hit in sorted(found["hits"], key=lambda hit: (hit["query_id"], hit["rank"])):
        hits.setdefault(hit["query_id"], []).append(hit)
    return hits, found["dead"]


def plain(hits):
    found = {}
    for name, its in hits.items():
        found[name] = [(hit["rank"], hit["kind"], hit["asset_id"], round(hit["score"], 6)) for hit in its]
    return found


def expected(folder, queries, **options):
    with open_catalog(folder) as opened:
        found = opened.search(np.array([query.vector for query in queries], np.float32), **options)
    return {
        query.id: [(rank, hit.kind, hit.asset_id, round(hit.score, 6)) for rank, hit in enumerate(hits, 1)]
        for query, hits in zip(queries, found, strict=True)
    }


@pytest.mark.parametrize("runner", RUNNERS)
def test_hits_are_those_of_a_search_in_python_on_every_runner(runner, catalog, tmp_path):
    queries = vectors(*range(20))
    hits, dead = search(catalog, queries, tmp_path, RUNNERS[runner], k=3)
    assert dead == []
    assert plain(hits) == expected(catalog, queries, k=3)
    first = hits["q0"][0]
    assert json.loads(first["metadata"]) == {"price": int(first["asset_id"][1:]) / 2}
    assert first["text"] == (f"text {first['asset_id'][1:]}" if first["kind"] == "text" else None)
    assert (first["uri"] is None) == (first["kind"] == "text")


@pytest.mark.parametrize(
    "arguments",
    [
        {"k": 5, "kinds": ("image",)},
        {"k": 5, "kinds": "text"},
        {"k": 7, "merge": "quota"},
        {"k": 7, "merge": "standardised"},
        {"k": 100},
        {"k": 5, "recall": 0.9},
        {"k": 5, "where": {"price": {"$lt": 5}}},
    ],
)
@pytest.mark.parametrize("worker_index_mb", [None, 0.0001])
def test_options_do_as_in_python_also_if_each_worker_opens_some_of_the_files(
    arguments, worker_index_mb, catalog, tmp_path
):
    queries = vectors(*range(10), kind="text")
    hits, dead = search(catalog, queries, tmp_path, worker_index_mb=worker_index_mb, **arguments)
    same = dict(arguments)
    with open_catalog(catalog) as opened:
        if "where" in same:
            same["where"] = parse_where(same["where"], opened.assets("text").schema)
        assert len(many_queries.index_parts(opened.manifest, ["image", "text"])) > 3
    assert dead == []
    assert plain(hits) == expected(catalog, queries, query_kind="text", **same)


@pytest.mark.parametrize("runner", ["processes", "repeated", "bundles"])
def test_groups_of_files_give_the_same_hits_on_other_runners(runner, catalog, tmp_path):
    queries = [*vectors(*range(10)), *vectors(3)]  # an id may come twice
    hits, _ = search(catalog, queries, tmp_path, RUNNERS[runner], k=3, worker_index_mb=0.0001)
    assert plain(hits) == expected(catalog, vectors(*range(10)), k=3)


def test_condition_that_nothing_matches_gives_no_hit(catalog, tmp_path):
    assert search(catalog, vectors(1), tmp_path, where={"price": {"$gt": 1000}}) == ({}, [])


def test_wrong_queries_are_dead_alone(catalog, tmp_path):
    queries = [
        *vectors(1),
        Query(id="short", vector=[0.5] * 3),
        Query(id="nan", vector=[float("nan")] * 16),
    ]
    hits, dead = search(catalog, queries, tmp_path, k=1)
    assert plain(hits) == expected(catalog, queries[:1], k=1)
    assert {(d["id"], d["stage"], d["reason"], d["detail"]) for d in dead} == {
        ("short", "search", "broken_vector", "the vector must have 16 dimensions, got 3"),
        ("nan", "search", "broken_vector", "the vector must be finite"),
    }
    _, dead = search(catalog, vectors(1), tmp_path, merge="standardised")
    assert [(d["id"], d["reason"]) for d in dead] == [("q1", "unsupported")]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A catalog of texts and images that an emulator embedded, with the emulator."""
    monkeypatch.setenv("EPITHRE_BEAM_TRUST", str(tmp_path / "trust"))
    with Emulator(EmulatorSettings(dimension=16, faults=Faults(poison_marker="poison"))) as emulator:
        monkeypatch.setenv("SEARCH_KEY", emulator.api_key)
        assets = [epithre.Asset.of_text(f"t{i}", f"text {i}") for i in range(20)]
        assets += [epithre.Asset.of_image(f"i{i}", png(i)) for i in range(5)]
        with beam.Pipeline(options=PipelineOptions(IN_MEMORY)) as pipeline:
            embed = epithre.EmbedAssets(base_url=emulator.base_url, dimension=16, api_key_env="SEARCH_KEY")
            _ = (pipeline | beam.Create(assets) | embed).embedded | epithre.WriteCatalog(tmp_path / "served")
        yield tmp_path / "served", emulator


def test_texts_and_images_find_themselves_through_the_catalogs_api(served, tmp_path):
    folder, emulator = served
    (tmp_path / "photo.png").write_bytes(png(3))
    queries = [
        Query.of_text("text", "text 7"),
        Query.of_image("bytes", png(2)),
        Query.of_image("file", uri=str(tmp_path / "photo.png")),
        Query.of_image("lost", uri=str(tmp_path / "lost.png")),
        Query.of_text("empty", ""),
        Query.of_text("poisoned", "poison"),
        beam.Row(id="row", text="text 9"),
    ]
    hits, dead = {}, []
    for part in (queries[:-1], queries[-1:]):
        before = emulator.stats()["billed_items"]
        its_hits, its_dead = search(folder, part, tmp_path, k=1)
        hits, dead = hits | its_hits, dead + its_dead
        assert emulator.stats()["billed_items"] - before <= len(part)
    assert {name: (hit["kind"], hit["asset_id"]) for name, (hit,) in hits.items()} == {
        "text": ("text", "t7"),
        "bytes": ("image", "i2"),
        "file": ("image", "i3"),
        "row": ("text", "t9"),
    }
    assert {(d["id"], d["stage"], d["reason"]) for d in dead} == {
        ("lost", "read", "missing"),
        ("empty", "prepare", "empty_text"),
        ("poisoned", "embed", "refused"),
    }


def test_model_of_another_server_is_refused(served, tmp_path):
    folder, _ = served
    with Emulator(EmulatorSettings(dimension=16, model="attributes")) as other:
        embed = {"base_url": other.base_url, "api_key_env": "OTHER_KEY"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTHER_KEY", other.api_key)
            with pytest.raises(CatalogError, match="differs from the model of the catalog"):
                search(folder, [Query.of_text("q", "mug")], tmp_path, embed=embed)


def test_texts_in_a_catalog_of_an_unknown_model_are_refused(catalog, tmp_path):
    with pytest.raises(CatalogError, match="imported vectors of an unknown model"):
        search(catalog, [Query.of_text("q", "mug")], tmp_path)


def test_catalog_is_opened_once_for_all_steps_and_bundles_of_a_process(catalog, tmp_path, monkeypatch):
    opened, really = [], many_queries.open_catalog

    def counted(*arguments, **options):
        opened.append(arguments)
        return really(*arguments, **options)

    monkeypatch.setattr(many_queries, "open_catalog", counted)
    many_queries._opened.clear()

    def build(pipeline):
        queries = pipeline | beam.Create(vectors(*range(20))) | beam.Reshuffle()
        one = queries | "one" >> epithre.SearchCatalog(catalog, k=1)
        two = queries | "two" >> epithre.SearchCatalog(catalog, k=2)
        return {"one": one.hits, "two": two.hits}

    found = run(build, tmp_path, RUNNERS["bundles"])
    assert (len(found["one"]), len(found["two"]), len(opened)) == (20, 40, 1)


def test_hits_keep_the_windows_and_timestamps_of_their_queries(catalog, tmp_path):
    def stamp(hit, timestamp=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
        return {"id": hit.query_id, "at": float(timestamp), "window": float(window.start)}

    def build(pipeline):
        queries = pipeline | beam.Create(list(enumerate(vectors(*range(20)))))
        queries |= beam.Map(lambda pair: TimestampedValue(pair[1], pair[0])).with_output_types(Query)
        result = queries | beam.WindowInto(FixedWindows(7)) | epithre.SearchCatalog(catalog, k=1)
        return {"stamps": result.hits | beam.Map(stamp)}

    stamps = run(build, tmp_path)["stamps"]
    assert {s["id"]: (s["at"], s["window"]) for s in stamps} == {f"q{i}": (i, i // 7 * 7) for i in range(20)}


class Collected:
    """What a pipeline of this process gave out."""

    everything: typing.ClassVar[dict] = {}

    def __init__(self):
        self.name = f"{time.monotonic_ns()}"
        self.everything[self.name] = []

    def __call__(self, element):
        self.everything[self.name].append(element)

    @property
    def elements(self):
        return self.everything[self.name]


def streamed(build_queries, folder, collect, *steps, **arguments):
    with beam.Pipeline(options=PipelineOptions(["--runner=BundleBasedDirectRunner", "--streaming"])) as pipeline:
        stream = build_queries(TestStream(coder=beam.coders.FastPrimitivesCoder()))
        queries = pipeline | stream | beam.Map(lambda query: query).with_output_types(Query)
        for step in steps:
            queries |= beam.Map(step).with_output_types(Query)
        result = queries | epithre.SearchCatalog(folder, **arguments)
        _ = result.hits | "keep" >> beam.Map(collect)
        _ = result.dead | "keep dead" >> beam.Map(collect)


def test_stream_of_texts_shares_requests_and_vectors_do_not_wait(served):
    folder, emulator = served
    collected, before = Collected(), emulator.stats()["requests"]

    def build(stream):
        for i in range(6):
            stream = stream.add_elements([Query.of_text(f"q{i}", f"text {i}"), Query.of_vector(f"v{i}", vector(i))])
        return stream.advance_watermark_to_infinity()

    streamed(build, folder, collected, k=1, max_buffering_s=1000)
    found = {hit.query_id: hit.asset_id for hit in collected.elements}
    assert {name: found[name] for name in found if name[0] == "q"} == {f"q{i}": f"t{i}" for i in range(6)}
    assert {name for name in found if name[0] == "v"} == {f"v{i}" for i in range(6)}
    assert emulator.stats()["requests"] - before <= 3  # one asks which model there is


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stream_follows_a_newly_published_version(tmp_path):
    folder, collected = tmp_path / "followed", Collected()
    write(folder, range(5))

    def publish(query):
        if query.id == "q7":  # the second bundle
            wait_for(lambda: collected.elements)
            write(folder, range(5, 10), gates={"max_turnover": 1, "max_shrinkage": 1})
            wait_for(lambda: any(o.catalog.version.startswith("000002") for o in many_queries._opened.values()))
        return query

    def build(stream):
        for i in (1, 7):
            stream = stream.add_elements([Query.of_vector(f"q{i}", vector(i))]).advance_watermark_to(i)
        return stream.advance_watermark_to_infinity()

    streamed(build, folder, collected, publish, k=1, follow_every_s=0.05)
    found = {hit.query_id: (hit.asset_id, hit.score > 0.999) for hit in collected.elements}
    assert found == {"q1": ("a1", True), "q7": ("a7", True)}


def write(folder, numbers, **arguments):
    from .test_write_vectors import embed

    with beam.Pipeline(options=PipelineOptions(IN_MEMORY)) as pipeline:
        rows = [embed(number)._replace(kind="text") for number in numbers]
        _ = pipeline | beam.Create(rows) | epithre.WriteCatalog(folder, **arguments)


def test_folder_without_a_catalog_is_one_sentence(tmp_path):
    with pytest.raises(NoCatalogError, match="there is no catalog here"):
        search(tmp_path / "nothing", vectors(1), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"where": {"colour": "red"}}, "colour"),
        ({"kinds": ("image",), "recall": 1.0, "where": "{"}, "where"),
    ],
)
def test_condition_that_does_not_fit_the_catalog_is_one_sentence(arguments, words, catalog, tmp_path):
    with pytest.raises(ArgumentError, match=words):
        search(catalog, vectors(1), tmp_path, **arguments)


def test_no_queries_give_no_hits(catalog, tmp_path):
    def build(pipeline):
        none = pipeline | beam.Create([]).with_output_types(Query)
        return {"hits": (none | epithre.SearchCatalog(catalog)).hits}

    assert run(build, tmp_path) == {"hits": []}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"catalog": ""}, "catalog must be a path or URL"),
        ({"catalog": None}, "catalog must be a path or URL"),
        ({"k": 0}, "k must be a whole number from 1 to 10000, got 0"),
        ({"k": True}, "k must be a whole number"),
        ({"kinds": ("sound",)}, "kinds must be image, text or both"),
        ({"kinds": ()}, "kinds must be image, text or both"),
        ({"merge": "best"}, "merge must be 'score', 'quota' or 'standardised', got 'best'"),
        ({"recall": 2}, "recall must be from 0 to 1, got 2"),
        ({"worker_index_mb": 0}, "worker_index_mb must be greater than 0"),
        ({"embed": {"model": "other"}}, "embed must not have model, which the catalog determines"),
        ({"embed": {"batch_items": 0}}, "SearchCatalog: embed.batch_items"),
    ],
)
def test_wrong_argument_is_refused_at_construction(arguments, words):
    with pytest.raises(ConfigError, match=words):
        epithre.SearchCatalog(**{"catalog": "x", **arguments})


@pytest.mark.parametrize("element", ["mug", 7, {"id": "a"}, epithre.Asset.of_text("a", "mug")])
def test_other_elements_are_refused_when_the_pipeline_is_built(element):
    with pytest.raises(ArgumentError, match="takes a PCollection of Query"):
        _ = beam.Pipeline() | beam.Create([element]) | epithre.SearchCatalog("/catalog")


def test_dask_and_a_stream_over_groups_are_refused_when_the_pipeline_is_built():
    stream = beam.Pipeline(options=PipelineOptions(["--streaming"])) | TestStream().advance_watermark_to_infinity()
    with pytest.raises(ArgumentError, match="worker_index_mb needs bounded input"):
        _ = stream | epithre.SearchCatalog("/catalog", worker_index_mb=10)
    dask = pytest.importorskip("apache_beam.runners.dask.dask_runner")
    pipeline = beam.Pipeline(runner=dask.DaskRunner())
    with pytest.raises(ArgumentError, match="does not run on Dask"):
        _ = pipeline | beam.Create(vectors(1)) | epithre.SearchCatalog("/catalog")


def test_display_data_metrics_and_types(catalog):
    transform = epithre.SearchCatalog(catalog, k=2, where={"price": {"$lt": 500}})
    shown = {item.key: item.value for item in DisplayData.create_from(transform).items}
    assert shown == {"catalog": str(catalog), "k": 2, "where": '{"price":{"$lt":500}}', "merge": "score"}
    pipeline = beam.Pipeline()
    result = pipeline | beam.Create([*vectors(1, 2), Query(id="short", vector=[0.5])]) | transform
    assert (result.hits.element_type, result.dead.element_type) == (epithre.SearchHit, epithre.DeadQuery)
    counters = {c.key.metric.name: c.committed for c in pipeline.run().metrics().query()["counters"]}
    assert (counters["queries_searched"], counters["hits"], counters["dead_queries"]) == (2, 4, 1)


def test_path_may_be_relative_to_where_the_pipeline_is_built(catalog, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(catalog).parent)
    transform = epithre.SearchCatalog("catalog", k=1)
    monkeypatch.chdir("/")
    found = run(lambda p: {"hits": (p | beam.Create(vectors(1)) | transform).hits}, tmp_path)
    assert len(found["hits"]) == 1
