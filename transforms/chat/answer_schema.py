"""The form of answers: a JSON Schema, or a pydantic model. Answers are checked, and become typed columns."""

import datetime
import hashlib
import importlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import orjson
import pyarrow as pa
from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import SchemaError
from pydantic import BaseModel, ValidationError

from ...configs.errors import ConfigError

_PLACE = "chat.answer_schema"
_MOST_SCHEMA_BYTES = 100_000
_MOST_ANSWER_BYTES = 1_000_000
_DEEPEST_SCHEMA = 20
_DEEPEST_ANSWER = 50
_PROBLEMS_NAMED = 5
_INT64 = 1 << 63
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FENCE = re.compile(r"```[A-Za-z]*\s*\n(.*?)```", re.DOTALL)
_TOKEN = re.compile(r'\\.|["{}\[\]]', re.DOTALL)
"""What the depth of JSON depends on: brackets, quotes, and characters after a backslash."""
_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
_FORMATS: dict[str, pa.DataType] = {"date": pa.date32(), "date-time": pa.timestamp("us", tz="UTC")}
_JSON = pa.string()
"""Of a value without a type of its own: its JSON."""


class AnswerError(Exception):
    """An answer is not of the schema. The message is a sentence for the model, and for a dead letter."""


class AnswerSchema:
    """The form of answers. Use `AnswerSchema.of`."""

    def __init__(self, schema: Mapping[str, Any], model: type[BaseModel] | None = None) -> None:
        self._model = model
        try:
            canonical = orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)
        except (TypeError, ValueError) as error:
            raise _refusal(f"it is not JSON ({error})", "Correct it.") from None
        if len(canonical) > _MOST_SCHEMA_BYTES:
            raise _refusal(f"it has more than {_MOST_SCHEMA_BYTES:,} bytes", "Use a smaller one.")
        if _depth(canonical.decode()) > 3 * _DEEPEST_SCHEMA:
            raise _refusal(f"it is nested more than {_DEEPEST_SCHEMA} levels deep", "Use a flatter one.")
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            place = "/".join(map(str, error.absolute_path)) or "its top"
            raise _refusal(f"it is no JSON Schema ({place}: {error.message[:200]})", "Correct it.") from None
        resolved = _inline(schema, schema, ())
        if resolved.get("type") != "object" or not isinstance(resolved.get("properties"), dict):
            raise _refusal("its top level must be an object with properties", "Put the answer into a property.")
        if not resolved["properties"]:
            raise _refusal("it has no properties", "Add one for each value that you want.")
        self.json_schema: Mapping[str, Any] = resolved
        """Without references."""
        self.sha256 = hashlib.sha256(canonical).hexdigest()
        self.name = _NAME.sub("_", str(schema.get("title") or "answer"))[:64] or "answer"
        """As servers allow it."""
        self._validator = Draft202012Validator(resolved, format_checker=FormatChecker())
        self._columns = {name: arrow_type(value) for name, value in resolved["properties"].items()}

    @classmethod
    def of(cls, source: "Mapping[str, Any] | str | type[BaseModel]") -> "AnswerSchema":
        """Return a schema.

        Args:
            source: A JSON Schema, the path of a file with one, the import path of a pydantic model
                (`package.module:Model`), or the model.

        Raises:
            ConfigError: When it is none of these.
        """
        if isinstance(source, str):
            source = _imported(source) if _IMPORT_PATH.fullmatch(source) else _read(source)
        if isinstance(source, Mapping):
            return cls(source)
        if isinstance(source, type) and issubclass(source, BaseModel):
            try:
                return cls(source.model_json_schema(), source)
            except ConfigError:
                raise
            except Exception as error:  # what a model's own code raises
                raise _refusal(f"{source.__name__} has no JSON Schema ({error!r})", "Correct the model.") from error
        raise _refusal(f"it must be a JSON Schema or a pydantic model, got {type(source).__name__}", "Correct it.")

    def strict_schema(self) -> Mapping[str, Any] | None:
        """Return the schema as `strict` wants it: every property required, no others; None if that changes it."""
        return self.json_schema if _is_strict(self.json_schema) else None

    def instructions(self) -> str:
        """Return what a prompt says where a server is not sent the schema."""
        schema = orjson.dumps(self.json_schema, option=orjson.OPT_INDENT_2).decode()
        return f"Answer with one JSON object of this JSON Schema and nothing else:\n```json\n{schema}\n```"

    def parse(self, answer: str) -> dict[str, Any]:
        """Return the object in an answer; a fence or prose around it is ignored.

        Raises:
            AnswerError: When there is not exactly one object, or it is not of the schema.
        """
        parsed = _object_in(answer)
        if self._model is not None:
            try:
                parsed = self._model.model_validate_json(orjson.dumps(parsed)).model_dump(mode="json", by_alias=True)
            except ValidationError as error:
                found = [(".".join(map(str, e["loc"])), str(e["msg"])) for e in error.errors(include_url=False)]
                raise AnswerError(_sentence(found)) from None
            except Exception as error:  # what a model's own validators raise
                raise AnswerError(f"The answer is invalid ({type(error).__name__}: {error}).") from None
        problems = [(".".join(map(str, e.absolute_path)), e.message) for e in self._validator.iter_errors(parsed)]
        if problems:
            raise AnswerError(_sentence(problems))
        for name, kind in self._columns.items():
            _check_fits(name, parsed.get(name), kind)
        return parsed

    def arrow_schema(self) -> pa.Schema:
        """Return a column for each property."""
        return pa.schema(list(self._columns.items()))

    def to_columns(self, parsed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the columns of an answer that `parse` returned."""
        return {name: _value(parsed.get(name), kind) for name, kind in self._columns.items()}


def arrow_type(schema: Any) -> pa.DataType:
    """Return the type of a column for the values of a schema; text, with JSON in it, if no other type fits."""
    if not isinstance(schema, dict):
        return _JSON
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        kinds = [arrow_type(option) for option in options if not _is_null(option)]
        return kinds[0] if len(kinds) == 1 else _JSON
    if "const" in schema or "enum" in schema:
        values = [v for v in schema.get("enum", [schema.get("const")]) if v is not None]
        names = {_name_of(value) for value in values}
        return _TYPES.get(names.pop(), _JSON) if len(names) == 1 else _JSON
    named = schema.get("type")
    types = [name for name in ([named] if isinstance(named, str) else named or []) if name != "null"]
    if len(types) != 1:
        return _JSON
    match types[0]:
        case "array" if isinstance(schema.get("items"), dict):
            return pa.list_(arrow_type(schema["items"]))
        case "object" if schema.get("properties"):
            if isinstance(schema.get("additionalProperties"), dict):
                return _JSON
            return pa.struct([(name, arrow_type(value)) for name, value in schema["properties"].items()])
        case "string":
            return _FORMATS.get(str(schema.get("format")), _JSON)
        case name:
            return _TYPES.get(name, _JSON)


def _name_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "integer", float: "number"}.get(type(value), "other")


def _is_null(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "null"


def _is_strict(schema: Any) -> bool:
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        names = schema.get("properties", {}).keys()
        if schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(names):
            return False
    return all(map(_is_strict, schema.values()))


def _inline(schema: Any, top: Mapping[str, Any], inside: tuple[str, ...], depth: int = 0) -> Any:
    """Return a schema with its references replaced by what they refer to."""
    if depth > 3 * _DEEPEST_SCHEMA:
        raise _refusal(f"it is nested more than {_DEEPEST_SCHEMA} levels deep", "Use a flatter one.")
    if isinstance(schema, list):
        return [_inline(part, top, inside, depth + 1) for part in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    if isinstance(reference, str):
        if not reference.startswith("#/"):
            raise _refusal(f"it refers to {reference!r}, which is outside of it", "Write that schema here.")
        if reference in inside:
            raise _refusal(f"{reference} contains itself, and columns cannot", "Limit the nesting.")
        found: Any = top
        for part in reference[2:].split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        if found is None:
            raise _refusal(f"it refers to {reference!r}, which it does not have", "Correct the reference.")
        more = {name: value for name, value in schema.items() if name != "$ref"}
        inner = _inline(found, top, (*inside, reference), depth + 1)
        return {**inner, **_inline(more, top, inside, depth + 1)} if isinstance(inner, dict) else inner
    return {
        name: {n: _inline(part, top, inside, depth + 2) for n, part in value.items()}
        if name == "properties" and isinstance(value, dict)  # its keys are names, and not keywords
        else _inline(value, top, inside, depth + 1)
        for name, value in schema.items()
        if name not in {"$defs", "definitions"}
    }


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # also what the module itself raises
        raise _refusal(f"{path!r} cannot be imported ({error!r})", "Check the path and PYTHONPATH.") from error


def _read(path: str) -> Mapping[str, Any]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(10 * _MOST_SCHEMA_BYTES + 1)
        schema = orjson.loads(data)
    except OSError as error:
        raise _refusal(f"the file {path!r} cannot be read ({error.strerror})", "Check the path.") from None
    except orjson.JSONDecodeError as error:
        raise _refusal(f"the file {path!r} is not JSON ({error})", "Correct it.") from None
    if not isinstance(schema, dict):
        raise _refusal(f"the file {path!r} has no object", "Write a JSON Schema into it.")
    return schema


def _object_in(answer: str) -> dict[str, Any]:
    """Return the only JSON object in an answer."""
    text = answer.strip()
    if len(text.encode("utf-8", "replace")) > _MOST_ANSWER_BYTES:
        raise AnswerError(f"The answer has more than {_MOST_ANSWER_BYTES:,} bytes.")
    fences = _FENCE.findall(text)
    if len(fences) == 1:
        text = fences[0].strip()
    start = text.find("{")
    if start < 0:
        raise AnswerError("The answer contains no JSON object.")
    if _depth(text) > _DEEPEST_ANSWER:
        raise AnswerError(f"The answer is nested more than {_DEEPEST_ANSWER} levels deep.")
    try:
        found, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise AnswerError(f"The answer is not valid JSON ({error}).") from None
    if "{" in text[end:]:
        raise AnswerError("The answer contains more than one JSON object.")
    if not isinstance(found, dict):
        raise AnswerError("The answer is not a JSON object.")
    return found


def _depth(text: str) -> int:
    """The greatest depth of brackets, outside of strings."""
    depth = deepest = 0
    is_in_string = False
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark == '"':
            is_in_string = not is_in_string
        elif is_in_string or len(mark) > 1:
            continue
        elif mark in "{[":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in an object")
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)


def _sentence(problems: list[tuple[str, str]]) -> str:
    shown = [f"{place}: {what[:300]}" if place else what[:300] for place, what in problems[:_PROBLEMS_NAMED]]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more problems" if more > 0 else "") + "."


def _check_fits(place: str, value: Any, kind: pa.DataType) -> None:
    """Raise AnswerError if a value does not fit into its column."""
    if value is None:
        return
    if pa.types.is_int64(kind) and not -_INT64 <= value < _INT64:
        raise AnswerError(f"{place}: must be between -2^63 and 2^63, got {value}.")
    if pa.types.is_float64(kind) and not _is_finite(value):
        raise AnswerError(f"{place}: must be a finite number.")
    if pa.types.is_date32(kind) or pa.types.is_timestamp(kind):
        try:
            _moment(value, kind)
        except (ValueError, OverflowError):
            raise AnswerError(f"{place}: must be a date in ISO 8601, got {value!r}.") from None
    if pa.types.is_list(kind):
        for i, part in enumerate(value):
            _check_fits(f"{place}[{i}]", part, kind.value_type)
    if pa.types.is_struct(kind):
        for field in kind:
            _check_fits(f"{place}.{field.name}", value.get(field.name), field.type)
    if pa.types.is_string(kind) and isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise AnswerError(f"{place}: contains half of a surrogate pair.") from None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # an integer with many digits
        return False


def _moment(value: str, kind: pa.DataType) -> datetime.date | datetime.datetime:
    if pa.types.is_date32(kind):
        return datetime.date.fromisoformat(value)
    moment = datetime.datetime.fromisoformat(value)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC)


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_float64(kind):
        return float(value)
    if pa.types.is_date32(kind) or pa.types.is_timestamp(kind):
        return _moment(value, kind)
    if pa.types.is_list(kind):
        return [_value(part, kind.value_type) for part in value]
    if pa.types.is_struct(kind):
        return {field.name: _value(value.get(field.name), field.type) for field in kind}
    if pa.types.is_int64(kind):
        return int(value)
    return value


def _refusal(what: str, remedy: str) -> ConfigError:
    return ConfigError(f"{_PLACE}: {what}. {remedy}")
