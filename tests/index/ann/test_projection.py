"""The axes keep the differences between rows of all kinds, not the difference between kinds."""

from collections.abc import Callable

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from epithre_beam.index.ann.codes import Projected, build_codes, code_rows
from epithre_beam.index.ann.projection import fit_axes, rotation

Floats = npt.NDArray[np.float32]
Draw = Callable[..., Floats]


def recall_of(axes: Floats, queries: Floats, vectors: Floats, bias: Floats | None = None) -> float:
    """The share of the ten best among the first thirty by projected scores; a bias shifts both sides first."""
    shift = np.zeros(vectors.shape[1], np.float32) if bias is None else bias
    projected = ((queries - shift) @ axes.T) @ ((vectors - shift) @ axes.T).T
    exact = queries @ vectors.T
    best = np.argsort(-exact, axis=1)[:, :10]
    found = np.argsort(-projected, axis=1)[:, :30]
    return float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(best, found, strict=True)]))


@pytest.mark.parametrize(("rows", "dimension", "count"), [(500, 64, 16), (20, 64, 40), (1, 16, 8), (300, 16, 16)])
def test_axes_are_orthonormal_with_fewer_rows_than_axes(
    draw_clustered: Draw, rows: int, dimension: int, count: int
) -> None:
    axes = fit_axes([draw_clustered(rows, dimension, 1), draw_clustered(3, dimension, 2)], count, 0)
    assert (axes.shape, axes.dtype, axes.flags.c_contiguous) == ((count, dimension), np.dtype("f4"), True)
    np.testing.assert_allclose(axes @ axes.T, np.eye(count), atol=1e-4)


def test_equal_rows_without_variance_have_axes() -> None:
    axes = fit_axes([np.full((50, 16), 0.25, np.float32)], 8, 0)
    np.testing.assert_allclose(axes @ axes.T, np.eye(8), atol=1e-4)


def test_axes_are_the_principal_axes_strongest_first(draw_clustered: Draw) -> None:
    samples = [draw_clustered(2000, 64, 1), draw_clustered(2000, 64, 2)]
    axes = fit_axes(samples, 12, 0)
    centred = [sample - sample.mean(axis=0) for sample in samples]
    covariance = sum(part.T @ part / len(part) for part in centred)
    exact = np.linalg.eigh(covariance.astype(np.float64))[1][:, ::-1][:, :12].T
    kept = np.einsum("ij,jk,ik->i", axes, covariance, axes)
    assert (np.diff(kept) <= 1e-6).all()
    assert kept.sum() >= 0.999 * np.einsum("ij,jk,ik->", exact, covariance, exact)


def test_gap_between_kinds_takes_no_axis(draw_clustered: Draw) -> None:
    """The direction of a gap of any width is no more among the axes than without the gap."""
    one, other = draw_clustered(800, 64, 1), draw_clustered(800, 64, 2)
    gap = np.zeros(64, np.float32)
    gap[63] = 1.0  # a direction with hardly any variance
    axes = fit_axes([one + 3 * gap, other - 3 * gap], 12, 0)
    assert float(np.linalg.norm(axes @ gap)) < 0.2
    joint = fit_axes([np.concatenate([one + 3 * gap, other - 3 * gap])], 12, 0)
    assert float(np.linalg.norm(joint @ gap)) > 0.99


def test_small_kind_keeps_its_axes(draw_clustered: Draw) -> None:
    many = np.zeros((3000, 32), np.float32)
    few = np.zeros((100, 32), np.float32)
    rng = np.random.default_rng(0)
    many[:, :4] = rng.standard_normal((3000, 4))
    few[:, 20:24] = rng.standard_normal((100, 4))
    axes = fit_axes([many, few], 8, 0)
    assert (np.linalg.norm(axes[:, [*range(4), *range(20, 24)]], axis=0) > 0.99).all()


def test_projection_without_bias_keeps_more_recall() -> None:
    """Under inner product, a shifted query gives a different order; the trained PCA of FAISS shifts queries."""
    rng = np.random.default_rng(3)
    strengths = np.arange(1, 129) ** -0.5
    centres = rng.standard_normal((100, 128)) * strengths
    offset = {kind: 2.0 * rng.standard_normal(128) * strengths for kind in ("image", "text")}

    def drawn(kind: str, rows: int) -> Floats:
        x = (
            centres[rng.integers(0, 100, rows)] * 0.4
            + offset[kind]
            + 0.4 * rng.standard_normal((rows, 128)) * strengths
        )
        x *= rng.uniform(0.6, 1.4, (rows, 1))
        x += 0.5 * rng.standard_normal((rows, 128)) * strengths
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    images, texts = drawn("image", 3000), drawn("text", 3000)
    axes = fit_axes([images, texts], 64, 0)
    ours = recall_of(axes, texts[:100], images)
    mean = np.concatenate([images, texts]).mean(axis=0)
    with_bias = recall_of(axes, texts[:100], images, mean)
    trained = faiss.PCAMatrix(128, 64)
    trained.train(np.concatenate([images, texts]))
    projected = trained.apply(texts[:100]) @ trained.apply(images).T
    best, found = np.argsort(-(texts[:100] @ images.T), axis=1)[:, :10], np.argsort(-projected, axis=1)[:, :30]
    stock = float(np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(best, found, strict=True)]))
    assert ours > 0.95
    assert with_bias < ours - 0.1
    assert stock < ours - 0.1


def test_stored_transform_is_a_rotation_of_the_axes_without_bias(draw_clustered: Draw) -> None:
    vectors = draw_clustered(1100, 48, 1)
    axes = fit_axes([vectors], 16, 0)
    projected = Projected(vectors=(vectors @ axes.T).astype(np.float16), order=np.arange(1100), axes=axes, seed=0)
    index = build_codes(projected, code_rows(projected, 16), 1)
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    assert type(transform) is faiss.LinearTransform
    assert not transform.have_bias
    assert transform.b.size() == 0
    matrix = faiss.vector_to_array(transform.A).reshape(16, 48)
    np.testing.assert_allclose(
        matrix.T @ matrix, axes.T @ axes, atol=1e-5
    )  # the inner products equal those of the axes


def test_rotation_is_orthogonal_and_distributes_variance(draw_clustered: Draw) -> None:
    turn = rotation(64, 0)
    np.testing.assert_allclose(turn @ turn.T, np.eye(64), atol=1e-6)
    assert turn.tobytes() == rotation(64, 0).tobytes() != rotation(64, 1).tobytes()
    values = draw_clustered(2000, 64, 1) @ turn.T
    before = draw_clustered(2000, 64, 1).var(axis=0)
    after = values.var(axis=0)
    assert after.max() / after.min() < 0.2 * before.max() / before.min()
