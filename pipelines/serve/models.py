"""Requests and responses of the API, as in its OpenAPI description."""

from array import array
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SkipValidation, model_validator

from ...configs import AssetKind
from ...index.search.merge import Merge
from .settings import MAX_K

_QUERIES = ("text", "vector", "vector_base64", "asset")
AssetId = Annotated[str, Field(min_length=1, max_length=4096)]


class _Asked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SearchOptions(_Asked):
    """Options of a search, for any type of query."""

    k: int = Field(10, ge=1, le=MAX_K, description="Number of hits; fewer are returned when fewer assets match.")
    kinds: list[AssetKind] | None = Field(
        None, min_length=1, max_length=2, description="Kinds to search; null: all kinds of the catalog."
    )
    where: dict[str, Any] | None = Field(
        None,
        description='A condition on metadata and other columns, such as {"lang": "id", "price": {"$lt": 10}}; '
        "operators: $eq $ne $gt $gte $lt $lte $in $nin $exists $not, $and $or $not.",
    )
    merge: Merge = Field("score", description="How hits of several kinds are merged into one list.")
    recall: float | None = Field(
        None, ge=0, le=1, description="Minimum recall of the index; null: as configured in the catalog's job."
    )


class AssetName(_Asked):
    """An asset of the catalog."""

    kind: AssetKind
    id: AssetId


class SearchRequest(SearchOptions):
    """A search: exactly one of `text`, `vector`, `vector_base64` and `asset`, and options."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "sepeda merah", "k": 5},
                {"asset": {"kind": "image", "id": "0004-an-orange-cat-on-wood.jpg"}, "kinds": ["text"]},
                {"text": "an orange cat", "kinds": ["text"], "where": {"lang": "id", "price": {"$lt": 10}}},
            ]
        }
    )

    text: str | None = Field(None, min_length=1, description="Text, embedded by the catalog's model.")
    vector: SkipValidation[list[float] | None] = Field(
        None, description="A vector with the catalog's dimension; it is normalised to unit norm."
    )
    vector_base64: str | None = Field(
        None,
        min_length=1,
        description="The vector as base64 of little-endian float32: a third of the bytes, and faster.",
    )
    asset: AssetName | None = Field(None, description="An asset of the catalog: find similar assets.")
    query_kind: AssetKind | None = Field(
        None,
        description="The kind that a vector was made from; only for vectors. `merge: standardised` requires it.",
    )
    exclude_self: bool = Field(True, description="Whether to leave an `asset` out of its own hits.")

    @model_validator(mode="after")
    def _check(self) -> "SearchRequest":
        given = [name for name in _QUERIES if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"A search must have exactly one of {', '.join(_QUERIES)}, got {got}.")
        if self.query_kind is not None and self.vector is None and self.vector_base64 is None:
            raise ValueError("query_kind is only for vectors. Remove it.")
        return self


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class FoundAsset(_Answer):
    """A hit."""

    rank: int = Field(description="Position in the list, from 1.")
    asset_id: str
    kind: AssetKind
    score: float = Field(description="Cosine similarity of the query and the asset.")
    uri: str | None
    text: str | None
    metadata: dict[str, Any]
    thumbnail: str | None = Field(description="Path of the asset's thumbnail on this server.")


class Took(_Answer):
    """Durations in milliseconds."""

    embed: float
    search: float


class SearchAnswer(_Answer):
    """The hits, best first."""

    version: str
    query_kind: AssetKind | None
    took_ms: Took
    hits: list[FoundAsset]


class AssetAnswer(_Answer):
    """An asset of the catalog."""

    version: str
    asset_id: str
    kind: AssetKind
    uri: str | None
    text: str | None
    media_type: str | None
    size_bytes: int | None
    width: int | None
    height: int | None
    metadata: dict[str, Any]
    thumbnail: str | None


class Limits(_Answer):
    """Limits of requests."""

    max_k: int
    max_upload_bytes: int
    max_text_chars: int
    max_body_bytes: int


class CatalogAnswer(_Answer):
    """The catalog version that is served."""

    catalog: str
    version: str
    created: str
    model: str
    dimension: int
    kinds: dict[str, int] = Field(description="Number of assets of each kind.")
    metadata: dict[str, str] = Field(description="Metadata columns and their types.")
    can_embed: bool = Field(description="Whether a query can be a text or an image.")
    merges: list[Merge]
    limits: Limits


class HealthAnswer(_Answer):
    """Whether the process runs."""

    status: str
    software: str = Field(description="The release of the server, such as `epithre-beam 0.1.0`.")


class ReadyAnswer(_Answer):
    """Whether searches can be answered."""

    status: Literal["ready", "degraded"] = Field(
        description="degraded: searches by text or image fail at the moment; other searches work."
    )
    version: str
    embedding_api: Literal["answers", "fails", "refuses", "none"] = Field(
        description="refuses: the key, the model or the quota; an operator has to act. none: this server "
        "does not embed queries, for example without a key."
    )
    retry_after_s: int | None = Field(None, description="Seconds until the next request to the embedding API.")


class ErrorWords(_Answer):
    """An error: `code` is for programs, `message` for people."""

    code: str
    message: str = Field(description="What is wrong and what to do.")


class ErrorAnswer(_Answer):
    """The response of a failed request."""

    error: ErrorWords


def unit_vector(numbers: Any, dimension: int, place: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Convert a client's vector, a list or an array, to float32, (dimension,), unit norm.

    Raises:
        ValueError: When it has the wrong length, or is not a finite vector other than zero.
    """
    if isinstance(numbers, np.ndarray):
        exact = numbers.astype(np.float64)
    else:
        try:
            if not isinstance(numbers, list) or any(isinstance(number, bool) for number in numbers[:1]):
                raise TypeError
            exact = np.frombuffer(array("d", numbers))  # numpy's own conversion takes as long as the search
        except (TypeError, OverflowError):
            raise ValueError(f"{place} must be a list of numbers.") from None
    if len(exact) != dimension:
        raise ValueError(f"{place} must have {dimension} numbers, got {len(exact)}.")
    with np.errstate(over="ignore"):
        norm = float(np.sqrt(exact @ exact))
    if not 0 < norm < float("inf"):  # NaN too
        raise ValueError(f"{place} must be finite and not all zeros, got norm {norm:g}.")
    if abs(norm - 1) > 1e-3:  # a vector of unit norm keeps its exact values
        exact = exact / norm
    return exact.astype(np.float32)
