"""Messages for conditions that Arrow refuses: Arrow names its own functions and types, but no column."""

import json
import re

import pyarrow as pa
import pyarrow.compute as pc

_NESTED = r"FieldRef\.Nested\(FieldRef\.Name\(metadata\) FieldRef\.Name\((?P<metadata>.+?)\)\)"
_COLUMN = rf"(?:{_NESTED}|(?P<column>[A-Za-z_]\w*))"
_VALUE = r'(?P<value>"(?:[^"\\]|\\.)*"|[^()"]+)'
_COMPARED = re.compile(rf"\({_COLUMN} (?:==|!=|<|<=|>|>=) {_VALUE}\)")
"""A comparison of a column with a value, as Arrow writes it."""
_AMONG = re.compile(rf"is_in\({_COLUMN}, ")
_KERNEL = re.compile(r"no kernel matching input types \((.+), (.+)\)$")
_SET = re.compile(r"type of values set: (.+) vs (.+)$")
_LONGEST = 60


def wrong_where(error: Exception, where: pc.Expression, schema: pa.Schema) -> str:
    """Return the message for a condition, with the column, its type and the value where Arrow's error allows it."""
    what, *_ = str(error).splitlines()  # Arrow appends the whole schema
    metadata = schema.field("metadata").type if "metadata" in schema.names else ()
    names = [field.name for field in metadata]
    if (named := re.search(r"No match for FieldRef\.Name\((.+?)\) in", what)) and named[1] in names:
        return f"where: {named[1]!r} is a metadata column. Name it as {_field(named[1], is_metadata=True)}."
    types = _KERNEL.search(what) or _SET.search(what)
    if types is not None and types[1].startswith("struct<") and names:
        return (
            f'where: pc.field("metadata") has several columns ({", ".join(names)}). Name one of them, as in '
            f"{_field(names[0], is_metadata=True)}."
        )
    if types is not None:
        column_type, value_type = _plain(types[1]), _plain(types[2])
        for found in (*_COMPARED.finditer(str(where)), *_AMONG.finditer(str(where))):
            name = found["metadata"] or found["column"]
            if types[1] != _type_of(name, schema, is_metadata=found["metadata"] is not None):
                continue
            field = _field(name, is_metadata=found["metadata"] is not None)
            value = found.groupdict().get("value")
            got = f"{_cut(value)}, of the type {value_type}" if value else f"values of the type {value_type}"
            return (
                f"where: {field} has the type {column_type} and is compared with {got}. "
                f"Give a value of the type {column_type}."
            )
        return f"where: it compares the types {column_type} and {value_type}. Give values of the column's type."
    if other := re.search(r"must evaluate to bool, but .+ evaluates to (.+)$", what):
        return (
            f"where must be a condition on the columns {schema.names}: it has the type {_plain(other[1])}. Compare it."
        )
    if absent := re.search(_NESTED, what):
        return (
            f"where must be a condition on the columns {schema.names}: there is no metadata column "
            f"{absent['metadata']!r:.80}. Metadata columns: {', '.join(names)}."
        )
    return f"where must be a condition on the columns {schema.names}: {what[:200]}."


def _type_of(name: str, schema: pa.Schema, *, is_metadata: bool) -> str | None:
    fields = {field.name: str(field.type) for field in (schema.field("metadata").type if is_metadata else schema)}
    return fields.get(name)


def _field(name: str, *, is_metadata: bool) -> str:
    """A column as the user of an expression writes it."""
    quoted = json.dumps(name, ensure_ascii=False)
    return f'pc.field("metadata", {quoted})' if is_metadata else f"pc.field({quoted})"


def _plain(arrow_type: str) -> str:
    """The name that a job has for a type of Arrow; the type itself if it has none."""
    for pattern, name in ((r"u?int\d+", "int"), (r"date\d+.*", "date"), (r"timestamp.*", "timestamp")):
        if re.fullmatch(pattern, arrow_type):
            return name
    return arrow_type


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
