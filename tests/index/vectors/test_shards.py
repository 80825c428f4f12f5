"""A version's Parquet files hold every row once; order and row groups depend on the inputs only."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.index import Store
from epithre_beam.index.vectors.shards import ROWS_PER_GROUP, iterate_tables, plan_shards, write_tables
from epithre_beam.index.vectors.units import UnitRecord, vectors_of
from epithre_beam.index.versions.layout import asset_fields, unit_schema

Floats = npt.NDArray[np.float32]


def record(kind: str, unit: str, rows: int) -> UnitRecord:
    return UnitRecord(unit=unit, kind=kind, row_group=0, rows=rows, dead=0, deduplicated=0, reused=False)


@settings(max_examples=200)
@given(
    sizes=st.lists(st.tuples(st.sampled_from(["image", "text"]), st.integers(0, 50)), max_size=20),
    rows_per_file=st.integers(1, 100),
    rng=st.randoms(use_true_random=False),
)
def test_plan_distributes_each_unit_once_in_name_order(
    sizes: list[tuple[str, int]], rows_per_file: int, rng: random.Random
) -> None:
    records = [record(kind, f"{i:03d}", rows) for i, (kind, rows) in enumerate(sizes)]
    shuffled = list(records)
    rng.shuffle(shuffled)
    tasks = plan_shards(shuffled, rows_per_file)
    for kind in ("image", "text"):
        files = [task for task in tasks if task.kind == kind]
        assert [part for task in files for part in task.parts] == [r for r in records if r.kind == kind and r.rows]
        assert [(task.shard, task.shards) for task in files] == [(i, len(files)) for i in range(len(files))]
        for i, task in enumerate(files):
            rows = sum(part.rows for part in task.parts)
            assert rows - task.parts[-1].rows < rows_per_file  # a file ends with the unit that fills it
            assert rows >= rows_per_file or i == len(files) - 1


def test_vectors_assets_and_index_have_the_same_row_order(small: Any) -> None:
    for kind, vectors in small.vectors.items():
        shards = [shard for shard in small.shards if shard.kind == kind]
        assert len(shards) > 1
        tables = list(iterate_tables(small.store, shards))
        assert len(tables) > len(shards)
        stored = np.concatenate([vectors_of(table) for table in tables])
        assert stored.tobytes() == vectors.tobytes()
        with small.open() as catalog:
            assets = catalog.assets(kind)
            (file,) = small.index(kind).files
            index = faiss.read_index(str(small.folder / "versions" / catalog.version / file))
        assert assets.equals(small.assets[kind])
        assert pa.concat_tables(tables).drop_columns("embedding").equals(small.assets[kind])
        codes = index.reconstruct_n(0, index.ntotal)
        np.testing.assert_array_equal(codes, vectors.astype(np.float16).astype(np.float32))


def test_row_groups_have_one_size(
    draw_vectors: Callable[..., Floats], draw_assets: Callable[..., pa.Table], tmp_path: Path
) -> None:
    store = Store(str(tmp_path))
    rng = np.random.default_rng(5)
    sizes = [1, 700, 3, *rng.integers(1, 300, 12).tolist(), 1500]
    vectors = draw_vectors(sum(sizes), 8)
    schema = unit_schema(8)
    pieces, start = [], 0
    for size in sizes:
        column = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors[start : start + size].reshape(-1)), type=schema.field("embedding").type
        )
        pieces.append(draw_assets("text", start, size).append_column(schema.field("embedding"), column))
        start += size
    entry = write_tables(store, "some.parquet", iter(pieces), schema)
    metadata = pq.read_metadata(tmp_path / "some.parquet")
    groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
    assert groups[:-1] == [ROWS_PER_GROUP] * (len(groups) - 1)
    assert sum(groups) == entry.rows == len(vectors)
    assert pq.read_table(tmp_path / "some.parquet").equals(pa.concat_tables(pieces))


def test_reader_error_is_raised_in_the_writer(draw_assets: Callable[..., pa.Table], tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield draw_assets("text", 0, 3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_tables(Store(str(tmp_path)), "some.parquet", tables(), pa.schema(asset_fields()))
    assert not list(tmp_path.iterdir())
