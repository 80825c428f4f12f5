"""Prompts: fields are named before anything is sent, and no value can harm more than its own row."""

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.errors import ConfigError
from epithre_beam.transforms.chat.prompt import PromptError, PromptTemplate

HUGE = 10**12


@pytest.mark.parametrize(
    ("source", "fields", "prompt"),
    [
        ("Describe {{ name }}.", {"name": "Sepeda <b>&"}, "Describe Sepeda <b>&."),
        ("{{ name }} {{ price }}", {"name": "cup", "price": None}, "cup"),
        ("{{ name }}{% if price %} at {{ price }}{% endif %}", {"name": "cup", "price": 0.5}, "cup at 0.5"),
        ("{% for tag in tags %}{{ tag }},{% endfor %}", {"tags": ["a", "b"]}, "a,b,"),
        ("{{ facts|tojson }}", {"facts": {"é": [1, None], "a": "<"}}, '{"a":"<","é":[1,null]}'),
        ("{{ size.width }}", {"size": {"width": 3}}, "3"),
        ("{{ text }}", {"text": "{{ 7 * 7 }}"}, "{{ 7 * 7 }}"),
        ("  {{ a }}\n", {"a": 1}, "1"),
        ("{{ '-' * 3 }}{{ 2 ** 3 }}{{ 7 % 4 }}{{ 2 * 1.5 }}", {}, "---833.0"),
        ("{{ name|upper|center(9)|trim }}", {"name": "cup"}, "CUP"),
    ],
)
def test_a_template_renders_its_fields(source, fields, prompt):
    assert PromptTemplate(source).render(fields) == prompt


def test_fields_are_those_of_the_row():
    source = "{{ a }}{% for b in c %}{{ b }}{{ d.e }}{% endfor %}{% set f = 1 %}{{ f }}{{ range(2)|list }}"
    assert PromptTemplate(source).fields == {"a", "c", "d"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ a", "prompt line 1: unexpected end of template"),
        ("a\n{% for x in y %}", "prompt line 2: Unexpected end of template"),
        ("{% include 'x' %}", "prompt line 1: a template cannot load another one. Write its text here."),
        ("{% extends base %}", "cannot load another one"),
        ("{% import 'x' as x %}", "cannot load another one"),
        ("{{ a|no_such_filter }}", "No filter named 'no_such_filter'"),
        ("{{ '%s'|format(a) }}", "No filter named 'format'"),
        ("{% endif %}", "Encountered unknown tag 'endif'"),
    ],
)
def test_what_is_no_template_is_refused_with_its_line(source, message):
    with pytest.raises(ConfigError) as error:
        PromptTemplate(source)
    assert message in str(error.value)


def test_fields_that_are_no_columns_are_named_together():
    with pytest.raises(ConfigError) as error:
        PromptTemplate("{{ nmae }} {{ price }} {{ id }}").check(["name", "id", "text"])
    expected = "prompt: 'nmae' (did you mean 'name'?), 'price' are no columns. The columns are: id, name, text."
    assert str(error.value) == expected
    PromptTemplate("{{ id }} {{ range(3)|list }}").check(["id"])


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ("{{ price }}", {}, "the row has no such field: 'price' is undefined"),
        ("{{ a.b.c }}", {"a": {}}, "the row has no such field"),
        ("{{ a }}", {"a": " \n"}, "the prompt is empty"),
        ("{{ 1 / n }}", {"n": 0}, "ZeroDivisionError"),
        ("{{ a + 1 }}", {"a": "x"}, "TypeError"),
        ("{{ a|tojson }}", {"a": float}, "1"),
    ],
)
def test_a_row_that_a_template_fails_for_says_why(source, fields, message):
    if message == "1":
        assert PromptTemplate(source).render(fields)
        return
    with pytest.raises(PromptError) as error:
        PromptTemplate(source).render(fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        ("{{ '-' * n }}", {"n": HUGE}),
        ("{{ n * '-' }}", {"n": HUGE}),
        ("{{ ['x'] * n }}", {"n": HUGE}),
        ("{{ 2 ** n }}", {"n": HUGE}),
        ("{{ x|center(n) }}", {"x": "a", "n": HUGE}),
        ("{{ x|indent(n) }}", {"x": "a\nb", "n": HUGE}),
        ("{{ x.ljust(n) }}", {"x": "a", "n": HUGE}),
        ("{{ x.zfill(n) }}", {"x": "a", "n": HUGE}),
        ("{{ '{:>{w}}'.format(x, w=n) }}", {"x": "a", "n": HUGE}),
        ("{{ '%*d' % (n, 1) }}", {"n": HUGE}),
        ("{% for i in range(n) %}x{% endfor %}", {"n": HUGE}),
        ("{% for i in range(99999) %}{{ x }}{% endfor %}", {"x": "y" * 10_000}),
        ("{{ x }}", {"x": "y" * 500_000}),
        ("{{ x.__class__.__mro__ }}", {"x": "a"}),
        ("{{ x.__init__.__globals__ }}", {"x": "a"}),
        ("{{ ''['__cla' ~ 'ss__'] }}", {}),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", {}),
        ("{{ x.append(1) }}", {"x": []}),
    ],
)
def test_values_neither_fill_the_memory_nor_reach_python(source, fields):
    started = time.monotonic()
    with pytest.raises(PromptError):
        PromptTemplate(source).render(fields)
    assert time.monotonic() - started < 30


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
    )
)
def test_any_values_render_or_fail_alone(fields):
    template = PromptTemplate("{{ a }} {{ b|tojson }} {% for x in c %}{{ x }}{% endfor %}.")
    with contextlib.suppress(PromptError):
        assert template.render(fields).endswith(".")


def test_a_prompt_may_have_a_limit_of_its_own():
    with pytest.raises(PromptError, match="more than 10 characters"):
        PromptTemplate("{{ a }}", max_chars=10).render({"a": "x" * 11})
