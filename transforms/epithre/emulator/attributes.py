"""The emulator's cross-modal model: an image and a sentence about the same things have similar vectors.

Texts and images are mapped to the same scores, one block for each group of `lexicon.GROUPS`: a sentence by a lexicon,
an image by a linear map of its measurements, which was fitted once on drawn images (`fit.py`) and is shipped next to
this module. In addition to these shared scores, a text has its words and an image its colour layout, so that texts
differ from each other, and images too. A randomised Hadamard transform, which preserves inner products, spreads the
result over all dimensions.

It does not replace a real model: it knows only its lexicon, and images of one figure on an even ground.
"""

import hashlib
import math
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .lexicon import GROUPS, attributes_of, words_of
from .measure import STATISTICS, measure

Floats = npt.NDArray[np.float32]

CODE_VERSION = 1
"""Increase it with every change that changes vectors; part of the fingerprint."""

MAP_FILE = "attributes.npz"

SQUASH = 3.0
"""Standardised measurements saturate at this many deviations, because photographs are far from drawings."""

_SHARED_SHARE = 0.8
_SHARPNESS = 6.0
_WEIGHTS: Mapping[str, float] = {"colour": 1.0, "shape": 1.1, "texture": 0.6, "ground": 0.8}
_WORD_BUCKETS = 512
_LAYOUT_SIZE = 50
_SHARED_SIZE = sum(len(values) for values in GROUPS.values())
# Offsets of the parts before the transform; those of the words and the layout do not overlap.
_WORDS_AT = _SHARED_SIZE
_LAYOUT_AT = _WORDS_AT + _WORD_BUCKETS + 1
_LENGTH = _LAYOUT_AT + _LAYOUT_SIZE + 1
_SEED = 20_110_404


class FittedMap(NamedTuple):
    """The shipped arrays of the map: squash((statistics - mean) / deviation), with a 1 appended, times `weights`."""

    mean: Floats
    """float32, (STATISTICS,)"""
    deviation: Floats
    """float32, (STATISTICS,), positive"""
    weights: Floats
    """float32, (STATISTICS + 1, number of attributes), the groups' columns side by side"""


def squash(fitted_mean: Floats, deviation: Floats, statistics: Floats) -> Floats:
    """Return standardised statistics, smoothly bounded by ±SQUASH, with a 1 appended: (…, STATISTICS + 1)."""
    standard = (statistics - fitted_mean) / deviation
    bounded = standard / np.sqrt(1 + (standard / np.float32(SQUASH)) ** 2)
    return np.concatenate([bounded, np.ones_like(bounded[..., :1])], axis=-1).astype(np.float32)


class AttributesModel:
    """Deterministic text and image embeddings in one space. Thread-safe."""

    name = "attributes"
    fingerprint: str

    def __init__(self, dimension: int = 4000) -> None:
        """Load the shipped map.

        Raises:
            ValueError: If the dimension is below 8, or the shipped map does not fit this code.
        """
        if dimension < 8:
            raise ValueError(f"dimension must be at least 8, got {dimension}")
        self.dimension = dimension
        self._map, digest = _load_map()
        self.fingerprint = f"emulator-attributes-{digest}"
        # Use raw bits, the only stream that numpy guarantees to be stable.
        size = 1 << (max(dimension, _LENGTH) - 1).bit_length()
        self._places = np.argsort(np.random.PCG64(_SEED).random_raw(size), kind="stable")[:_LENGTH]
        bits = np.random.PCG64(_SEED + 1).random_raw(_LENGTH) & 1
        self._signs = np.where(bits == 1, 1.0, -1.0).astype(np.float32)
        self._size = size

    def embed_text(self, text: str) -> Floats:
        """Embed any text, even an empty one: float32, (dimension,), unit norm."""
        said = attributes_of(text)
        blocks = []
        for group, values in GROUPS.items():
            shares = said.get(group)
            block = np.array([shares.get(value, 0.0) for value in values] if shares else [0.0] * len(values))
            blocks.append((block - block.mean()) * _WEIGHTS[group])
        return self._join(np.concatenate(blocks), _WORDS_AT, _hashed_words(text))

    def embed_image(self, data: bytes) -> Floats:
        """Embed an encoded image, ignoring its orientation tag: float32, (dimension,), unit norm.

        Raises:
            ValueError: If the bytes cannot be decoded as an image.
        """
        measured = measure(data)
        scores = self._scores(measured.statistics)
        blocks, start = [], 0
        for group, values in GROUPS.items():
            block = _SHARPNESS * scores[start : start + len(values)]
            block = np.exp(block - block.max())
            block /= block.sum()
            blocks.append((block - block.mean()) * _WEIGHTS[group])
            start += len(values)
        layout = np.append(measured.layout, 0.1)
        return self._join(np.concatenate(blocks), _LAYOUT_AT, layout / np.linalg.norm(layout))

    def describe_image(self, data: bytes) -> dict[str, str]:
        """Return the most likely value of each group of attributes.

        Raises:
            ValueError: If the bytes cannot be decoded as an image.
        """
        scores, start, found = self._scores(measure(data).statistics), 0, {}
        for group, values in GROUPS.items():
            found[group] = values[int(scores[start : start + len(values)].argmax())]
            start += len(values)
        return found

    def _scores(self, statistics: Floats) -> npt.NDArray[np.float64]:
        """Return the scores of all attributes, the groups side by side: float64, (attributes,)."""
        features = squash(self._map.mean, self._map.deviation, statistics)
        scores: npt.NDArray[np.float64] = np.einsum("s,sa->a", features, self._map.weights, dtype=np.float64)
        return scores

    def _join(self, shared: npt.NDArray[np.float64], own_at: int, own: npt.NDArray[np.float64]) -> Floats:
        """Combine shared scores and the unit-norm part `own` in fixed proportion, spread over the dimensions."""
        sparse = np.zeros(_LENGTH, np.float32)
        # The small constant keeps near-zero scores small instead of scaling them to full length.
        length = math.sqrt(float(shared @ shared) + 1e-4)
        sparse[:_SHARED_SIZE] = math.sqrt(_SHARED_SHARE) / length * shared
        sparse[own_at : own_at + len(own)] = math.sqrt(1 - _SHARED_SHARE) * own
        spread = np.zeros(self._size, np.float32)
        spread[self._places] = self._signs * sparse
        vector = _hadamard(spread)[: self.dimension]
        norm = float(np.linalg.norm(vector))
        if norm < 1e-6:  # only with very few dimensions, where signs may cancel
            vector = np.eye(1, self.dimension, dtype=np.float32)[0]
            norm = 1.0
        return (vector / np.float32(norm)).astype(np.float32)


def _load_map() -> tuple[FittedMap, str]:
    shipped = resources.files(__package__).joinpath(MAP_FILE)
    with shipped.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        fitted = FittedMap(*(np.ascontiguousarray(arrays[name], np.float32) for name in FittedMap._fields))
    if fitted.weights.shape != (STATISTICS + 1, _SHARED_SIZE):
        raise ValueError(
            f"{MAP_FILE}: the map has the shape {fitted.weights.shape}, but this code needs "
            f"{(STATISTICS + 1, _SHARED_SIZE)}. Fit it again (python -m {__package__}.fit)."
        )
    digest = hashlib.sha256(f"{CODE_VERSION} {_SHARED_SHARE} {_SHARPNESS} {_WEIGHTS}".encode())
    for array in fitted:
        digest.update(array.astype("<f4").tobytes())
    return fitted, digest.hexdigest()[:12]


def _hashed_words(text: str) -> npt.NDArray[np.float64]:
    """Return a signed bag of hashed words and a small constant, unit norm: (_WORD_BUCKETS + 1,)."""
    bag = np.zeros(_WORD_BUCKETS + 1)
    bag[-1] = 0.1
    # A text without words, such as one of symbols only, is hashed as a whole.
    for word in words_of(text) or filter(None, [text.strip()]):
        digest = hashlib.blake2b(word.encode("utf-8", "backslashreplace"), digest_size=8).digest()
        code = int.from_bytes(digest, "little")
        bag[(code >> 1) % _WORD_BUCKETS] += 1.0 if code & 1 else -1.0
    unit: npt.NDArray[np.float64] = bag / np.linalg.norm(bag)
    return unit


def _hadamard(values: Floats) -> Floats:
    """Return the unnormalised Walsh-Hadamard transform; the length must be a power of two."""
    half, size = 1, len(values)
    while half < size:
        pairs = values.reshape(-1, 2, half)
        values = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(size)
        half *= 2
    return values
