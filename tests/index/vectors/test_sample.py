"""The sampled rows depend on ids only, not on row positions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs.errors import StoreError
from epithre_beam.index import Store
from epithre_beam.index.vectors.sample import SampleRule, asset_hashes, keep_sample, read_sample
from epithre_beam.index.versions.layout import unit_schema

Floats = npt.NDArray[np.float32]


def files_of(made: Any, kind: str) -> list[tuple[str, int]]:
    return [(shard.sample, shard.rows) for shard in made.shards if shard.kind == kind]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 80))
def test_sampled_rows_have_their_own_vectors(small: Any, count: int) -> None:
    for kind, vectors in small.vectors.items():
        sample = read_sample(small.store, kind, files_of(small, kind), count)
        assert len(sample.rows) == len(set(sample.rows.tolist())) == min(count, len(vectors))
        np.testing.assert_array_equal(sample.vectors, vectors[sample.rows])
        most = read_sample(small.store, kind, files_of(small, kind), 1000)
        np.testing.assert_array_equal(sample.rows, most.rows[:count])  # a larger sample contains the smaller one


def test_sample_comes_from_all_files_of_a_kind(make_catalog: Any, draw_vectors: Callable[..., Floats]) -> None:
    made = make_catalog({"image": draw_vectors(600, 8)}, rows_per_unit=5, rows_per_file=50, recall_queries=5)
    rows = read_sample(made.store, "image", files_of(made, "image"), 100).rows
    assert len(set(rows // 50)) == 12


def test_sample_does_not_depend_on_row_order_or_files(make_catalog: Any, draw_vectors: Callable[..., Floats]) -> None:
    vectors, order = draw_vectors(200, 8), np.random.default_rng(1).permutation(200)
    one = make_catalog({"text": vectors}, rows_per_unit=20, rows_per_file=90)
    other = make_catalog({"text": vectors[order]}, numbers={"text": order.tolist()}, rows_per_unit=7, rows_per_file=31)
    drawn = [read_sample(made.store, "text", files_of(made, "text"), 40) for made in (one, other)]
    ids = [
        made.assets["text"].column("asset_id").take(pa.array(sample.rows)).to_pylist()
        for made, sample in zip((one, other), drawn, strict=True)
    ]
    assert ids[0] == ids[1]
    assert drawn[0].vectors.tobytes() == drawn[1].vectors.tobytes()


def test_hashes_are_uniform_and_differ_by_seed() -> None:
    ids = [f"picture {i}" for i in range(20_000)]
    one, other = (asset_hashes(ids, seed) for seed in (0, 1))
    assert (one.dtype, one.shape, len(set(one.tolist()))) == (np.dtype("u8"), (20_000,), 20_000)
    assert not (one == other).any()
    shares = np.bincount((one >> np.uint64(60)).astype(int), minlength=16) / len(ids)
    assert abs(shares - 1 / 16).max() < 0.01
    assert asset_hashes([], 0).shape == (0,)


@pytest.mark.parametrize(("rows", "wanted"), [(1, 100), (99, 100), (1000, 100), (100_000, 6100), (5_000_000, 6100)])
def test_rule_samples_the_wanted_rows_or_a_few_more(rows: int, wanted: int) -> None:
    """The expected number is six standard deviations above the wanted number."""
    rule = SampleRule.for_rows(rows, wanted, 0)
    kept = rule.share * rows
    assert rule.share == 1.0 or kept - 6 * kept**0.5 > wanted * 0.95
    assert kept <= 1.25 * wanted + 64


def test_keep_sample_passes_tables_and_keeps_low_hashes(
    tmp_path: Path, draw_vectors: Callable[..., Floats], draw_assets: Callable[..., pa.Table]
) -> None:
    store, schema, vectors = Store(str(tmp_path)), unit_schema(8), draw_vectors(900, 8)
    field = schema.field("embedding")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=field.type)
    table = draw_assets("text", 0, 900).append_column(field, column)
    pieces = [table.slice(start, 37) for start in range(0, 900, 37)]
    rule = SampleRule(seed=3, share=0.4)
    with keep_sample(store, "kept.parquet", pieces, field, rule) as passing:
        passed = list(passing)
    assert passed == pieces
    hashes = asset_hashes(table.column("asset_id").to_pylist(), 3)
    expected = np.flatnonzero(hashes < np.uint64(int(0.4 * 2**64)))
    kept = pq.read_table(tmp_path / "kept.parquet")
    np.testing.assert_array_equal(kept.column("row"), expected)
    np.testing.assert_array_equal(kept.column("hash"), hashes[expected])
    sample = read_sample(store, "text", [("kept.parquet", 900), ("kept.parquet", 900)], 10_000)
    np.testing.assert_array_equal(np.sort(sample.rows), np.concatenate([expected, expected + 900]))
    np.testing.assert_array_equal(sample.vectors, vectors[sample.rows % 900])


def test_error_names_a_damaged_sample(own_copy: Any) -> None:
    (name, rows), *_ = files_of(own_copy, "image")
    data = bytearray(own_copy.store.read(name))
    data[len(data) // 4] ^= 0x10
    own_copy.store.write(name, bytes(data))
    with pytest.raises(StoreError, match=rf"{name}: this run's sample cannot be read \(.*\)\. Run again\."):
        read_sample(own_copy.store, "image", [(name, rows)], 10)
