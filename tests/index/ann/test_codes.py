"""Codes equal those of stock FAISS, and stock FAISS reads and searches the file."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from epithre_beam.index import Store
from epithre_beam.index.ann.codes import (
    Projected,
    build_codes,
    cells_for,
    code_rows,
    open_codes,
    search_codes,
    train_centroids,
    write_codes,
)
from epithre_beam.index.ann.exact import encode
from epithre_beam.index.ann.projection import fit_axes, rotation

Floats = npt.NDArray[np.float32]
Draw = Callable[..., Floats]


@pytest.fixture(scope="module")
def vectors(draw_clustered: Draw) -> Floats:
    return draw_clustered(1500, 48, 1)


def projected_of(vectors: Floats, order: npt.NDArray[np.int64] | None = None) -> Projected:
    axes = fit_axes([vectors], 32, 0)
    order = np.random.default_rng(4).permutation(len(vectors)) if order is None else order
    return Projected(vectors=(vectors @ axes.T).astype(np.float16), order=order, axes=axes, seed=0)


def squared_error(values: Floats, centroids: Floats) -> float:
    """The total squared error to the nearest centroids of each dimension."""
    return float((np.abs(values[:, :, None] - centroids[None]).min(axis=2) ** 2).sum())


@pytest.mark.parametrize("shape", ["normal", "heavy", "lopsided", "few values"])
def test_centroids_have_no_more_squared_error_than_faiss(shape: str) -> None:
    rng = np.random.default_rng(2)
    values = {
        "normal": rng.standard_normal((3000, 4)),
        "heavy": rng.standard_t(3, (3000, 4)),
        "lopsided": rng.exponential(1.0, (3000, 4)),
        "few values": rng.integers(0, 10, (3000, 4)) / 10,
    }[shape].astype(np.float32)
    ours = train_centroids(values)
    quantiser = faiss.ProductQuantizer(4, 4, 4)
    quantiser.train(values)
    theirs = faiss.vector_to_array(quantiser.centroids).reshape(4, 16)
    assert (np.diff(ours, axis=1) >= 0).all()
    assert squared_error(values, ours) <= 1.01 * squared_error(values, theirs) + 1e-6


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_fewer_rows_than_centroids_can_be_trained(rows: int) -> None:
    values = np.random.default_rng(2).standard_normal((rows, 4)).astype(np.float32)
    centroids = train_centroids(values)
    assert np.isfinite(centroids).all()
    assert squared_error(values, centroids) <= 0.01 * float(values.var(axis=0).sum()) * rows + 1e-9


@pytest.mark.parametrize("dimension", [32, 31, 16])
def test_codes_equal_those_of_faiss_except_on_boundaries(vectors: Floats, dimension: int) -> None:
    projected = projected_of(vectors)
    coded = code_rows(projected, dimension)
    quantiser = faiss.ProductQuantizer(dimension, dimension, 4)
    faiss.copy_array_to_vector(coded.centroids.ravel(), quantiser.centroids)
    values = projected.turned(slice(None), dimension, rotation(dimension, 0)).astype(np.float16).astype(np.float32)
    theirs = quantiser.compute_codes(values)

    def each(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)[:, :dimension]

    ours, theirs = each(coded.codes), each(theirs)
    differ = ours != theirs
    assert differ.mean() < 1e-3
    chosen = np.take_along_axis(coded.centroids[None], ours[:, :, None].astype(int), 2)[:, :, 0]
    others = np.take_along_axis(coded.centroids[None], theirs[:, :, None].astype(int), 2)[:, :, 0]
    gap = np.abs(np.abs(values - chosen) - np.abs(values - others))
    assert gap[differ].max(initial=0) < 1e-5


def test_equal_rows_have_equal_codes() -> None:
    same = np.full((1100, 8), 8**-0.5, np.float32)
    coded = code_rows(projected_of(np.pad(same, ((0, 0), (0, 40)))), 8)
    assert np.isfinite(coded.centroids).all()
    assert (coded.codes == coded.codes[0]).all()


def test_codes_do_not_depend_on_row_order(vectors: Floats) -> None:
    """The training order follows the hashes of ids, which do not depend on row positions."""
    hashes = np.random.default_rng(5).permutation(len(vectors))
    moved = np.random.default_rng(6).permutation(len(vectors))
    axes = fit_axes([vectors], 32, 0)
    projections = (vectors @ axes.T).astype(np.float16)
    one = Projected(vectors=projections, order=np.argsort(hashes), axes=axes, seed=0)
    other = Projected(vectors=projections[moved], order=np.argsort(hashes[moved]), axes=axes, seed=0)
    codes, others = code_rows(one, 32), code_rows(other, 32)
    assert codes.centroids.tobytes() == others.centroids.tobytes()
    np.testing.assert_array_equal(codes.codes[moved], others.codes)
    for cells in (1, 20):
        found = search_codes(build_codes(one, codes, cells), vectors[:50], 30, cells)
        again = search_codes(build_codes(other, others, cells), vectors[:50], 30, cells)
        np.testing.assert_array_equal(found, moved[again])


@pytest.mark.parametrize("cells", [1, 40])
def test_ids_are_row_positions_each_once(vectors: Floats, cells: int) -> None:
    projected = projected_of(vectors)
    index = build_codes(projected, code_rows(projected, 32), cells)
    assert (index.ntotal, index.d) == (len(vectors), 48)
    rows = search_codes(index, vectors[:5], len(vectors), cells)
    assert [sorted(found) for found in rows.tolist()] == [list(range(len(vectors)))] * 5
    first = search_codes(index, vectors, 20, cells)
    assert (first == np.arange(len(vectors))[:, None]).any(axis=1).mean() > 0.99


@pytest.mark.parametrize("cells", [1, 40])
def test_stock_faiss_searches_a_stored_file_with_equal_results(vectors: Floats, tmp_path: Path, cells: int) -> None:
    projected = projected_of(vectors)
    index = build_codes(projected, code_rows(projected, 32), cells)
    with (tmp_path / "codes.faiss").open("wb") as file:
        write_codes(index, file.write)
    stored = faiss.read_index(str(tmp_path / "codes.faiss"))
    vectors_index = faiss.IndexScalarQuantizer(48, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    vectors_index.train(vectors)
    vectors_index.add(vectors)
    refined = faiss.IndexRefine(stored, vectors_index)
    refined.k_factor = 5
    faiss.extract_index_ivf(stored).nprobe = max(1, cells // 2)
    scores, rows = refined.search(vectors[:60], 10)
    queries = vectors[:60]
    decoded = encode(vectors).view(np.float16).astype(np.float32)
    candidates = search_codes(index, queries, 50, max(1, cells // 2))
    for q in range(60):
        own = decoded[candidates[q]] @ queries[q]
        best = np.argsort(-own, kind="stable")[:10]
        np.testing.assert_allclose(scores[q], own[best], atol=1e-6)
        assert set(rows[q].tolist()) == set(candidates[q][best].tolist())
    with open_codes(Store(str(tmp_path)), "codes.faiss", 48, len(vectors)) as mapped:
        np.testing.assert_array_equal(search_codes(mapped, queries, 50, max(1, cells // 2)), candidates)
    remote = Store("memory://codes")
    remote.write("codes.faiss", (tmp_path / "codes.faiss").read_bytes())
    with open_codes(remote, "codes.faiss", 48, len(vectors)) as read:
        np.testing.assert_array_equal(search_codes(read, queries, 50, max(1, cells // 2)), candidates)
    remote.delete("")


def test_equal_rows_give_equal_bytes(vectors: Floats) -> None:
    written = []
    for _ in range(2):
        projected, buffer = projected_of(vectors), io.BytesIO()
        write_codes(build_codes(projected, code_rows(projected, 32), 40), buffer.write)
        written.append(buffer.getvalue())
    assert written[0] == written[1]


def test_search_returns_only_selected_rows(vectors: Floats) -> None:
    projected = projected_of(vectors)
    index: Any = build_codes(projected, code_rows(projected, 32), 40)
    allowed = np.flatnonzero(np.random.default_rng(1).random(len(vectors)) < 0.05)
    asked = faiss.IVFSearchParameters(nprobe=40, sel=faiss.IDSelectorBatch(allowed))
    _, found = index.search(vectors[:30], 100, params=faiss.SearchParametersPreTransform(index_params=asked))
    assert all(set(rows[rows >= 0].tolist()) == set(allowed.tolist()) for rows in found[:, : len(allowed)])
    assert (found[:, len(allowed) :] == -1).all()


def test_cells_for_returns_one_cell_or_four_times_the_root() -> None:
    assert [cells_for(rows) for rows in (1024, 49_999, 50_000, 1_000_000)] == [1, 1, 894, 4000]
