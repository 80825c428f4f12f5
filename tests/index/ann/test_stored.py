"""Exact search over stored vectors equals a full matrix product, with equal scores sorted by id."""

import numpy as np
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import Store
from epithre_beam.index.ann.stored import nearest_stored, stored_vectors


def test_stored_vectors_are_in_row_order(small):
    for kind, expected in small.vectors.items():
        found = list(stored_vectors(small.store, small.manifest, kind))
        assert len(found) > 2
        np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_nearest_stored_equals_a_matrix_product(small, draw_vectors, k):
    queries = draw_vectors(9, 16, 5)
    ids = small.assets["image"].column("asset_id")
    scores, rows = nearest_stored(small.store, small.manifest, "image", ids, queries, k)
    products = queries @ small.vectors["image"].T
    order = np.argsort(-products, axis=1)[:, :k]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, np.take_along_axis(products, order, 1), atol=1e-6)


def test_equal_scores_are_sorted_by_id_like_in_search(make_catalog, draw_vectors):
    """The copies are in several row groups and more than k."""
    vectors = np.concatenate([draw_vectors(30, 16, 1), np.tile(draw_vectors(1, 16, 2), (40, 1))])
    order = np.random.default_rng(3).permutation(len(vectors))
    made = make_catalog({"text": vectors[order]})
    queries = np.concatenate([draw_vectors(1, 16, 2), draw_vectors(3, 16, 4)])
    ids = made.assets["text"].column("asset_id")
    _, rows = nearest_stored(made.store, made.manifest, "text", ids, queries, 12)
    with made.open() as catalog:
        _, expected = catalog.find_rows(queries, 12, kind="text")
    np.testing.assert_array_equal(rows, expected)
    assert (np.sort(rows[0]) == np.sort(expected[0])).all()


def test_error_names_a_missing_or_truncated_file(own_copy):
    path = min((own_copy.folder / "versions" / own_copy.manifest.version / "vectors").glob("image-*"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CatalogError, match=path.name):
        list(stored_vectors(Store(str(own_copy.folder)), own_copy.manifest, "image"))
    path.unlink()
    with pytest.raises(CatalogError, match=path.name):
        list(stored_vectors(Store(str(own_copy.folder)), own_copy.manifest, "image"))


def test_raises_if_rows_and_assets_differ_in_number(small, draw_vectors):
    ids = small.assets["image"].column("asset_id").slice(0, 60)
    with pytest.raises(CatalogError, match="60 image assets but 61 vectors"):
        nearest_stored(small.store, small.manifest, "image", ids, draw_vectors(1, 16, 5), 3)
