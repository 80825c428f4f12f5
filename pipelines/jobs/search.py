"""Search a catalog from the command line by texts or images, and show hits as a table, JSON or an HTML page."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...configs import AssetKind
from ...configs.address import ApiAddress
from ...configs.errors import ConfigError
from ...configs.words import unwritable
from ...index.search.catalog import Catalog
from ...index.search.hits import Hit
from ...index.search.merge import Merge
from ...index.search.opening import open_catalog
from ...index.search.where import parse_where
from ...index.versions.layout import assets_schema
from ...transforms.query.embed_queries import embed_queries
from ...transforms.query.query_endpoint import open_query_endpoint
from ...transforms.reports.pages import page_environment
from ...transforms.viewing.image_sources import ImageSources
from ...transforms.viewing.small_images import Read, data_url, shrink, small_images
from ..console.documents import json_text
from ..console.screen import print_table

_THUMBNAIL = 320


class NamedQuery(NamedTuple):
    """A query and its display name."""

    words: str
    """The text itself, or the path of the image file."""
    content: str | bytes

    @property
    def kind(self) -> AssetKind:
        return "text" if isinstance(self.content, str) else "image"

    @property
    def image(self) -> bytes | None:
        return None if isinstance(self.content, str) else self.content


def search(
    url: str,
    queries: Sequence[NamedQuery | str | bytes],
    *,
    k: int,
    kinds: Sequence[AssetKind] | None,
    where: str | None = None,
    merge: Merge = "score",
    address: ApiAddress | None = None,
) -> tuple[Catalog, list[list[Hit]]]:
    """Embed queries with the catalog's model and settings, and search; `where` is JSON for `parse_where`.

    Raises:
        CatalogError: When the catalog cannot be opened, or the server's model did not make its vectors.
        QueryError: When a query cannot be embedded.
        ArgumentError: When `k`, `kinds` or `where` is invalid.
    """
    catalog = open_catalog(url)
    condition = None if where is None else parse_where(where, assets_schema(catalog.metadata_types))
    named = [_named(query, i) for i, query in enumerate(queries)]
    names = [f"The query {query.words!r:.80}" for query in named]
    vectors = embed_for(catalog, url, [query.content for query in named], names, address)
    hits: list[list[Hit]] = []
    for query, vector in zip(named, vectors, strict=True):
        hits += catalog.search(vector, k, kinds=kinds, where=condition, merge=merge, query_kind=query.kind)
    return catalog, hits


def _named(query: NamedQuery | str | bytes, place: int) -> NamedQuery:
    if isinstance(query, NamedQuery):
        return query
    return NamedQuery(query if isinstance(query, str) else f"image {place}", query)


def left_out(catalog: Catalog, kinds: Sequence[AssetKind] | None, where: str) -> list[str]:
    """Return a sentence for each kind in which no asset matches a condition."""
    condition = parse_where(where, assets_schema(catalog.metadata_types))
    named = [name for name in catalog.metadata_types if name in _keys(json.loads(where))]
    sentences = []
    for kind in kinds or catalog.kinds:
        assets = catalog.assets(kind)  # type: ignore[arg-type]  # as the manifest has it
        if not len(assets) or len(assets.filter(condition)):
            continue
        absent = [name for name in named if pc.all(pc.is_null(pc.struct_field(assets["metadata"], name))).as_py()]
        why = f": all have null in {' and '.join(absent)}" if absent else ""
        sentences.append(f"No {kind} of the catalog matches --where{why}.")
    return sentences


def _keys(condition: Any) -> set[str]:
    if isinstance(condition, dict):
        return {*condition, *(key for value in condition.values() for key in _keys(value))}
    return {key for value in condition for key in _keys(value)} if isinstance(condition, list) else set()


def embed_for(
    catalog: Catalog,
    url: str,
    queries: Sequence[str | bytes | Path],
    names: Sequence[str],
    address: ApiAddress | None = None,
) -> npt.NDArray[np.float32]:
    """Embed queries with a catalog's model and settings: float32, (queries, dimension), unit norm.

    Args:
        catalog: The catalog to search.
        url: Its address, for errors.
        queries: Texts, contents of image files, or paths of image files.
        names: Name of each query in errors.
        address: Another address that serves the same model.

    Raises:
        CatalogError: When the catalog's model is unknown, or the server has another model.
        QueryError: When a query cannot be embedded.
    """
    with open_query_endpoint(catalog.manifest, url, address) as endpoint:
        return embed_queries(
            queries, endpoint.embed, endpoint.prepare, endpoint.api_key, names=names, caller=endpoint.caller
        )


def named_queries(texts: Sequence[str], images: Sequence[Path]) -> list[NamedQuery]:
    """Return the queries of a command line: texts, then images. Raises ConfigError when a file cannot be read."""
    return [
        *(NamedQuery(text, text) for text in texts),
        *(NamedQuery(str(path), read_query_image(path)) for path in images),
    ]


def read_query_image(path: Path) -> bytes:
    """Read the image file of a query. Raises ConfigError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--image {str(path)!r} cannot be read: {error.strerror}.") from error


def hits_table(query: str, hits: Sequence[Hit]) -> Table:
    """Format the hits of a query for the terminal."""
    table = Table(title=Text(query if len(query) <= 120 else query[:119] + "…"), title_justify="left", show_edge=False)
    table.add_column("", justify="right")
    table.add_column("score", justify="right")
    table.add_column("kind")
    table.add_column("id", overflow="fold")
    # An image's URI is redundant when it ends with the id.
    whats = [hit.text if hit.kind == "text" else _place(hit) for hit in hits]
    if any(whats):
        table.add_column("what", overflow="fold")
    for rank, (hit, what) in enumerate(zip(hits, whats, strict=True), 1):
        cells = [str(rank), f"{hit.score:.3f}", hit.kind, hit.asset_id]
        cells += [(what or "")[:200]] if any(whats) else []
        table.add_row(*map(Text, cells))  # as text: rich would read [brackets] as markup
    return table


def _place(hit: Hit) -> str:
    return "" if hit.uri is None or hit.uri.endswith(hit.asset_id) else hit.uri


def hits_json(queries: Sequence[NamedQuery], results: Sequence[Sequence[Hit]], version: str) -> str:
    """Format the hits of all queries as one JSON document."""
    document = {
        "version": version,
        "results": [
            {"query": query.words, "hits": [{"rank": rank, **_plain(hit)} for rank, hit in enumerate(hits, 1)]}
            for query, hits in zip(queries, results, strict=True)
        ],
    }
    return json_text(document, indent=2)


def write_page(path: Path, queries: Sequence[NamedQuery], results: Sequence[Sequence[Hit]], catalog: Catalog) -> None:
    """Write results as one HTML file with embedded thumbnails.

    Args:
        path: Path of the HTML file.
        queries: The queries.
        results: The hits of each query.
        catalog: The catalog that was searched.

    Raises:
        ConfigError: When the file cannot be written.
    """
    with ImageSources(catalog.manifest.config, catalog.url) as sources:
        reads = [read_hit(catalog, sources, hit) for hits in results for hit in hits]
        found = small_images(reads, _THUMBNAIL)
        rows = [
            {
                "words": query.words,
                "image": None if query.image is None else _data_url(shrink(query.image, _THUMBNAIL)),
                "hits": [
                    {**_plain(hit), "image": _data_url(next(found)), "metadata": dict(hit.metadata)} for hit in hits
                ],
            }
            for query, hits in zip(queries, results, strict=True)
        ]
    page = (
        page_environment(__package__)
        .get_template("results.html.j2")
        .render(
            rows=rows,
            version=catalog.version,
            model=catalog.manifest.made_by.name,
            assets=catalog.manifest.counts.per_kind,
        )
    )
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise ConfigError(unwritable("--html", str(path), error, "Name another file.")) from error


def print_hits(console: Console, queries: Sequence[NamedQuery], results: Sequence[Sequence[Hit]]) -> None:
    for query, hits in zip(queries, results, strict=True):
        print_table(console, hits_table(query.words, hits))
        console.print()


def _plain(hit: Hit) -> dict[str, Any]:
    return {
        "asset_id": hit.asset_id,
        "kind": hit.kind,
        "score": round(hit.score, 6),
        "uri": hit.uri,
        "text": hit.text,
        "metadata": dict(hit.metadata),
    }


def read_hit(catalog: Catalog, sources: ImageSources, hit: Hit) -> Read | None:
    """Return a reader of a hit's image from the catalog's sources; None for a text."""
    return partial(sources.read, catalog.asset("image", hit.row)) if hit.kind == "image" else None


def _data_url(image: Image.Image | None) -> str | None:
    return None if image is None else data_url(image, quality=85)
