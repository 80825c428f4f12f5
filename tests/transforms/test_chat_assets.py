"""Rows and assets of any pipeline are answered or dead, each alone, within one limit."""

import io
import json
import os
import random
import signal
import sys
import time
import typing
from pathlib import Path

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
from epithre_beam.errors import ArgumentError, ConfigError
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings, Faults, Limits
from epithre_beam.transforms.epithre.emulator.captions import Attributes
from epithre_beam.transforms.epithre.emulator.draw import draw_image

from .forked import Forked

KEY_ENV = "CHAT_ASSETS_KEY"
FN_API = "FnApiRunner"
BUNDLES = "BundleBasedDirectRunner"
THREADS = f"{FN_API} --direct_running_mode=multi_threading --direct_num_workers=2"
REPEATED = f"{FN_API} --direct_runner_bundle_repeat=1"
"""Each bundle runs twice."""
Asset, ChatRow = epithre.Asset, epithre.ChatRow
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string"}, "is_striped": {"type": "boolean"}, "count": {"type": "integer"}},
    "required": ["colour", "is_striped", "count"],
    "additionalProperties": False,
}


def png(colour="red", shape="circle", texture="plain", ground="sand", seed=0):
    file = io.BytesIO()
    attributes = Attributes(colour=colour, shape=shape, texture=texture, ground=ground)
    draw_image(np.random.default_rng(seed), attributes, 160).save(file, "PNG")
    return file.getvalue()


RED, BLUE = png("red"), png("blue", "square", "striped")


@pytest.fixture
def serve(monkeypatch):
    """Start emulators; each has a key of its own, so that no test waits for the rate limiter of another."""
    started = []

    def start(faults=None, limits=None):
        settings = EmulatorSettings(
            model="attributes", dimension=16, faults=faults or Faults(), limits=limits or Limits()
        )
        started.append(Emulator(settings).start())
        monkeypatch.setenv(KEY_ENV, started[-1].api_key)
        return started[-1]

    yield start
    for emulator in started:
        emulator.close()


def chat_assets(emulator, prompt="What is this?", **options):
    options = {"api_key_env": KEY_ENV, "rate_limiter": "memory", **options}
    return epithre.ChatAssets(prompt, base_url=emulator.base_url, **options)


def pipeline(runner=FN_API):
    return beam.Pipeline(options=PipelineOptions(f"--runner={runner}".split()))


class Collected:
    """What a pipeline of this process gave out, in order."""

    everything: typing.ClassVar[dict] = {}

    def __init__(self):
        self.name = f"{time.monotonic_ns()}"
        self.everything[self.name] = []

    def __call__(self, element):
        self.everything[self.name].append(element)

    @property
    def elements(self):
        return self.everything[self.name]


def run(rows, transform, runner=FN_API):
    answered, dead = Collected(), Collected()
    with pipeline(runner) as p:
        result = p | beam.Create(rows, reshuffle=False) | transform
        _ = result.answered | "keep" >> beam.Map(answered)
        _ = result.dead | "keep dead" >> beam.Map(dead)
    return {row.id: row for row in answered.elements}, {row.id: row for row in dead.elements}


@pytest.mark.core
@pytest.mark.parametrize("runner", [FN_API, BUNDLES, THREADS, REPEATED])
def test_every_row_has_its_own_answer_or_is_dead_alone(serve, tmp_path, runner):
    emulator = serve()
    (tmp_path / "blue.png").write_bytes(BLUE)
    rows = [
        Asset.of_image("inline", RED, metadata={"name": "cup"}),
        Asset.of_image("file", uri=str(tmp_path / "blue.png"), metadata={"name": "pot"}),
        Asset.of_text("text", "a red mug", metadata={"name": "mug"}),
        Asset.of_image("lost", uri=str(tmp_path / "lost.png"), metadata={"name": "lost"}),
        Asset.of_image("broken", b"not an image", metadata={"name": "broken"}),
        Asset.of_image("nameless", RED),
        ChatRow.of("both", {"name": "two"}, images=[RED, BLUE]),
        ChatRow.of("none", {"name": "nothing"}),
    ]
    answered, dead = run(rows, chat_assets(emulator, "What is {{ name }} {{ id }}?"), runner)
    assert sorted(answered) == ["both", "file", "inline", "none", "text"]
    assert "red" in answered["inline"].answer
    assert "blue" in answered["file"].answer
    assert answered["both"].answer.startswith("Image 1: ")
    assert "What is nothing none?" in answered["none"].answer
    assert {(row.id, row.stage, row.reason, row.attempts) for row in dead.values()} == {
        ("lost", "read", "missing", 0),
        ("broken", "prepare", "not_a_picture", 0),
        ("nameless", "prompt", "bad_prompt", 0),
    }
    assert "'name' is undefined" in dead["nameless"].detail
    one = answered["inline"]
    assert (one.finish_reason, one.model, one.requests, one.cost) == ("stop", "epithre-omni", 1, None)
    assert one.emulator == emulator.model.fingerprint
    assert one.input_tokens > 1000  # the image
    assert len({row.request_sha256 for row in answered.values()}) == 5


def test_answers_of_a_schema_are_typed(serve):
    emulator = serve()
    answered, _ = run(
        [Asset.of_image("red", RED), Asset.of_image("blue", BLUE)], chat_assets(emulator, answer_schema=SCHEMA)
    )
    assert json.loads(answered["red"].parsed) == {"colour": "red", "is_striped": False, "count": 1}
    assert json.loads(answered["blue"].parsed) == {"colour": "blue", "is_striped": True, "count": 1}


def test_a_pydantic_model_is_a_schema(serve, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "chat"))
    import answer_models

    emulator = serve()
    answered, _ = run([Asset.of_image("red", RED)], chat_assets(emulator, answer_schema=answer_models.Item))
    assert json.loads(answered["red"].parsed) == {"name": "A red circle on sand.", "count": 1}
    sys.modules.pop("answer_models")


@pytest.mark.parametrize("support", ["object", "refused", "ignored"])
def test_a_schema_works_with_a_server_that_does_not_take_it(serve, support):
    emulator = serve(Faults(response_format=support))
    answered, dead = run([Asset.of_image("red", RED)], chat_assets(emulator, answer_schema=SCHEMA))
    assert not dead
    assert json.loads(answered["red"].parsed)["colour"] == "red"
    # Where the server ignores the schema, its answer is repaired.
    assert answered["red"].requests == (2 if support == "ignored" else 1)


def test_an_answer_is_repaired_once_and_then_dead_with_what_was_answered(serve):
    emulator = serve(Faults(chat_wrong_schema=0.5))
    rows = [ChatRow.of(str(i), images=[RED]) for i in range(40)]
    answered, dead = run(rows, chat_assets(emulator, "Row {{ id }}", answer_schema=SCHEMA))
    assert {row.requests for row in answered.values()} == {1, 2}
    assert dead
    assert len(answered) + len(dead) == 40
    for row in dead.values():
        assert (row.stage, row.reason, row.attempts) == ("answer", "not_of_the_schema", 2)
        assert json.loads(row.answer) == {"wrong": True}
        assert "'colour' is a required property" in row.detail
    asked = emulator.stats()["requests"]
    assert asked == sum(row.requests for row in answered.values()) + 2 * len(dead)


@pytest.mark.parametrize(
    ("faults", "reason", "answer"),
    [
        ({"chat_refusal": 1}, "refused_by_model", "I cannot help with this image."),
        ({"chat_filter": 1}, "content_filter", None),
        ({"chat_empty": 1}, "empty_answer", None),
        ({"chat_cut": 1}, "cut", "A red cir"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_no_answer_is_dead_with_its_own_reason(serve, faults, reason, answer):
    emulator = serve(Faults(**faults))
    _, dead = run([Asset.of_image("red", RED)], chat_assets(emulator))
    assert (dead["red"].reason, dead["red"].attempts) == (reason, 1)
    assert dead["red"].answer == answer or (answer and dead["red"].answer.startswith(answer))


def test_images_are_sent_upright_and_within_the_limits(serve):
    emulator = serve()
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 100), (200, 30, 30)).save(file, "JPEG", exif=exif)
    transform = chat_assets(emulator, prepare={"max_pixels": 10_000})
    answered, _ = run([ChatRow.of("x", images=[file.getvalue()])], transform)
    again, _ = run([ChatRow.of("x", images=[file.getvalue()])], chat_assets(emulator))
    assert answered["x"].request_sha256 != again["x"].request_sha256


def test_one_row_may_cost_no_more_than_its_ceiling(serve):
    emulator = serve()
    prices = {"price_per_million_input_tokens": 10.0, "price_per_million_output_tokens": 30.0}
    rows = [ChatRow.of("cheap"), ChatRow.of("dear", images=[RED, BLUE])]
    answered, dead = run(rows, chat_assets(emulator, chat={**prices, "max_row_cost": 0.04}, max_tokens=1000))
    assert list(answered) == ["cheap"]
    assert (dead["dear"].reason, dead["dear"].attempts) == ("too_expensive", 0)
    assert answered["cheap"].cost == pytest.approx(
        answered["cheap"].input_tokens * 1e-5 + answered["cheap"].output_tokens * 3e-5
    )
    assert emulator.stats()["requests"] == 1


def test_a_request_that_is_too_large_is_not_sent(serve):
    emulator = serve()
    _, dead = run([ChatRow.of("x", images=[RED] * 3)], chat_assets(emulator, chat={"max_request_bytes": 2000}))
    assert dead["x"].reason == "too_large"
    assert emulator.stats()["requests"] == 0


def test_steps_share_what_may_be_spent(serve):
    emulator = serve()
    reasons = []
    with pipeline() as p:
        for step in ("one", "two"):
            rows = p | f"create {step}" >> beam.Create([ChatRow.of(f"{step} {i}") for i in range(10)])
            result = rows | step >> chat_assets(emulator, max_requests=6)
            reasons.append(result.dead | f"reasons {step}" >> beam.Map(lambda row: row.reason))
        assert_that(reasons | beam.Flatten(), equal_to(["not_sent"] * 14))
    assert emulator.stats()["requests"] == 6


def test_no_window_exceeds_the_limit_and_several_requests_are_in_flight(serve):
    emulator = serve(Faults(latency_s=0.1), Limits(requests_per_minute=30, window_s=1.0))
    transform = chat_assets(emulator, requests_per_minute=30)
    transform._window_s = 1.0
    answered, _ = run([ChatRow.of(str(i)) for i in range(75)], transform)
    stats = emulator.stats()
    assert len(answered) == 75
    assert stats["statuses"] == {"200": 75}
    assert stats["worst_window"]["requests"] <= 30
    assert stats["peak_in_service"] >= 4


def test_answers_keep_timestamps_and_windows_of_an_unbounded_input(serve):
    emulator = serve()
    stream = TestStream()
    for second in (1, 11, 12):
        stream = stream.advance_watermark_to(second).add_elements(
            [window.TimestampedValue(ChatRow.of(str(second)), second)]
        )
    found = Collected()
    with beam.Pipeline(options=PipelineOptions(["--streaming", "--allow_unsafe_triggers"])) as p:
        result = (
            p
            | stream.advance_watermark_to_infinity()
            | beam.WindowInto(window.FixedWindows(10))
            | chat_assets(emulator)
        )

        def note(row, when=beam.DoFn.TimestampParam, where=beam.DoFn.WindowParam):
            return row.id, float(when), float(where.start)

        _ = result.answered | beam.Map(note) | "found" >> beam.Map(found)
    assert sorted(found.elements) == [("1", 1.0, 0.0), ("11", 11.0, 10.0), ("12", 12.0, 10.0)]


def test_dead_rows_may_go_to_an_error_handler(serve):
    emulator = serve(Faults(chat_refusal=1))
    kept = Collected()
    with pipeline() as p:
        rows = p | beam.Create([ChatRow.of("x")])
        with ErrorHandler(beam.Map(kept)) as handler:
            answered = rows | chat_assets(emulator).with_error_handler(handler)
        assert_that(answered | beam.combiners.Count.Globally(), equal_to([0]))
    assert [row.reason for row in kept.elements] == ["refused_by_model"]


def test_a_refused_key_fails_the_pipeline_in_one_sentence(serve, monkeypatch):
    emulator = serve()
    monkeypatch.setenv(KEY_ENV, "wrong-key-1234567")
    with pytest.raises(Exception, match="the server refused the API key") as error:
        run([ChatRow.of(str(i)) for i in range(20)], chat_assets(emulator))
    assert "wrong-key-1234567" not in str(error.value)
    assert emulator.stats()["requests"] <= 2


def test_a_missing_key_fails_the_pipeline(serve, monkeypatch):
    emulator = serve()
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(Exception, match=KEY_ENV):
        run([ChatRow.of("x")], chat_assets(emulator))


def test_a_cache_sends_only_what_has_no_answer_yet(serve, tmp_path):
    emulator = serve()
    options = {"answer_schema": SCHEMA, "cache": str(tmp_path / "answers")}
    options["chat"] = {"price_per_million_output_tokens": 1.0}
    rows = [ChatRow.of(str(i), {"n": i}, images=[RED]) for i in range(20)]
    first, _ = run(rows, chat_assets(emulator, "Row {{ n }}", **options))
    again, _ = run(rows, chat_assets(emulator, "Row {{ n }}", **options))
    assert emulator.stats()["requests"] == 20
    for name, row in again.items():
        assert (row.requests, row.cost) == (0, 0.0)
        assert row._replace(requests=1, cost=first[name].cost) == first[name]
    changed = [ChatRow.of("3", {"n": 333}, images=[RED]), *rows[4:]]
    run(changed, chat_assets(emulator, "Row {{ n }}", **options))
    assert emulator.stats()["requests"] == 21
    run(rows[:2], chat_assets(emulator, "Row {{ n }}!", **options))
    run(rows[:2], chat_assets(emulator, "Row {{ n }}", **options, max_tokens=999))
    run([ChatRow.of("0", {"n": 0}, images=[BLUE])], chat_assets(emulator, "Row {{ n }}", **options))
    assert emulator.stats()["requests"] == 26


def test_equal_requests_are_asked_once_with_a_cache(serve, tmp_path):
    emulator = serve(Faults(latency_s=0.1))
    rows = [ChatRow.of(str(i), {"n": i % 3}) for i in range(60)]
    answered, _ = run(rows, chat_assets(emulator, "Row {{ n }}", cache=str(tmp_path)))
    assert len(answered) == 60
    assert emulator.stats()["requests"] == 3
    assert sum(row.requests for row in answered.values()) == 3


def test_a_failed_row_does_not_stop_equal_rows(serve, tmp_path):
    emulator = serve(Faults(chat_refusal=1, stop_at_request=1, latency_s=0.05))
    rows = [ChatRow.of(str(i)) for i in range(5)]
    answered, dead = run(rows, chat_assets(emulator, cache=str(tmp_path)))
    assert (len(answered), len(dead)) == (4, 1)
    assert emulator.stats()["requests"] == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"{}", b'{"text": 1}', b"x" * 9_000_000], ids=len)
def test_a_damaged_answer_is_asked_for_again(serve, tmp_path, damage):
    emulator = serve()
    run([ChatRow.of("x", images=[RED])], chat_assets(emulator, answer_schema=SCHEMA, cache=str(tmp_path)))
    (file,) = tmp_path.rglob("*.json")
    file.write_bytes(damage)
    answered, _ = run([ChatRow.of("x", images=[RED])], chat_assets(emulator, answer_schema=SCHEMA, cache=str(tmp_path)))
    assert json.loads(answered["x"].parsed)["colour"] == "red"
    assert emulator.stats()["requests"] == 2


def test_an_answer_that_is_not_of_the_schema_is_asked_for_again(serve, tmp_path):
    emulator = serve()
    run([ChatRow.of("x", images=[RED])], chat_assets(emulator, answer_schema=SCHEMA, cache=str(tmp_path)))
    (file,) = tmp_path.rglob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "text": '{"colour": 3}'}))
    answered, _ = run([ChatRow.of("x", images=[RED])], chat_assets(emulator, answer_schema=SCHEMA, cache=str(tmp_path)))
    assert answered["x"].requests == 1


def test_a_cache_that_cannot_be_written_fails_the_pipeline(serve, tmp_path):
    emulator = serve()
    (tmp_path / "file").write_text("x")
    with pytest.raises(Exception, match="file"):
        run([ChatRow.of("x")], chat_assets(emulator, cache=str(tmp_path / "file")))


@pytest.mark.slow
@pytest.mark.timeout(580)
def test_twenty_kills_lose_nothing_and_ask_nothing_twice_that_was_kept(serve, tmp_path):
    emulator = serve(Faults(latency_s=0.02))
    order = {"rows": 200, "prompt": "Row {{ id }}", "base_url": emulator.base_url, "api_key_env": KEY_ENV}
    order |= {"cache": str(tmp_path), "max_concurrency": 4, "rate_limiter": "memory"}
    forked = Forked()
    kept = {}
    for wanted in sorted(random.Random(5).sample(range(1, 195), 20)):
        process = forked.start(chat=order)
        while len(list(tmp_path.rglob("*.json"))) < wanted:
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        assert forked.status() == signal.SIGKILL
        found = {path.name: path.read_bytes() for path in tmp_path.rglob("*.json")}
        assert {name: found.get(name) for name in kept} == kept
        kept = found
    forked.start(chat=order)
    assert forked.status() == 0
    forked.close()
    billed = emulator.payments()
    assert len(billed) == len(list(tmp_path.rglob("*.json"))) == 200
    # Each kill may cost the four requests in flight, and as many that were answered and not yet kept.
    assert sum(count - 1 for count in billed.values()) <= 20 * 8


WRONG = {
    "no prompt": ({}, "prompt"),
    "a template": ({"prompt": "{{ a"}, "ChatAssets: prompt line 1: "),
    "a schema": ({"prompt": "x", "answer_schema": {"type": "string"}}, "must be an object with properties"),
    "a model of main": ({"prompt": "x", "answer_schema": dict}, "must be a pydantic model that workers can import"),
    "temperature": ({"prompt": "x", "temperature": 9}, "temperature"),
    "a contradiction": ({"prompt": "x", "model": "a", "chat": {"model": "b"}}, "model is 'a', but 'b' in `chat`"),
    "a cost without prices": ({"prompt": "x", "max_cost": 1.0}, "no price is configured"),
    "a format without a schema": ({"prompt": "x", "chat": {"response_format": "json_object"}}, "no answer_schema"),
    "an own parameter": ({"prompt": "x", "chat": {"extra_body": {"model": "y"}}}, "must not contain 'model'"),
    "an unknown setting": ({"prompt": "x", "chat": {"modle": "y"}}, "modle"),
    "plain http": ({"prompt": "x", "base_url": "http://example.com/v1"}, "clear text"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named_before_anything_runs(arguments, message):
    with pytest.raises(ConfigError) as error:
        epithre.ChatAssets(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", {}), "id must be a str that is not empty"),
        ((3, {}), "id must be a str"),
        (("x", {3: 1}), "the names of fields must be str"),
        (("x", {"a": object()}), "fields must be JSON"),
        (("x", {"a": "\ud800"}), "fields must be JSON"),
    ],
)
def test_a_wrong_row_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ChatRow.of(*arguments)


@pytest.mark.parametrize("images", ["one.png", b"\x89PNG", [b"\x89PNG", "one.png"], [3]])
def test_images_of_a_row_are_bytes_or_uris(images):
    with pytest.raises(ArgumentError, match="images must be"):
        ChatRow.of("x", images=images)


def test_rows_of_beam_and_assets_with_vectors_are_taken_too(serve):
    emulator = serve()
    vector = [1.0, *[0.0] * 15]
    known = ("sha", None, None, 9, None, None, None)
    elements = [
        beam.Row(id="row", fields='{"name": "cup"}'),
        beam.Row(id="asset", kind="text", text="a mug", metadata='{"name": "mug"}'),
        epithre.EmbeddedAsset("text", "text", "/a.txt", "a pot", *known, '{"name": "pot"}', vector),
    ]
    said = {}
    for element in elements:
        answered, dead = run([element], chat_assets(emulator, "What is {{ name }}?"))
        assert not dead
        said |= {name: row.answer.rpartition("What is ")[2] for name, row in answered.items()}
    assert said == {"row": "cup?", "asset": "mug?", "text": "pot?"}


def test_another_element_is_refused_with_what_to_do(serve):
    emulator = serve()
    with pytest.raises(Exception, match="An element must be a ChatRow or an Asset, got dict"):
        run([{"id": "x"}], chat_assets(emulator))
    with pytest.raises(ArgumentError, match="ChatAssets takes a PCollection"):
        _ = pipeline() | chat_assets(emulator)


def test_the_graph_contains_no_secret(serve):
    emulator = serve()
    p = pipeline()
    _ = p | beam.Create([ChatRow.of("x")]) | chat_assets(emulator)
    assert emulator.api_key not in str(p.to_runner_api())


def test_beam_shows_its_settings(serve):
    emulator = serve()
    shown = {item.key: item.value for item in DisplayData.create_from(chat_assets(emulator, max_tokens=7)).items}
    assert shown["model"] == "epithre-omni"
    assert shown["max_tokens"] == 7
