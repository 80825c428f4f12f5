"""Vectors from a hash, thousands per second: full rank but without meaning. For load tests and identity checks.

A vector depends only on the embedded content, so a test can compute the vector of each asset and detect an answer that
was assigned to the wrong one.
"""

from __future__ import annotations

import hashlib
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Kind = Literal["text", "image"]


class EmbeddingModel(Protocol):
    """The interface of an emulator's model. Vectors are float32, (dimension,), unit norm."""

    name: str
    fingerprint: str

    def embed_text(self, text: str, /) -> Vector: ...

    def embed_image(self, data: bytes, /) -> Vector:
        """Embed an encoded image.

        Raises:
            ValueError: If this model cannot decode the bytes as an image.
        """
        ...


def content_digest(kind: Kind, content: bytes) -> bytes:
    """Return the SHA-256 of an item and its kind, so that a text and an image of the same bytes differ."""
    digest = hashlib.sha256(kind.encode() + b"\0")
    digest.update(content)
    return digest.digest()


def hash_vector(kind: Kind, content: bytes, dimension: int) -> Vector:
    """Return the vector that `HashModel` gives to an item: float32, (dimension,), unit norm.

    Args:
        kind: Kind of the item.
        content: The UTF-8 bytes of a text, or the encoded bytes of an image.
        dimension: Length of the vector.
    """
    key = np.frombuffer(content_digest(kind, content), dtype="<u8", count=2)
    vector = np.random.Generator(np.random.Philox(key=key)).standard_normal(dimension, dtype=np.float32)
    # numpy sums in float64 without BLAS: the result does not depend on alignment or thread count.
    vector /= np.float32(np.sqrt(np.square(vector, dtype=np.float64).sum()))
    return vector


class HashModel:
    """Pseudo-random unit vectors that depend on kind and content alone; any bytes are accepted as an image."""

    def __init__(self, dimension: int = 4000) -> None:
        self.dimension = dimension
        self.name = "emulator-hash"
        self.fingerprint = f"emulator-hash-1-{dimension}"

    def embed_text(self, text: str) -> Vector:
        return hash_vector("text", text.encode(), self.dimension)

    def embed_image(self, data: bytes) -> Vector:
        return hash_vector("image", data, self.dimension)
