"""`look`: contact sheets of what queries find, and a map of a catalog, for a person's eyes."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from ..configs import AssetKind, ConfigError
from ..index.catalog import Hit, open_catalog
from ..index.merge import Merge
from ..transforms.catalog_map import align_kinds, draw_assets, project
from ..transforms.catalog_map_page import MapOf, render_map
from ..transforms.picture_sources import PictureSources
from ..transforms.sheet import CELL, Cell, SheetRow, draw_sheet
from ..transforms.small_pictures import data_urls, shrink, small_pictures
from ..transforms.words import of_count
from .search import read_hit, read_query_picture, search, write_page

_MAP_PICTURE_PIXELS = 112
_MAP_PICTURES_BYTES = 12 << 20
"""Of all small pictures in a page together; the marks beyond have none."""


def make_sheet(
    url: str,
    path: Path,
    sentences: Sequence[str],
    pictures: Sequence[Path],
    *,
    k: int,
    kinds: Sequence[AssetKind] | None,
    merge: Merge,
    base_url: str | None = None,
    api_key_env: str | None = None,
) -> None:
    """Searches, and lays the hits out: as a picture, or as the page that `search --html` writes.

    Raises:
        ConfigError: When a picture cannot be read, or the file cannot be written.
        CatalogError: As `search`.
        QueryError: As `search`.
    """
    contents = [read_query_picture(picture) for picture in pictures]
    queries: list[str | bytes] = [*sentences, *contents]
    words = [*sentences, *map(str, pictures)]
    catalog, results = search(url, queries, k=k, kinds=kinds, merge=merge, base_url=base_url, api_key_env=api_key_env)
    shown = [(word, query if isinstance(query, bytes) else None) for word, query in zip(words, queries, strict=True)]
    if path.suffix.lower() == ".html":
        write_page(path, shown, results, catalog)
        return
    with PictureSources(catalog.manifest.config) as sources:
        found = small_pictures([read_hit(catalog, sources, hit) for hits in results for hit in hits], CELL)
        rows = [
            SheetRow(
                words=word,
                picture=None if content is None else shrink(content, CELL),
                cells=[_cell(hit, next(found)) for hit in hits],
            )
            for (word, content), hits in zip(shown, results, strict=True)
        ]
    model = catalog.manifest.model_fingerprint or catalog.manifest.model
    try:
        draw_sheet(rows, f"{url}, version {catalog.version}, {model}").save(path, "PNG", optimize=True)
    except OSError as error:
        raise ConfigError(f"--sheet {str(path)!r} cannot be written: {error.strerror or error}.") from error


def _cell(hit: Hit, picture: Image.Image | None) -> Cell:
    text = (hit.text or "") if hit.kind == "text" else None
    return Cell(asset_id=hit.asset_id, score=hit.score, text=text, picture=picture)


def make_map(url: str, path: Path, *, points: int, is_aligned: bool, seed: int) -> str:
    """Writes a catalog's map as one page; returns a sentence that says what is on it.

    Raises:
        ConfigError: When the page cannot be written.
        CatalogError: When the catalog cannot be opened, or has no assets.
        ImportError: Without scikit-learn.
    """
    import sklearn  # noqa: F401  # before anything is read

    started = time.monotonic()
    with open_catalog(url) as catalog:
        drawn = draw_assets(catalog, points, seed)
        assets, manifest = len(catalog), catalog.manifest
        shown_assets = [
            catalog.asset("image", row) if kind == "image" else None
            for kind, row in zip(drawn.kinds, drawn.rows, strict=True)
        ]
    vectors = align_kinds(drawn.vectors, drawn.kinds) if is_aligned else drawn.vectors
    places = project(vectors, seed)
    with PictureSources(manifest.config) as sources:
        reads = [None if asset is None else partial(sources.read, asset) for asset in shown_assets]
        pictures = data_urls(reads, _MAP_PICTURE_PIXELS, _MAP_PICTURES_BYTES)
    shown = MapOf(
        url=url,
        version=manifest.version,
        model=manifest.model_fingerprint or manifest.model,
        assets=assets,
        metadata_types=manifest.metadata_types,
        is_aligned=is_aligned,
        has_kinds=len(set(drawn.kinds)) > 1,
    )
    page = render_map(shown, drawn.kinds, places, drawn.assets, pictures)
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise ConfigError(f"--map {str(path)!r} cannot be written: {error.strerror or error}.") from error
    small = len(pictures) - pictures.count(None)
    return (
        f"{path}: {len(drawn.kinds):,} of {of_count(assets, 'asset')}, {small:,} with a small picture, "
        f"{len(page.encode()) / 1e6:.1f} MB, in {time.monotonic() - started:.1f} s"
    )
