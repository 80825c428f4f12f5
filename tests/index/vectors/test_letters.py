"""Dead letters are read unchanged, also those of an earlier release; invalid files are refused with a message."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.index import DeadLetter, Reason
from epithre_beam.index.vectors.letters import iterate_letters
from epithre_beam.index.vectors.units import dead_letter_table

LETTERS = dead_letter_table(
    [
        DeadLetter(asset_id=str(i), kind=kind, uri=None, stage="read", reason=reason, detail="", fingerprint="f")
        for i, (kind, reason) in enumerate([("image", Reason.MISSING), ("text", Reason.REFUSED)] * 3)
    ]
)


def read(table: pa.Table, batch_rows: int = 4) -> pa.Table:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return pa.concat_tables(iterate_letters(io.BytesIO(buffer.getvalue()), batch_rows))


def test_dead_letters_are_read_unchanged() -> None:
    assert read(LETTERS).equals(LETTERS)


def test_dead_letters_of_an_earlier_release_have_no_fingerprint() -> None:
    assert read(LETTERS.drop_columns(["fingerprint"])).column("fingerprint").null_count == 6


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"reason": ["because"] * 6}, "reason must be one of missing, .* got 'because'"),
        ({"reason": pa.nulls(6, pa.string())}, "reason must be one of missing, .* got None"),
        ({"kind": ["../x"] * 6}, "kind must be one of image, text, got '../x'"),
        ({"attempts": ["many"] * 6}, "attempts must hold int32"),
        ({"asset_id": [1] * 6}, "asset_id must hold string"),
        ({"asset_id": None}, "it lacks the column asset_id"),
    ],
)
def test_invalid_dead_letters_are_refused(change: dict[str, Any], match: str) -> None:
    table = LETTERS
    for name, values in change.items():
        table = table.drop_columns([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    with pytest.raises(pa.ArrowInvalid, match=match):
        read(table)
