"""Exact search over stored vectors finds what a whole matrix product finds, and equal scores by their ids."""

import numpy as np
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import Store
from epithre_beam.index.ann.stored import nearest_stored, stored_vectors


def test_vectors_come_in_the_order_of_the_rows(small):
    for kind, expected in small.vectors.items():
        found = list(stored_vectors(small.store, small.manifest, kind))
        assert len(found) > 2
        np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_the_best_are_those_of_a_matrix_product(small, draw_vectors, k):
    queries = draw_vectors(9, 16, 5)
    ids = small.assets["image"].column("asset_id")
    scores, rows = nearest_stored(small.store, small.manifest, "image", ids, queries, k)
    products = queries @ small.vectors["image"].T
    order = np.argsort(-products, axis=1)[:, :k]
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(scores, np.take_along_axis(products, order, 1), atol=1e-6)


def test_equal_scores_stand_in_the_order_of_their_ids_as_a_search_has_them(make_catalog, draw_vectors):
    """Copies lie in several row groups, and more of them than are asked for."""
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


def test_a_file_that_is_missing_or_cut_is_named(own_copy):
    path = min((own_copy.folder / "versions" / own_copy.manifest.version / "vectors").glob("image-*"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CatalogError, match=path.name):
        list(stored_vectors(Store(str(own_copy.folder)), own_copy.manifest, "image"))
    path.unlink()
    with pytest.raises(CatalogError, match=path.name):
        list(stored_vectors(Store(str(own_copy.folder)), own_copy.manifest, "image"))


def test_another_number_of_rows_than_of_assets_is_told(small, draw_vectors):
    ids = small.assets["image"].column("asset_id").slice(0, 60)
    with pytest.raises(CatalogError, match="60 image assets and 61 vectors"):
        nearest_stored(small.store, small.manifest, "image", ids, draw_vectors(1, 16, 5), 3)
