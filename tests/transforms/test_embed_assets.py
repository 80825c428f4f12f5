"""Assets of any pipeline become vectors or dead assets, each alone, in full requests within one limit."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import time
import typing

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms import window
from apache_beam.transforms.display import DisplayData
from apache_beam.transforms.error_handling import ErrorHandler
from PIL import Image

from epithre_beam import transforms as epithre
from epithre_beam.configs import EmbedConfig
from epithre_beam.errors import ApiError, ArgumentError, ConfigError
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults, Limits
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector

DIMENSION = 16
KEY_ENV = "EMBED_ASSETS_KEY"
FN_API = "FnApiRunner"
BUNDLES = "BundleBasedDirectRunner"
PROCESSES = f"{FN_API} --direct_running_mode=multi_processing --direct_num_workers=2"
THREADS = f"{FN_API} --direct_running_mode=multi_threading --direct_num_workers=2"
REPEATED = f"{FN_API} --direct_runner_bundle_repeat=1"
"""Each bundle runs twice."""
Asset = epithre.Asset


@pytest.fixture
def serve(monkeypatch):
    """Start emulators; each has a key of its own, so that no test waits for the rate limiter of another."""
    started = []

    def start(faults=None, limits=None, dimension=DIMENSION):
        settings = EmulatorSettings(dimension=dimension, faults=faults or Faults(), limits=limits or Limits())
        emulator = Emulator(settings)
        emulator.start()
        started.append(emulator)
        monkeypatch.setenv(KEY_ENV, emulator.api_key)
        return emulator

    yield start
    for emulator in started:
        emulator.close()


def embed_assets(emulator, **options):
    options = {"dimension": DIMENSION, "api_key_env": KEY_ENV, "rate_limiter": "memory", **options}
    return epithre.EmbedAssets(base_url=emulator.base_url, **options)


def pipeline(runner=FN_API, *options):
    return beam.Pipeline(options=PipelineOptions([*f"--runner={runner}".split(), *options]))


def texts(count, words="text"):
    return [Asset.of_text(f"{i:03d}", f"{words} {i}") for i in range(count)]


def png(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Collected:
    """What a pipeline of this process gave out, in order."""

    everything: typing.ClassVar[dict] = {}

    def __init__(self):
        self.name = f"{time.monotonic_ns()}"
        self.everything[self.name] = []

    def __call__(self, element):
        self.everything[self.name].append((time.monotonic(), element))

    @property
    def elements(self):
        return [element for _, element in self.everything[self.name]]


def run(assets, transform, runner=FN_API, *options):
    embedded, dead = Collected(), Collected()
    with pipeline(runner, *options) as p:
        result = p | beam.Create(assets, reshuffle=False) | transform
        _ = result.embedded | "keep" >> beam.Map(embedded)
        _ = result.dead | "keep dead" >> beam.Map(dead)
    return embedded.elements, dead.elements


def requests_of(emulator):
    return emulator.stats()["requests"]


@pytest.mark.core
@pytest.mark.parametrize("runner", [FN_API, BUNDLES, THREADS, REPEATED])
def test_every_asset_has_its_own_vector_or_is_dead_alone(serve, tmp_path, runner):
    emulator = serve(Faults(poison_marker="poison"))
    (tmp_path / "there.png").write_bytes(png(1))
    assets = [
        Asset.of_text("good", "a red mug", metadata={"price": 2}, fingerprint="v1"),
        Asset.of_text("poisoned", "poison"),
        Asset.of_text("empty", ""),
        Asset.of_image("inline", png(0)),
        Asset.of_image("file", uri=str(tmp_path / "there.png")),
        Asset.of_image("lost", uri=str(tmp_path / "lost.png")),
        Asset.of_image("broken", b"not an image"),
    ]
    embedded, dead = run(assets, embed_assets(emulator), runner)
    found = {asset.id: asset for asset in embedded}
    assert sorted(found) == ["file", "good", "inline"]
    contents = {"good": ("text", b"a red mug"), "inline": ("image", png(0)), "file": ("image", png(1))}
    for name, (kind, content) in contents.items():
        np.testing.assert_allclose(found[name].embedding, hash_vector(kind, content, DIMENSION), atol=1e-5)
        assert found[name].content_sha256 == hashlib.sha256(content).hexdigest()
    good, image = found["good"], found["inline"]
    assert (good.metadata, good.fingerprint, good.text, good.media_type) == (
        '{"price":2}',
        "v1",
        "a red mug",
        "text/plain",
    )
    assert (image.width, image.height, image.media_type, image.text) == (8, 8, "image/png", None)
    assert {(asset.id, asset.stage, asset.reason, asset.attempts > 0) for asset in dead} == {
        ("poisoned", "embed", "refused", True),
        ("empty", "prepare", "empty_text", False),
        ("lost", "read", "missing", False),
        ("broken", "prepare", "not_a_picture", False),
    }


def test_requests_are_full_and_several_are_in_flight(serve):
    emulator = serve(Faults(latency_s=0.2))
    embedded, _ = run(texts(300), embed_assets(emulator, batch_items=20))
    assert len(embedded) == 300
    assert requests_of(emulator) <= 15 * 1.15
    assert emulator.stats()["peak_in_service"] >= 8


def test_copies_are_sent_once(serve):
    emulator = serve()
    embedded, _ = run([Asset.of_text(str(i), f"text {i % 3}") for i in range(200)], embed_assets(emulator))
    assert len(embedded) == 200
    assert emulator.stats()["billed_items"] == 3


def large_image(i):
    file = io.BytesIO()
    noise = np.random.default_rng(i).integers(0, 256, (220, 220, 3)).astype(np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return Asset.of_image(str(i), file.getvalue())


def test_bytes_in_flight_are_limited(serve):
    """2 MB may be in flight, so of 20 images of 150 kB, each several times in memory, few are in service at a time."""
    emulator = serve(Faults(latency_s=0.02))
    settings = {"dimension": DIMENSION, "api_key_env": KEY_ENV, "batch_items": 1, "memory_mb": 2}
    embed = EmbedConfig(base_url=emulator.base_url, **settings)
    with pipeline() as p:
        assets = p | beam.Create(range(20), reshuffle=False) | beam.Map(large_image).with_output_types(Asset)
        result = assets | epithre.EmbedAssets(embed=embed, rate_limiter="memory")
        assert_that(result.embedded | beam.combiners.Count.Globally(), equal_to([20]))
    assert emulator.stats()["peak_in_service"] <= 3


@pytest.mark.slow
def test_processes_and_steps_share_one_limit(serve):
    limits = Limits(requests_per_minute=10, window_s=1.0)
    emulator = serve(limits=limits)
    ids = []
    with pipeline(FN_API, "--direct_running_mode=multi_processing", "--direct_num_workers=2") as p:
        for step in ("one", "two"):
            transform = embed_assets(emulator, requests_per_minute=10, batch_items=1, rate_limiter="host")
            transform._window_s = 1.0
            result = p | f"create {step}" >> beam.Create(texts(15, step)) | step >> transform
            ids.append(result.embedded | f"ids {step}" >> beam.Map(lambda asset: asset.id))
        assert_that(ids | beam.Flatten(), equal_to([f"{i:03d}" for i in range(15)] * 2))
    stats = emulator.stats()
    assert stats["statuses"] == {"200": 30}
    assert stats["worst_window"]["requests"] <= 10


def test_two_steps_of_a_process_share_one_limit(serve):
    emulator = serve(limits=Limits(requests_per_minute=10, window_s=0.5))
    with pipeline() as p:
        for step in ("one", "two"):
            transform = embed_assets(emulator, requests_per_minute=10, batch_items=1)
            transform._window_s = 0.5
            _ = p | f"create {step}" >> beam.Create(texts(15, step)) | step >> transform
    assert emulator.stats()["statuses"] == {"200": 30}


def test_a_refused_key_stops_the_pipeline_with_one_sentence(serve, monkeypatch):
    emulator = serve()
    monkeypatch.setenv(KEY_ENV, "sk-secret-and-wrong")
    with pytest.raises(Exception, match=r"refused the API key|key") as caught:
        run(texts(3), embed_assets(emulator))
    assert "sk-secret-and-wrong" not in str(caught.value)
    assert KEY_ENV in str(caught.value)


def test_a_variable_without_a_key_is_named(serve, monkeypatch):
    emulator = serve()
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(Exception, match=f"the environment variable {KEY_ENV} is not set"):
        run(texts(1), embed_assets(emulator))


def test_a_bundle_that_is_tried_again_after_a_spent_quota_sends_again(serve):
    """The runner tries a bundle up to four times; the quota is refilled after the first request."""
    emulator = serve(Faults(quota_429=1.0, stop_at_request=1))
    embedded, dead = run(texts(5), embed_assets(emulator), BUNDLES)
    assert (len(embedded), dead) == (5, [])
    assert requests_of(emulator) == 2


def test_what_was_answered_is_not_sent_again_by_a_bundle_that_is_tried_again(serve):
    emulator = serve()
    seen = Collected()

    def fail_once(asset):
        seen(asset.id)
        if len(seen.elements) == 1:
            raise RuntimeError("a later step fails once")

    with pipeline(BUNDLES) as p:
        result = p | beam.Create(texts(10), reshuffle=False) | embed_assets(emulator)
        _ = result.embedded | beam.Map(fail_once)
    assert len(seen.elements) == 11
    assert emulator.stats()["billed_items"] == 10


@pytest.mark.parametrize("is_catalog", [False, True])
def test_contents_in_the_cache_are_not_sent_again(serve, tmp_path, is_catalog):
    emulator = serve()
    cache = tmp_path / "cache"
    if is_catalog:
        cache.mkdir()
        (cache / "units").mkdir()
    assets = [*texts(20), *(Asset.of_image(str(i), png(i)) for i in range(5))]
    first, _ = run(assets, embed_assets(emulator, cache=str(cache)))
    billed = emulator.stats()["billed_items"]
    assert billed == 25
    more = [*assets, Asset.of_text("new", "another text")]
    second, _ = run(more, embed_assets(emulator, cache=str(cache), batch_items=7))
    assert emulator.stats()["billed_items"] == billed + 1
    assert {a.id: a.embedding for a in first if a.kind == "text"} == {
        a.id: a.embedding for a in second if a.kind == "text" and a.id != "new"
    }
    run(texts(20), embed_assets(emulator, cache=str(cache), model="epithre-omni"))
    assert emulator.stats()["billed_items"] == billed + 21  # vectors of another model are not used


def test_what_was_sent_is_kept_before_the_pipeline_fails(serve, tmp_path):
    emulator = serve(Faults(quota_429=1.0, start_at_request=3))
    transform = embed_assets(emulator, cache=str(tmp_path), batch_items=5, max_concurrency=1)
    with pytest.raises(Exception, match="quota"):
        run(texts(30), transform)
    billed = emulator.stats()["billed_items"]
    assert billed == 15
    again = serve()
    settings = embed_assets(again, cache=str(tmp_path), batch_items=5)
    embedded, _ = run(texts(30), settings)
    assert len(embedded) == 30
    assert again.stats()["billed_items"] == 15


def beginning():
    """The time at which a TestStream begins."""
    return 0.0


def stream(bundles):
    events = TestStream(coder=beam.coders.FastPrimitivesCoder())
    for number, assets in enumerate(bundles):
        at = [window.TimestampedValue(asset, 10 * number + i) for i, asset in enumerate(assets)]
        events = events.add_elements(at).advance_watermark_to(10 * number).advance_processing_time(1)
    return events.advance_watermark_to_infinity()


@pytest.mark.core
def test_unbounded_input_fills_requests_over_bundles_and_keeps_windows_and_timestamps(serve):
    emulator = serve()
    assets = texts(30)
    found = Collected()

    def noted(asset, timestamp=beam.DoFn.TimestampParam, its=beam.DoFn.WindowParam):
        return (asset.id, float(timestamp), float(its.start))

    with pipeline(BUNDLES, "--streaming") as p:
        result = (
            p
            | stream([assets[i : i + 5] for i in range(0, 30, 5)])
            | beam.WindowInto(window.FixedWindows(30))
            | embed_assets(emulator)
        )
        _ = result.embedded | beam.Map(noted) | beam.Map(found)
    times = [10.0 * (i // 5) + i % 5 for i in range(30)]
    expected = [(asset.id, at, at // 30 * 30) for asset, at in zip(assets, times, strict=True)]
    assert sorted(found.elements) == expected
    assert requests_of(emulator) == 2  # one for each window


def test_unbounded_input_waits_no_longer_than_allowed(serve):
    """Nothing but the time ends the first buffering: the watermark does not move before."""
    emulator = serve()
    found = Collected()
    events = TestStream(coder=beam.coders.FastPrimitivesCoder()).add_elements(texts(3)).advance_processing_time(60)
    events = events.add_elements([Asset.of_text("late", "late")]).advance_watermark_to_infinity()
    with pipeline(BUNDLES, "--streaming") as p:
        transform = embed_assets(emulator, max_buffering_s=30)
        transform._clock = beginning
        result = p | events | transform
        _ = result.embedded | beam.Map(lambda asset: asset.id) | beam.Map(found)
    assert found.elements == ["000", "001", "002", "late"]
    assert requests_of(emulator) == 2


@pytest.mark.core
def test_windowed_bounded_input_keeps_windows_and_timestamps(serve):
    emulator = serve()

    def noted(asset, timestamp=beam.DoFn.TimestampParam, its=beam.DoFn.WindowParam):
        return (asset.id, float(timestamp), float(its.start), float(its.end))

    with pipeline() as p:
        result = (
            p
            | beam.Create(texts(6))
            | beam.Map(lambda asset: window.TimestampedValue(asset, int(asset.id) * 5)).with_output_types(Asset)
            | beam.WindowInto(window.SlidingWindows(20, 10))
            | embed_assets(emulator)
        )
        expected = [
            (f"{i:03d}", i * 5.0, start, start + 20)
            for i in range(6)
            for start in (i * 5 // 10 * 10.0 - 10, i * 5 // 10 * 10.0)
        ]
        assert_that(result.embedded | beam.Map(noted), equal_to(expected), reify_windows=False)
    assert emulator.stats()["billed_items"] == 6


@pytest.mark.core
def test_rows_are_assets_too_and_an_empty_input_gives_nothing(serve):
    emulator = serve()
    embedded, dead = run([beam.Row(id="a", kind="text", text="words")], embed_assets(emulator))
    assert [asset.id for asset in embedded] == ["a"]
    with pipeline() as p:
        result = p | beam.Create([]).with_output_types(Asset) | embed_assets(emulator)
        assert_that(result.embedded, equal_to([]))
        assert_that(result.dead, equal_to([]), label="dead")
    assert (dead, requests_of(emulator)) == ([], 1)


@pytest.mark.core
def test_rows_without_content_are_dead_alone(serve):
    """As from an empty cell of a table or a NULL of a database."""
    emulator = serve()
    rows = [
        beam.Row(id="a", kind="text", text="mug"),
        beam.Row(id="b", kind="text", text=None),
        beam.Row(id="c", kind="image", text=None),
    ]
    embedded, dead = run(rows, embed_assets(emulator))
    assert [asset.id for asset in embedded] == ["a"]
    assert sorted((letter.id, letter.reason) for letter in dead) == [("b", "empty_text"), ("c", "missing")]


@pytest.mark.parametrize("count", [1, 60])
def test_a_server_that_never_answers_stops_the_pipeline(monkeypatch, count):
    """However few assets there are: they are not the cause, and nobody would notice them among dead assets."""
    monkeypatch.setenv(KEY_ENV, "key")
    transform = epithre.EmbedAssets(
        base_url="http://127.0.0.1:9/v1", api_key_env=KEY_ENV, rate_limiter="memory", embed={"max_sends": 2}
    )
    with pytest.raises(ApiError) as caught:
        run(texts(count), transform)
    words = str(caught.value)
    assert words.startswith("http://127.0.0.1:9/v1: the server does not answer (")
    assert "Check the address and the network" in words
    assert "are kept" not in words


def test_a_message_names_arguments_and_not_keys_of_a_job(serve):
    with pytest.raises(ApiError) as caught:
        run(texts(3), embed_assets(serve(dimension=32)))
    words = str(caught.value)
    assert "Set dimension=32" in words
    assert "embed." not in words


def test_an_error_handler_receives_the_dead(serve):
    emulator = serve()
    dead = Collected()
    with pipeline() as p, ErrorHandler(beam.Map(dead)) as handler:
        embedded = (
            p
            | beam.Create([Asset.of_text("a", "words"), Asset.of_text("b", "")])
            | embed_assets(emulator).with_error_handler(handler)
        )
        assert_that(embedded | beam.Map(lambda asset: asset.id), equal_to(["a"]))
    assert [asset.id for asset in dead.elements] == ["b"]


@pytest.mark.core
def test_metrics_count_vectors_dead_assets_and_requests(serve):
    emulator = serve(Faults(poison_marker="poison"))
    p = pipeline()
    _ = (
        p
        | beam.Create([*texts(9), Asset.of_text("a", "text 0"), Asset.of_text("b", "poison")])
        | embed_assets(emulator)
    )
    result = p.run()
    result.wait_until_finish()
    counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
    wanted = {"vectors": 10, "dead_letters": 1, "vectors_copy": 1, "RatelimitRequestsTotal": requests_of(emulator)}
    assert {name: counters.get(name) for name in wanted} == wanted


def test_a_wrong_element_type_is_refused_when_the_pipeline_is_built():
    with pytest.raises(ArgumentError, match="EmbedAssets takes a PCollection of Asset, got one of int"):
        pipeline() | beam.Create([1, 2]) | epithre.EmbedAssets()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_items": 0}, "EmbedAssets: batch_items must be at least 1, got 0."),
        ({"dimension": 3, "model": ""}, "EmbedAssets has 2 errors:\ndimension must be at least 8, got 3."),
        ({"embed": {"dimension": 3}}, "EmbedAssets: embed.dimension must be at least 8, got 3."),
        ({"embed": EmbedConfig(batch_items=64), "batch_items": 3}, "EmbedAssets: batch_items is 3, but 64 in `embed`."),
        (
            {"embed": {"batchitems": 3}},
            "EmbedAssets: embed.batchitems is not a known key. Did you mean 'batch_items'?",
        ),
        ({"prepare": {"check": "all"}}, "EmbedAssets: prepare.check must be 'structure' or 'decode', got 'all'."),
        ({"max_buffering_s": 0}, "EmbedAssets: max_buffering_s must be greater than 0, got 0."),
        ({"rate_limiter": "redis"}, "EmbedAssets: embed: `rate_limiter: redis` and `redis_url` require each other."),
    ],
)
def test_a_wrong_or_contradicting_argument_is_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        epithre.EmbedAssets(**options)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("embed", [EmbedConfig(batch_items=3), {"batch_items": 3}])
def test_arguments_and_a_config_add_up(embed):
    shown = epithre.EmbedAssets(embed=embed, batch_items=3, dimension=16).display_data()
    assert (shown["batch_items"], shown["dimension"], shown["rate_limiter"]) == (3, 16, "host")


def test_display_data_and_pickle_have_no_key(serve):
    emulator = serve()
    transform = embed_assets(emulator, requests_per_minute=60)
    shown = {item.key: item.value for item in DisplayData.create_from(transform).items}
    assert shown["requests_per_minute"] == 60
    assert emulator.api_key.encode() not in pickle.dumps(transform)
    with pipeline() as p:
        _ = p | beam.Create(texts(1)) | transform
        assert emulator.api_key not in json.dumps(str(p.to_runner_api()))


def test_the_example_in_the_docstring_runs(capsys, monkeypatch):
    import doctest

    from epithre_beam.transforms import embed_assets as module

    monkeypatch.delenv("EPITHRE_KEY", raising=False)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("runner", [FN_API, BUNDLES])
def test_all_steps_of_a_pipeline_spend_what_it_may_spend_and_the_rest_is_dead(serve, runner):
    emulator = serve()
    embedded, dead = Collected(), Collected()
    with pipeline(runner) as p:
        for step in ("one", "two"):
            transform = embed_assets(emulator, max_requests=5, batch_items=4, dimension=DIMENSION)
            result = p | f"create {step}" >> beam.Create(texts(40, step), reshuffle=False) | step >> transform
            _ = result.embedded | f"embedded {step}" >> beam.Map(embedded)
            _ = result.dead | f"dead {step}" >> beam.Map(dead)
    assert requests_of(emulator) == 5
    assert (len(embedded.elements), len(dead.elements)) == (20, 60)
    assert {(asset.stage, asset.reason, asset.attempts) for asset in dead.elements} == {("embed", "not_sent", 0)}


def test_uris_are_read_only_where_they_may_point_to(serve, tmp_path):
    emulator = serve()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(2))
    uris = {"in": tmp_path / "in" / "a.png", "out": tmp_path / "b.png"}
    assets = [Asset.of_image(name, uri=str(uri)) for name, uri in uris.items()]
    embedded, dead = run(assets, embed_assets(emulator, within=[str(tmp_path / "in")]))
    assert [asset.id for asset in embedded] == ["in"]
    assert [(asset.id, asset.reason) for asset in dead] == [("out", "uri_not_allowed")]
    embedded, dead = run(assets, embed_assets(emulator))
    assert (len(embedded), dead) == (2, [])


def test_assets_of_a_source_are_read_where_they_are_embedded(serve, tmp_path):
    emulator = serve()
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    embedded = Collected()
    with pipeline() as p:
        listed = p | epithre.ReadAssets({"kind": "image", "files": str(tmp_path / "*.png")})
        _ = (listed.assets | embed_assets(emulator)).embedded | beam.Map(embedded)
    found = {asset.id: asset.embedding for asset in embedded.elements}
    assert sorted(found) == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(found["2.png"], hash_vector("image", png(2), DIMENSION), atol=1e-5)


SCRIPT = """
import json, pathlib, sys
import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from epithre_beam import transforms as epithre

def to_asset(number):
    return epithre.Asset.of_text(str(number), f"text {number}")

def keep(pair, folder):
    pathlib.Path(folder).with_name(f"found-{pair[0]}").write_text(json.dumps(pair))

if __name__ == "__main__":
    with beam.Pipeline(options=PipelineOptions(sys.argv[3:])) as p:
        assets = p | beam.Create(range(60), reshuffle=False) | beam.Map(to_asset).with_output_types(epithre.Asset)
        result = assets | epithre.EmbedAssets(
            base_url=sys.argv[1], dimension=16, batch_items=4, max_concurrency=1, cache=sys.argv[2]
        )
        _ = result.embedded | beam.combiners.Count.Globally() | beam.Map(print)
"""


def script(tmp_path, emulator, *options, text=SCRIPT):
    (tmp_path / "embed.py").write_text(text)
    command = [sys.executable, str(tmp_path / "embed.py"), emulator.base_url, str(tmp_path / "cache"), *options]
    environment = {**os.environ, "EPITHRE_KEY": emulator.api_key}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.slow
def test_a_killed_pipeline_sends_only_what_was_in_flight_again(serve, tmp_path):
    emulator = serve(Faults(latency_s=0.05))
    killed = script(tmp_path, emulator, f"--runner={FN_API}")
    units = tmp_path / "cache" / "units"
    until = time.monotonic() + 60
    while len(list(units.glob("*.parquet"))) < 4:
        assert time.monotonic() < until
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    again = script(tmp_path, emulator, f"--runner={FN_API}", "--save_main_session")
    assert again.communicate(timeout=60)[0].split() == ["60"]
    twice = sum(count - 1 for count in emulator.payments().values())
    assert twice <= 4  # the one request that was in flight


def test_a_bundle_that_is_tried_again_during_a_long_pause_sends_nothing(serve):
    emulator = serve(Faults(rate_429=1.0, rate_429_retry_after_s=5000))
    with pytest.raises(Exception, match="asked for a pause of 5000 s"):
        run(texts(3), embed_assets(emulator), BUNDLES)
    assert requests_of(emulator) == 1


def test_pipelines_share_a_limit_in_redis(serve, redis_server):
    emulator = serve(limits=Limits(requests_per_minute=10, window_s=0.5))
    for runner in (FN_API, THREADS):
        transform = embed_assets(
            emulator, requests_per_minute=10, batch_items=1, rate_limiter="redis", redis_url=redis_server.url
        )
        transform._window_s = 0.5
        embedded, _ = run(texts(15, runner), transform, runner)
        assert len(embedded) == 15
    assert emulator.stats()["statuses"] == {"200": 30}


@pytest.mark.slow
def test_dask_carries_both_outputs(serve, tmp_path):
    """Dask drops all leaves but one, so the two outputs are joined."""
    pytest.importorskip("dask.distributed")
    emulator = serve()
    text = SCRIPT.replace("_ = result.embedded | beam.combiners.Count.Globally() | beam.Map(print)", JOINED)
    text = text.replace('f"text {number}"', 'f"text {number}" if number % 20 else ""')
    runner = "apache_beam.runners.dask.dask_runner.DaskRunner"
    done = script(tmp_path, emulator, f"--runner={runner}", text=text)
    done.communicate(timeout=120)
    assert done.returncode == 0
    found = [json.loads(file.read_text()) for file in tmp_path.glob("found-*")]
    assert sorted(found) == sorted([str(i), "" if i % 20 else "empty_text"] for i in range(60))


JOINED = """embedded = result.embedded | "1" >> beam.Map(lambda asset: (asset.id, ""))
        dead = result.dead | "2" >> beam.Map(lambda asset: (asset.id, asset.reason))
        _ = (embedded, dead) | beam.Flatten() | "3" >> beam.Map(keep, sys.argv[2])
"""


def test_unbounded_input_on_dask_is_refused_when_the_pipeline_is_built():
    dask_runner = pytest.importorskip("apache_beam.runners.dask.dask_runner")
    pytest.importorskip("dask.distributed")
    p = beam.Pipeline(runner=dask_runner.DaskRunner())
    with pytest.raises(ConfigError, match="EmbedAssets: the DaskRunner cannot run a pipeline with unbounded input"):
        _ = p | stream([texts(1)]) | epithre.EmbedAssets()


@pytest.mark.slow
def test_worker_processes_give_each_asset_its_vector_or_reason(serve):
    emulator = serve(Faults(poison_marker="poison"))
    with pipeline(PROCESSES) as p:
        assets = [*texts(30), Asset.of_text("poisoned", "poison")]
        result = p | beam.Create(assets) | embed_assets(emulator, rate_limiter="host", batch_items=4)
        embedded = result.embedded | beam.Map(lambda asset: (asset.id, asset.embedding[0]))
        expected = [(a.id, float(hash_vector("text", a.text.encode(), DIMENSION)[0])) for a in assets[:30]]
        assert_that(
            embedded | beam.Map(lambda pair: (pair[0], round(pair[1], 4))),
            equal_to([(name, round(number, 4)) for name, number in expected]),
        )
        assert_that(
            result.dead | beam.Map(lambda asset: (asset.id, asset.reason)),
            equal_to([("poisoned", "refused")]),
            label="dead",
        )


def test_a_drained_stream_sends_what_is_buffered(serve):
    """A drain moves the watermark to its end while time stands still: nothing else releases what is buffered."""
    emulator = serve()
    found = Collected()
    events = TestStream(coder=beam.coders.FastPrimitivesCoder()).add_elements(texts(5)).advance_watermark_to_infinity()
    with pipeline(BUNDLES, "--streaming") as p:
        transform = embed_assets(emulator, max_buffering_s=10**9)
        transform._clock = beginning
        _ = (p | events | transform).embedded | beam.Map(lambda asset: asset.id) | beam.Map(found)
    assert sorted(found.elements) == [f"{i:03d}" for i in range(5)]
    assert requests_of(emulator) == 1


@pytest.mark.core
def test_embedded_assets_say_what_made_them(serve):
    emulator = serve()
    (embedded,), _ = run(texts(1), embed_assets(emulator))
    made_by = {"dialect": "epithre", "dimension": DIMENSION, "model": "epithre-embed"}
    assert json.loads(embedded.made_by) == {**made_by, "server": f"emulator-hash-1-{DIMENSION}"}
