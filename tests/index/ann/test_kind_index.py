"""For every index type, a search returns the results of brute force, to the measured recall."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytest

from epithre_beam.configs import IndexConfig
from epithre_beam.index import Hit
from epithre_beam.index.ann.exact import encode

Floats = npt.NDArray[np.float32]
Draw = Callable[..., Floats]

FP16 = 2e-6
"""The tolerance between scores of the same stored fp16 numbers, summed in another order."""

STORED: dict[tuple[Path, str], Floats] = {}

INDEX_TYPES: dict[str, dict[str, Any]] = {
    "exact": {"rows": 700, "dimension": 24, "exact_up_to_mb": 64},
    "cells": {"rows": 3000, "dimension": 24, "routed": 1024},
    "files": {"rows": 2500, "dimension": 24, "rows_per_file": 1100, "rows_per_index": 1100},
    "files of cells": {"rows": 4103, "dimension": 24, "rows_per_file": 1300, "rows_per_index": 1300, "routed": 1024},
    "128 of 600": {"rows": 1100, "dimension": 600, "dimensions": (128,)},
    "256 of 600": {"rows": 1100, "dimension": 600, "dimensions": (256,)},
    "512 of 600": {"rows": 1100, "dimension": 600, "dimensions": (512,)},
}


@pytest.fixture(scope="module", params=INDEX_TYPES)
def built(request: pytest.FixtureRequest, make_catalog: Any, draw_clustered: Draw) -> Any:
    """A catalog whose images have one index type; its few texts are scanned. Read-only."""
    plan = {"exact_up_to_mb": 0, "routed": None, "rows_per_file": 900, **INDEX_TYPES[request.param]}
    rows, dimension, routed = plan.pop("rows"), plan.pop("dimension"), plan.pop("routed")
    rows_per_file = plan.pop("rows_per_file")
    index = IndexConfig(training_rows=500, recall_queries=60, **plan)
    vectors = {"image": draw_clustered(rows, dimension, 1), "text": draw_clustered(150, dimension, 2)}
    with pytest.MonkeyPatch.context() as patch:
        if routed:
            patch.setattr("epithre_beam.index.ann.codes._ROUTED_ROWS", routed)
        # Units are in the order of rows, so that the files are split as configured.
        return make_catalog(vectors, rows_per_unit=50, rows_per_file=rows_per_file, index=index)


@pytest.fixture(scope="module")
def queries(built: Any, draw_clustered: Draw) -> Floats:
    """New queries from the distributions of both kinds; none is a row of the catalog."""
    dimension = built.manifest.dimension
    return np.concatenate([draw_clustered(3100, dimension, seed)[-40:] for seed in (1, 2)])


def stored_of(built: Any, kind: str) -> Floats:
    """The vectors as decoded from the file, because FAISS rounds fp16 ties differently from numpy; cached."""
    key = (built.folder, kind)
    if key not in STORED:
        STORED[key] = encode(built.vectors[kind]).view(np.float16).astype(np.float32)
    return STORED[key]


def assert_sound(built: Any, query: Floats, hits: list[Hit], allowed: dict[str, npt.NDArray[np.bool_]]) -> None:
    """Checks for exact scores, each row once, only allowed rows, sorted by score, then kind, then id."""
    assert len({(hit.kind, hit.row) for hit in hits}) == len(hits)
    for kind, is_in in allowed.items():
        own = [hit for hit in hits if hit.kind == kind]
        rows = np.array([hit.row for hit in own], int)
        assert is_in[rows].all()
        ids = built.assets[kind].column("asset_id").take(rows).to_pylist()
        assert [hit.asset_id for hit in own] == ids
        np.testing.assert_allclose([hit.score for hit in own], stored_of(built, kind)[rows] @ query, atol=FP16)
    assert {hit.kind for hit in hits} <= set(allowed)


def assert_in_order(hits: list[Hit]) -> None:
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.kind, hit.asset_id))


def share_found(built: Any, query: Floats, hits: list[Hit], is_in: npt.NDArray[np.bool_], k: int) -> float:
    """The share of the k best images that were found; rows with the score of the last one count as right."""
    scores = np.where(is_in, stored_of(built, "image") @ query, -np.inf)
    wanted = min(k, int(is_in.sum()))
    bar = np.sort(scores)[::-1][wanted - 1]
    return sum(scores[hit.row] >= bar - FP16 for hit in hits) / wanted


def condition(built: Any, share: float) -> tuple[Any, dict[str, npt.NDArray[np.bool_]]]:
    """A condition that this share of all rows matches, in any position."""
    numbers = {kind: np.asarray(table.column("size_bytes")) for kind, table in built.assets.items()}
    count = round(share * len(numbers["image"]))
    chosen = np.random.default_rng(3).permutation(np.arange(1000, 1000 + len(numbers["image"])))[:count]
    return pc.field("size_bytes").isin(chosen.tolist()), {kind: np.isin(n, chosen) for kind, n in numbers.items()}


def everything(built: Any) -> dict[str, npt.NDArray[np.bool_]]:
    return {kind: np.ones(len(vectors), bool) for kind, vectors in built.vectors.items()}


# ---------------------------------------------------------------------------------------------------- brute force


def test_each_index_type_is_built_as_named(built: Any, request: pytest.FixtureRequest) -> None:
    index, name = built.index("image"), request.node.callspec.params["built"]
    assert (index.factory == "SQfp16") == (name == "exact")
    if name.startswith("files"):
        assert len(index.files) > 2
        assert index.codes[-1] is None
        assert all(index.codes[:-1])
    if "cells" in name:
        assert "IVF1," not in index.factory
    if " of 600" in name:
        assert index.factory.startswith(f"LT{name.split()[0]},IVF1,PQ")
    assert built.manifest.gate_failures == ()


@pytest.mark.parametrize("k", [1, 10, 1000, 10_000])
def test_search_returns_exact_scores_in_order_without_duplicates(built: Any, queries: Floats, k: int) -> None:
    count = len(built.vectors["image"])
    asked = queries if k <= 10 else queries[::20]
    with built.open() as catalog:
        found = catalog.search(asked, k, kinds="image")
    shares = []
    for query, hits in zip(asked, found, strict=True):
        assert len(hits) == min(k, count)
        assert_sound(built, query, hits, {"image": np.ones(count, bool)})
        assert_in_order(hits)
        shares.append(share_found(built, query, hits, np.ones(count, bool), k))
    assert np.mean(shares) >= 0.9


@pytest.mark.parametrize("k", [10, 1000])
@pytest.mark.parametrize("share", [0.5, 0.05, 0.005, 0.0])
def test_condition_keeps_recall_and_filters_all_other_rows(built: Any, queries: Floats, share: float, k: int) -> None:
    where, allowed = condition(built, share)
    asked = queries if k <= 10 else queries[::20]
    with built.open() as catalog:
        found = catalog.search(asked, k, kinds="image", where=where)
    shares = []
    for query, hits in zip(asked, found, strict=True):
        assert len(hits) == min(k, int(allowed["image"].sum()))
        assert_sound(built, query, hits, {"image": allowed["image"]})
        assert_in_order(hits)
        if hits:
            shares.append(share_found(built, query, hits, allowed["image"], k))
    assert not shares or np.mean(shares) >= 0.9


@pytest.mark.parametrize("where", ["all", "half", "few"])
@pytest.mark.parametrize("merge", ["score", "quota", "standardised"])
def test_search_of_both_kinds_merges_the_single_searches(built: Any, queries: Floats, merge: Any, where: str) -> None:
    expression, allowed = {
        "all": (None, everything(built)),
        "half": condition(built, 0.5),
        "few": condition(built, 0.01),
    }[where]
    asked, k = queries[::10], 100
    with built.open() as catalog:
        both = catalog.search(asked, k, merge=merge, query_kind="text", where=expression)
        alone = {kind: catalog.search(asked, k, kinds=kind, where=expression) for kind in allowed}
    for q, (query, hits) in enumerate(zip(asked, both, strict=True)):
        assert len(hits) == min(k, sum(len(found[q]) for found in alone.values()))
        assert_sound(built, query, hits, allowed)
        for kind, found in alone.items():
            own = [hit for hit in hits if hit.kind == kind]
            assert own == found[q][: len(own)]
        if merge == "score":
            assert_in_order(hits)


def test_operating_points_reach_their_recall_with_new_queries(built: Any, draw_clustered: Draw) -> None:
    """Measured with other queries than those for tuning, with a margin of three standard errors of both."""
    index, dimension = built.index("image"), built.manifest.dimension
    with built.open() as catalog:
        for query_kind, seed in (("image", 1), ("text", 2)):
            fresh = draw_clustered(3500, dimension, seed)[-100:]
            for point in index.operating_points:
                found = catalog._indexes["image"].search(fresh, index.recall_k, None, point)[1]
                shares = []
                for query, rows in zip(fresh, found, strict=True):
                    scores = stored_of(built, "image") @ query
                    bar = np.sort(scores)[::-1][index.recall_k - 1]
                    assert len(set(rows.tolist())) == index.recall_k
                    shares.append(float((scores[rows] >= bar - FP16).mean()))
                claimed = point.recall[f"{query_kind}->image"]
                noise = 3 * max(np.std(shares), 0.02) * (1 / 100 + 1 / 60) ** 0.5
                assert np.mean(shares) >= claimed - noise, point


def test_recall_argument_selects_the_cheapest_point(built: Any) -> None:
    index = built.index("image")
    with built.open() as catalog:
        opened = catalog._indexes["image"]
        for wanted in (0.0, 0.8, 0.95):
            point = opened.point(wanted)
            assert min(point.recall.values()) >= wanted
            cheaper = [p for p in index.operating_points if p.cost_us < point.cost_us]
            assert all(min(p.recall.values()) < wanted for p in cheaper)
        assert {"cells_share": opened.point(None).cells_share, "k_factor": opened.point(None).k_factor} == {
            "cells_share": index.search_parameters.get("cells_share"),
            "k_factor": index.search_parameters.get("k_factor"),
        }
        with pytest.raises(ValueError, match=r"recall must be from 0 to 1, got 1\.5"):
            opened.point(1.5)


# ---------------------------------------------------------------------------------------------------- history


@pytest.mark.parametrize("routed", [10_000, 1024], ids=["one cell", "cells"])
def test_hits_do_not_depend_on_row_order(
    make_catalog: Any, draw_clustered: Draw, monkeypatch: pytest.MonkeyPatch, routed: int
) -> None:
    """Includes copies, more of a kind than k."""
    monkeypatch.setattr("epithre_beam.index.ann.codes._ROUTED_ROWS", routed)
    vectors = {"image": draw_clustered(1600, 24, 1), "text": draw_clustered(60, 24, 2)}
    vectors["image"][1000:1040] = vectors["image"][7]
    index = IndexConfig(exact_up_to_mb=0, training_rows=500, recall_queries=60)
    fresh = np.concatenate([draw_clustered(40, 24, 9), vectors["image"][5:10]])
    reported = []
    for seed, rows_per_unit in ((None, 100), (2, 57)):
        orders = {
            kind: np.arange(len(rows)) if seed is None else np.random.default_rng(seed).permutation(len(rows))
            for kind, rows in vectors.items()
        }
        made = make_catalog(
            {kind: rows[orders[kind]] for kind, rows in vectors.items()},
            numbers={kind: order.tolist() for kind, order in orders.items()},
            rows_per_unit=rows_per_unit,
            rows_per_file=700,
            index=index,
        )
        with made.open() as catalog:
            where = pc.field("metadata", "lang") == "id"
            reported.append(
                [
                    [(hit.asset_id, hit.score) for hit in hits]
                    for condition in (None, where)
                    for k in (1, 3, 10, 100)
                    for hits in catalog.search(fresh, k, where=condition)
                ]
            )
        assert made.index("image").search_parameters
    # FAISS chooses among candidates of the same rounded score by their position in the file.
    differing = sum(one != other for one, other in zip(*reported, strict=True))
    assert differing <= 0.01 * len(reported[0])


# ---------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("built", ["files of cells"], indirect=True)
def test_concurrent_searches_equal_sequential_ones(built: Any, queries: Floats) -> None:
    conditions = [None, condition(built, 0.5)[0], condition(built, 0.05)[0], pc.field("metadata", "lang") == "en"]
    asked = [
        (queries[first : first + count], k, where)
        for first, count, k in ((0, 1, 10), (7, 30, 5), (50, 3, 100), (20, 9, 1))
        for where in conditions
    ]
    with built.open() as catalog:
        alone = [catalog.search(vectors, k, where=where) for vectors, k, where in asked]
    with built.open() as catalog, ThreadPoolExecutor(8) as pool:  # newly opened: nothing is cached
        for _ in range(2):
            order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(asked)), 3)).tolist()
            found = pool.map(lambda i: catalog.search(asked[i][0], asked[i][1], where=asked[i][2]), order)
            assert [hits == alone[i] for i, hits in zip(order, found, strict=True)] == [True] * len(order)


@pytest.mark.parametrize("built", ["exact", "cells"], indirect=True)
def test_search_restores_the_number_of_openmp_threads(built: Any, queries: Floats) -> None:
    before, seen, over = faiss.omp_get_max_threads(), set(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.add(faiss.omp_get_max_threads())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with built.open() as catalog:
        for _ in range(5):
            catalog.search(queries[:1], 10)
            assert faiss.omp_get_max_threads() == before
            catalog.search(queries[:30], 10)
    over.set()
    watcher.join()
    assert seen == {before}


def test_vectors_returns_the_stored_vectors(built: Any) -> None:
    """Rows of all files, in any order and more than once."""
    stored = stored_of(built, "image")
    rows = np.random.default_rng(0).integers(0, len(stored), 1500)
    with built.open() as catalog:
        assert np.array_equal(catalog.vectors("image", rows), stored[rows])


FORK_PROGRAM = """
import os, pickle, sys
import numpy as np
import pyarrow.compute as pc
from epithre_beam.index import open_catalog
catalog = open_catalog(sys.argv[1])
queries = np.load(sys.argv[2])
where = pc.field("metadata", "lang") == "id"
asked = [(queries[:1], 10, None), (queries[:40], 10, None), (queries[:40], 10, where), (queries[:2], 500, where)]
expected = [catalog.search(vectors, k, where=where) for vectors, k, where in asked]
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        found = [catalog.search(vectors, k, where=where) for vectors, k, where in asked]
        os._exit(0 if found == expected else 1)
    children.append(child)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


@pytest.mark.parametrize("built", ["exact", "cells"], indirect=True)
def test_forked_processes_get_equal_hits(built: Any, queries: Floats, tmp_path: Any) -> None:
    """A server may open the catalog first and then start its workers."""
    np.save(tmp_path / "queries.npy", queries)
    command = [sys.executable, "-c", FORK_PROGRAM, str(built.folder), str(tmp_path / "queries.npy")]
    done = subprocess.run(command, timeout=60, env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("where", [None, pc.field("size_bytes") > 0], ids=["all", "where"])
def test_search_returns_k_rows_if_the_nearest_cells_hold_few(
    make_catalog: Any, draw_clustered: Draw, monkeypatch: pytest.MonkeyPatch, where: Any
) -> None:
    """Nearly all rows are copies in one cell, and the many other cells are empty."""
    monkeypatch.setattr("epithre_beam.index.ann.codes._ROUTED_ROWS", 1024)
    few = draw_clustered(60, 24, 1)
    vectors = np.concatenate([few, np.repeat(few[:1], 2940, axis=0)])
    index = IndexConfig(exact_up_to_mb=0, training_rows=2000, recall_queries=60, target_recall=0.5)
    made = make_catalog({"image": vectors}, rows_per_unit=300, rows_per_file=5000, index=index)
    assert made.index("image").search_parameters["cells_share"] < 0.1
    with made.open() as catalog:
        for k in (10, 40):
            found = catalog.search(np.concatenate([-few, draw_clustered(60, 24, 3)]), k, where=where)
            assert [len(hits) for hits in found] == [k] * 120
