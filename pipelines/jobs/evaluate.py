"""`evaluate`: rate search results against labelled queries, and separate errors of model and index."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...configs.address import ApiAddress
from ...configs.errors import ConfigError
from ...configs.schema import stored_prepare
from ...configs.words import of_count, unwritable
from ...index.search.catalog import Catalog
from ...index.search.merge import Merge
from ...index.search.opening import open_catalog
from ...transforms.evaluation.document import Cause, DirectionFigures, Evaluation, Failure, Thing
from ...transforms.evaluation.figures import (
    DEPTH,
    Lists,
    Subject,
    SubjectFigures,
    Wanted,
    compare_figures,
    first_ranks,
    merge_lists,
    recall_curve,
    row_offsets,
    score_by_length,
    score_lists,
    search_exactly,
    search_index,
)
from ...transforms.evaluation.label_rows import Direction, NamedCatalog, PlacedLabels, place_labels
from ...transforms.evaluation.labelled import LabelledQuery, read_labels
from ...transforms.evaluation.near_ties import order_ties, rounding_errors
from ...transforms.evaluation.phrases import of_difference, of_direction, of_interval, say_direction
from ..console.screen import print_table
from .search import embed_for

if TYPE_CHECKING:
    from ...transforms.viewing.image_sources import ImageSources
    from ...transforms.viewing.small_images import Read

_WORST = 20
_SHOWN = 3
_IMAGE_PIXELS = 112
_IMAGES_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Question:
    """The parameters of an evaluation."""

    pairs: Path
    ks: tuple[int, ...] = (1, 5, 10)
    merge: Merge | None = None
    """Also rate one list of all kinds, merged in this way."""
    confidence: float = 0.95
    drop_unknown: bool = False
    address: ApiAddress = field(default_factory=ApiAddress)
    """Address that embeds queries for the first catalog; by default as its manifest says."""


class CatalogPlace(NamedTuple):
    """A catalog to rate."""

    url: str
    version: str | None
    """None: the current version."""


def evaluate(places: Sequence[CatalogPlace], question: Question) -> Evaluation:
    """Rate one catalog, or two against the same labels.

    Args:
        places: One catalog, or two.
        question: The parameters.

    Returns:
        A document with `pairs`, `ks`, `depth`, `confidence`, `merge`, `catalogs` and `directions`. `directions` has,
        by name (`text->image`; with a merge also `text->all`), the result of `compare_figures` with `queries`,
        `relevant`, `dead` (of each catalog), `curve` (recall of exact search by length of the list), `words`,
        `failing`, and `worst`, the queries with the lowest scores.

    Raises:
        ConfigError: When the file of pairs is invalid.
        CatalogError: When a catalog cannot be opened, or its vectors cannot be read.
        QueryError: When a query cannot be embedded.
    """
    labels = read_labels(question.pairs)
    catalogs = [NamedCatalog(url, open_catalog(url, version=version)) for url, version in places]
    placed = place_labels(labels, catalogs, drop_unknown=question.drop_unknown)
    subjects: list[Subject] = []
    for number, (url, catalog) in enumerate(catalogs):
        known = subjects[0] if number and _embedding_config(catalogs[0].catalog) == _embedding_config(catalog) else None
        vectors = _vectors(url, catalog, placed, number, question, known)
        kinds = [query.kind for query in placed.queries]
        subjects.append(
            Subject(url=url, catalog=catalog, vectors=vectors, query_kinds=kinds, own_rows=placed.own_rows[number])
        )
    names = _names(catalogs)
    directions = _rate(placed, subjects, question, names)
    return {
        "pairs": {
            "file": str(question.pairs),
            "queries": len(placed.queries),
            "pairs": len(placed.grades),
            "dropped": placed.dropped,
        },
        "ks": list(question.ks),
        "depth": DEPTH,
        "confidence": question.confidence,
        "merge": question.merge,
        "catalogs": [
            {
                "url": url,
                "version": catalog.version,
                "model": catalog.manifest.made_by.name,
                "dimension": catalog.dimension,
                "kinds": dict(catalog.manifest.counts.per_kind),
            }
            for url, catalog in catalogs
        ],
        "directions": directions,
    }


def _names(catalogs: Sequence[NamedCatalog]) -> list[str]:
    """Return display names of the catalogs; two versions of one catalog are named by version."""
    urls = [url for url, _ in catalogs]
    return urls if len(set(urls)) == len(urls) else [catalog.version for _, catalog in catalogs]


def _embedding_config(catalog: Catalog) -> object:
    """Return the settings that determine a query's vector."""
    manifest = catalog.manifest
    embed = manifest.config.get("embed", {})
    asked = [embed.get(name) for name in ("base_url", "dialect", "input_type")]
    return [manifest.model, manifest.model_fingerprint, manifest.dimension, asked, stored_prepare(manifest.config)]


def _vectors(
    url: str, catalog: Catalog, placed: PlacedLabels, number: int, question: Question, known: Subject | None
) -> npt.NDArray[np.float32]:
    """Return the query vectors: assets have stored vectors, other queries are embedded."""
    vectors = np.zeros((len(placed.queries), catalog.dimension), np.float32)
    sent = [i for i, query in enumerate(placed.queries) if query.asset_id is None]
    if known is not None:
        vectors[sent] = known.vectors[sent]
    elif sent:
        queries = [query.text if query.text is not None else query.image for query in placed.queries]
        asked = [queries[i] for i in sent]
        asking = [placed.queries[i] for i in sent]
        names = [f"{question.pairs} {query.place}: the query {query.words!r}" for query in asking]
        vectors[sent] = embed_for(
            catalog,
            url,
            asked,  # type: ignore[arg-type]  # those without either are assets
            names,
            ApiAddress(caller=question.address.caller) if number else question.address,
        )
    for kind in catalog.kinds:
        own = [i for i, query in enumerate(placed.queries) if query.asset_id is not None and query.kind == kind]
        if own:
            vectors[own] = catalog.vectors(kind, placed.own_rows[number][own])  # type: ignore[arg-type]
    return vectors


def _rate(
    placed: PlacedLabels, subjects: Sequence[Subject], question: Question, names: Sequence[str]
) -> dict[str, DirectionFigures]:
    directions = list(placed.directions())
    kinds = [str(kind) for kind in dict.fromkeys(direction.kind for direction in directions)]
    answers: list[dict[str | None, _Answers]] = []
    for subject in subjects:
        sought = dict.fromkeys([*kinds, *(subject.catalog.kinds if question.merge else ())])
        found: dict[str | None, _Answers] = {kind: _search(subject, kind, question.ks) for kind in sought}
        if question.merge is not None:
            parts = {kind: found[kind] for kind in subject.catalog.kinds}
            merged = partial(merge_lists, subject, merge=question.merge)
            found[None] = _Answers(
                exact=merged({kind: part.exact for kind, part in parts.items()}),
                index={k: merged({kind: part.index[k] for kind, part in parts.items()}) for k in question.ks},
                resolved={k: merged({kind: part.resolved[k] for kind, part in parts.items()}) for k in question.ks},
            )
        answers.append(found)
    rated = {}
    if question.merge is not None:
        directions += [Direction(kind, None) for kind in dict.fromkeys(one.query_kind for one in directions)]
    for direction in directions:
        of_kind = [found[direction.kind] for found in answers]
        rated[str(direction)] = _rate_direction(placed, subjects, of_kind, direction, question, names)
    return rated


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """The hits of one catalog for all queries."""

    exact: Lists
    index: Mapping[int, Lists]
    """By k."""
    resolved: Mapping[int, Lists]
    """Hits of exact search with near ties in the order of the index, by k."""


def _search(subject: Subject, kind: str, ks: Sequence[int]) -> _Answers:
    index = {k: search_index(subject, kind, k) for k in ks}
    exact = search_exactly(subject, kind)
    if kind not in subject.catalog.kinds:
        return _Answers(exact=exact, index=index, resolved=index)
    errors = rounding_errors(subject, kind, exact)
    return _Answers(
        exact=exact, index=index, resolved={k: order_ties(exact, lists, errors) for k, lists in index.items()}
    )


def _rate_direction(
    placed: PlacedLabels,
    subjects: Sequence[Subject],
    answers: Sequence[_Answers],
    direction: Direction,
    question: Question,
    names: Sequence[str],
) -> DirectionFigures:
    wanted, figures = [], []
    for number, (subject, answer) in enumerate(zip(subjects, answers, strict=True)):
        positions, right = placed.wanted(number, direction, subject.catalog)
        wanted.append(right)
        by_length = partial(_score_by_length, positions=positions, right=right)
        exactly = score_lists(answer.exact.rows[positions], right, question.ks)
        figures.append(SubjectFigures(by_length(answer.index), exactly, by_length(answer.resolved)))
    longest, right = question.ks[-1], wanted[0]
    found, exact = answers[0].index[longest], answers[0].exact.rows[positions]
    by_index = found.rows[positions]
    quality, possible = (part[f"ndcg@{longest}"] for part in (figures[0].index, figures[0].resolved))
    rank, exact_rank = first_ranks(by_index, right), first_ranks(exact, right)
    # The worst first; among queries that find nothing, the one whose relevant asset is furthest away.
    place, exact_place = (np.where(ranks > 0, ranks, DEPTH + 1) for ranks in (rank, exact_rank))
    order = np.lexsort((np.arange(len(quality)), -exact_place, -place, quality))
    failing = quality < 1 - 1e-9
    worst: list[Failure] = []
    for q in [int(q) for q in order if failing[q]][:_WORST]:
        query = placed.queries[int(positions[q])]
        rows = right.rows[(right.query == q) & (right.grades > 0)]
        alive = rows[rows >= 0]
        scores = found.scores[positions[q], :_SHOWN]
        shown = by_index[q, :_SHOWN]
        cause: Cause = "dead letter" if not len(alive) else "index" if possible[q] > quality[q] + 1e-9 else "model"
        worst.append(
            {
                "query": _query(query, subjects[0], placed, int(positions[q])),
                "place": query.place,
                "relevant": [_asset(subjects[0].catalog, direction.kind, int(row)) for row in alive[:_SHOWN]],
                "relevant_count": len(rows),
                "found": [
                    {
                        **_asset(subjects[0].catalog, direction.kind, int(row)),
                        "score": round(float(score), 6),
                        "is_right": bool(row in alive),
                    }
                    for row, score in zip(shown, scores, strict=True)
                    if row >= 0
                ],
                "ndcg": round(float(quality[q]), 6),
                "rank_index": int(rank[q]) or None,
                "rank_exact": int(exact_rank[q]) or None,
                "cause": cause,
            }
        )
    relevant = right.grades > 0
    figures_of: DirectionFigures = {
        "queries": right.queries,
        "relevant": int(relevant.sum()),
        "dead": [int((one.rows[one.grades > 0] < 0).sum()) for one in wanted],
        **compare_figures(figures, question.confidence),
        "curve": [round(float(value), 6) for value in recall_curve(exact, right)],
        "failing": int(failing.sum()),
        "worst": worst,
        "words": [],
    }
    figures_of["words"] = say_direction(figures_of, question.ks, names)
    return figures_of


def _score_by_length(
    answers: Mapping[int, Lists], *, positions: npt.NDArray[np.int64], right: Wanted
) -> dict[str, npt.NDArray[np.float64]]:
    return score_by_length({k: lists.rows[positions] for k, lists in answers.items()}, right)


def _asset(catalog: Catalog, kind: str | None, row: int) -> Thing:
    if kind is None:
        starts = row_offsets(catalog)
        kind = max((one for one in catalog.kinds if starts[one] <= row), key=lambda one: starts[one])
        row -= starts[kind]
    found = catalog.asset(kind, row)  # type: ignore[arg-type]  # a kind of the catalog
    return {"asset_id": found.asset_id, "kind": found.kind, "text": found.text, "uri": found.uri}


def _query(query: LabelledQuery, subject: Subject, placed: PlacedLabels, position: int) -> Thing:
    if query.asset_id is not None:
        return _asset(subject.catalog, query.kind, int(placed.own_rows[0][position]))
    name = None if query.image is None else query.image.name
    uri = None if query.image is None else str(query.image)
    return {"asset_id": name, "kind": query.kind, "text": query.text, "uri": uri}


def write_page(path: Path, document: Evaluation) -> None:
    """Write the HTML page, with thumbnails of failed queries where images are available.

    Raises:
        ConfigError: When the page cannot be written.
    """
    from ...transforms.evaluation.page import render_evaluation
    from ...transforms.viewing.image_sources import ImageSources
    from ...transforms.viewing.small_images import data_urls

    document = copy.deepcopy(document)  # only the page has the thumbnails
    failures = [failure for figures in document["directions"].values() for failure in figures["worst"]]
    things = [thing for one in failures for thing in (one["query"], *one["relevant"], *one["found"])]
    asked = [one["query"]["uri"] for one in failures if one["query"]["kind"] == "image"]
    catalog = document["catalogs"][0]
    with (
        open_catalog(catalog["url"], version=catalog["version"]) as opened,
        ImageSources(opened.manifest.config, opened.url) as sources,
    ):
        reads = [_read_image(opened, sources, thing, asked) for thing in things]
        for thing, image in zip(things, data_urls(reads, _IMAGE_PIXELS, _IMAGES_BYTES), strict=True):
            thing["image"] = image
    try:
        path.write_text(render_evaluation(document), "utf-8")
    except OSError as error:
        raise ConfigError(unwritable("--html", str(path), error, "Name another file.")) from error


def _read_image(catalog: Catalog, sources: "ImageSources", thing: Thing, asked: Sequence[str | None]) -> "Read | None":
    """Return a reader of an asset's or a labelled query's image; None when there is none."""
    if thing["kind"] != "image" or thing["uri"] is None:
        return None
    row = None if thing["asset_id"] is None else catalog.find_asset("image", thing["asset_id"])
    asset = None if row is None else catalog.asset("image", row)
    if asset is not None and asset.uri == thing["uri"]:
        return partial(sources.read, asset)
    return Path(thing["uri"]).read_bytes if thing["uri"] in asked else None


def print_evaluation(console: Console, document: Evaluation) -> None:
    is_two = len(document["catalogs"]) == 2
    for number, catalog in enumerate(document["catalogs"]):
        name = f"{'AB'[number]}: " if is_two else ""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in catalog["kinds"].items())
        console.print(Text(f"{name}{catalog['url']} {catalog['version']}: {catalog['model']}, {kinds}"))
    pairs = document["pairs"]
    dropped = f", {of_count(pairs['dropped'], 'pair')} left out" if pairs["dropped"] else ""
    asked, given = of_count(pairs["queries"], "query", "queries"), of_count(pairs["pairs"], "pair")
    console.print(Text(f"{pairs['file']}: {asked}, {given}{dropped}\n"))
    for direction, figures in document["directions"].items():
        title = f"{of_direction(direction)}, {of_count(figures['queries'], 'query', 'queries')}"
        table = Table(title=Text(title), title_justify="left", show_edge=False)
        first, *others = figures["catalogs"]
        columns = {
            "A exact" if is_two else "exact search": (of_interval, first["exact"]),
            "A index" if is_two else "index": (of_interval, first["index"]),
        }
        for other in others:
            columns |= {"B exact": (of_interval, other["exact"]), "B index": (of_interval, other["index"])}
            columns["B − A, index"] = (of_difference, figures["difference"]["index"])
        if not others:
            columns["lost by the index"] = (of_difference, first["index_error"])
        table.add_column("", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right")
        for figure in first["index"]:
            if figure.startswith("ndcg") and not figure.endswith(f"@{document['ks'][-1]}"):
                continue  # the page and the JSON document have them
            table.add_row(figure, *(Text(say(intervals[figure])) for say, intervals in columns.values()))
        print_table(console, table)
        for sentence in figures["words"]:
            console.print(Text(sentence))
        console.print()
