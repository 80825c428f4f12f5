"""A version is judged by its guards, nothing is lost on the way to it, and it is published once."""

import io
import uuid
from fractions import Fraction
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import GuardConfig
from epithre_beam.index import CatalogError, DeadLetter, Reason, Store, read_latest
from epithre_beam.index.layout import manifest_name
from epithre_beam.index.manifest import FileEntry, IndexEntry, publish
from epithre_beam.index.shards import ShardRecord
from epithre_beam.index.store import SwapConflictError
from epithre_beam.index.units import UnitRecord, dead_letter_table, read_unit_dead_letters
from epithre_beam.index.version import check_conservation, judge, write_dead_letters

KINDS = ("image", "text")


def index_of(kind: str, **recall: float) -> IndexEntry:
    directions = {direction.replace("_", "->"): value for direction, value in recall.items()}
    return IndexEntry(
        kind=kind,
        files=("",),
        assets="",
        rows=1,
        factory="",
        resident_bytes=0,
        recall_k=10,
        recall=directions,
        scores={},
    )


def unit(kind: str, name: str, rows: int, dead: int = 0) -> UnitRecord:
    return UnitRecord(unit=name, kind=kind, row_group=0, rows=rows, dead=dead, deduplicated=0, reused=False)


def shard(kind: str, rows: int) -> ShardRecord:
    return ShardRecord(kind=kind, shard=0, file=FileEntry(name="", size_bytes=0, sha256="", rows=rows), sample="")


# ---------------------------------------------------------------------------------------------------- the guards


@settings(max_examples=400)
@given(total=st.integers(1, 3000), data=st.data(), percent=st.integers(0, 100))
def test_a_share_that_was_set_lets_through_exactly_that_share(total: int, data: st.DataObject, percent: int) -> None:
    """In whole numbers: 29 of 100 are 29 %, whatever floating point makes of it."""
    edge = total * percent // 100
    dead = data.draw(st.integers(0, total) | st.integers(max(edge - 1, 0), min(edge + 1, total)))
    reasons = judge({"text": total + 1}, {"text": dead}, [], GuardConfig(max_dead_share=percent / 100), 0.9)
    held_back = Fraction(dead, total + 1) > Fraction(percent, 100)
    assert bool(reasons) == held_back


@pytest.mark.parametrize(("percent", "total"), [(29, 100), (57, 100), (58, 100), (7, 100), (14, 50), (28, 25)])
def test_a_share_that_is_just_reached_is_let_through(percent: int, total: int) -> None:
    dead = total * percent // 100
    assert judge({"text": total}, {"text": dead}, [], GuardConfig(max_dead_share=percent / 100), 0.9) == []
    assert judge({"text": total}, {"text": dead + 1}, [], GuardConfig(max_dead_share=percent / 100), 0.9) != []


@settings(max_examples=300)
@given(image=st.integers(0, 900), text=st.integers(0, 900), data=st.data())
def test_without_a_share_one_per_cent_or_five_up_to_a_half_are_let_through(
    image: int, text: int, data: st.DataObject
) -> None:
    assets = {"image": image, "text": text}
    dead = {kind: data.draw(st.integers(0, count) | st.integers(0, min(count, 12))) for kind, count in assets.items()}
    total, lost = image + text, sum(dead.values())
    allowed = max(Fraction(total, 100), min(Fraction(5), Fraction(total, 2)))
    emptied = [kind for kind in KINDS if assets[kind] and dead[kind] == assets[kind]]
    reasons = judge(assets, dead, [], GuardConfig(), 0.9)
    assert len(reasons) == (lost > allowed) + len(emptied)
    assert all(any(kind in reason for reason in reasons) for kind in emptied)


def test_a_small_folder_with_a_stray_file_is_published_and_one_of_mostly_stray_files_is_not() -> None:
    assert judge({"image": 3}, {"image": 1}, [], GuardConfig(), 0.9) == []
    assert judge({"image": 10}, {"image": 5}, [], GuardConfig(), 0.9) == []
    assert judge({"image": 10}, {"image": 6}, [], GuardConfig(), 0.9) != []
    assert judge({"image": 5}, {"image": 3}, [], GuardConfig(), 0.9) != []


def test_a_kind_that_lost_all_its_assets_holds_the_version_back_whatever_the_share() -> None:
    reasons = judge({"image": 1000, "text": 2}, {"text": 2}, [], GuardConfig(max_dead_share=1.0), 0.9)
    assert reasons == ["none of the 2 text assets got a vector."]


def test_each_direction_below_the_target_is_a_reason_with_both_figures() -> None:
    indexes = [index_of("image", image_image=0.95, text_image=0.949), index_of("text", image_text=0.2, text_text=1.0)]
    assert judge({"image": 9, "text": 9}, {}, indexes, GuardConfig(), 0.95) == [
        "index.target_recall is 0.95, and text->image reached 0.949 at k=10.",
        "index.target_recall is 0.95, and image->text reached 0.2 at k=10.",
    ]


def test_a_guards_sentence_names_the_setting_the_rule_and_the_figures() -> None:
    assert judge({"image": 100, "text": 100}, {"image": 7}, [], GuardConfig(), 0.9) == [
        (
            "guards.max_dead_share allows 1% (in a small set 5, if no more than half), "
            "and 7 of 200 assets (3.5%) got no vector."
        )
    ]
    assert judge({"image": 100}, {"image": 7}, [], GuardConfig(max_dead_share=0.025), 0.9) == [
        "guards.max_dead_share allows 2.50%, and 7 of 100 assets (7.0%) got no vector."
    ]


def test_nothing_lost_of_nothing_is_no_reason() -> None:
    for guards in (GuardConfig(), GuardConfig(max_dead_share=0)):
        assert judge({}, {}, [], guards, 0.9) == []
        assert judge({"text": 0}, {"text": 0}, [], guards, 0.9) == []


# ---------------------------------------------------------------------------------------------------- conservation

UNITS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6)


def totals(records: list[UnitRecord]) -> tuple[dict[str, int], list[ShardRecord]]:
    """What was planned, and what is stored, when nothing is lost."""
    kinds = {record.kind for record in records}
    planned = {kind: sum(r.rows + r.dead for r in records if r.kind == kind) for kind in kinds}
    return planned, [shard(kind, sum(r.rows for r in records if r.kind == kind)) for kind in kinds]


@given(drawn=UNITS)
def test_assets_that_became_vectors_and_dead_letters_pass(drawn: list[tuple[str, int, int]]) -> None:
    records = [unit(kind, str(i), rows, dead) for i, (kind, rows, dead) in enumerate(drawn)]
    check_conservation(*(totals(records)[0], records, totals(records)[1]))


@given(drawn=UNITS, change=st.sampled_from(["planned", "rows", "dead", "stored"]), by=st.sampled_from([-1, 1, 1000]))
def test_a_count_that_differs_anywhere_raises(drawn: list[tuple[str, int, int]], change: str, by: int) -> None:
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
    with pytest.raises(CatalogError, match=f"{first.kind} assets must become as many vectors and dead letters"):
        check_conservation(planned, records, shards)


def test_a_unit_that_comes_twice_or_not_at_all_raises() -> None:
    records = [unit("text", "a", 5), unit("text", "b", 3)]
    planned, shards = totals(records)
    for wrong in ([*records, records[0]], records[:1], []):
        with pytest.raises(CatalogError):
            check_conservation(planned, wrong, shards)


def test_rows_of_a_kind_that_nobody_planned_raise() -> None:
    planned, shards = totals([unit("image", "a", 5)])
    with pytest.raises(CatalogError, match="0 text assets must become"):
        check_conservation(planned, [unit("image", "a", 5), unit("text", "b", 1)], [*shards, shard("text", 1)])
    with pytest.raises(CatalogError, match="0 text assets must become"):
        check_conservation(planned, [unit("image", "a", 5)], [*shards, shard("text", 1)])


# ---------------------------------------------------------------------------------------------------- dead letters


@settings(max_examples=30, deadline=None)
@given(reasons=st.lists(st.lists(st.sampled_from(Reason), max_size=12), max_size=5))
def test_a_versions_dead_letters_are_those_of_its_units_in_order_of_their_names(reasons: list[list[Reason]]) -> None:
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


# ---------------------------------------------------------------------------------------------------- publishing


def test_a_version_is_published_only_over_what_was_there_when_its_run_began(own_copy: Any) -> None:
    latest = read_latest(own_copy.store)
    assert latest is not None
    began, version, _ = latest
    assert version == own_copy.manifest.version
    next_one = own_copy.manifest.model_copy(update={"version": "000002-a"})
    other = own_copy.manifest.model_copy(update={"version": "000002-b"})
    for manifest in (next_one, other):
        own_copy.store.write(manifest_name(manifest.version), manifest.to_bytes())
    publish(own_copy.store, next_one, began)
    for expected in (began, None):
        with pytest.raises(SwapConflictError, match=r"LATEST\.json was changed by another run"):
            publish(own_copy.store, other, expected)
    latest = read_latest(own_copy.store)
    assert latest is not None
    assert latest[1] == "000002-a"


def test_a_manifest_names_its_files_below_its_folder_in_order(small: Any) -> None:
    names = [entry.name for entry in small.manifest.files]
    assert names == sorted(names)
    assert all((small.folder / "versions" / small.manifest.version / name).is_file() for name in names)
