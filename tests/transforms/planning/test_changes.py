"""The counts of replaced rows equal those of a brute-force comparison of both versions."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import PrepareConfig
from epithre_beam.index import Manifest, Store
from epithre_beam.index.vectors.units import UnitRecord, write_unit
from epithre_beam.index.versions.layout import DeadLetter, Reason, asset_fields
from epithre_beam.transforms.planning.changes import UnitChanges, count_changes
from epithre_beam.transforms.planning.compare import Comparison
from epithre_beam.transforms.planning.plan import Plan, PlanReader, plan_name, write_plan
from epithre_beam.transforms.sources.references import UNKNOWN

from .test_compare import Row, listed, write_version

TODAY = "000002-20250103T030405Z-abcdef"
FIRST = "000001-20250102T030405Z-abcdef"


@st.composite
def nights(draw: st.DrawFn) -> tuple[list[Row], list[Row]]:
    """Draw (rows of a version, current references with their content; None: the reference gets no vector)."""
    before, today = [], []
    for number in range(draw(st.integers(0, 40))):
        kind = draw(st.sampled_from(["image", "text"]))
        content = f"{draw(st.integers(0, 9)):064x}"
        row = {"asset_id": f"{number}", "kind": kind, "uri": draw(st.sampled_from([None, "x"]))}
        row |= {"fingerprint": draw(st.sampled_from(["a", "b", UNKNOWN])), "size_bytes": draw(st.sampled_from([1, 3]))}
        row["content"] = content
        fate = draw(st.sampled_from(["same", "touched", "relocated", "changed", "failed", "gone", "new", "renamed"]))
        if fate != "new":
            names = ("asset_id", "kind", "uri", "fingerprint", "size_bytes")
            before.append({name: row[name] for name in names} | {"content_sha256": content})
        now = dict(row)
        if fate in {"touched", "changed", "failed"}:
            now["fingerprint"] = "c"
        if fate == "relocated":
            now["uri"] = "y"
        if fate == "changed":
            now["content"] = f"{draw(st.integers(0, 9)):064x}"
        if fate == "failed":
            now["content"] = None
        if fate == "renamed":
            now["asset_id"] = f"renamed {number}"
        if fate != "gone":
            today.append(now)
    return before, draw(st.permutations(today))


def embed(store: Store, plan: Plan, today: list[Row]) -> list[UnitRecord]:
    """Write the units of a plan as a lane does: rows with the contents found, and dead letters."""
    found = {(row["kind"], row["asset_id"]): row["content"] for row in today}
    records = []
    with PlanReader(store, plan_name(TODAY)) as reader:
        for unit in plan.units:
            names = reader.read(unit.row_group).column("asset_id").to_pylist()
            contents: dict[str, Any] = {name: found[unit.kind, name] for name in names}
            dead = [name for name, content in contents.items() if content is None]
            rows = [name for name in names if name not in dead]
            blank = {field.name: None for field in asset_fields()}
            table = pa.Table.from_pylist(
                [
                    {**blank, "asset_id": n, "kind": unit.kind, "content_sha256": contents[n], "fingerprint": "f"}
                    for n in rows
                ],
                schema=pa.schema(asset_fields()),
            )
            letters = [
                DeadLetter(asset_id=n, kind=unit.kind, uri=None, stage="s", reason=Reason.UNDECODABLE, detail="d")
                for n in dead
            ]
            write_unit(store, unit.name, table, np.ones((len(rows), 1), np.float32), letters, deduplicated=0)
            records.append(
                UnitRecord(
                    unit=unit.name, kind=unit.kind, row_group=unit.row_group, rows=len(rows), dead=len(dead),
                    deduplicated=0, reused=False,
                )
            )  # fmt: skip
    return records


def night(
    store: Store, manifest: Manifest, today: list[Row], *, is_reusable: bool, prepare: PrepareConfig | None = None
) -> tuple[Plan, UnitChanges]:
    references = [{name: value for name, value in row.items() if name != "content"} for row in today]
    with Comparison({}) as comparison:
        comparison.add_references(listed(references, {}))
        comparison.set_base(store, manifest, is_reusable=is_reusable, prepare=prepare)
        base = FIRST if is_reusable else None
        plan = write_plan(store, TODAY, comparison, embedding_config_hash="00", unit_references=7, base=base)
    has_deleted = bool(sum(plan.changes.deleted.values()))
    records = embed(store, plan, today)
    return plan, count_changes(store, TODAY, records, manifest if is_reusable else None, has_deleted=has_deleted)


def replaced(before: list[Row], today: list[Row]) -> tuple[Counter[str], Counter[str]]:
    """Return, by kind, the rows that the other version does not have, and the rows with another content there."""
    now = {(row["kind"], row["asset_id"]): row["content"] for row in today if row["content"] is not None}
    gone: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for row in before:
        content = now.get((row["kind"], row["asset_id"]))
        gone[row["kind"]] += content is None
        changed[row["kind"]] += content not in {None, row["content_sha256"]}
    return gone, changed


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(nights(), st.booleans())
def test_replaced_rows_match_brute_force_with_and_without_reuse(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[list[Row], list[Row]], is_reusable: bool
) -> None:
    before, today = drawn
    # An unchanged reference must keep its content, because it is not read.
    store = Store(str(tmp_path_factory.mktemp("c")))
    manifest = write_version(store, before, [], {}, 9, 4)
    plan, found = night(store, manifest, today, is_reusable=is_reusable)
    gone, changed = replaced(before, today)
    assert +(Counter(plan.changes.gone) + found.lost) == +gone
    assert +found.changed == +changed
    if is_reusable:
        assert sum(found.counts[word] for word in ("touched", "changed")) + sum(plan.changes.unchanged.values()) == (
            len(before) - sum(gone.values())
        )
    else:
        assert (found.counts["new"], plan.changes.deleted) == (sum(row["content"] is not None for row in today), {})


@pytest.mark.parametrize("is_reusable", [True, False])
@pytest.mark.parametrize("change", ["nothing", "touched", "moved to another place"])
def test_re_embedding_or_moving_all_assets_replaces_nothing(
    tmp_path_factory: pytest.TempPathFactory, change: str, is_reusable: bool
) -> None:
    rows = [
        {"asset_id": f"{i}", "kind": "image", "uri": f"/a/{i}", "fingerprint": f"f{i}", "size_bytes": i}
        for i in range(30)
    ]
    before = [row | {"content_sha256": f"{i:064x}"} for i, row in enumerate(rows)]
    today = [row | {"content": f"{i:064x}"} for i, row in enumerate(rows)]
    for row in today:
        row |= {"touched": {"fingerprint": "g"}, "moved to another place": {"uri": "/b"}}.get(change, {})
    store = Store(str(tmp_path_factory.mktemp("c")))
    plan, found = night(store, write_version(store, before, [], {}, 9, 4), today, is_reusable=is_reusable)
    assert (dict(plan.changes.gone), +found.lost, +found.changed) == ({}, Counter(), Counter())


SENT_AS_IT_CAME = {"media_type": "image/jpeg", "width": 100, "height": 100, "prepared": None}


@pytest.mark.parametrize("is_reusable", [True, False])
def test_new_preparation_of_all_assets_replaces_nothing(
    tmp_path_factory: pytest.TempPathFactory, is_reusable: bool
) -> None:
    rows = [
        {"asset_id": f"{i}", "kind": "image", "uri": f"/a/{i}", "fingerprint": f"f{i}", "size_bytes": 1000}
        for i in range(30)
    ]
    before = [row | SENT_AS_IT_CAME | {"content_sha256": f"{i:064x}"} for i, row in enumerate(rows)]
    today = [row | {"content": f"{i:064x}"} for i, row in enumerate(rows)]
    today[3]["content"] = None  # its vector is lost
    today[4]["content"] = "f" * 64  # only its content has changed
    store = Store(str(tmp_path_factory.mktemp("c")))
    manifest = write_version(store, before, [], {}, 9, 4)
    smaller = PrepareConfig(max_pixels=50)
    # The version in this test stores no settings: it was made with the defaults.
    plan, found = night(store, manifest, today, is_reusable=is_reusable, prepare=smaller)
    assert plan.changes.again == ({"image": 30} if is_reusable else {})
    assert (dict(plan.changes.gone), +found.lost) == ({}, Counter(image=1))
    assert +found.changed == Counter(image=1)
    words = {"prepared_anew": 28, "changed": 1} if is_reusable else {"new": 29}
    assert +found.counts == Counter(words)
