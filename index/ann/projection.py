"""The directions in which vectors of all kinds differ most: what 4-bit codes are made of.

A catalog has one projection for all kinds. Its axes are the principal components of a sample in which each kind is
centred by its own mean, so that the gap between the kinds, which tells nobody apart, takes no axis. Queries and
vectors are projected without that mean: under inner product a shift of the query would change the order of results.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_OVERSAMPLED = 32
_ITERATIONS = 4


def fit_axes(samples: Sequence[npt.NDArray[np.float32]], count: int, seed: int) -> npt.NDArray[np.float32]:
    """The first principal axes, strongest first, by subspace iteration on the covariance (Halko et al. 2011, alg. 4.4).

    Args:
        samples: For each kind, float32, (rows, dimension); at least one row in all.
        count: Of axes, at most the dimension.
        seed: Of the first guess.

    Returns:
        float32, (count, dimension), orthonormal rows.
    """
    dimension = samples[0].shape[1]
    covariance = np.zeros((dimension, dimension), np.float32)
    for sample in samples:
        centred = sample - sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        covariance += (centred.T @ centred) / np.float32(max(len(sample), 1))
    # Scaled, for some spectra fall below what float32 can square.
    greatest = float(np.abs(np.diagonal(covariance)).max())
    covariance /= np.float32(greatest or 1.0)
    guess = np.random.default_rng([seed, dimension, count]).standard_normal(
        (dimension, min(count + _OVERSAMPLED, dimension)), np.float32
    )
    basis = _orthonormal(guess)
    for _ in range(_ITERATIONS):
        # A part of the guess is kept, so that directions without any variance still give an orthonormal basis.
        basis = _orthonormal(covariance @ basis + np.float32(1e-6) * basis)
    strengths, turn = np.linalg.eigh((basis.T @ covariance @ basis).astype(np.float64))
    strongest = np.argsort(-strengths, kind="stable")[:count]
    return np.ascontiguousarray((basis @ turn[:, strongest].astype(np.float32)).T)


def _orthonormal(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """An orthonormal basis of the same space, by Cholesky factors of the Gram matrix, twice.

    Matrix products all the way: a QR decomposition of this shape waits for other processes at every step.
    """
    basis = columns.astype(np.float64)
    for _ in range(2):
        gram = basis.T @ basis
        gram[np.diag_indices_from(gram)] += 1e-14 * np.trace(gram)
        basis = basis @ np.linalg.inv(np.linalg.cholesky(gram)).T
    return basis.astype(np.float32)


@functools.lru_cache(maxsize=8)
def rotation(dimension: int, seed: int) -> npt.NDArray[np.float32]:
    """A random rotation, float32, (dimension, dimension): it spreads the variance over all codes alike."""
    drawn = np.random.default_rng([seed, dimension]).standard_normal((dimension, dimension))
    orthogonal, triangle = np.linalg.qr(drawn)
    return np.asarray(orthogonal * np.sign(np.diagonal(triangle)), np.float32)
