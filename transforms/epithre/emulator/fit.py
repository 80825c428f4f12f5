"""Fit the map from measurements to attributes on drawn images, and write `attributes.npz`.

    python -m epithre_beam.transforms.epithre.emulator.fit

Run it again when `draw.py`, `lexicon.GROUPS` or `measure.py` change; the emulator only reads the result.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .attributes import MAP_FILE, FittedMap, squash
from .draw import draw_image, sample_attributes
from .lexicon import GROUPS
from .measure import STATISTICS, measure

Floats = npt.NDArray[np.float32]

IMAGES = 5000
SEED = 1
RIDGE = 10.0
"""The penalty on the squared weights; the held-out scores hardly change between 1 and 50."""


def drawn_examples(seed: int, images: int) -> tuple[Floats, Floats]:
    """Return statistics and targets of newly drawn, JPEG-encoded images.

    Returns:
        float32 (images, STATISTICS) and float32 (images, attributes), 1 where an attribute applies and 0 elsewhere.
    """
    statistics = np.empty((images, STATISTICS), np.float32)
    targets = np.zeros((images, sum(map(len, GROUPS.values()))), np.float32)
    for row in range(images):
        rng = np.random.default_rng([seed, row])
        attributes = sample_attributes(rng)
        file = io.BytesIO()
        size = int(rng.choice([96, 128, 160, 256]))
        draw_image(rng, attributes, size).save(file, "JPEG", quality=int(rng.integers(70, 96)))
        statistics[row] = measure(file.getvalue()).statistics
        column = 0
        for group, values in GROUPS.items():
            targets[row, column + values.index(getattr(attributes, group))] = 1
            column += len(values)
    return statistics, targets


def fit(statistics: Floats, targets: Floats, ridge: float = RIDGE) -> FittedMap:
    """Fit a ridge regression of the targets on the squashed statistics; the constant is penalised as well."""
    mean = statistics.mean(axis=0)
    deviation = statistics.std(axis=0) + np.float32(1e-3)
    features = squash(mean, deviation, statistics).astype(np.float64)
    gram = features.T @ features + ridge * np.eye(features.shape[1])
    weights = np.linalg.solve(gram, features.T @ targets.astype(np.float64))
    return FittedMap(mean, deviation, weights.astype(np.float32))


def main(arguments: list[str] | None = None) -> None:
    """Draw images, fit the map and write it; the same arguments give the same file."""
    parser = argparse.ArgumentParser(description="Fit the emulator's attributes model on drawn images.")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name(MAP_FILE))
    chosen = parser.parse_args(arguments)
    fitted = fit(*drawn_examples(chosen.seed, chosen.images))
    np.savez_compressed(chosen.out, allow_pickle=False, **fitted._asdict())


if __name__ == "__main__":
    main()
