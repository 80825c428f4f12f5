"""Answers: only what matches the schema passes, and whatever passes fits into its typed columns."""

import datetime
import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.errors import ConfigError
from epithre_beam.transforms.chat.answer_schema import AnswerError, AnswerSchema

HERE = Path(__file__).parent
PRODUCT = {
    "title": "A product!",
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "price": {"type": ["number", "null"]},
        "count": {"type": "integer", "minimum": 0},
        "is_new": {"type": "boolean"},
        "kind": {"enum": ["bike", "car", None]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "size": {"type": "object", "properties": {"w": {"type": "integer"}, "h": {"type": "integer"}}},
        "seen": {"type": "string", "format": "date"},
        "anything": {},
        "maybe": {"anyOf": [{"$ref": "#/$defs/Note"}, {"type": "null"}]},
    },
    "required": ["name", "count"],
    "$defs": {"Note": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}},
}
COLUMNS = {
    "name": pa.string(),
    "price": pa.float64(),
    "count": pa.int64(),
    "is_new": pa.bool_(),
    "kind": pa.string(),
    "tags": pa.list_(pa.string()),
    "size": pa.struct([("w", pa.int64()), ("h", pa.int64())]),
    "seen": pa.date32(),
    "anything": pa.string(),
    "maybe": pa.struct([("text", pa.string())]),
}


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    yield
    sys.modules.pop("answer_models", None)


def test_each_property_is_a_typed_column():
    schema = AnswerSchema.of(PRODUCT)
    assert dict(zip(schema.arrow_schema().names, schema.arrow_schema().types, strict=True)) == COLUMNS
    assert schema.name == "A_product_"


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "cup", "count": 2}',
        '```json\n{"name": "cup", "count": 2}\n```',
        'Here it is:\n\n{"name": "cup", "count": 2}\n\nAnything else?',
        'Sure.\n```\n{"name": "cup", "count": 2}\n```\nDone.',
        '{"name": "cup", "count": 2.0}',
    ],
)
def test_one_object_is_found_in_fences_and_prose(answer):
    schema = AnswerSchema.of(PRODUCT)
    columns = schema.to_columns(schema.parse(answer))
    assert (columns["name"], columns["count"], columns["price"], columns["maybe"]) == ("cup", 2, None, None)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("", "no JSON object"),
        ("I do not know.", "no JSON object"),
        ("[1]", "no JSON object"),
        ('{"name": "cup"', "not valid JSON"),
        ('{"name": "cup", "count": 1} {"name": "pot", "count": 1}', "more than one JSON object"),
        ('{"name": "cup", "name": "pot", "count": 1}', "occurs twice"),
        ('{"name": "cup", "count": NaN}', "NaN is not allowed"),
        ('{"name": "cup", "count": 1, "price": Infinity}', "Infinity is not allowed"),
        ('{"name": "cup", "count": 1, "price": 1e999}', "price: must be a finite number"),
        ('{"name": "cup"}', "'count' is a required property"),
        ('{"name": 3, "count": 1}', "name: 3 is not of type 'string'"),
        ('{"name": "cup", "count": "two"}', "count: 'two' is not of type 'integer'"),
        ('{"name": "cup", "count": -1}', "count: -1 is less than the minimum of 0"),
        ('{"name": "cup", "count": 99999999999999999999}', "count: must be between -2^63 and 2^63"),
        ('{"name": "cup", "count": 1, "kind": "boat"}', "kind: 'boat' is not one of"),
        ('{"name": "cup", "count": 1, "seen": "yesterday"}', "seen: "),
        ('{"name": "cup", "count": 1, "tags": ["a", 1]}', "tags.1: 1 is not of type 'string'"),
        ('{"name": "\\ud800", "count": 1}', "half of a surrogate pair"),
        ('{"a":' * 200 + "1" + "}" * 200, "nested more than 50"),
        ('{"name": "' + "x" * 1_100_000 + '", "count": 1}', "more than 1,000,000 bytes"),
    ],
)
def test_another_answer_is_refused_in_a_sentence(answer, message):
    with pytest.raises(AnswerError) as error:
        AnswerSchema.of(PRODUCT).parse(answer)
    assert message in str(error.value)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "must be an object with properties"),
        ({"type": "string"}, "must be an object with properties"),
        ({"type": "object"}, "must be an object with properties"),
        ({"type": "object", "properties": {}}, "has no properties"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "no JSON Schema (properties/a/type"),
        ({"type": "object", "properties": {"a": {"minimum": "x"}}}, "no JSON Schema"),
        ({"type": "object", "properties": {"a": {"$ref": "https://x/y.json"}}}, "is outside of it"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}, "which it does not have"),
        ({"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}}, "contains itself"),
        ({"type": "object", "properties": {"a": {"enum": [object]}}}, "is not JSON"),
        ({"type": "object", "properties": {"a": {"description": "x" * 100_001}}}, "more than 100,000 bytes"),
        ("no/such/file.json", "cannot be read (No such file or directory)"),
        ("no_such_module:Model", "cannot be imported"),
        ("answer_models:NoModel", "cannot be imported"),
        ("answer_models:NOT_A_MODEL", "must be a JSON Schema or a pydantic model, got int"),
        ("answer_models:Node", "contains itself"),
        (3, "must be a JSON Schema or a pydantic model, got int"),
        (str, "must be a JSON Schema or a pydantic model, got type"),
    ],
)
def test_what_is_no_schema_is_refused_with_the_reason(source, message, importable):
    with pytest.raises(ConfigError) as error:
        AnswerSchema.of(source)
    assert str(error.value).startswith("chat.answer_schema: ")
    assert message in str(error.value)


def test_a_deep_schema_is_refused():
    schema = {"type": "string"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    with pytest.raises(ConfigError, match="levels deep"):
        AnswerSchema.of(schema)


def test_a_schema_may_be_in_a_file(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(PRODUCT))
    assert AnswerSchema.of(str(path)).sha256 == AnswerSchema.of(PRODUCT).sha256
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="has no object"):
        AnswerSchema.of(str(path))
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        AnswerSchema.of(str(path))


def test_a_pydantic_model_checks_and_types_its_answers(importable):
    schema = AnswerSchema.of("answer_models:Invoice")
    answer = '{"vendor": "Toko", "total": "12.50", "date": "2026-01-02", "items": [{"name": "a", "count": 1}]}'
    columns = schema.to_columns(schema.parse(answer))
    assert columns["date"] == datetime.date(2026, 1, 2)
    assert columns["items"] == [{"name": "a", "count": 1}]
    assert (columns["currency"], columns["status"], columns["finished_at"]) == ("IDR", "open", None)
    with pytest.raises(AnswerError) as error:
        schema.parse('{"vendor": "Toko", "total": "x", "date": "2026-01-02", "items": [{"name": "a", "count": -1}]}')
    assert "total: " in str(error.value)
    assert "items.0.count: " in str(error.value)


def test_strict_is_only_what_the_schema_says_already():
    closed = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": ["string", "null"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    assert AnswerSchema.of(closed).strict_schema() == closed
    assert AnswerSchema.of(PRODUCT).strict_schema() is None
    assert AnswerSchema.of({**closed, "required": ["a"]}).strict_schema() is None


def test_instructions_contain_the_schema():
    text = AnswerSchema.of(PRODUCT).instructions()
    stated = json.loads(text.split("```json\n")[1].split("```")[0])
    assert stated["properties"].keys() == PRODUCT["properties"].keys()


def test_a_property_may_have_the_name_of_a_keyword():
    schema = AnswerSchema.of(
        {"type": "object", "properties": {"$defs": {"type": "string"}, "definitions": {"type": "integer"}}}
    )
    assert schema.arrow_schema().names == ["$defs", "definitions"]
    assert schema.to_columns(schema.parse('{"$defs": "x", "definitions": 1}')) == {"$defs": "x", "definitions": 1}


LEAVES = st.sampled_from(
    [
        ({"type": "string"}, st.text(st.characters(codec="utf-8"), max_size=10)),
        ({"type": "integer"}, st.integers(-(2**63), 2**63 - 1)),
        ({"type": "number"}, st.floats(allow_nan=False, allow_infinity=False)),
        ({"type": "boolean"}, st.booleans()),
        ({"type": "string", "format": "date"}, st.dates().map(str)),
        ({"type": ["integer", "null"]}, st.none() | st.integers(0, 9)),
        ({"enum": ["a", "b"]}, st.sampled_from("ab")),
        ({}, st.none() | st.integers(0, 9) | st.lists(st.text(max_size=3), max_size=2)),
    ]
)


def lists_of(drawn):
    schema, values = drawn
    return {"type": "array", "items": schema}, st.lists(values, max_size=3)


def objects_of(drawn):
    schema, values = drawn
    properties = {"x": schema, "y": {"type": "integer"}}
    return {"type": "object", "properties": properties}, st.fixed_dictionaries(
        {"x": values}, optional={"y": st.just(1)}
    )


SCHEMAS = st.recursive(LEAVES, lambda inner: inner.map(lists_of) | inner.map(objects_of), max_leaves=4)


@settings(deadline=None)
@given(st.data())
def test_answers_of_any_schema_survive_parquet(data):
    drawn = data.draw(
        st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1, max_size=4), SCHEMAS, min_size=1)
    )
    schema = AnswerSchema.of({"type": "object", "properties": {name: one for name, (one, _) in drawn.items()}})
    answers = [{name: data.draw(values) for name, (_, values) in drawn.items()} for _ in range(3)]
    rows = [schema.to_columns(schema.parse(json.dumps(answer))) for answer in answers]
    table = pa.Table.from_pylist(rows, schema=schema.arrow_schema())
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    assert pq.read_table(pa.BufferReader(sink.getvalue())).to_pylist() == table.to_pylist()


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_an_answer_or_says_why_not(text):
    try:
        parsed = AnswerSchema.of(PRODUCT).parse(text)
    except AnswerError:
        return
    assert parsed.keys() >= {"name", "count"}


def test_a_long_answer_of_brackets_is_refused_quickly():
    started = time.monotonic()
    for text in ("{" * 900_000, '{"a": "' + '\\"' * 400_000, "```" * 300_000, '{"a":1}' * 100_000):
        with pytest.raises(AnswerError):
            AnswerSchema.of(PRODUCT).parse(text)
    assert time.monotonic() - started < 60
