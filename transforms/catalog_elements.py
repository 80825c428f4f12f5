"""The elements of `WriteCatalog` and `SearchCatalog`, as named tuples with a schema."""

# ruff: noqa: UP045

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Optional

import apache_beam as beam
import numpy as np
from apache_beam.coders import RowCoder, registry

from ..configs.errors import ArgumentError
from ..index.vectors.units import as_float32
from ..index.versions.layout import KINDS
from .elements import Asset, DeadAsset, check_asset
from .embedding.vector import Vector


class Query(NamedTuple):
    """A vector, a text or an image to search with. It has exactly one of `vector`, `text`, `content` and `uri`.

    Create queries with `Query.of_vector`, `Query.of_text` and `Query.of_image`, which check their arguments.

    >>> query = Query.of_text("q1", "a red mug")
    >>> query.kind, query.text
    ('text', 'a red mug')
    """

    id: str
    """Returned with each hit, not empty. Two queries may have the same."""
    kind: Optional[str] = None
    """`image` or `text`; of a vector, what it was made from, or None."""
    text: Optional[str] = None
    """The text itself."""
    content: Optional[bytes] = None
    """The bytes of the image file."""
    uri: Optional[str] = None
    """Where the worker that embeds the image reads it: an absolute path or an fsspec URL."""
    vector: Optional[Sequence[np.float32]] = None
    """The numbers, of the catalog's model."""

    @classmethod
    def of_vector(
        cls,
        id: str,  # noqa: A002 - the name of the field
        vector: Any,
        *,
        kind: Literal["image", "text"] | None = None,
    ) -> "Query":
        """Return a query with a vector of the catalog's model.

        Args:
            id: Returned with each hit.
            vector: Numbers, (dimension,). Its norm is not changed, so scores are cosines if it is 1.
            kind: What the vector was made from; `merge="standardised"` needs it.

        Raises:
            ArgumentError: When an argument has the wrong type, or the id is empty.
        """
        try:
            numbers = as_float32(vector)
        except (TypeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"Query {id!r:.80}: vector must be numbers ({error}).") from None
        if numbers.ndim != 1 or not numbers.size:
            raise ArgumentError(f"Query {id!r:.80}: vector must have one dimension, got the shape {numbers.shape}.")
        its: Any = Vector(numbers)
        return check_query(cls(id=id, kind=kind, vector=its))

    @classmethod
    def of_text(cls, id: str, text: str) -> "Query":  # noqa: A002 - the name of the field
        """Return a query with a text.

        Raises:
            ArgumentError: When an argument has the wrong type, or the id is empty.
        """
        asset = _as_query(id, Asset.of_text, text)
        return cls(id=id, kind="text", text=asset.text, content=asset.content)

    @classmethod
    def of_image(
        cls,
        id: str,  # noqa: A002 - the name of the field
        content: bytes | None = None,
        *,
        uri: str | None = None,
    ) -> "Query":
        """Return a query with an image, either its file's bytes or where the file is.

        Raises:
            ArgumentError: When an argument has the wrong type, the id is empty, or not exactly one of `content` and
                `uri` is given.
        """
        asset = _as_query(id, Asset.of_image, content, uri=uri)
        return cls(id=id, kind="image", content=asset.content, uri=uri)


class SearchHit(NamedTuple):
    """An asset that a query found."""

    query_id: str
    """The id of the query."""
    rank: int
    """Place among the hits of the query, from 1."""
    score: float
    """Inner product with the query: the cosine, if both have the norm 1."""
    kind: str
    """Of the asset: `image` or `text`."""
    asset_id: str
    """Unique within its kind."""
    uri: Optional[str]
    """Where the asset was read."""
    text: Optional[str]
    """The text, if the asset is one."""
    metadata: Optional[str]
    """A JSON object with the asset's metadata; None: it has none."""


class DeadQuery(NamedTuple):
    """A query that could not be searched, and the reason."""

    id: str
    """The id of the query."""
    kind: Optional[str]
    """As in the query."""
    stage: str
    """Where it failed: `read`, `prepare`, `embed` or `search`."""
    reason: str
    """From a closed list (`epithre_beam.index.Reason`), or `unsupported`."""
    detail: str
    """One short sentence, without payload and secrets."""
    attempts: int
    """Requests with this query that were sent."""


class SearchResult(NamedTuple):
    """The output of `SearchCatalog`."""

    hits: beam.PCollection[SearchHit]
    """The hits, best first within a query; none for a query that matches nothing."""
    dead: beam.PCollection[DeadQuery]
    """The queries that could not be searched."""


class CatalogOutcome(NamedTuple):
    """What `WriteCatalog` did."""

    version: str
    """The version that was written; the current one if there was nothing to do."""
    is_published: bool
    """Whether the version is current now. If not, a gate holds it."""
    gate_failures: Sequence[str]
    """Why a gate holds it, one sentence each."""
    embedded: int
    """Rows of this pipeline."""
    reused: int
    """Rows kept from the version before."""
    deleted: int
    """Rows of the version before whose ids are gone."""
    dead: int
    """Dead assets."""


class CatalogResult(NamedTuple):
    """The output of `WriteCatalog`."""

    outcome: beam.PCollection[CatalogOutcome]
    """One element, after the version is written."""
    dead: beam.PCollection[DeadAsset]
    """Assets whose vectors are invalid."""


for _element in (Query, SearchHit, DeadQuery, CatalogOutcome):
    registry.register_coder(_element, RowCoder)


def check_query(query: Query) -> Query:
    """Return the query if nothing is wrong with it.

    Raises:
        ArgumentError: With the id, the rule and the value.
    """
    place = f"Query {query.id!r:.80}"
    if query.vector is None:
        if query.kind is None:
            raise ArgumentError(f"{place}: kind must be image or text, got None. Use Query.of_text or Query.of_image.")
        asset = _as_query(query.id, lambda _: check_asset(asset_of(query)))
        if asset.text is None and asset.content is None and asset.uri is None:
            raise ArgumentError(f"{place}: a query has exactly one of vector, text, content and uri, got none.")
        return query
    if not isinstance(query.id, str) or not query.id:
        raise ArgumentError(f"{place}: id must be a str that is not empty.")
    if query.kind not in (None, *KINDS):
        raise ArgumentError(f"{place}: kind must be image, text or None, got {query.kind!r:.80}.")
    if others := [name for name in ("text", "content", "uri") if getattr(query, name) is not None]:
        raise ArgumentError(f"{place}: a query has exactly one of vector, text, content and uri, got also {others}.")
    return query


def _as_query(name: Any, make: Callable[..., Asset], *arguments: Any, **others: Any) -> Asset:
    """Make an asset of a query, so that an error names the query."""
    try:
        return make(name, *arguments, **others)
    except ArgumentError as error:
        raise ArgumentError(str(error).replace("Asset ", "Query ", 1)) from None


def to_query(element: Any) -> Query:
    """Convert a `Query`, a `beam.Row`, or a named tuple with fields of a query. Other fields are ignored.

    Raises:
        ArgumentError: When the element is something else, or nonsense.
    """
    if isinstance(element, Query):
        return check_query(element)
    names = getattr(element, "_fields", None) or (element.as_dict() if isinstance(element, beam.Row) else None)
    if names is None or "id" not in names:
        raise ArgumentError(
            f"SearchCatalog takes elements of type Query, or beam.Row with its fields, got {type(element).__name__}. "
            "Create it with Query.of_vector, Query.of_text or Query.of_image."
        )
    query = Query(**{name: getattr(element, name) for name in Query._fields if name in names})
    if query.kind is None and query.text is not None:
        query = query._replace(kind="text")
    return check_query(query)


def asset_of(query: Query) -> Asset:
    """Return a query without a vector as what is embedded."""
    return Asset(id=query.id, kind=str(query.kind), uri=query.uri, text=query.text, content=query.content)


def query_of(asset: Asset) -> Query:
    """Return what `asset_of` was given."""
    return Query(id=asset.id, kind=asset.kind, uri=asset.uri, text=asset.text, content=asset.content)
