"""Elements refuse nonsense, have a schema, and are encoded the same way each time."""

import datetime
import json
import pickle
import subprocess
import sys
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.coders import RowCoder, registry
from apache_beam.portability.api import schema_pb2
from apache_beam.typehints.schemas import typing_to_runner_api
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam import transforms as epithre
from epithre_beam.configs.errors import ArgumentError, ConfigError
from epithre_beam.transforms.elements import as_assets, check_elements, metadata_json, problem_of, to_asset

from .pipeline_runs import RUNNERS, run

ELEMENTS = (epithre.Asset, epithre.EmbeddedAsset, epithre.DeadAsset)
DEAD = epithre.DeadAsset("a", "image", "s3://b/a.png", "read", "missing", "the file does not exist", 0)


def embedded(name: str = "a", **changes: object) -> epithre.EmbeddedAsset:
    vector = np.random.default_rng(len(name)).standard_normal(16).astype(np.float32).tolist()
    values = epithre.EmbeddedAsset(
        name, "text", None, "mug", "0" * 64, None, "text/plain", 3, None, None, None, '{"price":1.5}', vector
    )
    return values._replace(**changes)


@pytest.mark.parametrize(
    "element", [epithre.Asset.of_text("a", "é"), epithre.Asset.of_image("b", b"\0"), embedded(), DEAD]
)
def test_element_survives_its_coder_and_pickling_unchanged(element):
    coder = registry.get_coder(type(element))
    assert isinstance(coder, RowCoder)
    assert coder.decode(coder.encode(element)) == element
    assert coder.encode(element) == coder.encode(type(element)(*element))
    assert pickle.loads(pickle.dumps(element)) == element


@pytest.mark.parametrize("kind", ELEMENTS)
def test_coder_of_an_element_is_deterministic(kind):
    assert registry.get_coder(kind).is_deterministic()


@pytest.mark.parametrize("kind", ELEMENTS)
def test_schema_has_only_types_that_every_language_knows(kind):
    for field in typing_to_runner_api(kind).row_type.schema.fields:
        assert field.type.WhichOneof("type_info") in {"atomic_type", "array_type"}, field


def test_vector_in_the_schema_is_an_array_of_single_precision():
    fields = {field.name: field for field in typing_to_runner_api(epithre.EmbeddedAsset).row_type.schema.fields}
    assert fields["embedding"].type.array_type.element_type.atomic_type == schema_pb2.FLOAT


@given(
    st.text(), st.text(), st.dictionaries(st.text(max_size=5), st.none() | st.text() | st.integers() | st.booleans())
)
def test_of_text_makes_an_asset_that_can_be_encoded_or_refuses(name, text, metadata):
    if not name or any("\ud800" <= c <= "\udfff" for c in name + json.dumps(metadata, default=str, ensure_ascii=False)):
        with pytest.raises(ArgumentError):
            epithre.Asset.of_text(name, text, metadata=metadata)
        return
    asset = epithre.Asset.of_text(name, text, metadata=metadata)
    coder = registry.get_coder(epithre.Asset)
    assert coder.decode(coder.encode(asset)) == asset
    assert problem_of(asset) is None


def test_text_that_is_not_unicode_becomes_bytes_so_that_it_can_be_a_dead_asset():
    asset = epithre.Asset.of_text("a", "\ud800")
    assert (asset.text, asset.content) == (None, b"\xed\xa0\x80")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: epithre.Asset.of_text("", "mug"), "id must not be empty"),
        (lambda: epithre.Asset.of_text(7, "mug"), "id must be a str, got int"),
        (lambda: epithre.Asset.of_text("a", None), "text must be a str, got NoneType"),
        (lambda: epithre.Asset.of_text("a\ud800", "mug"), "UTF-8"),
        (lambda: epithre.Asset.of_image("a"), "exactly one of content and uri, got none"),
        (lambda: epithre.Asset.of_image("a", b"x", uri="/a.png"), "exactly one of content and uri, got both"),
        (
            lambda: epithre.Asset.of_image("a", "aGk="),
            "content must be bytes, got str. For a path or URL use `uri`",
        ),
        (lambda: epithre.Asset.of_image("a", uri=""), "uri must not be empty"),
        (lambda: epithre.Asset.of_image("a", uri="photos/a.jpg"), "absolute path or a URL, got 'photos/a.jpg'"),
        (lambda: epithre.Asset.of_image("a", uri="~/a.jpg"), "absolute path or a URL"),
        (lambda: to_asset(beam.Row(id="a", kind="text", uri="notes/a.txt")), "absolute path or a URL"),
        (lambda: epithre.Asset.of_image("a", uri="/a", metadata={"x": [1]}), r"metadata\['x'\] must be .* got list"),
        (lambda: epithre.Asset.of_image("a", uri="/a", metadata={1: 1}), "keys of metadata must be str, got 1"),
        (lambda: epithre.Asset.of_text("a", "", metadata={"x": float("nan")}), "must be finite"),
        (lambda: epithre.Asset.of_text("a", "", metadata="x"), "metadata must be a mapping, got str"),
        (lambda: to_asset(epithre.Asset("a", "video", uri="/a.mp4")), "kind must be image or text, got 'video'"),
        (lambda: to_asset(epithre.Asset("a", "image", text="mug")), r"exactly one of content, uri, got \['text'\]"),
        (lambda: to_asset({"id": "a", "kind": "text"}), "must be an Asset, or a beam.Row .* got dict"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(make, words):
    with pytest.raises(ArgumentError, match=words) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_equal_metadata_is_equal_text():
    day = datetime.date(2026, 11, 30)
    assert metadata_json({"b": 1, "a": day}, "") == metadata_json({"a": day, "b": 1}, "") == '{"a":"2026-11-30","b":1}'


@pytest.mark.parametrize(
    "element", [beam.Row(id="a", kind="text", text="mug", price=3), epithre.Asset.of_text("a", "mug")]
)
def test_row_and_asset_become_the_same_asset(element):
    assert to_asset(element) == epithre.Asset.of_text("a", "mug")


class ToAssets(beam.PTransform):
    def expand(self, elements):
        return as_assets(elements, "ToAssets")


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("shape", ["asset", "row"])
def test_assets_and_rows_cross_a_shuffle_on_every_runner(runner, shape, tmp_path):
    def build(pipeline):
        names = pipeline | beam.Create(["a", "b", "c"])
        if shape == "asset":
            elements = names | beam.Map(lambda n: epithre.Asset.of_text(n, "mug")).with_output_types(epithre.Asset)
        else:
            elements = names | beam.Map(lambda n: beam.Row(id=str(n), kind="text", text="mug"))
        return {"assets": elements | beam.Reshuffle() | ToAssets()}

    expected = [epithre.Asset.of_text(n, "mug")._asdict() for n in "abc"]
    assert run(build, tmp_path, RUNNERS[runner])["assets"] == expected


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        (["a"], "takes a PCollection of Asset, got one of str. Map its elements"),
        ([DEAD._asdict()], "got one of "),
        ([3.5], "got one of float"),
    ],
)
def test_wrong_element_type_is_refused_when_the_pipeline_is_built(elements, words):
    with pytest.raises(ArgumentError, match=words):
        _ = beam.Pipeline() | beam.Create(elements) | ToAssets()


def test_row_without_an_id_is_refused_when_the_pipeline_is_built():
    rows = beam.Pipeline() | beam.Create([1]) | beam.Map(lambda i: beam.Row(sku=str(i)))
    with pytest.raises(ArgumentError, match="got one of Row"):
        _ = rows | ToAssets()


def test_result_with_two_outputs_is_refused_with_a_hint():
    with pytest.raises(ArgumentError, match=r"got EmbedResult\. Pass its field `embedded`"):
        check_elements(epithre.EmbedResult(None, None), epithre.EmbeddedAsset, "WriteVectors")


def test_elements_of_unknown_type_are_accepted():
    unknown = beam.Pipeline() | beam.Create([1]) | beam.Map(lambda i: i).with_output_types(object)
    check_elements(unknown | beam.Map(lambda i: i).with_output_types(beam.typehints.Any), epithre.Asset, "X")


def test_every_public_name_is_exported_without_loading_beam_first():
    program = (
        "import sys; from epithre_beam import transforms; assert 'apache_beam' not in sys.modules\n"
        "assert set(transforms.__all__) <= set(dir(transforms)) and 'apache_beam' not in sys.modules\n"
        "for name in transforms.__all__: assert getattr(transforms, name).__name__ == name\n"
        "assert 'apache_beam' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Asse'"):
        _ = epithre.Asse


class Product(NamedTuple):
    sku: str


def wrong(values, wanted):
    pipeline = beam.Pipeline(runner="FnApiRunner")
    elements = pipeline | beam.Create([1]) | beam.Map(lambda _: values[0]).with_output_types(wanted)
    return pipeline, elements


IS_BUILT = [
    (epithre.EmbedAssets, dict[str, str], r"takes a PCollection of Asset, got one of Dict\[str, str\]\. Map its"),
    (epithre.EmbedAssets, str, r"got one of str\. Map its elements with Asset\.of_text or Asset\.of_image first\."),
    (epithre.EmbedAssets, tuple[str, epithre.Asset], r"got one of Tuple\[str, Asset\]\. Map"),
    (epithre.EmbedAssets, Product, r"got one of Product without id and kind\."),
    (epithre.EmbedAssets, list[epithre.Asset], r"got one of List\[Asset\]\. .* use beam\.FlatMap instead of beam\.Map"),
    (epithre.EmbedAssets, epithre.EmbeddedAsset | None, r"got one of Union\[.*EmbeddedAsset.*\]\. Map"),
    (epithre.WriteVectors, dict[str, str], r"PCollection of EmbeddedAsset, got one of Dict\[str, str\]\. Pass `embed"),
    (epithre.WriteVectors, tuple[str, list[float]], r"got one of Tuple\[str, List\[float\]\]\. Pass `embedded` of"),
    (epithre.WriteVectors, Product, r"got one of Product without embedding and id and kind\. Pass"),
]


@pytest.mark.core
@pytest.mark.parametrize(("transform", "wanted", "words"), IS_BUILT)
def test_wrong_elements_are_refused_when_the_pipeline_is_built(transform, wanted, words):
    arguments = ["/out"] if transform is epithre.WriteVectors else []
    _, elements = wrong([None], wanted)
    with pytest.raises(ArgumentError, match=words) as caught:
        _ = elements | transform(*arguments)
    assert "<class" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.core
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"id": "a"}, r"got dict\. Create it with Asset\.of_text or Asset\.of_image\."),
        (("a", "mug"), r"got tuple\. Create it"),
        (Product("a"), r"got Product\. Create it"),
        ([epithre.Asset.of_text("a", "mug")], r"got list\. Create it"),
        (None, r"got NoneType\. A function of beam\.Map must return an asset; one of beam\.FlatMap may return none\."),
        (beam.Row(id=1, kind="text", text="mug"), r"Asset 1: id must be a str, got int\."),
    ],
)
def test_wrong_elements_of_an_unknown_type_are_refused_at_run_time(value, words):
    pipeline, elements = wrong([value], beam.typehints.Any)
    _ = elements | epithre.EmbedAssets(base_url="emulator", dimension=16)
    with pytest.raises(ArgumentError, match=words):
        pipeline.run().wait_until_finish()


@pytest.mark.core
def test_a_result_instead_of_its_field_is_refused_with_the_field():
    pipeline = beam.Pipeline(runner="FnApiRunner")
    read = pipeline | epithre.ReadAssets({"kind": "text", "files": "x"})
    embedded = read.assets | epithre.EmbedAssets()
    with pytest.raises(ArgumentError, match=r"EmbedAssets takes .*, got ReadResult\. Pass its field `assets`\."):
        _ = read | "other" >> epithre.EmbedAssets()
    with pytest.raises(ArgumentError, match=r"WriteVectors takes .*, got EmbedResult\. Pass its field `embedded`\."):
        _ = embedded | epithre.WriteVectors("/out")
    with pytest.raises(ArgumentError, match=r"EmbedAssets takes .*, got PBegin\. Apply it to the output of another"):
        _ = pipeline | "begin" >> epithre.EmbedAssets()


@pytest.mark.core
def test_a_pattern_instead_of_a_source_is_refused_with_the_source():
    words = r'a source must be a mapping, such as \{"kind": "image", "files": "photos/\*"\}, got a str\.'
    with pytest.raises(ConfigError, match=words):
        epithre.ReadAssets("photos/*")
