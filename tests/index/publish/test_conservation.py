"""The conservation check finds any difference between the planned and the stored counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index.publish.conservation import check_conservation
from epithre_beam.index.vectors.shards import ShardRecord
from epithre_beam.index.vectors.units import UnitRecord
from epithre_beam.index.versions.manifest import FileEntry

from .records import unit

KINDS = ("image", "text")


def shard(kind: str, rows: int) -> ShardRecord:
    return ShardRecord(
        kind=kind,
        shard=0,
        file=FileEntry(name="a", size_bytes=0, sha256="0" * 64).model_copy(update={"rows": rows}),
        sample="",
    )


UNITS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6)


def totals(records: list[UnitRecord]) -> tuple[dict[str, int], list[ShardRecord]]:
    """Return the planned counts and the shards of a run without losses."""
    kinds = {record.kind for record in records}
    planned = {kind: sum(r.rows + r.dead for r in records if r.kind == kind) for kind in kinds}
    return planned, [shard(kind, sum(r.rows for r in records if r.kind == kind)) for kind in kinds]


@given(drawn=UNITS)
def test_complete_counts_pass(drawn: list[tuple[str, int, int]]) -> None:
    records = [unit(kind, str(i), rows, dead) for i, (kind, rows, dead) in enumerate(drawn)]
    check_conservation(*(totals(records)[0], records, totals(records)[1]))


@given(drawn=UNITS, change=st.sampled_from(["planned", "rows", "dead", "stored"]), by=st.sampled_from([-1, 1, 1000]))
def test_any_different_count_raises(drawn: list[tuple[str, int, int]], change: str, by: int) -> None:
    records = [unit(kind, str(i), rows, dead) for i, (kind, rows, dead) in enumerate(drawn)]
    planned, shards = totals(records)
    first = records[0]
    if change == "planned":
        planned[first.kind] += by
    elif change == "rows":
        records[0] = unit(first.kind, first.unit, first.rows + by, first.dead)
    elif change == "dead":
        records[0] = unit(first.kind, first.unit, first.rows, first.dead + by)
    else:
        shards.append(shard(first.kind, by))
    with pytest.raises(CatalogError, match=f"{first.kind} assets must give .* vectors and dead letters"):
        check_conservation(planned, records, shards)


def test_duplicate_or_missing_unit_raises() -> None:
    records = [unit("text", "a", 5), unit("text", "b", 3)]
    planned, shards = totals(records)
    for wrong in ([*records, records[0]], records[:1], []):
        with pytest.raises(CatalogError):
            check_conservation(planned, wrong, shards)


def test_rows_of_an_unplanned_kind_raise() -> None:
    planned, shards = totals([unit("image", "a", 5)])
    with pytest.raises(CatalogError, match="0 text assets must give"):
        check_conservation(planned, [unit("image", "a", 5), unit("text", "b", 1)], [*shards, shard("text", 1)])
    with pytest.raises(CatalogError, match="0 text assets must give"):
        check_conservation(planned, [unit("image", "a", 5)], [*shards, shard("text", 1)])
