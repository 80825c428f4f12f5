"""`look`: contact sheets of hits, and a map of a catalog."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from ...configs import AssetKind
from ...configs.address import ApiAddress
from ...configs.errors import ConfigError
from ...configs.words import of_count, unwritable
from ...index.search.hits import Hit
from ...index.search.merge import Merge
from ...index.search.opening import open_catalog
from ...transforms.viewing.catalog_map import align_kinds, draw_assets, project
from ...transforms.viewing.catalog_map_page import MapOf, render_map
from ...transforms.viewing.image_sources import ImageSources
from ...transforms.viewing.sheet import CELL, Cell, SheetRow, draw_sheet
from ...transforms.viewing.small_images import data_urls, shrink, small_images
from .search import NamedQuery, read_hit, search, write_page

_MAP_IMAGE_PIXELS = 112
_MAP_IMAGES_BYTES = 12 << 20
"""Limit of all thumbnails in a page together; points beyond it have no thumbnail."""


def make_sheet(
    url: str,
    path: Path,
    queries: Sequence[NamedQuery],
    *,
    k: int,
    kinds: Sequence[AssetKind] | None,
    merge: Merge,
    address: ApiAddress | None = None,
) -> None:
    """Search, and write the hits as a PNG contact sheet, or as the page of `search --html`.

    Raises:
        ConfigError: When the file cannot be written.
        CatalogError: As `search`.
        QueryError: As `search`.
    """
    catalog, results = search(url, queries, k=k, kinds=kinds, merge=merge, address=address)
    if path.suffix.lower() == ".html":
        write_page(path, queries, results, catalog)
        return
    with ImageSources(catalog.manifest.config, catalog.url) as sources:
        found = small_images([read_hit(catalog, sources, hit) for hits in results for hit in hits], CELL)
        rows = [
            SheetRow(
                words=query.words,
                image=None if query.image is None else shrink(query.image, CELL),
                cells=[_cell(hit, next(found)) for hit in hits],
            )
            for query, hits in zip(queries, results, strict=True)
        ]
    model = catalog.manifest.made_by.name
    try:
        draw_sheet(rows, f"{url}, version {catalog.version}, {model}").save(path, "PNG", optimize=True)
    except OSError as error:
        raise ConfigError(unwritable("--sheet", str(path), error, "Name another file.")) from error


def _cell(hit: Hit, image: Image.Image | None) -> Cell:
    text = (hit.text or "") if hit.kind == "text" else None
    return Cell(asset_id=hit.asset_id, score=hit.score, text=text, image=image)


def make_map(url: str, path: Path, *, points: int, is_aligned: bool, seed: int) -> str:
    """Write a catalog's map as one HTML page, and return a summary line.

    Raises:
        ConfigError: When the page cannot be written.
        CatalogError: When the catalog cannot be opened, or has no assets.
        ImportError: When scikit-learn is not installed.
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
    with ImageSources(manifest.config, url) as sources:
        reads = [None if asset is None else partial(sources.read, asset) for asset in shown_assets]
        images = data_urls(reads, _MAP_IMAGE_PIXELS, _MAP_IMAGES_BYTES)
    shown = MapOf(
        url=url,
        version=manifest.version,
        model=manifest.made_by.name,
        assets=assets,
        metadata_types=manifest.metadata_types,
        is_aligned=is_aligned,
        has_kinds=len(set(drawn.kinds)) > 1,
    )
    page = render_map(shown, drawn.kinds, places, drawn.assets, images)
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise ConfigError(unwritable("--map", str(path), error, "Name another file.")) from error
    small = len(images) - images.count(None)
    return (
        f"{path}: {len(drawn.kinds):,} of {of_count(assets, 'asset')}, {small:,} with a thumbnail, "
        f"{len(page.encode()) / 1e6:.1f} MB, in {time.monotonic() - started:.1f} s"
    )
