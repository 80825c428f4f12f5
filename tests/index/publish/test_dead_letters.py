"""The dead letters of a version are those of its units, in a fixed order, and counted."""

import io
import uuid

import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.index import DeadLetter, Reason, Store
from epithre_beam.index.publish.dead_letters import write_dead_letters
from epithre_beam.index.vectors.units import dead_letter_table, read_unit_dead_letters

from .records import unit


@settings(max_examples=30, deadline=None)
@given(reasons=st.lists(st.lists(st.sampled_from(Reason), max_size=12), max_size=5))
def test_dead_letters_are_those_of_the_units_sorted_by_unit(reasons: list[list[Reason]]) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}")
    letters = {
        f"u{i}": [
            DeadLetter(asset_id=f"{i} {j}", kind="text", uri=None, stage="read", reason=reason, detail="d")
            for j, reason in enumerate(unit_reasons)
        ]
        for i, unit_reasons in enumerate(reasons)
    }
    for name, lost in letters.items():
        if lost:
            store.write(f"units/{name}.dead.parquet", dead_letter_bytes(store, lost))
    records = [unit("text", name, 1, len(lost)) for name, lost in letters.items()]
    expected = [letter for name in sorted(letters) for letter in letters[name]]
    entry, summary = write_dead_letters(store, "v", records[::-1])
    if not expected:
        assert entry is None
        assert store.names("versions") == []
    else:
        assert entry is not None
        store.write("units/all.dead.parquet", store.read(entry.name))
        assert read_unit_dead_letters(store, "all") == expected
        assert (entry.rows, entry.size_bytes) == (len(expected), store.size(entry.name))
    assert summary.by_reason == {r: n for r in Reason if (n := sum(x.reason == r for x in expected))}
    for reason, samples in summary.samples.items():
        assert [sample["asset_id"] for sample in samples] == [x.asset_id for x in expected if x.reason == reason][:5]
    store.delete("")


def dead_letter_bytes(store: Store, letters: list[DeadLetter]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(dead_letter_table(letters), buffer)
    return buffer.getvalue()
