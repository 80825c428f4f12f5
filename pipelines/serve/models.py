"""What goes in and out, as the OpenAPI description has it."""

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
    """How a search is made, whatever the query is."""

    k: int = Field(10, ge=1, le=MAX_K, description="Hits; fewer come back where fewer assets match.")
    kinds: list[AssetKind] | None = Field(
        None, min_length=1, max_length=2, description="Which kinds to look in; null: all that the catalog has."
    )
    where: dict[str, Any] | None = Field(
        None,
        description='A condition on metadata and other columns, such as {"lang": "id", "price": {"$lt": 10}}; '
        "operators: $eq $ne $gt $gte $lt $lte $in $nin $exists $not, $and $or $not.",
    )
    merge: Merge = Field("score", description="How hits of several kinds are put in one order.")
    recall: float | None = Field(
        None, ge=0, le=1, description="The recall that the index shall have reached; null: what the catalog's job says."
    )


class AssetName(_Asked):
    """An asset of the catalog."""

    kind: AssetKind
    id: AssetId


class SearchRequest(SearchOptions):
    """A search: exactly one of `text`, `vector`, `vector_base64` and `asset`, and how it is made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"text": "sepeda merah", "k": 5},
                {"asset": {"kind": "image", "id": "0004-an-orange-cat-on-wood.jpg"}, "kinds": ["text"]},
                {"text": "an orange cat", "kinds": ["text"], "where": {"lang": "id", "price": {"$lt": 10}}},
            ]
        }
    )

    text: str | None = Field(None, min_length=1, description="A sentence, embedded by the catalog's model.")
    vector: SkipValidation[list[float] | None] = Field(
        None, description="A query of your own, as long as the catalog's vectors; it is brought to unit norm."
    )
    vector_base64: str | None = Field(
        None, min_length=1, description="The same as base64 of little-endian float32: a third of the bytes, and faster."
    )
    asset: AssetName | None = Field(None, description="More like this asset.")
    query_kind: AssetKind | None = Field(
        None, description="What a vector was made of; `merge: standardised` needs it. Of other queries it is known."
    )
    exclude_self: bool = Field(True, description="Whether an `asset` is left out of its own hits.")

    @model_validator(mode="after")
    def _check(self) -> "SearchRequest":
        given = [name for name in _QUERIES if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"A search must have exactly one of {', '.join(_QUERIES)}, got {got}.")
        if self.query_kind is not None and self.vector is None and self.vector_base64 is None:
            raise ValueError("query_kind goes with a vector: of other queries it is known.")
        return self


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class FoundAsset(_Answer):
    """An asset that was found."""

    rank: int = Field(description="From 1.")
    asset_id: str
    kind: AssetKind
    score: float = Field(description="The cosine of the query and the asset.")
    uri: str | None
    text: str | None
    metadata: dict[str, Any]
    thumbnail: str | None = Field(description="The path of a small picture of it, on this server.")


class Took(_Answer):
    """Milliseconds."""

    embed: float
    search: float


class SearchAnswer(_Answer):
    """Hits, best first."""

    version: str
    query_kind: AssetKind | None
    took_ms: Took
    hits: list[FoundAsset]


class AssetAnswer(_Answer):
    """What the catalog says of an asset."""

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
    """What a request may be."""

    max_k: int
    max_upload_bytes: int
    max_text_chars: int
    max_body_bytes: int


class CatalogAnswer(_Answer):
    """The version that is served."""

    catalog: str
    version: str
    created: str
    model: str
    dimension: int
    kinds: dict[str, int] = Field(description="Assets of each kind.")
    metadata: dict[str, str] = Field(description="Columns and their types.")
    can_embed: bool = Field(description="Whether a query may be a sentence or a picture.")
    merges: list[Merge]
    limits: Limits


class HealthAnswer(_Answer):
    """Whether the server lives."""

    status: str
    version: str | None = None


class ReadyAnswer(_Answer):
    """Whether searches can be answered."""

    status: Literal["ready", "degraded"] = Field(
        description="degraded: sentences and pictures cannot be searched by at the moment, all else can."
    )
    version: str
    embedding_api: Literal["answers", "fails", "none"] = Field(description="none: this server embeds no queries.")
    retry_after_s: int | None = Field(None, description="Before that the embedding API is not asked again.")


class ErrorWords(_Answer):
    """For programs, and for people."""

    code: str
    message: str = Field(description="One sentence.")


class ErrorAnswer(_Answer):
    """What was wrong."""

    error: ErrorWords


def unit_vector(numbers: Any, dimension: int, place: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A query that came from outside, a list or an array, as float32, (dimension,), of unit norm.

    Raises:
        ValueError: With the place, the rule and the value.
    """
    if isinstance(numbers, np.ndarray):
        exact = numbers.astype(np.float64)
    else:
        try:
            if not isinstance(numbers, list) or any(isinstance(number, bool) for number in numbers[:1]):
                raise TypeError
            exact = np.frombuffer(array("d", numbers))  # numpy itself takes as long as the search to look at each
        except (TypeError, OverflowError):
            raise ValueError(f"{place} must be a list of numbers.") from None
    if len(exact) != dimension:
        raise ValueError(f"{place} must have {dimension} numbers, got {len(exact)}.")
    with np.errstate(over="ignore"):
        norm = float(np.sqrt(exact @ exact))
    if not 0 < norm < float("inf"):  # NaN too
        raise ValueError(f"{place} must be finite and not all zeros, got the norm {norm:g}.")
    if abs(norm - 1) > 1e-3:  # a vector of unit norm stays what it is, to the last bit
        exact = exact / norm
    return exact.astype(np.float32)
