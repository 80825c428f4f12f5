"""YAML of unusual size is refused at once; ordinary YAML is read."""

import string
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs.yaml_text import MAX_DEPTH, MAX_VALUES, DuplicateKeyError, YamlBombError, parse_yaml

DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(string.printable) | st.dates(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_letters), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(DATA)
def test_written_data_is_read_back(data: object) -> None:
    assert parse_yaml(yaml.safe_dump(data)) == data


def laughs(levels: int, each: int, form: str) -> str:
    lines = ["a0: &a0 [x, y]" if form == "list" else "a0: &a0 {x: y}"]
    for i in range(1, levels):
        names = ", ".join([f"*a{i - 1}"] * each)
        inner = {"list": f"[{names}]", "merge": f"{{<<: [{names}]}}", "keys": f"{{k: *a{i - 1}, l: *a{i - 1}}}"}[form]
        lines.append(f"a{i}: &a{i} {inner}")
    return "\n".join(lines)


BOMBS = {
    "laughs": laughs(9, 10, "list"),
    "merged": laughs(9, 10, "merge"),
    "keys": laughs(40, 2, "keys"),
    "square": "a: &a [" + "x, " * 300 + "]\nb: [" + "*a, " * 300 + "]",
    "deep": "[" * 100_000,
    "deep blocks": "- " * 50_000 + "x",
    "deep mappings": "{a: " * 5000,
    "itself": "&a [*a]",
    "itself below": "a: &a {b: {c: *a}}",
    "wide": "\n".join(f"k{i}: 1" for i in range(40_000)),
    "base 60": "1:" * 200_000 + "1",
    "digits": "9" * 500_000,
    "long": "x" * 2_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_yaml_bomb_is_refused_quickly(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(YamlBombError):
        parse_yaml(BOMBS[name])
    assert time.process_time() - begin < 10


def test_ordinary_aliases_depths_and_sizes_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: *a") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 1}}
    depth = MAX_DEPTH - 1
    assert str(parse_yaml("[" * depth + "]" * depth)).count("[") == depth
    assert len(parse_yaml("[" + "1, " * (MAX_VALUES - 2) + "]")) == MAX_VALUES - 2
    assert parse_yaml("") is None
    with pytest.raises(DuplicateKeyError, match="`a` occurs twice"):
        parse_yaml("a: 1\na: 2")


@pytest.mark.parametrize(
    "tag", ["int", "float", "bool", "timestamp", "binary", "set", "omap", "pairs", "map", "seq", "str"]
)
@pytest.mark.parametrize("value", ["''", "x", "[]", "[x]", "{}", "{a: b}", "-", "'-'", "~"])
def test_a_value_that_does_not_match_its_tag_is_an_error(tag: str, value: str) -> None:
    try:
        parse_yaml(f"!!{tag} {value}")
    except (yaml.YAMLError, ValueError):
        return
    parse_yaml(f"a: !!{tag} {value}")
