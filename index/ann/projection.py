"""The projection to the principal axes of all kinds, from which the 4-bit codes are made.

A catalog has one projection for all kinds. Its axes are the principal components of a sample in which each kind is
centred by its own mean, so that no axis is spent on the gap between kinds, which does not distinguish assets. Queries
and vectors are projected without centring: under inner product, shifting the query would change the order of results.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .products import one_thread, product

_OVERSAMPLED = 32
_ITERATIONS = 4


def fit_axes(samples: Sequence[npt.NDArray[np.float32]], count: int, seed: int) -> npt.NDArray[np.float32]:
    """Fits the first principal axes by subspace iteration on the covariance (Halko et al. 2011, alg. 4.4).

    The covariance is applied as two products with the samples. As a matrix it would take more memory than they do, and
    for a few thousand rows as long to compute as all iterations.

    Args:
        samples: For each kind, float32, (rows, dimension); at least one row in total.
        count: Number of axes, at most the dimension.
        seed: Seed of the initial guess.

    Returns:
        float32, (count, dimension), orthonormal rows, strongest first.
    """
    with one_thread():  # small products and the decompositions have the same bits then, as the large ones have
        return _fit_axes(samples, count, seed)


def _fit_axes(samples: Sequence[npt.NDArray[np.float32]], count: int, seed: int) -> npt.NDArray[np.float32]:
    dimension = samples[0].shape[1]
    centred = [(s, s.mean(axis=0, dtype=np.float64).astype(np.float32)) for s in samples if len(s)]
    guess = np.random.default_rng([seed, dimension, count]).standard_normal(
        (dimension, min(count + _OVERSAMPLED, dimension)), np.float32
    )
    basis = _orthonormal(guess)
    for _ in range(_ITERATIONS):
        image = np.zeros_like(basis)
        for sample, mean in centred:
            image += product(sample.T, _project(sample, mean, basis))
        # Scaled, because float32 underflows on some spectra when squared. A part of the guess is kept, so that
        # directions without variance still give an orthonormal basis.
        greatest = float(np.abs(image).max())
        basis = _orthonormal(image / np.float32(greatest or 1.0) + np.float32(1e-6) * basis)
    gram = np.zeros((basis.shape[1], basis.shape[1]))
    for sample, mean in centred:
        projected = _project(sample, mean, basis) * np.float32(len(sample))
        gram += product(projected.T, projected).astype(np.float64) / len(sample)
    strengths, turn = np.linalg.eigh(gram)
    strongest = np.argsort(-strengths, kind="stable")[:count]
    axes = np.ascontiguousarray(product(basis, turn[:, strongest].astype(np.float32)).T)
    # An axis has two directions; without a rule, the last bit of a product would choose one.
    greatest_at = np.abs(axes).argmax(axis=1)
    axes *= np.sign(axes[np.arange(count), greatest_at])[:, None]
    return axes


def _project(
    sample: npt.NDArray[np.float32], mean: npt.NDArray[np.float32], basis: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The centred rows in the basis, divided by their number: float32, (rows, columns of the basis)."""
    projected: npt.NDArray[np.float32] = product(sample, basis, minus=mean)
    projected /= np.float32(len(sample))
    return projected


def _orthonormal(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Computes an orthonormal basis of the same space, with two passes of Cholesky QR.

    It uses matrix products only: a QR decomposition of this shape waits for other processes at every step.
    """
    basis = columns.astype(np.float64)
    for _ in range(2):
        gram = product(basis.T, basis)
        gram[np.diag_indices_from(gram)] += 1e-14 * np.trace(gram)
        basis = product(basis, np.linalg.inv(np.linalg.cholesky(gram)).T)
    return basis.astype(np.float32)


@functools.lru_cache(maxsize=8)
def rotation(dimension: int, seed: int) -> npt.NDArray[np.float32]:
    """A random rotation, float32, (dimension, dimension), that distributes the variance evenly over all codes."""
    drawn = np.random.default_rng([seed, dimension]).standard_normal((dimension, dimension))
    with one_thread():
        orthogonal, triangle = np.linalg.qr(drawn)
    return np.asarray(orthogonal * np.sign(np.diagonal(triangle)), np.float32)
