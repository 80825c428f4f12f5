"""The JSON document of an evaluation."""

from typing import Literal, NotRequired, TypedDict


class IntervalFigures(TypedDict):
    """A mean over queries with its confidence interval."""

    value: float
    low: float
    high: float


Intervals = dict[str, IntervalFigures]
"""Intervals by the name of the figure, such as `recall@10`."""


class CatalogFigures(TypedDict):
    """The figures of a catalog by its index and by exact search, and the loss of the index.

    The loss excludes near ties: assets whose stored scores are indistinguishable may be in any order.
    """

    index: Intervals
    exact: Intervals
    index_error: Intervals


class Difference(TypedDict):
    """The figures of the second catalog minus those of the first."""

    index: Intervals
    exact: Intervals


class ComparedFigures(TypedDict):
    """The figures of one direction, for one or two catalogs."""

    catalogs: list[CatalogFigures]
    difference: NotRequired[Difference]
    """Only with two catalogs."""


class Thing(TypedDict):
    """An asset or a query, described for people."""

    asset_id: str | None
    kind: str
    text: str | None
    uri: str | None
    image: NotRequired[str | None]
    """A small image as a data URL, only on the page."""


class FoundThing(Thing):
    """A hit of a query that fails."""

    score: float
    is_right: bool


Cause = Literal["dead letter", "index", "model"]
"""Why a query fails: its asset has no vector, the index loses it, or the model ranks it too low."""


class Failure(TypedDict):
    """A query that does not find all relevant assets."""

    query: Thing
    place: str
    """Its place in the file of pairs."""
    relevant: list[Thing]
    """The first relevant assets."""
    relevant_count: int
    found: list[FoundThing]
    """The first hits."""
    ndcg: float
    rank_index: int | None
    """The rank of the first relevant asset, from 1; None when it was not found."""
    rank_exact: int | None
    cause: Cause


class DirectionFigures(ComparedFigures):
    """All figures of one direction, such as `text->image`."""

    queries: int
    relevant: int
    dead: list[int]
    """For each catalog, the number of labelled assets without a vector."""
    curve: list[float]
    """Recall of exact search, by the length of the result list."""
    failing: int
    worst: list[Failure]
    words: list[str]


class PairsFigures(TypedDict):
    """The file of labelled pairs."""

    file: str
    queries: int
    pairs: int
    dropped: int


class CatalogFacts(TypedDict):
    """An evaluated catalog."""

    url: str
    version: str
    model: str
    dimension: int
    kinds: dict[str, int]


class Evaluation(TypedDict):
    """The complete document."""

    pairs: PairsFigures
    ks: list[int]
    depth: int
    confidence: float
    merge: str | None
    catalogs: list[CatalogFacts]
    directions: dict[str, DirectionFigures]
