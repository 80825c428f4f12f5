"""The projection to the principal axes of all kinds, from which the 4-bit codes are made.

A catalog has one projection for all kinds. Its axes are the principal components of a sample in which each kind is
centred by its own mean, so that no axis is spent on the gap between kinds, which does not distinguish assets. Queries
and vectors are projected without centring: under inner product, shifting the query would change the order of results.
"""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_OVERSAMPLED = 32
_ITERATIONS = 4


def fit_axes(samples: Sequence[npt.NDArray[np.float32]], count: int, seed: int) -> npt.NDArray[np.float32]:
    """Fits the first principal axes by subspace iteration on the covariance (Halko et al. 2011, alg. 4.4).

    Args:
        samples: For each kind, float32, (rows, dimension); at least one row in total.
        count: Number of axes, at most the dimension.
        seed: Seed of the initial guess.

    Returns:
        float32, (count, dimension), orthonormal rows, strongest first.
    """
    dimension = samples[0].shape[1]
    covariance = np.zeros((dimension, dimension), np.float32)
    for sample in samples:
        centred = sample - sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        covariance += (centred.T @ centred) / np.float32(max(len(sample), 1))
    # Scaled, because float32 underflows on some spectra when squared.
    greatest = float(np.abs(np.diagonal(covariance)).max())
    covariance /= np.float32(greatest or 1.0)
    guess = np.random.default_rng([seed, dimension, count]).standard_normal(
        (dimension, min(count + _OVERSAMPLED, dimension)), np.float32
    )
    basis = _orthonormal(guess)
    for _ in range(_ITERATIONS):
        # Keep a part of the guess, so that directions without variance still give an orthonormal basis.
        basis = _orthonormal(covariance @ basis + np.float32(1e-6) * basis)
    strengths, turn = np.linalg.eigh((basis.T @ covariance @ basis).astype(np.float64))
    strongest = np.argsort(-strengths, kind="stable")[:count]
    return np.ascontiguousarray((basis @ turn[:, strongest].astype(np.float32)).T)


def _orthonormal(columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Computes an orthonormal basis of the same space, with two passes of Cholesky QR.

    It uses matrix products only: a QR decomposition of this shape waits for other processes at every step.
    """
    basis = columns.astype(np.float64)
    for _ in range(2):
        gram = basis.T @ basis
        gram[np.diag_indices_from(gram)] += 1e-14 * np.trace(gram)
        basis = basis @ np.linalg.inv(np.linalg.cholesky(gram)).T
    return basis.astype(np.float32)


@functools.lru_cache(maxsize=8)
def rotation(dimension: int, seed: int) -> npt.NDArray[np.float32]:
    """A random rotation, float32, (dimension, dimension), that distributes the variance evenly over all codes."""
    drawn = np.random.default_rng([seed, dimension]).standard_normal((dimension, dimension))
    orthogonal, triangle = np.linalg.qr(drawn)
    return np.asarray(orthogonal * np.sign(np.diagonal(triangle)), np.float32)
