"""An index holds every row in order, its recall is measured on the stored files, and invalid rows are refused."""

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs import GateConfig, IndexConfig
from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import Store
from epithre_beam.index.ann.ask_files import ask_exactly
from epithre_beam.index.ann.build import build_indexes
from epithre_beam.index.ann.codes import LEAST_ROWS, bytes_a_row
from epithre_beam.index.ann.exact import ExactIndexWriter
from epithre_beam.index.ann.recall import recall_at
from epithre_beam.index.ann.train import (
    IndexTask,
    has_codes,
    rows_per_index,
    sample_rules,
    train_indexes,
    training_rows,
)
from epithre_beam.index.ann.truth import Queries, Truth
from epithre_beam.index.publish.gates import check_gates
from epithre_beam.index.vectors.sample import SampleRule, asset_hashes
from epithre_beam.index.vectors.shards import ShardRecord, ShardTask, iterate_tables, write_shard
from epithre_beam.index.vectors.units import vectors_of
from epithre_beam.index.versions.layout import vector_schema, version_folder

Floats = npt.NDArray[np.float32]
Draw = Callable[..., Floats]

CODED = IndexConfig(exact_up_to_mb=0, training_rows=256, recall_queries=40)
"""Codes for every kind with enough rows."""


# ---------------------------------------------------------------------------------------------------- the files


def test_equal_units_give_equal_bytes(make_catalog: Any, draw_vectors: Draw) -> None:
    vectors = {"image": draw_vectors(50, 8, 1), "text": draw_vectors(30, 8, 2)}
    one, other = make_catalog(vectors, dead=2), make_catalog(vectors, dead=2)
    assert one.manifest.files == other.manifest.files
    assert one.manifest.indexes == other.manifest.indexes
    assert one.manifest.nonce != other.manifest.nonce


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 90), rows_per_unit=st.integers(1, 40), rows_per_file=st.integers(1, 60))
def test_splitting_into_units_and_files_keeps_all_rows(
    make_catalog: Any, draw_vectors: Draw, rows: int, rows_per_unit: int, rows_per_file: int
) -> None:
    vectors = draw_vectors(rows, 8)
    made = make_catalog({"text": vectors}, rows_per_unit=rows_per_unit, rows_per_file=rows_per_file, recall_queries=5)
    stored = np.concatenate([vectors_of(table) for table in iterate_tables(made.store, made.shards)])
    assert sorted(map(bytes, stored)) == sorted(map(bytes, vectors))
    assert stored.tobytes() == made.vectors["text"].tobytes()
    assert made.index("text").recall == {"text->text": 1.0}
    with made.open() as catalog:
        assert len(catalog) == rows


def test_index_of_4000_dimensions_equals_that_of_faiss(make_catalog: Any, draw_vectors: Draw) -> None:
    made = make_catalog({"image": draw_vectors(70, 4000)}, recall_queries=20)
    index = faiss.IndexScalarQuantizer(4000, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.train(made.vectors["image"])
    index.add(made.vectors["image"])
    path = made.folder / "versions" / made.manifest.version / made.index("image").files[0]
    assert path.read_bytes() == faiss.serialize_index(index).tobytes()
    assert made.index("image").resident_bytes == 70 * 4000 * 2


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    limit=st.integers(1, 100),
)
def test_index_files_hold_whole_parquet_files_within_the_limit(
    tmp_path_factory: pytest.TempPathFactory, make_shards: Any, sizes: list[int], limit: int
) -> None:
    shards = make_shards(tuple(sizes))
    store = Store(str(tmp_path_factory.mktemp("s")))
    for shard in shards[0]:
        store.write(shard.sample, shards[1].read(shard.sample))
    tasks = train_indexes(store, "v", shards[0], 8, IndexConfig(rows_per_index=limit))
    files = [task for task in tasks if isinstance(task, IndexTask)]
    assert [shard for task in files for shard in task.shards] == list(shards[0])
    assert [(task.number, task.count) for task in files] == [(i, len(files)) for i in range(len(files))]
    first = 0
    for task in files:
        rows = sum(shard.rows for shard in task.shards)
        assert task.first_row == first
        assert rows <= limit or len(task.shards) == 1  # a Parquet file is never cut
        first += rows


@pytest.fixture(scope="module")
def make_shards(tmp_path_factory: pytest.TempPathFactory, draw_vectors: Draw, draw_assets: Any) -> Any:
    """Parquet files with these numbers of rows and their samples, and the store that contains them."""

    def made(sizes: tuple[int, ...]) -> tuple[list[ShardRecord], Store]:
        store = Store(str(tmp_path_factory.mktemp("shards")))
        schema = vector_schema(8, {})
        shards = []
        for i, rows in enumerate(sizes):
            column = pa.FixedSizeListArray.from_arrays(
                pa.array(draw_vectors(rows, 8, i).reshape(-1)), type=schema.field("embedding").type
            )
            table = draw_assets("text", 1000 * i, rows).append_column(schema.field("embedding"), column)
            task = ShardTask(kind="text", shard=i, shards=len(sizes), parts=())
            shards.append(write_shard(store, "v", task, [table], schema))
        return shards, store

    return made


# ---------------------------------------------------------------------------------------------------- recall


def test_exact_index_has_full_recall_in_every_direction(small: Any) -> None:
    assert {d: r for entry in small.manifest.indexes for d, r in entry.recall.items()} == {
        "image->image": 1.0,
        "text->image": 1.0,
        "image->text": 1.0,
        "text->text": 1.0,
    }
    assert small.manifest.gate_failures == ()


@pytest.mark.parametrize("copies", [5, 200, 1000])
def test_equal_rows_do_not_reduce_recall(make_catalog: Any, draw_vectors: Draw, copies: int) -> None:
    """A catalog may hold a thousand copies of one placeholder image, and any of them is a right answer.

    Tested with fewer copies than kept candidates, with more, and with copies only.
    """
    same = np.repeat(draw_vectors(1, 16, 3), copies, axis=0)
    for vectors in (same, np.concatenate([draw_vectors(300, 16, 4), same])):
        made = make_catalog({"image": vectors, "text": draw_vectors(20, 16, 5)}, rows_per_unit=128, rows_per_file=500)
        assert made.index("image").recall == {"image->image": 1.0, "text->image": 1.0}


@pytest.mark.parametrize(
    "rows", [{"image": 1}, {"text": 1}, {"image": 1, "text": 1}, {"image": 3, "text": 2}, {"text": 11}], ids=str
)
def test_index_with_fewer_rows_than_k_can_be_searched(
    make_catalog: Any, draw_vectors: Draw, rows: dict[str, int]
) -> None:
    made = make_catalog({kind: draw_vectors(n, 8, i) for i, (kind, n) in enumerate(rows.items())}, index=CODED)
    for kind in rows:
        assert made.index(kind).recall == {f"{query}->{kind}": 1.0 for query in rows}
    with made.open() as catalog:
        assert [len(hits) for hits in catalog.search(draw_vectors(2, 8), k=10)] == [min(sum(rows.values()), 10)] * 2


def test_recall_is_measured_on_the_stored_file(small: Any, tmp_path: Path) -> None:
    """The figures for the gates come from the stored file: a file with shuffled rows has low recall."""
    vectors = np.concatenate([small.vectors["image"], np.roll(small.vectors["image"], 1, axis=1)] * 8)
    truth = Truth(Queries(kind="image", rows=np.arange(40), vectors=vectors[:40]), 15, is_same_kind=True)
    truth.add(vectors[:40] @ vectors.T, 0)
    store = Store(str(tmp_path))
    task = IndexTask(kind="image", number=0, count=1, shards=(), first_row=0, with_codes=False)
    recall = {}
    for name, order in (
        ("right", np.arange(len(vectors))),
        ("wrong", np.random.default_rng(0).permutation(len(vectors))),
    ):
        with store.open_write(name) as file:
            writer = ExactIndexWriter(file, 16, len(vectors))
            writer.add(vectors[order])
            writer.finish()
        (rated,) = ask_exactly(store, name, [truth], task, IndexConfig(recall_k=5))
        recall[name] = float(np.nanmean(recall_at(rated, 5, 5)))
    assert recall["right"] == 1.0
    assert recall["wrong"] < 0.2


def test_index_records_score_and_norm_distributions(small: Any) -> None:
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


def unit(vectors: npt.NDArray[np.floating]) -> Floats:
    vectors = vectors.astype(np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def unusual(name: str, rows: int) -> dict[str, Floats]:
    """Correct but unusual vectors."""
    rng = np.random.default_rng(rows)
    drawn = rng.standard_normal((rows, 32))
    match name:
        case "near duplicates":
            return {kind: unit(drawn[:1] + 1e-2 * rng.standard_normal((rows, 32))) for kind in ("image", "text")}
        case "nearer than fp16 can tell":
            return {"text": unit(drawn[:1] + 1e-5 * rng.standard_normal((rows, 32)))}
        case "all equal":
            return {"text": unit(np.repeat(drawn[:1], rows, axis=0))}
        case "all equal in each kind, and opposite":
            return {kind: unit(np.full((rows, 32), sign)) for kind, sign in (("image", 1.0), ("text", -1.0))}
        case "the same in both kinds":
            return {"image": unit(drawn), "text": unit(drawn)}
        case "two clusters":
            return {"text": unit(drawn[rng.integers(0, min(2, rows), rows)] + 1e-4 * rng.standard_normal((rows, 32)))}
        case "each twice":
            return {"text": unit(np.concatenate([drawn, drawn])[:: max(2 - rows % 2, 1)][:rows])}
        case "one dimension":
            return {"text": np.where(rng.random((rows, 1)) < 0.5, np.float32(1), np.float32(-1))}
        case "two dimensions":
            return {"text": unit(drawn[:, :2]), "image": unit(drawn[:, 2:4])}
        case "on the axes":
            return {"text": np.eye(32, dtype=np.float32)[rng.integers(0, 32, rows)]}
        case "sparse":
            return {"text": unit(drawn * (rng.random((rows, 32)) < 0.1) + 1e-3 * np.eye(32)[rng.integers(0, 32, rows)])}
        case "kinds at right angles":
            zeros = np.zeros((rows, 16))
            return {"image": unit(np.hstack([drawn[:, :16], zeros])), "text": unit(np.hstack([zeros, drawn[:, 16:]]))}
        case "bits":
            return {"text": unit((drawn > 1) + np.eye(32)[0])}
        case "one number dwarfs the others":
            return {"text": unit(np.hstack([np.full((rows, 1), 1e7), drawn]))}
        case "one text and many pictures":
            return {"image": unit(drawn), "text": unit(drawn[:1])}
    raise AssertionError(name)


UNUSUAL = (
    "near duplicates",
    "nearer than fp16 can tell",
    "all equal",
    "all equal in each kind, and opposite",
    "the same in both kinds",
    "two clusters",
    "each twice",
    "one dimension",
    "two dimensions",
    "on the axes",
    "sparse",
    "kinds at right angles",
    "bits",
    "one number dwarfs the others",
    "one text and many pictures",
)


@pytest.mark.parametrize("rows", [1, 11, 150, 1200])
@pytest.mark.parametrize("name", UNUSUAL)
def test_no_gate_holds_unusual_but_correct_vectors(make_catalog: Any, name: str, rows: int) -> None:
    """The target recall is 1; tested with k rows, k + 1 rows, and enough rows for codes."""
    vectors = unusual(name, rows)
    settings = CODED.model_copy(update={"target_recall": 1.0, "dimensions": (8, 32), "recall_queries": 30})
    made = make_catalog(vectors, rows_per_unit=200, rows_per_file=700, index=settings)
    assert made.manifest.gate_failures == ()
    for entry in made.manifest.indexes:
        assert entry.recall == {f"{query}->{entry.kind}": 1.0 for query in vectors}
        assert set(entry.ties) == set(entry.recall)
    with made.open() as catalog:
        for kind, rows_of_kind in vectors.items():
            (hits,) = catalog.search(rows_of_kind[:1], 10, kinds=kind)
            assert len(hits) == min(10, len(rows_of_kind))


class FaultyStore(Store):
    """A store that returns wrong bytes: the two halves of the rows in a vector file are swapped."""

    def open_read(self, name: str) -> Any:
        file = super().open_read(name)
        if not name.endswith(".faiss") or ".codes" in name:
            return file
        with file:
            data = file.read()
        rows = int.from_bytes(data[8:16], "little")
        size = int.from_bytes(data[-(rows * 32 * 2) - 8 : -(rows * 32 * 2)], "little")
        codes = data[-size:]
        cut = rows // 2 * 64
        return io.BytesIO(data[:-size] + codes[cut:] + codes[:cut])


@pytest.mark.parametrize("rows", [150, 1200])
@pytest.mark.parametrize("name", ["the same in both kinds", "sparse", "one text and many pictures"])
def test_wrongly_stored_file_is_held_by_a_gate(make_catalog: Any, name: str, rows: int) -> None:
    made = make_catalog(unusual(name, rows), rows_per_unit=200, rows_per_file=700)
    store = FaultyStore(str(made.folder))
    settings = CODED.model_copy(update={"recall_queries": 30, "dimensions": (8, 32)})
    built = build_indexes(store, made.manifest.version, made.shards, 32, settings)
    entries = [one.entry for one in built]
    reasons = check_gates(made.manifest.counts.per_kind, {}, entries, GateConfig(), settings.target_recall)
    assert any("index.target_recall is 0.95" in reason for reason in reasons)
    assert min(recall for entry in entries for recall in entry.recall.values()) < 0.5


# ---------------------------------------------------------------------------------------------------- codes or scan


def test_has_codes_depends_on_rows_and_size() -> None:
    settings = IndexConfig(exact_up_to_mb=8)
    assert not has_codes(1000, 4000, settings)
    assert has_codes(LEAST_ROWS, 4000, settings)
    assert not has_codes(LEAST_ROWS - 1, 4000, IndexConfig(exact_up_to_mb=0))
    assert not has_codes(100_000, 40, settings)
    assert has_codes(100_001, 40, settings)


def test_more_rows_are_sampled_when_axes_are_fitted() -> None:
    settings = IndexConfig(exact_up_to_mb=1, training_rows=6000, recall_queries=100)
    exact = sample_rules({"image": 100_000, "text": 100_000}, 4, settings)
    coded = sample_rules({"image": 100_000, "text": 10}, 4000, settings)
    assert exact["image"] == SampleRule.for_rows(100_000, 100, 0)
    assert coded["image"] == SampleRule.for_rows(100_000, 6100, 0)
    assert coded["text"].share == 1.0


def test_training_grows_with_the_rows_up_to_the_setting() -> None:
    found = [training_rows(rows, IndexConfig()) for rows in (1024, 16_000, 20_000, 48_000, 10**6)]
    assert found == [2000, 2000, 2500, 6000, 6000]
    assert training_rows(10**6, IndexConfig(training_rows=256)) == 256


def test_error_names_the_required_build_memory(make_catalog: Any, draw_clustered: Draw) -> None:
    little = CODED.model_copy(update={"build_memory_mb": 64})
    with pytest.raises(
        CatalogError, match=r"index\.build_memory_mb must be at least \d+ .* got 64\. Raise it"
    ) as reported:
        make_catalog({"image": draw_clustered(1100, 16, 1)}, rows_per_unit=300, index=little)
    least = int(str(reported.value).split("at least ")[1].split()[0])
    enough = CODED.model_copy(update={"build_memory_mb": least})
    assert rows_per_index(16, enough) >= 10_000
    with pytest.raises(CatalogError):
        rows_per_index(16, CODED.model_copy(update={"build_memory_mb": least - 1}))
    make_catalog(
        {"image": draw_clustered(1000, 16, 1)}, rows_per_unit=300, index=little
    )  # scanned: needs no memory for codes


@settings(max_examples=50)
@given(dimension=st.integers(1, 4000), mb=st.integers(1500, 100_000), widest=st.sampled_from([128, 256, 512]))
def test_index_file_rows_fit_in_memory(dimension: int, mb: int, widest: int) -> None:
    settings = IndexConfig(build_memory_mb=mb, rows_per_index=10**9, dimensions=(128, widest))
    rows = rows_per_index(dimension, settings)
    assert rows * bytes_a_row([min(128, dimension), min(widest, dimension)]) <= mb * 1e6
    assert rows_per_index(dimension, settings.model_copy(update={"rows_per_index": 7})) == 7


# ---------------------------------------------------------------------------------------------------- invariants


@pytest.fixture(scope="module")
def coded(make_catalog: Any, draw_clustered: Draw) -> Any:
    """Images in two index files with codes, and scanned texts. Read-only."""
    vectors = {"image": draw_clustered(2600, 24, 1), "text": draw_clustered(150, 24, 2)}
    index = CODED.model_copy(update={"rows_per_index": 1400, "dimensions": (16, 24)})
    return make_catalog(vectors, rows_per_unit=100, rows_per_file=650, index=index)


def built_again(coded: Any, store: Store, reverse: bool = False) -> list[Any]:
    index = CODED.model_copy(update={"rows_per_index": 1400, "dimensions": (16, 24)})
    shards = list(reversed(coded.shards)) if reverse else coded.shards
    return build_indexes(store, coded.manifest.version, shards, 24, index)


def test_remote_store_gets_the_same_files(small: Any, coded: Any) -> None:
    """Exact indexes and codes, independent of the order of the Parquet files."""
    for made, dimension in ((small, 16), (coded, 24)):
        remote = Store("memory://built")
        for shard in made.shards:
            for name in (shard.file.name, shard.sample):
                remote.write(name, made.store.read(name))
        if made is small:
            built = build_indexes(remote, made.manifest.version, made.shards, dimension, IndexConfig(recall_queries=50))
        else:
            built = built_again(made, remote, reverse=True)
        prefix = version_folder(made.manifest.version) + "/"
        for one in built:
            assert one.entry == made.index(one.entry.kind)
            for file in one.files:
                assert file.sha256 == made.manifest.file(file.name.removeprefix(prefix)).sha256
        remote.delete("")


BUILD_PROGRAM = """
import pickle, sys
from epithre_beam.configs import IndexConfig
from epithre_beam.index import Store
from epithre_beam.index.ann.build import build_indexes
url, version, shards, dimension, settings = pickle.loads(sys.stdin.buffer.read())
built = build_indexes(Store(url), version, shards, dimension, IndexConfig(**settings))
print([(file.name, file.sha256) for one in built for file in one.files])
print([one.entry.model_dump_json() for one in built])
"""


def test_bytes_do_not_depend_on_thread_count(coded: Any, tmp_path: Path) -> None:
    """Runs in separate processes, so that they share only the inputs and the seed."""
    reported = []
    for threads in ("1", "2"):
        store = Store(str(tmp_path / threads))
        for shard in coded.shards:
            for name in (shard.file.name, shard.sample):
                store.write(name, coded.store.read(name))
        index = CODED.model_copy(update={"rows_per_index": 1400, "dimensions": (16, 24)})
        sent = pickle.dumps((store.url, coded.manifest.version, coded.shards, 24, index.model_dump()))
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads)}
        command = [sys.executable, "-c", BUILD_PROGRAM]
        reported.append(subprocess.run(command, input=sent, capture_output=True, check=True, env=environment).stdout)
    assert reported[0] == reported[1]
    assert coded.manifest.file(coded.index("image").codes[1]).sha256 in reported[0].decode()


def test_seed_changes_codes_but_not_vectors(coded: Any, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for shard in coded.shards:
        for name in (shard.file.name, shard.sample):
            store.write(name, coded.store.read(name))
    index = CODED.model_copy(update={"rows_per_index": 1400, "dimensions": (16, 24), "seed": 1})
    built = next(one for one in build_indexes(store, "v", coded.shards, 24, index) if one.entry.kind == "image")
    found = {file.name.split("/")[-1]: file.sha256 for file in built.files}
    for name, codes in coded.index("image").parts:
        assert found[name.split("/")[-1]] == coded.manifest.file(name).sha256
        assert found[codes.split("/")[-1]] != coded.manifest.file(codes).sha256


def test_operating_points_reach_their_recall_and_the_target(coded: Any) -> None:
    index = coded.index("image")
    points = index.operating_points
    assert [p.cost_us for p in points] == sorted(p.cost_us for p in points)
    assert points[-1].cells_share is None
    chosen = [p for p in points if {"cells_share": p.cells_share, "k_factor": p.k_factor} == index.search_parameters]
    assert len(chosen) == 1
    assert chosen[0].recall == index.recall
    assert min(index.recall.values()) >= 0.95
    assert set(index.recall) == {"image->image", "text->image"}


# ---------------------------------------------------------------------------------------------------- invalid input


@pytest.mark.parametrize("number", [np.nan, np.inf, 0.0, 0.5, 3.0], ids=str)
@pytest.mark.parametrize("settings", [CODED, IndexConfig(recall_queries=40)], ids=["codes", "exact"])
@pytest.mark.parametrize("place", ["drawn", "not drawn"])
def test_build_stops_at_a_row_without_unit_norm(
    tmp_path: Path, draw_clustered: Draw, draw_assets: Any, number: float, settings: IndexConfig, place: str
) -> None:
    """Such a row would distort the axes or all scores of its block, or win every search."""
    vectors = draw_clustered(1100, 8, 1)
    table, rule = draw_assets("image", 0, 1100), SampleRule(share=0.5)
    is_drawn = asset_hashes(table.column("asset_id").to_pylist(), 0) < np.uint64(1 << 63)
    row = np.flatnonzero(is_drawn == (place == "drawn"))[400]
    vectors[row] = number * vectors[row] if np.isfinite(number) else number
    store, schema = Store(str(tmp_path)), vector_schema(8, {})
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=schema.field("embedding").type)
    table = table.append_column(schema.field("embedding"), column)
    shard = write_shard(store, "v", ShardTask(kind="image", shard=0, shards=1, parts=(), rule=rule), [table], schema)
    with pytest.raises(CatalogError, match=rf"image row {row} must have the norm 1, got (nan|inf|0|0\.5|3)\b.*\.$"):
        build_indexes(store, "v", [shard], 8, settings)


def test_build_stops_at_files_of_another_dimension(make_shards: Any) -> None:
    shards, store = make_shards((20,))
    with pytest.raises(CatalogError, match=r"The text vectors must have 9 dimensions, got 8 from row \d+\."):
        build_indexes(store, "v", shards, 9, IndexConfig())


@pytest.mark.parametrize("others", [0, 500])
@pytest.mark.parametrize("copies", [1100, 2000])
def test_copies_are_found_through_codes(make_catalog: Any, draw_clustered: Draw, copies: int, others: int) -> None:
    same = np.repeat(draw_clustered(1, 16, 3), copies, axis=0)
    vectors = np.concatenate([draw_clustered(others, 16, 4), same])
    made = make_catalog(
        {"image": vectors, "text": draw_clustered(30, 16, 5)}, rows_per_unit=128, rows_per_file=900, index=CODED
    )
    assert made.index("image").codes != ()
    assert min(made.index("image").recall.values()) >= 0.95
    queries = np.concatenate([same[:1], draw_clustered(5, 16, 6)])
    with made.open() as catalog:
        for k in (1, 10, copies - 1, copies, 5000):
            for query, hits in zip(queries, catalog.search(queries, k, kinds="image"), strict=True):
                assert len({hit.row for hit in hits}) == len(hits) == min(k, len(vectors))
                scores = made.vectors["image"] @ query
                np.testing.assert_allclose([hit.score for hit in hits], scores[[hit.row for hit in hits]], atol=5e-4)
                assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.asset_id))


def test_only_copies_in_cells_are_found_by_every_query(
    make_catalog: Any, draw_vectors: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are in one of many cells, and a query may be closer to the empty cells."""
    monkeypatch.setattr("epithre_beam.index.ann.codes._ROUTED_ROWS", 1024)
    same = np.repeat(draw_vectors(1, 16, 3), 1100, axis=0)
    made = make_catalog({"image": same}, rows_per_unit=200, rows_per_file=900, index=CODED)
    assert "IVF132" in made.index("image").factory
    queries = np.concatenate([same[:1], -same[:1], draw_vectors(20, 16, 6)])
    with made.open() as catalog:
        for k in (1, 10, 1000):
            assert [len(hits) for hits in catalog.search(queries, k)] == [k] * len(queries)


def test_exact_scan_reaches_full_recall_if_codes_do_not(make_catalog: Any, draw_clustered: Draw) -> None:
    """A scan loses recall only by fp16 rounding, which does not count as an error."""
    settings = CODED.model_copy(update={"target_recall": 1.0, "dimensions": (2,)})
    made = make_catalog({"image": draw_clustered(3000, 64, 1)}, rows_per_unit=300, rows_per_file=900, index=settings)
    index = made.index("image")
    assert index.search_parameters == {}
    assert index.recall == index.operating_points[-1].recall == {"image->image": 1.0}
    assert 0 <= index.ties["image->image"] < 0.05


def test_kind_without_rows_has_no_index(make_catalog: Any, draw_clustered: Draw) -> None:
    made = make_catalog(
        {"image": draw_clustered(1100, 8, 1), "text": draw_clustered(0, 8, 2)}, rows_per_unit=300, index=CODED
    )
    assert [index.kind for index in made.manifest.indexes] == ["image"]
    assert set(made.index("image").recall) == {"image->image"}


# ---------------------------------------------------------------------------------------------------- memory


MEMORY_PROGRAM = """
import pickle, sys, threading
import psutil
from epithre_beam.configs import IndexConfig
from epithre_beam.index import Store
from epithre_beam.index.ann.build import build_indexes

url, shards, settings = pickle.loads(sys.stdin.buffer.read())

def own_memory():
    found = process.memory_info()
    return found.rss - getattr(found, "shared", 0)  # mapped files do not count

process, done = psutil.Process(), threading.Event()
peak = before = own_memory()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, own_memory())
thread = threading.Thread(target=watch)
thread.start()
build_indexes(Store(url), "v", shards, 1024, IndexConfig(**settings))
done.set()
thread.join()
print(peak - before)
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, draw_vectors: Draw, draw_assets: Any) -> Any:
    """Eight Parquet files of 1024 dimensions, 64 MB of vectors."""
    store, dimension, rows, files = Store(str(tmp_path_factory.mktemp("wide"))), 1024, 2048, 8
    schema = vector_schema(dimension, {})
    field = schema.field("embedding")

    def tables(shard: int) -> Iterator[pa.Table]:
        for first in range(0, rows, 256):
            numbers = draw_vectors(256, dimension, shard * rows + first).reshape(-1)
            column = pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=field.type)
            yield draw_assets("image", shard * rows + first, 256).append_column(field, column)

    shards = []
    for shard in range(files):
        task = ShardTask(kind="image", shard=shard, shards=files, parts=(), rule=SampleRule(share=0.05))
        shards.append(write_shard(store, "v", task, tables(shard), schema))
    return store, shards


@pytest.mark.slow
@pytest.mark.parametrize("with_codes", [False, True], ids=["exact", "codes"])
def test_build_memory_grows_only_by_the_codes_per_row(wide: Any, with_codes: bool) -> None:
    """With eight times the rows, an exact index needs no more memory; codes need the stated bytes per row."""
    store, shards = wide
    settings = {"recall_queries": 20, "training_rows": 256, "dimensions": (64, 128)}
    settings["exact_up_to_mb"] = 0 if with_codes else 1e6
    used = []
    for count in (1, len(shards)):
        sent = pickle.dumps((store.url, shards[:count], settings))
        command = [sys.executable, "-c", MEMORY_PROGRAM]
        used.append(int(subprocess.run(command, check=True, capture_output=True, input=sent).stdout))
    rows = sum(shard.rows for shard in shards)
    noise = rows * 1024 * 4 / 4
    allowed = noise + (rows * bytes_a_row([64, 128]) if with_codes else 0)
    assert used[1] - used[0] < allowed, used
