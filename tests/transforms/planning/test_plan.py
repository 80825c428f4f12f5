"""Every reference is in one unit, and the same inputs make the same units."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import EmbedConfig, PrepareConfig, RunConfig
from epithre_beam.index.storage.store import Store
from epithre_beam.transforms.planning.compare import Comparison
from epithre_beam.transforms.planning.embedding_config import embedding_config_hash
from epithre_beam.transforms.planning.plan import (
    Plan,
    PlanReader,
    cut_units,
    iterate_references,
    iterate_units,
    unit_name,
    write_plan,
)

from .rows import Row, as_table, image_row, text_row


@st.composite
def references(draw: st.DrawFn) -> pa.Table:
    """Draw texts with many copies, files with equal sizes, and rows of unknown size, shuffled."""
    texts = draw(st.lists(st.sampled_from(["a", "b", "cc", "dd", "a longer one"]), max_size=60))
    sizes = draw(st.lists(st.sampled_from([None, 1, 2, 500]), max_size=60))
    rows = [text_row(i, text) for i, text in enumerate(texts)]
    rows += [image_row(i, size, f"mtime:{size}:{i % 7}") for i, size in enumerate(sizes)]
    return as_table(draw(st.permutations(rows)))


@settings(max_examples=40, deadline=None)  # each makes a database
@given(references())
def test_references_are_sorted_by_kind_size_fingerprint_and_id(table: pa.Table) -> None:
    rows = sort_references(table).to_pylist()

    def key(row: Row) -> tuple[Any, ...]:
        size = row["size_bytes"]
        return row["kind"], size is None, size or 0, row["fingerprint"], row["asset_id"]

    assert rows == sorted(table.to_pylist(), key=key)


@settings(max_examples=40, deadline=None)  # each makes a database
@given(references(), st.integers(1, 9))
def test_units_have_one_kind_bounded_size_and_cover_every_row(table: pa.Table, size: int) -> None:
    table = sort_references(table)
    cuts = cut_units(table, size)
    assert [row for start, end in cuts for row in range(start, end)] == list(range(len(table)))
    kinds = table.column("kind").to_pylist()
    for start, end in cuts:
        assert 1 <= end - start <= 4 * size
        assert len(set(kinds[start:end])) == 1


@settings(max_examples=40, deadline=None)  # each makes a database
@given(references(), st.integers(1, 9))
def test_possible_copies_stay_in_one_unit(table: pa.Table, size: int) -> None:
    table = sort_references(table)
    rows = table.to_pylist()
    for start, end in cut_units(table, size):
        if end == len(rows) or end - start == 4 * size:
            continue
        before, after = rows[end - 1], rows[end]
        if before["kind"] != after["kind"]:
            continue
        assert end - start >= size  # no unit is smaller than necessary
        if before["kind"] == "text":
            assert before["fingerprint"] != after["fingerprint"]
        else:
            assert before["size_bytes"] is None or before["size_bytes"] != after["size_bytes"]


def test_texts_of_equal_length_are_cut_between_contents() -> None:
    table = sort_references(as_table([text_row(i, f"{i // 6:04d}") for i in range(600)]))
    cuts = cut_units(table, 10)
    assert max(end - start for start, end in cuts) <= 15
    places: dict[str, set[int]] = {}
    for unit, (start, end) in enumerate(cuts):
        for text in table.column("text")[start:end].to_pylist():
            places.setdefault(text, set()).add(unit)
    assert set(map(len, places.values())) == {1}


def test_empty_table_has_no_units() -> None:
    assert cut_units(as_table([]), 5) == []


# Whole plans


def make_sources(folder: Path) -> list[dict[str, Any]]:
    """Write images to two folders and captions to two tables, with some copies."""
    draw = random.Random(0)
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        for i in range(40):
            (folder / name / f"{name}-{i}.jpg").write_bytes(draw.randbytes(draw.randrange(1, 6)))
        lines = [f"{name}-{i},{draw.choice('abcdef')},{i}" for i in range(60)]
        (folder / f"{name}.csv").write_text("\n".join(["id,t,price", *lines, ""]))
    tables = {"kind": "text", "id": "id", "text": "t", "metadata": {"price": "double"}}
    return [
        {"kind": "image", "files": f"{folder}/one"},
        {"kind": "image", "files": f"{folder}/two/*.jpg"},
        tables | {"table": f"{folder}/one.csv"},
        tables | {"table": f"{folder}/two.csv", "metadata": {"price": "double", "t": "string"}},
    ]


@contextlib.contextmanager
def listed(config: RunConfig) -> Iterator[Comparison]:
    with Comparison(config.metadata_types) as comparison:
        for table in iterate_references(config.sources, config.metadata_types):
            comparison.add_references(table)
        yield comparison


def sort_references(table: pa.Table) -> pa.Table:
    """Sort references as a run does, with a comparison."""
    with Comparison({}) as comparison:
        comparison.add_references(table)
        return pa.concat_tables([table.slice(0, 0), *(t.select(table.schema.names) for t in comparison.todo())])


def planned(folder: Path, sources: Sequence[dict[str, Any]], **embed: Any) -> tuple[Store, Plan]:
    raw = {"catalog": str(folder), "sources": sources, "embed": {"unit_references": 7} | embed}
    config = RunConfig.model_validate(raw)
    store = Store(str(folder))
    with listed(config) as comparison:
        made_with = embedding_config_hash(config.embed, config.prepare, None)
        size = config.embed.unit_references
        return store, write_plan(
            store, "000001-x", comparison, embedding_config_hash=made_with, unit_references=size, base=None
        )


def test_order_of_sources_does_not_change_units(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "in")
    plans = []
    for seed in range(4):
        random.Random(seed).shuffle(sources)
        plans.append(planned(tmp_path / str(seed), sources)[1])
    assert all(plan == plans[0] for plan in plans)


def test_additional_asset_changes_few_units(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "in")
    before = {unit.name for unit in planned(tmp_path / "a", sources)[1].units}
    with (tmp_path / "in/one.csv").open("a") as file:
        file.write("new,zzzzzzzz,1\n")  # the longest text: it is sorted last
    after = {unit.name for unit in planned(tmp_path / "b", sources)[1].units}
    assert len(after - before) <= 1
    assert len(before) > 10


def test_plan_is_read_back_by_unit_with_metadata(tmp_path: Path) -> None:
    sources = make_sources(tmp_path / "in")
    store, plan = planned(tmp_path / "catalog", sources)
    config = RunConfig.model_validate({"catalog": "unused", "sources": sources})
    with listed(config) as comparison:
        expected = pa.concat_tables(list(comparison.todo()))
    read = []
    with PlanReader(store, plan.name) as reader:
        for unit in plan.units:
            table = reader.read(unit.row_group)
            assert len(table) == unit.references
            assert set(table.column("kind").to_pylist()) == {unit.kind}
            assert unit_name(table, embedding_config_hash(EmbedConfig(), PrepareConfig(), None)) == unit.name
            assert reader.read(unit.row_group, ["asset_id"]).to_pydict() == table.select(["asset_id"]).to_pydict()
            read += table.to_pylist()
    assert expected.to_pylist() == read
    assert len({unit.name for unit in plan.units}) == len(plan.units)
    assert {row["metadata"]["price"] for row in read if row["kind"] == "text"} == set(map(float, range(60)))
    assert {row["metadata"]["t"] for row in read if row["source"] == 3} == set("abcdef")


def test_counts_and_bytes_match_references(tmp_path: Path) -> None:
    _, plan = planned(tmp_path / "catalog", make_sources(tmp_path / "in"))
    on_disk = sum(path.stat().st_size for path in (tmp_path / "in").glob("*/*.jpg"))
    assert plan.changes.assets == {"image": 80, "text": 120}
    assert plan.changes.size_bytes == {"image": on_disk, "text": 120}
    assert sum(unit.references for unit in plan.units) == 200


@settings(max_examples=40, deadline=None)  # each makes a database
@given(references(), st.integers(1, 9), st.integers(1, 40))
def test_units_do_not_depend_on_table_boundaries(table: pa.Table, size: int, step: int) -> None:
    table = sort_references(table)
    pieces = [table.slice(start, step) for start in range(0, len(table), step)]
    whole = [table.slice(start, end - start).to_pylist() for start, end in cut_units(table, size)]
    assert [unit.to_pylist() for unit in iterate_units(pieces, size)] == whole


@settings(max_examples=40, deadline=None)  # each makes a database
@given(references())
def test_counts_add_up_to_all_references(table: pa.Table) -> None:
    rows = table.to_pylist()
    with Comparison({}) as comparison:
        comparison.add_references(table)
        changes = comparison.changes()
    assert changes.assets == changes.new == dict(Counter(row["kind"] for row in rows))
    assert sum(changes.size_bytes.values()) == sum(row["size_bytes"] or 0 for row in rows)
