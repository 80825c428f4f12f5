"""Fill the fields of a JSON Schema by their names, with what the emulator sees."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from .captions import Attributes, Language, name_of
from .lexicon import attributes_of
from .replies import caption_of

_DEEPEST = 12
_MOST_ITEMS = 20
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")
_FIELDS: Mapping[str, frozenset[str]] = {
    "colour": frozenset({"colour", "color", "warna"}),
    "shape": frozenset({"shape", "figure", "object", "subject", "bentuk", "objek", "benda", "product", "produk"}),
    "texture": frozenset({"texture", "pattern", "tekstur", "pola", "motif"}),
    "ground": frozenset({"ground", "background", "latar", "scene", "setting"}),
}
_COUNTS = frozenset({"count", "number", "total", "jumlah", "banyak"})
_LANGUAGES = frozenset({"language", "lang", "bahasa"})


class SchemaError(Exception):
    """A schema that cannot be filled."""


def schema_in(text: str) -> dict[str, Any] | None:
    """Return the JSON Schema in the last fenced block of a text; None if there is none."""
    for block in reversed(_FENCE.findall(text)):
        try:
            found = orjson.loads(block)
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict) and isinstance(found.get("properties"), dict):
            return found
    return None


def fill(schema: Mapping[str, Any], seen: Sequence[Attributes], text: str, language: Language) -> Any:
    """Return a value of the schema.

    Args:
        schema: The schema.
        seen: The images.
        text: What the emulator would answer without a schema.
        language: Of the answer.

    Raises:
        SchemaError: When a reference leads nowhere, or the nesting is too deep.
    """
    return _Filler(schema, seen, text, language).value(schema, "", 0)


class _Filler:
    def __init__(self, top: Mapping[str, Any], seen: Sequence[Attributes], text: str, language: Language) -> None:
        self._top = top
        self._seen = seen
        self._text = text
        self._language = language

    def value(self, schema: Any, name: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise SchemaError(f"it is nested more than {_DEEPEST} levels deep")
        if not isinstance(schema, Mapping):
            return self._said(name)
        if isinstance(schema.get("$ref"), str):
            return self.value(self._referred(schema["$ref"]), name, depth + 1)
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._chosen(schema["enum"])
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(key), list) and schema[key]:
                return self.value(schema[key][0], name, depth + 1)
        kinds = schema.get("type")
        kind = kinds[0] if isinstance(kinds, list) and kinds else kinds
        match kind:
            case "object":
                properties = schema.get("properties") or {}
                return {key: self.value(part, key, depth + 1) for key, part in properties.items()}
            case "array":
                return self._list(schema, name, depth)
            case "integer" | "number":
                return self._number(schema, name, is_whole=kind == "integer")
            case "boolean":
                return self._is_true(name)
            case "null":
                return None
            case _ if "properties" in schema:
                return self.value({**schema, "type": "object"}, name, depth)
            case _:
                return self._string(schema, name)

    def _referred(self, reference: str) -> Any:
        found: Any = self._top
        for part in reference.removeprefix("#/").split("/"):
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if found is None or not reference.startswith("#/"):
            raise SchemaError(f"it has no {reference[:100]!r}")
        return found

    def _list(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        least, most = int(schema.get("minItems") or 0), int(schema.get("maxItems") or _MOST_ITEMS)
        count = min(max(least, len(self._seen), 1), max(most, least), _MOST_ITEMS)
        found = []
        for place in range(count):
            one = self._seen[place : place + 1] or self._seen[:1]
            inner = _Filler(self._top, one, caption_of(one[0], self._language) if one else self._text, self._language)
            found.append(inner.value(schema.get("items"), name, depth + 1))
        return found

    def _number(self, schema: Mapping[str, Any], name: str, *, is_whole: bool) -> float | int:
        least, most = schema.get("minimum"), schema.get("maximum")
        if isinstance(schema.get("exclusiveMinimum"), (int, float)):
            least = schema["exclusiveMinimum"] + 1
        value: float = len(self._seen) if _COUNTS & _words(name) else 0
        value = max(value, least) if isinstance(least, (int, float)) else value
        value = min(value, most) if isinstance(most, (int, float)) else value
        return math.ceil(value) if is_whole else value

    def _is_true(self, name: str) -> bool:
        """Whether the attributes that a name says are those of the first image."""
        said = attributes_of(name.replace("_", " "))
        return bool(said and self._seen) and all(
            values.get(getattr(self._seen[0], group), 0.0) > 0 for group, values in said.items()
        )

    def _chosen(self, values: Sequence[Any]) -> Any:
        for value in values:
            said = attributes_of(value) if isinstance(value, str) else {}
            if said and self._seen and all(v.get(getattr(self._seen[0], g), 0.0) > 0 for g, v in said.items()):
                return value
        return values[0]

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        match schema.get("format"):
            case "date":
                return "2000-01-01"
            case "date-time":
                return "2000-01-01T00:00:00Z"
        text = self._said(name)
        most = schema.get("maxLength")
        if isinstance(most, int):
            text = text[: max(most, 0)]
        least = schema.get("minLength")
        return text.ljust(least, ".") if isinstance(least, int) and least < 10_000 else text

    def _said(self, name: str) -> str:
        words = _words(name)
        if _LANGUAGES & words:
            return self._language
        for group, names in _FIELDS.items():
            if self._seen and names & words:
                return name_of(group, self._seen[0], self._language)
        return self._text


def _words(name: str) -> set[str]:
    """The words of a field's name, as in `background_colour` or `backgroundColour`."""
    words = [word.lower() for word in _WORDS.findall(name)]
    # The last word says what it is: `background_colour` is a colour of the ground.
    if {"background", "ground", "latar"} & set(words):
        return {"ground"}
    return set(words)
