"""Vectors from a hash: full rank, no meaning, thousands a second. For load and for proofs of identity.

A vector is a pure function of what was embedded, so a test can compute on its own which vector belongs
to which asset, and see at once when an answer was joined to the wrong one.
"""

from __future__ import annotations

import hashlib
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Kind = Literal["text", "image"]


class EmbeddingModel(Protocol):
    """What the server asks of a model. Vectors are float32, (dimension,), unit norm."""

    name: str
    fingerprint: str

    def embed_text(self, text: str, /) -> Vector: ...

    def embed_image(self, data: bytes, /) -> Vector:
        """Embed an encoded picture.

        Raises:
            ValueError: the bytes are no picture this model can decode.
        """
        ...


def content_digest(kind: Kind, content: bytes) -> bytes:
    """SHA-256 of an item, its kind included: a text never collides with an image of the same bytes."""
    digest = hashlib.sha256(kind.encode() + b"\0")
    digest.update(content)
    return digest.digest()


def hash_vector(kind: Kind, content: bytes, dimension: int) -> Vector:
    """The vector `HashModel` gives to an item: float32, (dimension,), unit norm.

    Args:
        kind: What the item is.
        content: The UTF-8 bytes of a text, or the encoded bytes of a picture.
        dimension: Length of the vector.
    """
    key = np.frombuffer(content_digest(kind, content), dtype="<u8", count=2)
    vector = np.random.Generator(np.random.Philox(key=key)).standard_normal(dimension, dtype=np.float32)
    # Summed by numpy in float64, not by BLAS: the same bytes whatever the alignment or thread count.
    vector /= np.float32(np.sqrt(np.square(vector, dtype=np.float64).sum()))
    return vector


class HashModel:
    """Pseudo-random unit vectors that depend on kind and content alone; any bytes pass for a picture."""

    def __init__(self, dimension: int = 4000) -> None:
        self.dimension = dimension
        self.name = "emulator-hash"
        self.fingerprint = f"emulator-hash-1-{dimension}"

    def embed_text(self, text: str) -> Vector:
        return hash_vector("text", text.encode(), self.dimension)

    def embed_image(self, data: bytes) -> Vector:
        return hash_vector("image", data, self.dimension)
