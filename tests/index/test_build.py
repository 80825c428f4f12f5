"""What is built holds every row in its order, and its recall is measured on what was stored."""

import itertools
import random
import subprocess
import sys
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
from epithre_beam.index.build import (
    ROWS_PER_GROUP,
    Queries,
    _measure,
    _Truth,
    build_index,
    iterate_tables,
    plan_shards,
    sample_queries,
    vectors_of,
    write_tables,
)
from epithre_beam.index.exact import ExactIndexWriter
from epithre_beam.index.layout import asset_fields, unit_schema, vector_schema, vectors_name, version_folder
from epithre_beam.index.units import UnitRecord, read_unit, write_unit

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


def record(kind: str, unit: str, rows: int) -> UnitRecord:
    return UnitRecord(unit=unit, kind=kind, row_group=0, rows=rows, dead=0, deduplicated=0, reused=False)


# ---------------------------------------------------------------------------------------------------- the plan


@settings(max_examples=200)
@given(
    sizes=st.lists(st.tuples(st.sampled_from(["image", "text"]), st.integers(0, 50)), max_size=20),
    rows_per_file=st.integers(1, 100),
    rng=st.randoms(use_true_random=False),
)
def test_a_plan_lays_every_unit_once_in_order_of_names_into_files_of_about_the_size(
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


# ---------------------------------------------------------------------------------------------------- the files


def test_vectors_assets_and_index_have_the_same_rows_in_the_same_order(small: Any) -> None:
    for kind, vectors in small.vectors.items():
        shards = [shard for shard in small.shards if shard.kind == kind]
        assert len(shards) > 1
        tables = list(iterate_tables(small.store, shards))
        assert len(tables) > len(shards)
        stored = np.concatenate([vectors_of(table) for table in tables])
        assert stored.tobytes() == vectors.tobytes()
        with small.open() as catalog:
            assets = catalog.assets(kind)
            index = faiss.read_index(str(small.folder / "versions" / catalog.version / small.index(kind).file))
        assert assets.equals(small.assets[kind])
        assert pa.concat_tables(tables).drop_columns("embedding").equals(small.assets[kind])
        codes = index.reconstruct_n(0, index.ntotal)
        np.testing.assert_array_equal(codes, vectors.astype(np.float16).astype(np.float32))


def test_row_groups_have_one_size_whatever_the_pieces(
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


def test_an_error_of_the_reader_is_the_writers(draw_assets: Callable[..., pa.Table], tmp_path: Path) -> None:
    def tables() -> Iterator[pa.Table]:
        yield draw_assets("text", 0, 3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_tables(Store(str(tmp_path)), "some.parquet", tables(), pa.schema(asset_fields()))
    assert not list(tmp_path.iterdir())


def test_the_same_rows_in_the_same_units_give_the_same_bytes(
    make_catalog: Any, draw_vectors: Callable[..., Floats]
) -> None:
    vectors = {"image": draw_vectors(50, 8, 1), "text": draw_vectors(30, 8, 2)}
    one, other = make_catalog(vectors, dead=2), make_catalog(vectors, dead=2)
    assert one.manifest.files == other.manifest.files
    assert one.manifest.indexes == other.manifest.indexes
    assert one.manifest.nonce != other.manifest.nonce


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 90), rows_per_unit=st.integers(1, 40), rows_per_file=st.integers(1, 60))
def test_no_cut_into_units_and_files_loses_or_changes_a_row(
    make_catalog: Any, draw_vectors: Callable[..., Floats], rows: int, rows_per_unit: int, rows_per_file: int
) -> None:
    vectors = draw_vectors(rows, 8)
    made = make_catalog({"text": vectors}, rows_per_unit=rows_per_unit, rows_per_file=rows_per_file, recall_queries=5)
    stored = np.concatenate([vectors_of(table) for table in iterate_tables(made.store, made.shards)])
    assert sorted(map(bytes, stored)) == sorted(map(bytes, vectors))
    assert stored.tobytes() == made.vectors["text"].tobytes()
    assert made.index("text").recall == {"text->text": 1.0}
    with made.open() as catalog:
        assert len(catalog) == rows


def test_an_index_of_4000_dimensions_is_as_faiss_writes_it(
    make_catalog: Any, draw_vectors: Callable[..., Floats]
) -> None:
    made = make_catalog({"image": draw_vectors(70, 4000)}, recall_queries=20)
    index = faiss.IndexScalarQuantizer(4000, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.train(made.vectors["image"])
    index.add(made.vectors["image"])
    path = made.folder / "versions" / made.manifest.version / made.index("image").file
    assert path.read_bytes() == faiss.serialize_index(index).tobytes()
    assert made.index("image").resident_bytes == 70 * 4000 * 2


# ---------------------------------------------------------------------------------------------------- recall


def test_the_exact_index_reaches_all_of_its_recall_in_every_direction(small: Any) -> None:
    assert {d: r for entry in small.manifest.indexes for d, r in entry.recall.items()} == {
        "image->image": 1.0,
        "text->image": 1.0,
        "image->text": 1.0,
        "text->text": 1.0,
    }
    assert small.manifest.held_back == ()


@pytest.mark.parametrize("copies", [5, 200, 1000])
def test_equal_rows_do_not_spoil_the_recall(
    make_catalog: Any, draw_vectors: Callable[..., Floats], copies: int
) -> None:
    """A catalog may hold a thousand copies of one placeholder picture, and which of them are returned is all the same.

    With fewer copies than the candidates that are kept, with more, and with nothing else.
    """
    same = np.repeat(draw_vectors(1, 16, 3), copies, axis=0)
    for vectors in (same, np.concatenate([draw_vectors(300, 16, 4), same])):
        made = make_catalog({"image": vectors, "text": draw_vectors(20, 16, 5)}, rows_per_unit=128, rows_per_file=500)
        assert made.index("image").recall == {"image->image": 1.0, "text->image": 1.0}


@pytest.mark.parametrize(
    "rows", [{"image": 1}, {"text": 1}, {"image": 1, "text": 1}, {"image": 3, "text": 2}, {"text": 11}], ids=str
)
def test_fewer_rows_than_k_are_built_and_searched(
    make_catalog: Any, draw_vectors: Callable[..., Floats], rows: dict[str, int]
) -> None:
    made = make_catalog({kind: draw_vectors(n, 8, i) for i, (kind, n) in enumerate(rows.items())})
    for kind in rows:
        assert made.index(kind).recall == {f"{query}->{kind}": 1.0 for query in rows}
    with made.open() as catalog:
        assert [len(hits) for hits in catalog.search(draw_vectors(2, 8), k=10)] == [min(sum(rows.values()), 10)] * 2


@pytest.fixture(scope="module")
def truth_and_answers(draw_vectors: Callable[..., Floats]) -> tuple[Floats, Rows, _Truth]:
    """Two thousand rows, sixty queries from among them, and their exact answers, found in odd blocks."""
    vectors = draw_vectors(2000, 32, 6)
    rows = np.sort(np.random.default_rng(7).choice(2000, 60, replace=False)).astype(np.int64)
    truth = _Truth(Queries(kind="image", rows=rows, vectors=vectors[rows]), 110)
    for start in range(0, 2000, 77):
        truth.add(vectors[start : start + 77], start, same_kind=True)
    return vectors, rows, truth


def brute_force(vectors: Floats, queries: Floats, k: int) -> tuple[Rows, Floats]:
    scores = queries @ vectors.T
    found = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return found, np.take_along_axis(scores, found, 1)


def test_right_answers_have_a_recall_of_one(truth_and_answers: tuple[Floats, Rows, _Truth]) -> None:
    vectors, rows, truth = truth_and_answers
    assert truth.recall(*brute_force(vectors, vectors[rows], 11), 10, same_kind=True) == 1.0


@pytest.mark.parametrize("wrong", range(0, 11, 2))
def test_the_recall_is_the_share_of_right_answers(truth_and_answers: tuple[Floats, Rows, _Truth], wrong: int) -> None:
    vectors, rows, truth = truth_and_answers
    found, scores = brute_force(vectors, vectors[rows], 1500)
    kept = [*range(11 - wrong), *range(1400, 1400 + wrong)]  # the first is the query itself
    recall = truth.recall(found[:, kept], scores[:, kept], 10, same_kind=True)
    assert recall == pytest.approx((10 - wrong) / 10)


def test_an_index_of_shuffled_rows_has_hardly_any_recall_though_its_scores_are_right(
    truth_and_answers: tuple[Floats, Rows, _Truth],
) -> None:
    """The scores that an index reports say nothing about the rows it names."""
    vectors, rows, truth = truth_and_answers
    order = np.random.default_rng(8).permutation(len(vectors))
    recall = truth.recall(*brute_force(vectors[order], vectors[rows], 11), 10, same_kind=True)
    assert recall < 0.1


def test_rows_that_are_shifted_by_one_have_hardly_any_recall(
    truth_and_answers: tuple[Floats, Rows, _Truth],
) -> None:
    vectors, rows, truth = truth_and_answers
    found, scores = brute_force(vectors, vectors[rows], 11)
    assert truth.recall((found + 1) % len(vectors), scores, 10, same_kind=True) < 0.1


def test_no_answers_have_no_recall(truth_and_answers: tuple[Floats, Rows, _Truth]) -> None:
    _, rows, truth = truth_and_answers
    nothing = np.full((len(rows), 11), -1)
    assert truth.recall(nothing, np.zeros((len(rows), 11), np.float32), 10, same_kind=True) == 0.0


def test_a_query_that_finds_only_itself_again_and_again_has_no_recall(
    truth_and_answers: tuple[Floats, Rows, _Truth],
) -> None:
    _, rows, truth = truth_and_answers
    own = np.repeat(rows[:, None], 11, axis=1)
    assert truth.recall(own, np.ones(own.shape, np.float32), 10, same_kind=True) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 150),
    keep=st.integers(3, 40),
    same_kind=st.booleans(),
    blocks=st.lists(st.integers(1, 60), min_size=1, max_size=6),
)
def test_the_exact_answers_do_not_depend_on_the_blocks(
    rows: int, keep: int, same_kind: bool, blocks: list[int]
) -> None:
    rng = np.random.default_rng([rows, keep])
    vectors = rng.standard_normal((rows, 8)).astype(np.float32)
    own = np.arange(0, rows, 7)
    queries = Queries(kind="image", rows=own, vectors=vectors[own])
    truth = _Truth(queries, keep)
    start = 0
    for length in itertools.cycle(blocks):
        if start >= rows:
            break
        truth.add(vectors[start : start + length], start, same_kind=same_kind)
        start += length
    scores = queries.vectors.astype("f8") @ vectors.T.astype("f8")
    figures = truth.figures
    assert figures.mean == pytest.approx(scores.mean(), abs=1e-4)
    assert figures.std == pytest.approx(scores.std(), abs=1e-4)
    if same_kind:
        scores[np.arange(len(own)), own] = -np.inf
    for q in range(len(own)):
        best = np.sort(scores[q])[::-1][:keep]
        np.testing.assert_allclose(np.sort(truth.scores[q])[::-1], best, atol=1e-4)
        np.testing.assert_allclose(scores[q][truth.rows[q]], truth.scores[q], atol=1e-4)


@pytest.mark.parametrize("copies", [5, 120, 1000])
def test_whichever_of_equal_rows_are_returned_they_are_right_and_lower_ones_are_wrong(copies: int) -> None:
    """More copies than candidates are kept of: the last of them, which were never kept, count like the first."""
    vectors = np.zeros((2000, 8), np.float32)
    vectors[:, 1] = 1
    vectors[:copies] = np.eye(8, dtype=np.float32)[0]
    truth = _Truth(Queries(kind="image", rows=np.array([0]), vectors=vectors[:1]), 110)
    for start in range(0, 2000, 300):
        truth.add(vectors[start : start + 300], start, same_kind=True)
    for equal in (np.arange(4), np.arange(copies - 4, copies)):
        found = np.concatenate([[0], equal[equal != 0]])[None]
        right = len(found[0]) - 1
        assert truth.recall(found, np.ones(found.shape, np.float32), right, same_kind=True) == 1.0
    lower = np.array([[0, 1999, 1998, 1997, 1996]])
    assert truth.recall(lower, np.zeros(lower.shape, np.float32), 4, same_kind=True) == 0.0


def test_an_index_file_of_other_rows_is_measured_as_it_is(small: Any, tmp_path: Path) -> None:
    """The guard's figures come from the file that was stored: of a file with shuffled rows they are low."""
    vectors = np.concatenate([small.vectors["image"], np.roll(small.vectors["image"], 1, axis=1)] * 8)
    truth = _Truth(Queries(kind="image", rows=np.arange(40), vectors=vectors[:40]), 15)
    truth.add(vectors, 0, same_kind=True)
    store = Store(str(tmp_path))
    recall = {}
    for name, order in (
        ("right", np.arange(len(vectors))),
        ("wrong", np.random.default_rng(0).permutation(len(vectors))),
    ):
        with store.open_write(name) as file:
            writer = ExactIndexWriter(file, 16, len(vectors))
            writer.add(vectors[order])
            writer.finish()
        recall[name] = _measure(store, name, [truth], "image", 5)["image->image"]
    assert recall["right"] == 1.0
    assert recall["wrong"] < 0.2


# ---------------------------------------------------------------------------------------------------- queries


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 80), seed=st.integers(0, 5))
def test_queries_are_rows_of_the_catalog_drawn_by_seed(small: Any, count: int, seed: int) -> None:
    for kind, vectors in small.vectors.items():
        queries = sample_queries(small.store, kind, small.shards, count, seed)
        assert len(queries.rows) == min(count, len(vectors))
        assert (np.diff(queries.rows) > 0).all()
        np.testing.assert_array_equal(queries.vectors, vectors[queries.rows])
        again = sample_queries(small.store, kind, list(reversed(small.shards)), count, seed)
        np.testing.assert_array_equal(again.rows, queries.rows)


def test_queries_come_from_all_over_a_kinds_files(make_catalog: Any, draw_vectors: Callable[..., Floats]) -> None:
    made = make_catalog({"image": draw_vectors(600, 8)}, rows_per_unit=5, rows_per_file=50, recall_queries=5)
    rows = sample_queries(made.store, "image", made.shards, 100, 0).rows
    assert len(rows) == 100
    assert len(set(rows // 100)) == 6


# ---------------------------------------------------------------------------------------------------- elsewhere


def test_a_remote_store_gets_the_same_files(small: Any) -> None:
    remote = Store("memory://built")
    for shard in small.shards:
        remote.write(shard.file.name, small.store.read(shard.file.name))
    for kind in small.vectors:
        entry, files = build_index(
            remote,
            small.manifest.version,
            kind,
            small.shards,
            dimension=16,
            recall_k=10,
            recall_queries=50,
            seed=0,
        )
        assert entry == small.index(kind)
        prefix = version_folder(small.manifest.version) + "/"
        for file in files:
            assert file.sha256 == small.manifest.file(file.name.removeprefix(prefix)).sha256
    remote.delete("")


MEMORY_PROGRAM = """
import sys, threading, time
import psutil
import pyarrow.parquet as pq
from epithre_beam.index import Store
from epithre_beam.index.build import ShardRecord, build_index
from epithre_beam.index.manifest import FileEntry

store = Store(sys.argv[1])
shards = []
for name in store.names("versions/v/vectors"):
    entry = FileEntry(name=name, size_bytes=0, sha256="", rows=pq.read_metadata(store.local_path(name)).num_rows)
    shards.append(ShardRecord(kind="image", shard=len(shards), file=entry))

def own_memory():
    found = process.memory_info()
    return found.rss - getattr(found, "shared", 0)  # a mapped file is not ours to answer for

process, done = psutil.Process(), threading.Event()
peak = before = own_memory()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, own_memory())
thread = threading.Thread(target=watch)
thread.start()
build_index(store, "v", "image", shards[: int(sys.argv[2])], dimension=1024, recall_k=10, recall_queries=20, seed=0)
done.set()
thread.join()
print(peak - before)
"""


def test_the_memory_of_a_build_does_not_grow_with_the_catalog(
    tmp_path: Path, draw_vectors: Callable[..., Floats], draw_assets: Callable[..., pa.Table]
) -> None:
    """Eight times the rows, 128 MB of vectors: the extra memory stays far below their size."""
    store, dimension, rows, files = Store(str(tmp_path)), 1024, 4096, 8
    write_unit(store, "u", draw_assets("image", 0, 256), draw_vectors(256, dimension), [], deduplicated=0)
    unit = read_unit(store, "u")
    for shard in range(files):
        name = vectors_name("v", "image", shard, files)
        write_tables(store, name, itertools.repeat(unit, rows // 256), vector_schema(dimension, {}))
    used = []
    for count in (1, files):
        command = [sys.executable, "-c", MEMORY_PROGRAM, store.url, str(count)]
        used.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    all_vectors = files * rows * dimension * 4
    assert used[1] - used[0] < all_vectors / 3, used


def test_an_index_tells_how_its_scores_and_norms_are_distributed(small):
    for index in small.manifest.indexes:
        assert index.norms is not None
        assert sum(index.norms.counts) == index.rows
        assert index.norms.high <= -6
        for direction, figures in index.scores.items():
            queries = 45 if direction.startswith("text") else 50
            own = queries if direction == f"{index.kind}->{index.kind}" else 0
            assert figures.histogram is not None
            assert sum(figures.histogram.counts) == queries * index.rows - own
            assert figures.histogram.low <= figures.mean <= figures.histogram.high
