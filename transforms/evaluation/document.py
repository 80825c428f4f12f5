"""What an evaluation says, as its JSON document has it."""

from typing import Literal, NotRequired, TypedDict


class IntervalFigures(TypedDict):
    """A mean over queries, and where it would lie if other queries of the same sort had been asked."""

    value: float
    low: float
    high: float


Intervals = dict[str, IntervalFigures]
"""By the name of the figure, such as `recall@10`."""


class CatalogFigures(TypedDict):
    """What a catalog finds by its index and by exact search, and what the index loses.

    The loss leaves near ties out: where stored scores cannot tell two assets apart, either may stand first.
    """

    index: Intervals
    exact: Intervals
    index_error: Intervals


class Difference(TypedDict):
    """The second catalog less the first."""

    index: Intervals
    exact: Intervals


class ComparedFigures(TypedDict):
    """One direction, for one catalog or two."""

    catalogs: list[CatalogFigures]
    difference: NotRequired[Difference]
    """Where there are two catalogs."""


class Thing(TypedDict):
    """An asset or a query, as a person would name it."""

    asset_id: str | None
    kind: str
    text: str | None
    uri: str | None
    image: NotRequired[str | None]
    """A small one as a data URL, on the page alone."""


class FoundThing(Thing):
    """A hit of a query that fails."""

    score: float
    is_right: bool


Cause = Literal["dead letter", "index", "model"]
"""Why a query fails: its asset has no vector, the index loses it, or the model ranks it too low."""


class Failure(TypedDict):
    """A query that does not find all that is right."""

    query: Thing
    place: str
    """In the file of pairs."""
    relevant: list[Thing]
    """The first of them."""
    relevant_count: int
    found: list[FoundThing]
    """The first of them."""
    ndcg: float
    rank_index: int | None
    """Of the first right asset, from 1; None where there is none."""
    rank_exact: int | None
    cause: Cause


class DirectionFigures(ComparedFigures):
    """All that is said of one direction, such as `text->image`."""

    queries: int
    relevant: int
    dead: list[int]
    """Of each catalog: labelled assets without a vector."""
    curve: list[float]
    """Recall of exact search, by the length of the list."""
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
    """A catalog that was judged."""

    url: str
    version: str
    model: str
    dimension: int
    kinds: dict[str, int]


class Evaluation(TypedDict):
    """The whole document."""

    pairs: PairsFigures
    ks: list[int]
    depth: int
    confidence: float
    merge: str | None
    catalogs: list[CatalogFacts]
    directions: dict[str, DirectionFigures]
