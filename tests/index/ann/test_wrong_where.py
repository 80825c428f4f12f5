"""A condition that Arrow refuses is explained in words of the catalog: the column, its type and the value's."""

import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from epithre_beam.index.ann.wrong_where import wrong_where

DAY = datetime.date(2026, 1, 1)
ASSETS = pa.table(
    {
        "asset_id": ["a"],
        "width": pa.array([1], pa.int32()),
        "metadata": pa.array([{"price": 1.0, "lang": "x", "a (b)": 1, "day": DAY}]),
    }
)


def price(name: str = "price") -> Any:
    return pc.field("metadata", name)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            price() > "x (y)",
            'pc.field("metadata", "price") has the type double and is compared with "x (y)", of the type string',
        ),
        (price("lang") == 3, 'pc.field("metadata", "lang") has the type string and is compared with 3, of the type'),
        (pc.field("metadata") == "x", 'Name one of them, as in pc.field("metadata", "price").'),
        (price("a (b)") == "3", 'of the type string'),
        (price("day") > "2026", 'pc.field("metadata", "day") has the type date and is compared with "2026", of the'),
        (pc.field("width") == "x", 'pc.field("width") has the type int and is compared with "x", of the type string'),
        ((pc.field("width") > 3) & (price("lang") > 3), 'pc.field("metadata", "lang") has the type string'),
        (price().isin(["x"]), "has the type double and is compared with values of the type string"),
        (price("lang") & pc.field("width"), "it compares the types string and int"),
        (price("lang"), "it has the type string. Compare it."),
        (price("prise") > 3, "there is no metadata column 'prise'. Metadata columns: price, lang, a (b), day."),
        (pc.field("price") > 3, '\'price\' is a metadata column. Name it as pc.field("metadata", "price").'),
    ],
    ids=str,
)  # fmt: skip
def test_a_refused_condition_names_the_column_and_the_types(where: pc.Expression, message: str) -> None:
    with pytest.raises((pa.ArrowException, TypeError)) as caught:
        ASSETS.filter(where)
    said = wrong_where(caught.value, where, ASSETS.schema)
    assert message in said
    assert said.startswith("where")
    assert said.endswith(".")
    assert "kernel" not in said
    assert "FieldRef" not in said
