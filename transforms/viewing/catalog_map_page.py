"""The page of a map: one HTML file with points, texts and small images, which loads nothing from a network."""

import base64
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..reports.pages import page_environment, visible
from .catalog_map import describe_columns

_LONGEST_TEXT = 240
_LONGEST_CELL = 120
_MOST_COLUMNS = 12
_GRID = 10_000
"""Coordinates are integers up to this value, finer than any screen."""


@dataclass(frozen=True, kw_only=True)
class MapOf:
    """What the page shows about its catalog."""

    url: str
    version: str
    model: str
    assets: int
    """Number of assets in the whole catalog."""
    metadata_types: Mapping[str, str]
    is_aligned: bool
    has_kinds: bool
    """Whether there are several kinds, which may have a modality gap."""


def render_map(
    shown: MapOf,
    kinds: Sequence[str],
    places: npt.NDArray[np.float64],
    assets: pa.Table,
    images: Sequence[str | None],
) -> str:
    """Render the page of a map as HTML.

    Args:
        shown: The catalog.
        kinds: The kind of each point.
        places: float64, (points, 2), from 0 to 1.
        assets: Ids, URIs, texts and metadata of the points.
        images: A data URL for each point, or None.
    """
    page = (
        page_environment(__package__)
        .get_template("catalog_map.html.j2")
        .render(shown=shown, points=len(kinds), data=_in_script(_data(shown, kinds, places, assets, images)))
    )
    # The content security policy allows only this script, in case a text of the catalog contains one.
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page.replace("SHA256-OF-THE-SCRIPT", f"sha256-{digest}", 1)


def _data(
    shown: MapOf,
    kinds: Sequence[str],
    places: npt.NDArray[np.float64],
    assets: pa.Table,
    images: Sequence[str | None],
) -> dict[str, Any]:
    names = sorted(set(kinds))
    grid = np.rint(places * _GRID).astype(int)
    metadata = assets.column("metadata").to_pylist() if "metadata" in assets.schema.names else []
    columns = []
    for name, how in list(describe_columns(shown.metadata_types).items())[:_MOST_COLUMNS]:
        cells = [None if row is None else row.get(name) for row in metadata]
        column: dict[str, Any] = {"name": visible(name), "how": how, "words": [_words(cell) for cell in cells]}
        if how == "scale":
            column["values"] = [_number(cell) for cell in cells]
        columns.append(column)
    return {
        "grid": _GRID,
        "kinds": names,
        "kind": [names.index(kind) for kind in kinds],
        "x": grid[:, 0].tolist(),
        "y": grid[:, 1].tolist(),
        "id": [visible(name) for name in assets.column("asset_id").to_pylist()],
        "text": [None if text is None else _clipped(text, _LONGEST_TEXT) for text in assets.column("text").to_pylist()],
        "image": list(images),
        "columns": columns,
    }


def _words(cell: object) -> str | None:
    if cell is None:
        return None
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return f"{cell:,.10g}" if isinstance(cell, float) else _clipped(str(cell), _LONGEST_CELL)


def _number(cell: object) -> float | None:
    """Return the cell as a finite number for a scale, times in seconds; None if it has none."""
    if isinstance(cell, datetime.datetime):
        return cell.timestamp()
    if isinstance(cell, datetime.date):
        return float(cell.toordinal() * 86_400)
    number = float(cell) if isinstance(cell, (int, float)) else float("nan")
    return number if np.isfinite(number) else None


def _clipped(text: str, most: int) -> str:
    return visible(text if len(text) <= most else text[:most] + "…")


def _in_script(data: Mapping[str, Any]) -> str:
    """Return JSON for use inside a script element: no text in it can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
