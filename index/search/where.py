"""Filters on assets: parse MongoDB-style JSON into an Arrow expression."""

import datetime
import decimal
import difflib
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from ...configs.errors import ArgumentError

MAX_DEPTH = 10
MAX_TERMS = 100
MAX_VALUES = 1000
"""Values in a list of `$in` or `$nin`."""

_LONGEST_NAME = 60
_DIGITS = 400
"""More digits than a number of any column has."""
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "$eq": lambda field, value: field == value,
    "$gt": lambda field, value: field > value,
    "$gte": lambda field, value: field >= value,
    "$lt": lambda field, value: field < value,
    "$lte": lambda field, value: field <= value,
}
_ORDERED = ("$gt", "$gte", "$lt", "$lte")
_ABOVE = {"$gt": "$gt", "$gte": "$gt", "$lt": "$lte", "$lte": "$lte"}
_BELOW = {"$gt": "$gte", "$gte": "$gte", "$lt": "$lt", "$lte": "$lt"}
"""The operator to apply to the nearest value of the column if the given value lies above or below it."""
_OPERATORS = ("$eq", "$ne", *_ORDERED, "$in", "$nin", "$exists", "$not")
_MEANT = {
    **{operator[1:]: operator for operator in _OPERATORS},
    **dict.fromkeys(("=", "==", "equals", "equal", "is"), "$eq"),
    **dict.fromkeys(("!=", "<>", "neq", "noteq"), "$ne"),
    ">": "$gt",
    ">=": "$gte",
    "ge": "$gte",
    "<": "$lt",
    "<=": "$lte",
    "le": "$lte",
    "notin": "$nin",
    "isin": "$in",
    "any": "$in",
}
"""What other query languages call an operator, in lower case and without `$`."""


def parse_where(condition: str | Mapping[str, Any], schema: pa.Schema) -> pc.Expression:
    """Parse a condition such as `{"lang": "id", "price": {"$lt": 10}}` into an expression for `Catalog.search`.

    Column operators are `$eq $ne $gt $gte $lt $lte $in $nin $exists $not`; condition operators are `$and $or $not`.
    Several keys in one object are combined with AND. A name is a metadata column or, if there is no such metadata
    column, another column of the asset. Dates and times are ISO strings; a time without a zone is UTC. Python dates,
    times, `Decimal` and NumPy values are accepted too. A number outside the range of the column, such as 3000000000
    for 32-bit integers, is compared like any other number. A missing value equals null only: `$ne`, `$nin` and `$not`
    match it, comparisons do not. NaN equals nothing.

    Args:
        condition: A mapping, or its JSON.
        schema: The schema of `Catalog.assets(kind)`. All kinds of a catalog have the same columns.

    Returns:
        An expression that is true or false for every row, never null.

    Raises:
        ArgumentError: If the condition is invalid. The message has the place, the rule and the value.
    """
    if isinstance(condition, str):
        try:
            condition = orjson.loads(condition)
        except orjson.JSONDecodeError as error:
            raise ArgumentError(
                f'where must be JSON such as {{"price": {{"$lt": 10}}}}, got {_shown(condition)}: {error}.'
            ) from None
    return _Parser(schema).condition(condition, "where", 1)


class _Asked(NamedTuple):
    """The value of a column's type that is nearest to a given value."""

    value: Any
    side: int = 0
    """1: the given value lies above it and has no exact value of the type; -1: below; 0: exact."""


@dataclass(frozen=True, kw_only=True)
class _Type:
    """How the values of a column are named, converted and compared."""

    rule: str
    convert: Callable[[Any, pa.DataType], _Asked]
    is_ordered: bool = True


@dataclass(frozen=True, kw_only=True)
class _Column:
    field: Any
    arrow_type: pa.DataType
    type: _Type

    def asked(self, value: Any, place: str) -> _Asked:
        """Convert a given value; the result holds an Arrow scalar."""
        try:
            found = self.type.convert(value, self.arrow_type)
            return found._replace(value=pa.scalar(found.value, self.arrow_type))
        except (ValueError, OverflowError, pa.ArrowException):  # an invalid ISO string is a ValueError too
            raise _wrong(place, self.type.rule, value) from None


class _Parser:
    """Parses one condition and counts its terms."""

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
        return pc.scalar(True) if found is None else found  # an empty condition matches every row

    def _part(self, key: Any, value: Any, place: str, depth: int) -> pc.Expression:
        if key in {"$and", "$or"}:
            return self._several(key, value, place, depth)
        if key == "$not":
            return ~self.condition(value, place, depth + 1)
        if not isinstance(key, str) or key.startswith("$"):
            raise _wrong(place, "a column, $and, $or or $not", key)
        column = self._columns.get(key)
        if column is None:
            meant = f"${key}" if key in {"and", "or", "not"} else None
            hint = _hint(key, self._columns, meant)
            raise ArgumentError(f"{place}: there is no column {_cut(key)}. Columns: {', '.join(self._columns)}.{hint}")
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
                    raise ArgumentError(
                        f"{place} must be $eq or $ne, since the column's values are {column.type.rule}."
                    )
                value, side = column.asked(value, place)
                name = name if not side else (_ABOVE if side > 0 else _BELOW)[name]
                return column.field.is_valid() & _COMPARISONS[name](column.field, value)
        if isinstance(name, str):
            hint = _hint(name, _OPERATORS, _MEANT.get(name.lower().lstrip("$")))
            raise ArgumentError(f"{place} must be an operator among {', '.join(_OPERATORS)}, got {_shown(name)}.{hint}")
        raise _wrong(place, f"an operator among {', '.join(_OPERATORS)}", name)

    def _equal(self, column: _Column, value: Any, place: str) -> pc.Expression:
        if value is None:
            return column.field.is_null()
        value, side = column.asked(value, place)
        return pc.scalar(False) if side else column.field.is_valid() & (column.field == value)

    def _among(self, column: _Column, values: Any, place: str) -> pc.Expression:
        if isinstance(values, np.ndarray):
            values = list(values)
        if not isinstance(values, (list, tuple)):
            raise _wrong(place, "a list of values", values)
        if len(values) > MAX_VALUES:
            raise ArgumentError(f"{place} must have at most {MAX_VALUES} values, got {len(values)}.")
        asked = [column.asked(value, f"{place}[{i}]") for i, value in enumerate(values) if value is not None]
        wanted = [one.value.as_py() for one in asked if not one.side]
        if pa.types.is_floating(column.arrow_type) and 0.0 in wanted:
            wanted += [0.0, -0.0]  # equal, but Arrow's hash table tells them apart
        found = column.field.is_valid() & column.field.isin(pa.array(wanted, column.arrow_type))
        return column.field.is_null() | found if any(value is None for value in values) else found

    def _count(self, place: str) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise ArgumentError(f"where must have at most {MAX_TERMS} terms, got more at {place}.")


def _columns(schema: pa.Schema) -> dict[str, _Column]:
    """Return the columns that a condition can name, metadata first."""
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
    """A value does not have the type of its column."""


def _text(value: Any, _kind: Any = None) -> _Asked:
    if not isinstance(value, str):
        raise _UnlikeError
    value.encode()  # a lone surrogate cannot be encoded
    return _Asked(str(value))


def _exact(value: Any) -> int | float:
    """Convert a number of Python, NumPy or `decimal` to an int if it is whole, else to the nearest float.

    Raises:
        _UnlikeError: If it is not a number or not finite.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (numbers.Real, decimal.Decimal)):
        raise _UnlikeError
    number: Any = value  # all of these can be converted
    if isinstance(value, decimal.Decimal) and value.is_finite() and value.adjusted() > _DIGITS:
        number = decimal.Decimal(10**_DIGITS).copy_sign(
            value
        )  # 1e999999999 would take all memory and compares the same
    elif not isinstance(value, numbers.Integral) and not math.isfinite(value):
        raise _UnlikeError
    whole = int(number)
    return whole if whole == number else float(number)


def _whole(value: Any, kind: pa.DataType) -> _Asked:
    number = _exact(value)
    if isinstance(number, float):
        raise _UnlikeError
    most = 2 ** (kind.bit_width - 1) - 1
    nearest = min(max(number, -most - 1), most)
    return _Asked(nearest, (number > nearest) - (number < nearest))


def _number(value: Any, _kind: Any) -> _Asked:
    number = _exact(value)
    try:
        nearest = float(number)
    except OverflowError:
        nearest = math.copysign(sys.float_info.max, number > 0 or -1)
    return _Asked(nearest, (number > nearest) - (number < nearest))


def _truth(value: Any, _kind: Any) -> _Asked:
    if not isinstance(value, (bool, np.bool_)):
        raise _UnlikeError
    return _Asked(bool(value))


def _date(value: Any, _kind: Any) -> _Asked:
    if isinstance(value, np.datetime64):
        day = value.astype("datetime64[D]")
        if np.isnat(value) or day != value:
            raise _UnlikeError
        value = day.item()
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return _Asked(value)
    return _Asked(datetime.date.fromisoformat(_text(value).value))


def _time(value: Any, _kind: Any) -> _Asked:
    side = 0
    if isinstance(value, np.datetime64):
        cut = value.astype("datetime64[us]")
        if np.isnat(value):
            raise _UnlikeError
        value, side = cut.item(), int(value > cut) - int(value < cut)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    time = value if isinstance(value, datetime.datetime) else datetime.datetime.fromisoformat(_text(value).value)
    return _Asked(time.replace(tzinfo=datetime.UTC) if time.tzinfo is None else time.astimezone(datetime.UTC), side)


_TYPES: tuple[tuple[Callable[[Any], bool], _Type], ...] = (
    (pa.types.is_string, _Type(rule="a string", convert=_text)),
    (pa.types.is_integer, _Type(rule="a whole number", convert=_whole)),
    (pa.types.is_floating, _Type(rule="a number", convert=_number)),
    (pa.types.is_boolean, _Type(rule="true or false", convert=_truth, is_ordered=False)),
    (pa.types.is_date, _Type(rule="a date such as '2026-01-31'", convert=_date)),
    (pa.types.is_timestamp, _Type(rule="a time such as '2026-01-31T09:30:00Z'", convert=_time)),
)


def _check_depth(place: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ArgumentError(f"where must be at most {MAX_DEPTH} objects deep, got more at {place}.")


def _wrong(place: str, rule: str, value: Any) -> ArgumentError:
    return ArgumentError(f"{place} must be {rule}, got {_shown(value)}.")


def _hint(given: str, known: Iterable[str], meant: str | None) -> str:
    """Return a question for a name that is unknown, if one that is known was probably meant."""
    close = difflib.get_close_matches(given[:_LONGEST_NAME], known, 1) if meant is None else [meant]
    return f" Did you mean {close[0]}?" if close else ""


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
