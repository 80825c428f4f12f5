"""A parsed condition selects the same rows as a plain Python check, and invalid conditions are refused."""

import datetime
import decimal
import fractions
import math
import re

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.index import open_catalog
from epithre_beam.index.search.where import MAX_DEPTH, MAX_TERMS, MAX_VALUES, parse_where
from epithre_beam.index.versions.layout import assets_schema

TYPES = {"lang": "string", "stock": "int", "price": "double", "sold": "bool", "day": "date", "at": "timestamp"}
SCHEMA = assets_schema(TYPES)
DAYS = [datetime.date(2026, 1, 30), datetime.date(2026, 2, 1), datetime.date(1969, 12, 31)]
TIMES = [
    datetime.datetime(2026, 1, 30, 12, tzinfo=datetime.UTC),
    datetime.datetime(2026, 1, 30, 12, 0, 0, 1, tzinfo=datetime.UTC),
    datetime.datetime(2026, 1, 30, tzinfo=datetime.UTC),
    datetime.datetime(1950, 1, 1, tzinfo=datetime.UTC),
]
WHOLE = [-3, 0, 1, 3, 2**31 - 1, -(2**31), 2**53, 2**53 + 1, 2**63 - 1, -(2**63)]
CELLS = {
    "lang": st.sampled_from(["id", "en", "", 'a "quoted" one', "é", "\U0001f600", "\uffff"]),
    "stock": st.sampled_from(WHOLE),
    "price": st.sampled_from(
        [0.0, -0.0, 0.1, 1.5, 1e300, 2.0**53, math.nan, math.inf, -math.inf, 1.7976931348623157e308]
    ),
    "sold": st.booleans(),
    "day": st.sampled_from(DAYS),
    "at": st.sampled_from(TIMES),
    "asset_id": st.sampled_from(["a", "b", "c"]),
    "width": st.sampled_from([1, 2, 3, 2**31 - 1]),
}
NUMBERS = [*WHOLE, 2**31, 3_000_000_000, 2**63, 2**64 + 1, -(2**63) - 1, 10**400, -(10**400), 0.0, -0.0, 2.0**53]
AS_OTHERS = [np.int32(3), np.int64(2**53 + 1), np.uint64(2**64 - 1), np.float32(2), decimal.Decimal("3.0")]
AS_OTHERS += [
    decimal.Decimal(2**53 + 1),
    decimal.Decimal("1e30"),
    decimal.Decimal("-1e999999999"),
    fractions.Fraction(4, 2),
    np.float64(-0.0),
]
FRACTIONS = [0.1, 1.5, 1e300, decimal.Decimal("0.1"), np.float32(0.1), np.float64(1.5), decimal.Decimal("-1e-400")]
OFFSETS = [datetime.timezone(datetime.timedelta(hours=hours)) for hours in (0, 7, -11)]
OPERANDS = {
    "lang": CELLS["lang"] | st.just(np.str_("id")),
    "stock": st.sampled_from([*NUMBERS, *AS_OTHERS]),
    "price": st.sampled_from([*NUMBERS, *AS_OTHERS, *FRACTIONS]),
    "sold": st.booleans() | st.just(np.bool_(True)),
    "day": CELLS["day"] | CELLS["day"].map(str) | CELLS["day"].map(np.datetime64),
    "at": CELLS["at"]
    | st.builds(lambda time, zone: time.astimezone(zone).isoformat(), CELLS["at"], st.sampled_from(OFFSETS))
    | st.builds(lambda time: time.replace(tzinfo=None), CELLS["at"])
    | CELLS["at"].map(lambda time: np.datetime64(time.replace(tzinfo=None), "ns"))
    | st.sampled_from([datetime.date(2026, 1, 30), "2026-01-30", np.datetime64("2026-01-30T12:00:00.0000005")]),
    "asset_id": CELLS["asset_id"],
    "width": st.sampled_from([*NUMBERS, *AS_OTHERS]),
}


@st.composite
def rows(draw):
    row = dict.fromkeys(SCHEMA.names) | {"kind": "image", "content_sha256": "", "fingerprint": ""}
    row["asset_id"] = draw(CELLS["asset_id"])
    row["width"] = draw(st.none() | CELLS["width"])
    row["metadata"] = draw(
        st.none() | st.fixed_dictionaries({name: st.none() | CELLS[name] for name in TYPES})  # includes a null struct
    )
    return row


def plain(name, operand):
    """Convert an operand to plain Python: an int if whole, else a float; a time in microseconds."""
    if operand is None or name in {"lang", "asset_id"}:
        return operand
    if name == "sold":
        return bool(operand)
    if name == "day":
        return datetime.date.fromisoformat(str(operand))
    if name == "at":
        if isinstance(operand, np.datetime64):
            return fractions.Fraction(int(operand.astype("datetime64[ns]").astype(np.int64)), 1000)
        time = datetime.datetime.fromisoformat(str(operand))
        time = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
        return fractions.Fraction((time - EPOCH) // datetime.timedelta(microseconds=1))
    if isinstance(operand, decimal.Decimal) and operand.adjusted() > 1000:
        return -(10**1000)
    return int(operand) if operand == int(operand) else float(operand)


EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def operators(name):
    value, many = OPERANDS[name], st.lists(st.none() | OPERANDS[name], max_size=3)
    alike = {"$eq": st.none() | value, "$ne": st.none() | value, "$in": many, "$nin": many, "$exists": st.booleans()}
    ordered = {} if name == "sold" else dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), value)
    leaf = st.fixed_dictionaries({}, optional={**alike, **ordered}).filter(bool)
    return leaf | st.fixed_dictionaries({"$not": leaf})


def leaves():
    return st.sampled_from(sorted(CELLS)).flatmap(
        lambda name: st.fixed_dictionaries({name: st.none() | OPERANDS[name] | operators(name)})
    )


def conditions():
    return st.recursive(
        leaves() | st.just({}),
        lambda inner: st.fixed_dictionaries(
            {},
            optional={
                "$and": st.lists(inner, min_size=1, max_size=3),
                "$or": st.lists(inner, min_size=1, max_size=3),
                "$not": inner,
            },
        ),
        max_leaves=6,
    )


def matches(condition, row) -> bool:
    """Evaluate the condition in plain Python."""
    return all(holds(key, value, row) for key, value in condition.items())


def holds(key, value, row) -> bool:
    match key:
        case "$and":
            return all(matches(part, row) for part in value)
        case "$or":
            return any(matches(part, row) for part in value)
        case "$not":
            return not matches(value, row)
    cell = (
        plain(key, (row["metadata"] or {}).get(key) if key in TYPES else row[key])
        if key != "price"
        else ((row["metadata"] or {}).get(key))
    )
    if not isinstance(value, dict):
        return operator_holds("$eq", key, cell, value)
    return all(operator_holds(name, key, cell, operand) for name, operand in value.items())


def operator_holds(name, key, cell, value) -> bool:
    match name:
        case "$eq":
            return cell == plain(key, value)
        case "$ne":
            return cell != plain(key, value)
        case "$in":
            return any(cell == plain(key, one) for one in value)
        case "$nin":
            return not any(cell == plain(key, one) for one in value)
        case "$exists":
            return (cell is not None) is value
        case "$not":
            return not all(operator_holds(inner, key, cell, operand) for inner, operand in value.items())
    if cell is None:
        return False
    value = plain(key, value)
    return {"$gt": cell > value, "$gte": cell >= value, "$lt": cell < value, "$lte": cell <= value}[name]


@settings(max_examples=300, deadline=None)
@given(st.lists(rows(), max_size=8), conditions())
def test_condition_selects_the_same_rows_as_plain_python(drawn, condition):
    table = pa.Table.from_pylist(
        [{**row, "row": i} for i, row in enumerate(drawn)], SCHEMA.append(pa.field("row", pa.int64()))
    )

    def check(asked, read):
        found = table.filter(parse_where(asked, SCHEMA)).column("row").to_pylist()
        assert found == [i for i, row in enumerate(drawn) if matches(read, row)]

    check(condition, condition)
    try:
        text = orjson.dumps(condition)
    except TypeError:
        return  # has NumPy or decimal values, or numbers too long for orjson
    check(text.decode(), orjson.loads(text))


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({"width": {"$lt": 3_000_000_000}}, [0]),
        ({"width": {"$gte": -3_000_000_000}}, [0]),
        ({"width": {"$gt": 3_000_000_000}}, []),
        ({"width": 3_000_000_000}, []),
        ({"width": {"$ne": 3_000_000_000}}, [0, 1]),
        ({"width": {"$in": [640, 3_000_000_000]}}, [0]),
        ({"price": {"$in": [0]}}, [0]),
        ({"price": {"$nin": [0]}}, [1]),
        ({"price": {"$in": np.array([0.0, 1.0])}}, [0]),
        ({"price": {"$lte": decimal.Decimal(0)}}, [0]),
    ],
    ids=str,
)
def test_out_of_range_numbers_are_compared_like_others(condition, found):
    rows = [{"width": 640, "metadata": {"price": -0.0}}, {"width": None, "metadata": None}]
    table = pa.Table.from_pylist(
        [{**row, "row": i} for i, row in enumerate(rows)], SCHEMA.append(pa.field("row", pa.int64()))
    )
    assert table.filter(parse_where(condition, SCHEMA)).column("row").to_pylist() == found


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("{", "where must be JSON such as "),
        ("[]", "where must be an object such as {column: value}, got []."),
        ({"colour": "red"}, "where.colour: there is no column colour. Columns: lang, stock, price"),
        ({"metadata": {}}, "where.metadata: there is no column metadata. Columns: "),
        ({"$nor": []}, "where.$nor must be a column, $and, $or or $not, got '$nor'."),
        ({"price": "cheap"}, "where.price must be a number, got 'cheap'."),
        ({"price": {"$lt": math.inf}}, "where.price.$lt must be a number, got inf."),
        ({"price": {"$lt": math.nan}}, "where.price.$lt must be a number, got nan."),
        ({"price": {"$lt": True}}, "where.price.$lt must be a number, got True."),
        ({"price": {"$lt": None}}, "where.price.$lt must be a number, got None."),
        ({"price": {"$gt": decimal.Decimal("NaN")}}, "where.price.$gt must be a number, got Decimal('NaN')."),
        ({"price": np.array([1.0])}, "where.price must be a number, got array([1.])."),
        ({"at": np.datetime64("NaT")}, "where.at must be a time such as"),
        ({"stock": decimal.Decimal("1.5")}, "where.stock must be a whole number, got Decimal('1.5')."),
        ({"stock": 1.5}, "where.stock must be a whole number, got 1.5."),
        ({"lang": 5}, "where.lang must be a string, got 5."),
        ({"lang": "\ud800"}, "where.lang must be a string, got '\\ud800'."),
        ({"lang": ["id", "en"]}, "where.lang must be a string, got ['id', 'en']."),
        ({"sold": "yes"}, "where.sold must be true or false, got 'yes'."),
        ({"sold": {"$lt": True}}, "where.sold.$lt must be $eq or $ne, since the column's values are true or false."),
        ({"day": "30.1.2026"}, "where.day must be a date such as '2026-01-31', got '30.1.2026'."),
        ({"at": {"$gte": "noon"}}, "where.at.$gte must be a time such as"),
        ({"lang": {}}, "where.lang must be a value or an object of operators"),
        ({"lang": {"$regex": "^i"}}, "where.lang.$regex must be an operator among $eq, $ne"),
        ({"lang": {"$in": "id"}}, "where.lang.$in must be a list of values, got 'id'."),
        ({"lang": {"$in": ["id", 5]}}, "where.lang.$in[1] must be a string, got 5."),
        ({"lang": {"$nin": ["x"] * (MAX_VALUES + 1)}}, "where.lang.$nin must have at most 1000 values, got 1001."),
        ({"lang": {"$exists": "yes"}}, "where.lang.$exists must be true or false, got 'yes'."),
        ({"lang": {"$not": "id"}}, "where.lang.$not must be an object of operators, got 'id'."),
        ({"$or": []}, "where.$or must be a list of conditions, at least one, got []."),
        ({"$or": {"lang": "id"}}, "where.$or must be a list of conditions"),
        ({"$and": [{"lang": "id"}, {"price": {"$lt": "x"}}]}, "where.$and[1].price.$lt must be a number, got 'x'."),
        ({"$not": ["lang"]}, "where.$not must be an object such as {column: value}, got ['lang']."),
        ({"$or": [{"lang": "id"}] * (MAX_TERMS + 1)}, "where must have at most 100 terms, got more at where.$or"),
        ({1: 2}, "where.1 must be a column, $and, $or or $not, got 1."),
    ],
)
def test_invalid_condition_raises_with_place_rule_and_value(condition, sentence):
    with pytest.raises(ValueError, match=r"^where") as caught:
        parse_where(condition, SCHEMA)
    assert str(caught.value).startswith(sentence)


def nested(depth):
    condition = {"lang": "id"}
    for _ in range(depth - 1):
        condition = {"$not": condition}
    return condition


@pytest.mark.parametrize("as_text", [False, True])
def test_too_deep_conditions_raise(as_text):
    parse_where(nested(MAX_DEPTH), SCHEMA)
    for depth in (MAX_DEPTH + 1, 5000):
        condition = '{"$not":' * (depth - 1) + "{}" + "}" * (depth - 1) if as_text else nested(depth)
        with pytest.raises(ValueError, match=r"^where must be (at most 10 objects deep|JSON)"):
            parse_where(condition, SCHEMA)


def test_metadata_column_hides_asset_column_of_the_same_name():
    schema = assets_schema({"width": "string"})
    row = dict.fromkeys(schema.names, "") | {"size_bytes": 1, "width": 640, "height": 1, "metadata": {"width": "wide"}}
    table = pa.Table.from_pylist([row], schema)
    assert len(table.filter(parse_where({"width": "wide"}, schema))) == 1
    assert len(table.filter(parse_where({"height": 1}, schema))) == 1


def test_times_are_compared_across_time_zones():
    rows = [{"at": TIMES[0]}]
    table = pa.Table.from_arrays([pa.array(rows, SCHEMA.field("metadata").type)], names=["metadata"])
    for time in ("2026-01-30T12:00:00Z", "2026-01-30T19:00:00+07:00", "2026-01-30T12:00:00", "2026-01-30 12:00"):
        assert len(table.filter(parse_where({"at": time}, SCHEMA))) == 1, time


def test_long_lists_that_differ_in_one_value_give_different_hits(small):
    """A catalog caches the matching rows of a condition."""
    with open_catalog(small.folder) as catalog:
        everything = [f"image {i:05d}" for i in range(61)]
        for gone in (30, 31):
            condition = {"asset_id": {"$in": [name for i, name in enumerate(everything) if i != gone]}}
            where = parse_where(condition, catalog.assets("image").schema)
            (hits,) = catalog.search(small.vectors["image"][0], k=61, kinds="image", where=where)
            assert {hit.asset_id for hit in hits} == set(everything) - {everything[gone]}


@pytest.mark.parametrize(
    ("condition", "meant"),
    [
        ({"lang": {"eq": "id"}}, "$eq"),
        ({"lang": {"=": "id"}}, "$eq"),
        ({"lang": {"$ge": "id"}}, "$gte"),
        ({"lang": {"$exist": True}}, "$exists"),
        ({"lang": {"$not": {"$notin": ["id"]}}}, "$nin"),
        ({"lagn": "id"}, "lang"),
        ({"or": [{"lang": "id"}]}, "$or"),
    ],
    ids=str,
)
def test_a_mistyped_name_gets_the_one_that_was_meant(condition, meant):
    with pytest.raises(ValueError, match=rf"Did you mean {re.escape(meant)}\?$"):
        parse_where(condition, SCHEMA)
