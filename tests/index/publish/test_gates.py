"""Gates hold a version exactly at the shares and recalls of the job, and give a reason."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import GateConfig
from epithre_beam.index.publish.gates import check_gates, check_turnover
from epithre_beam.index.versions.manifest import IndexEntry

KINDS = ("image", "text")


def index_of(kind: str, **recall: float) -> IndexEntry:
    directions = {direction.replace("_", "->"): value for direction, value in recall.items()}
    return IndexEntry(
        kind=kind,
        files=("a",),
        assets="b",
        rows=1,
        factory="",
        resident_bytes=0,
        recall_k=10,
        recall=directions,
        scores={},
    )


@settings(max_examples=400)
@given(total=st.integers(1, 3000), data=st.data(), percent=st.integers(0, 100))
def test_configured_share_is_exact(total: int, data: st.DataObject, percent: int) -> None:
    """29 of 100 are exactly 29 %, despite floating-point rounding."""
    edge = total * percent // 100
    dead = data.draw(st.integers(0, total) | st.integers(max(edge - 1, 0), min(edge + 1, total)))
    reasons = check_gates({"text": total + 1}, {"text": dead}, [], GateConfig(max_dead_share=percent / 100), 0.9)
    gate_failures = Fraction(dead, total + 1) > Fraction(percent, 100)
    assert bool(reasons) == gate_failures


@pytest.mark.parametrize(("percent", "total"), [(29, 100), (57, 100), (58, 100), (7, 100), (14, 50), (28, 25)])
def test_share_equal_to_the_limit_passes(percent: int, total: int) -> None:
    dead = total * percent // 100
    assert check_gates({"text": total}, {"text": dead}, [], GateConfig(max_dead_share=percent / 100), 0.9) == []
    assert check_gates({"text": total}, {"text": dead + 1}, [], GateConfig(max_dead_share=percent / 100), 0.9) != []


@settings(max_examples=300)
@given(image=st.integers(0, 900), text=st.integers(0, 900), data=st.data())
def test_default_dead_share_allows_one_per_cent_or_five(image: int, text: int, data: st.DataObject) -> None:
    assets = {"image": image, "text": text}
    dead = {kind: data.draw(st.integers(0, count) | st.integers(0, min(count, 12))) for kind, count in assets.items()}
    total, lost = image + text, sum(dead.values())
    allowed = max(Fraction(total, 100), min(Fraction(5), Fraction(total, 2)))
    emptied = [kind for kind in KINDS if assets[kind] and dead[kind] == assets[kind]]
    reasons = check_gates(assets, dead, [], GateConfig(), 0.9)
    assert len(reasons) == (lost > allowed) + len(emptied)
    assert all(any(kind in reason for reason in reasons) for kind in emptied)


def test_small_sets_pass_with_at_most_half_dead() -> None:
    assert check_gates({"image": 3}, {"image": 1}, [], GateConfig(), 0.9) == []
    assert check_gates({"image": 10}, {"image": 5}, [], GateConfig(), 0.9) == []
    assert check_gates({"image": 10}, {"image": 6}, [], GateConfig(), 0.9) != []
    assert check_gates({"image": 5}, {"image": 3}, [], GateConfig(), 0.9) != []


def test_kind_without_any_vector_always_holds_the_version() -> None:
    reasons = check_gates({"image": 1000, "text": 2}, {"text": 2}, [], GateConfig(max_dead_share=1.0), 0.9)
    assert reasons == ["none of the 2 text assets got a vector."]


def test_each_direction_below_the_target_recall_is_a_reason() -> None:
    indexes = [index_of("image", image_image=0.95, text_image=0.949), index_of("text", image_text=0.2, text_text=1.0)]
    assert check_gates({"image": 9, "text": 9}, {}, indexes, GateConfig(), 0.95) == [
        "index.target_recall is 0.95, but text->image reached 0.949 at k=10.",
        "index.target_recall is 0.95, but image->text reached 0.2 at k=10.",
    ]


def test_reason_names_setting_rule_and_numbers() -> None:
    assert check_gates({"image": 100, "text": 100}, {"image": 7}, [], GateConfig(), 0.9) == [
        (
            "gates.max_dead_share allows 1% (or 5 in a small set, up to half of it), "
            "but 7 of 200 assets (3.5%) got no vector."
        )
    ]
    assert check_gates({"image": 100}, {"image": 7}, [], GateConfig(max_dead_share=0.025), 0.9) == [
        "gates.max_dead_share allows 2.50%, but 7 of 100 assets (7.0%) got no vector."
    ]


def test_empty_sets_pass() -> None:
    for gates in (GateConfig(), GateConfig(max_dead_share=0)):
        assert check_gates({}, {}, [], gates, 0.9) == []
        assert check_gates({"text": 0}, {"text": 0}, [], gates, 0.9) == []


# ---------------------------------------------------------------------------------------------------- turnover


@settings(max_examples=400, deadline=None)
@given(
    before=st.dictionaries(st.sampled_from(KINDS), st.integers(0, 300)),
    percent=st.none() | st.integers(0, 100),
    data=st.data(),
)
def test_turnover_is_the_share_of_gone_and_changed_rows(
    before: dict[str, int], percent: int | None, data: st.DataObject
) -> None:
    gone = {kind: data.draw(st.integers(0, rows)) for kind, rows in before.items()}
    changed = {kind: data.draw(st.integers(0, rows - gone[kind])) for kind, rows in before.items()}
    gates = GateConfig(max_turnover=None if percent is None else percent / 100)
    reasons = check_turnover(gone, changed, before, gates)
    rows, replaced = sum(before.values()), sum(gone.values()) + sum(changed.values())
    allowed = Fraction(1, 2) if percent is None else Fraction(percent, 100)
    assert len(reasons) == (bool(rows) and Fraction(replaced, rows or 1) > allowed)
    for sentence in reasons:
        assert f"{sum(gone.values()):,} are gone and {sum(changed.values()):,} changed" in sentence


@pytest.mark.parametrize(("rows", "replaced", "held"), [(1, 1, 1), (2, 1, 0), (3, 2, 1), (12, 6, 0), (12, 7, 1)])
def test_turnover_allows_half_in_small_sets_too(rows: int, replaced: int, held: int) -> None:
    for gone in range(replaced + 1):
        counts = {"text": gone}, {"text": replaced - gone}
        assert len(check_turnover(*counts, {"text": rows}, GateConfig())) == held


def test_turnover_gives_one_reason() -> None:
    reasons = check_gates({"text": 12}, {}, [], GateConfig(), 0.9, {"text": 12}, gone={"text": 12}, changed={})
    assert len(reasons) == 1
    assert reasons[0].startswith("gates.max_turnover allows 50% of the rows to be replaced, but of 12 rows")
