"""Printed JSON is valid for every catalog."""

import datetime
import decimal
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.pipelines.console.documents import json_text

from ..conftest import Place

NUMBERS = st.floats() | st.sampled_from([float("nan"), float("inf"), float("-inf"), -0.0, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def without(value):
    """The value with null for NaN and infinities."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {name: without(item) for name, item in value.items()}
    return [without(item) for item in value] if isinstance(value, (list, tuple)) else value


@given(VALUES)
def test_every_value_becomes_json_and_json_values_are_kept(value):
    assert json.loads(json_text(value), parse_constant=refuse) == without(value)


def test_other_types_become_strings():
    value = {float("nan"): [decimal.Decimal("1.50"), datetime.date(2026, 1, 2)]}
    assert json.loads(json_text(value)) == {"nan": ["1.50", "2026-01-02"]}


@pytest.fixture
def odd(tmp_path):
    """A catalog whose prices are NaN and infinite."""
    place = Place(tmp_path)
    (tmp_path / "texts.csv").write_text("id,text,price\na,red,inf\nb,blue,nan\nc,green,-inf\nd,black,1.5\n", "utf-8")
    source = {"kind": "text", "table": "texts.csv", "id": "id", "text": "text", "metadata": {"price": "double"}}
    place.write_job(sources=[source])
    assert place.cli("run", "job.yaml", "--quiet").returncode == 0
    return place


def test_hits_with_infinite_metadata_are_json(odd):
    done = odd.cli("search", "catalog", "--text", "red", "--json")
    document = json.loads(done.stdout, parse_constant=refuse)
    prices = {hit["asset_id"]: hit["metadata"]["price"] for hit in document["results"][0]["hits"]}
    assert prices == {"a": None, "b": None, "c": None, "d": 1.5}
