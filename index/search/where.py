"""Conditions on assets as data: JSON in the manner of MongoDB becomes an Arrow expression."""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from ...configs.errors import ArgumentError

MAX_DEPTH = 10
MAX_TERMS = 100
MAX_VALUES = 1000
"""In a list of `$in` or `$nin`."""

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "$eq": lambda field, value: field == value,
    "$gt": lambda field, value: field > value,
    "$gte": lambda field, value: field >= value,
    "$lt": lambda field, value: field < value,
    "$lte": lambda field, value: field <= value,
}
_ORDERED = ("$gt", "$gte", "$lt", "$lte")
_OPERATORS = ("$eq", "$ne", *_ORDERED, "$in", "$nin", "$exists", "$not")


def parse_where(condition: str | Mapping[str, Any], schema: pa.Schema) -> pc.Expression:
    """A condition such as `{"lang": "id", "price": {"$lt": 10}}` as an expression for `Catalog.search`.

    Operators on a column are `$eq $ne $gt $gte $lt $lte $in $nin $exists $not`, on conditions `$and $or $not`; several
    keys must all hold. A name is a metadata column or, where there is none of that name, another column of the asset.
    Dates and times are ISO strings; a time without a zone is UTC. What an asset has no value for is equal to null
    alone: `$ne`, `$nin` and `$not` match it, comparisons do not.

    Args:
        condition: A mapping, or its JSON.
        schema: Of `Catalog.assets(kind)`: all kinds of a catalog have the same columns.

    Returns:
        An expression that is true or false for every row, never null.

    Raises:
        ArgumentError: With the place, the rule and the value.
    """
    if isinstance(condition, str):
        try:
            condition = orjson.loads(condition)
        except orjson.JSONDecodeError as error:
            raise ArgumentError(f"where must be JSON, got {_shown(condition)}: {error}.") from None
    return _Parser(schema).condition(condition, "where", 1)


@dataclass(frozen=True, kw_only=True)
class _Type:
    """What the values of a column are."""

    rule: str
    convert: Callable[[Any], Any]
    is_ordered: bool = True


@dataclass(frozen=True, kw_only=True)
class _Column:
    field: Any
    arrow_type: pa.DataType
    type: _Type

    def value(self, value: Any, place: str) -> pa.Scalar:
        try:
            return pa.scalar(self.type.convert(value), self.arrow_type)
        except (ValueError, OverflowError, pa.ArrowException):  # a ValueError of an ISO string too
            raise _wrong(place, self.type.rule, value) from None


class _Parser:
    """One condition; it counts the terms."""

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = _columns(schema)
        self._terms = 0

    def condition(self, condition: Any, place: str, depth: int) -> pc.Expression:
        if not isinstance(condition, Mapping):
            raise _wrong(place, "an object such as {column: value}", condition)
        _check_depth(place, depth)
        found = None
        for key, value in condition.items():
            part = self._part(key, value, f"{place}.{key}", depth)
            found = part if found is None else found & part
        return pc.scalar(True) if found is None else found  # the last: nothing is asked

    def _part(self, key: Any, value: Any, place: str, depth: int) -> pc.Expression:
        if key in {"$and", "$or"}:
            return self._several(key, value, place, depth)
        if key == "$not":
            return ~self.condition(value, place, depth + 1)
        if not isinstance(key, str) or key.startswith("$"):
            raise _wrong(place, "a column, $and, $or or $not", key)
        column = self._columns.get(key)
        if column is None:
            raise _wrong(place, f"a column among {', '.join(self._columns)}", key)
        if isinstance(value, Mapping):
            return self._operators(column, value, place, depth + 1)
        return self._operator(column, "$eq", value, place, depth)

    def _several(self, key: str, value: Any, place: str, depth: int) -> pc.Expression:
        if not isinstance(value, (list, tuple)) or not value:
            raise _wrong(place, "a list of conditions, at least one", value)
        found = None
        for i, condition in enumerate(value):
            self._count(place)
            part = self.condition(condition, f"{place}[{i}]", depth + 1)
            found = part if found is None else found & part if key == "$and" else found | part
        return found

    def _operators(self, column: _Column, operators: Mapping[Any, Any], place: str, depth: int) -> pc.Expression:
        _check_depth(place, depth)
        if not operators:
            raise ArgumentError(f"{place} must be a value or an object of operators such as {{$lt: 10}}, got {{}}.")
        found = None
        for name, value in operators.items():
            part = self._operator(column, name, value, f"{place}.{name}", depth)
            found = part if found is None else found & part
        return found

    def _operator(self, column: _Column, name: Any, value: Any, place: str, depth: int) -> pc.Expression:
        self._count(place)
        match name:
            case "$ne":
                return ~self._equal(column, value, place)
            case "$eq":
                return self._equal(column, value, place)
            case "$in":
                return self._among(column, value, place)
            case "$nin":
                return ~self._among(column, value, place)
            case "$exists":
                if not isinstance(value, bool):
                    raise _wrong(place, "true or false", value)
                return column.field.is_valid() if value else column.field.is_null()
            case "$not":
                if not isinstance(value, Mapping):
                    raise _wrong(place, "an object of operators", value)
                return ~self._operators(column, value, place, depth + 1)
            case str() if name in _ORDERED:
                if not column.type.is_ordered:
                    raise ArgumentError(f"{place} must be $eq or $ne, the column's values are {column.type.rule}.")
                return column.field.is_valid() & _COMPARISONS[name](column.field, column.value(value, place))
        raise _wrong(place, f"an operator among {', '.join(_OPERATORS)}", name)

    def _equal(self, column: _Column, value: Any, place: str) -> pc.Expression:
        if value is None:
            return column.field.is_null()
        return column.field.is_valid() & (column.field == column.value(value, place))

    def _among(self, column: _Column, values: Any, place: str) -> pc.Expression:
        if not isinstance(values, (list, tuple)):
            raise _wrong(place, "a list of values", values)
        if len(values) > MAX_VALUES:
            raise ArgumentError(f"{place} must have at most {MAX_VALUES} values, got {len(values)}.")
        wanted = [column.value(value, f"{place}[{i}]").as_py() for i, value in enumerate(values) if value is not None]
        found = column.field.is_valid() & column.field.isin(pa.array(wanted, column.arrow_type))
        return column.field.is_null() | found if None in values else found

    def _count(self, place: str) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise ArgumentError(f"where must have at most {MAX_TERMS} terms, got more at {place}.")


def _columns(schema: pa.Schema) -> dict[str, _Column]:
    """The columns that may be named, metadata first."""
    found: dict[str, _Column] = {}
    place = schema.get_field_index("metadata")
    for field in schema.field(place).type if place >= 0 else ():
        if kind := _type_of(field.type):
            found[field.name] = _Column(field=pc.field("metadata", field.name), arrow_type=field.type, type=kind)
    for field in schema:
        if field.name not in found and (kind := _type_of(field.type)):
            found[field.name] = _Column(field=pc.field(field.name), arrow_type=field.type, type=kind)
    return found


def _type_of(kind: pa.DataType) -> _Type | None:
    for is_it, found in _TYPES:
        if is_it(kind):
            return found
    return None


class _UnlikeError(ValueError):
    """A value is not what its column has."""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _UnlikeError
    value.encode()  # half of a surrogate pair is no text
    return value


def _whole(value: Any) -> int:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise _UnlikeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise _UnlikeError
    return float(value)


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _UnlikeError
    return value


def _date(value: Any) -> datetime.date:
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value
    return datetime.date.fromisoformat(_text(value))


def _time(value: Any) -> datetime.datetime:
    time = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(_text(value))
    return time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time.astimezone(datetime.UTC)


_TYPES: tuple[tuple[Callable[[Any], bool], _Type], ...] = (
    (pa.types.is_string, _Type(rule="a text", convert=_text)),
    (pa.types.is_integer, _Type(rule="a whole number", convert=_whole)),
    (pa.types.is_floating, _Type(rule="a number", convert=_number)),
    (pa.types.is_boolean, _Type(rule="true or false", convert=_truth, is_ordered=False)),
    (pa.types.is_date, _Type(rule="a date such as '2026-01-31'", convert=_date)),
    (pa.types.is_timestamp, _Type(rule="a time such as '2026-01-31T09:30:00Z'", convert=_time)),
)


def _check_depth(place: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ArgumentError(f"where must be at most {MAX_DEPTH} objects deep, got a deeper one at {place}.")


def _wrong(place: str, rule: str, value: Any) -> ArgumentError:
    return ArgumentError(f"{place} must be {rule}, got {_shown(value)}.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
