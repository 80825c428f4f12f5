"""A contact sheet: queries and their hits in one image, with scores, ids and texts."""

import functools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..reports.pages import visible

CELL = 200
"""Width of a cell, and height of its content, in pixels."""
_CAPTION = 44
_GAP = 14
_MARGIN = 24
_HEAD = 44
_COLUMNS = 8
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_GROUND, _CARD, _LINE, _TEXT, _FAINT = "#ffffff", "#f3f4f6", "#d9dce1", "#1b1d21", "#666b75"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A hit on a sheet."""

    asset_id: str
    score: float
    text: str | None = None
    image: Image.Image | None = None
    """None if the hit is a text, or its image is not available."""


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """A query and its hits."""

    words: str
    image: Image.Image | None = None
    """The query, if it is an image."""
    cells: Sequence[Cell]


def draw_sheet(rows: Sequence[SheetRow], caption: str) -> Image.Image:
    """Draw a sheet. It is as wide as the longest list of hits, at most eight; longer lists continue on a new line."""
    columns = max(1, min(_COLUMNS, max((len(row.cells) for row in rows), default=1)))
    width = 2 * _MARGIN + columns * CELL + (columns - 1) * _GAP
    width = max(width, 2 * _MARGIN + 3 * CELL)
    line_height = CELL + _CAPTION + _GAP
    lines = [max(1, -(-len(row.cells) // columns)) for row in rows]
    heads = [_HEAD if row.image is None else _HEAD + 60 for row in rows]
    height = 2 * _MARGIN + 20 + sum(head + count * line_height for head, count in zip(heads, lines, strict=True))
    sheet = Image.new("RGB", (width, height), _GROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 8), _fitted(draw, caption, _font(13), width - 2 * _MARGIN), _FAINT, _font(13))
    top = _MARGIN + 20
    for row, head, count in zip(rows, heads, lines, strict=True):
        left = _MARGIN
        if row.image is not None:
            small = row.image.copy()
            small.thumbnail((head - 12, head - 12))
            sheet.paste(small, (left, top))
            left += small.width + 12
        words = _fitted(draw, visible(row.words), _font(19), width - left - _MARGIN)
        draw.text((left, top + (head - _GAP) // 2), words, _TEXT, _font(19), anchor="lm")
        top += head
        if not row.cells:
            draw.text((_MARGIN, top), "nothing found", _FAINT, _font(15))
        for number, cell in enumerate(row.cells):
            line, column = divmod(number, columns)
            _draw_cell(sheet, draw, cell, (_MARGIN + column * (CELL + _GAP), top + line * line_height))
        top += count * line_height
    return sheet


def _draw_cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, place: tuple[int, int]) -> None:
    left, top = place
    draw.rounded_rectangle((left, top, left + CELL - 1, top + CELL + _CAPTION - 1), 8, _CARD, _LINE)
    if cell.image is not None:
        small = cell.image.copy()
        small.thumbnail((CELL - 2, CELL - 2))
        sheet.paste(small, (left + (CELL - small.width) // 2, top + (CELL - small.height) // 2))
    else:
        words = "image not available" if cell.text is None else visible(cell.text)
        ink = _FAINT if cell.text is None else _TEXT
        lines = _wrapped(draw, words, _font(14), CELL - 24, 9)
        draw.multiline_text((left + 12, top + 12), "\n".join(lines), ink, _font(14), spacing=5)
    score = f"{cell.score:.3f}"
    score_width = draw.textlength(score, _font(13))
    middle = top + CELL + _CAPTION // 2
    draw.text((left + CELL - 10, middle), score, _FAINT, _font(13), anchor="rm")
    name = _fitted(draw, visible(cell.asset_id), _font(13), CELL - 30 - score_width)
    draw.text((left + 10, middle), name, _TEXT, _font(13), anchor="lm")


@functools.lru_cache(maxsize=8)
def _font(size: int) -> _Font:
    """Return DejaVu from matplotlib, which covers more scripts; without matplotlib, Pillow's default font."""
    try:
        from matplotlib import font_manager

        return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
    except (ImportError, OSError):
        return ImageFont.load_default(size)


def _fitted(draw: ImageDraw.ImageDraw, words: str, font: _Font, room: float) -> str:
    """Shorten words to the available width. Cuts out the middle, because ids often differ at their end."""
    words = " ".join(words.split())
    for kept in range(len(words), 1, -1):
        shown = words if kept == len(words) else f"{words[: -(-kept // 2)]}…{words[len(words) - kept // 2 :]}"
        if draw.textlength(shown, font) <= room:
            return shown
    return "…"


def _wrapped(draw: ImageDraw.ImageDraw, words: str, font: _Font, room: float, most: int) -> list[str]:
    """Wrap words into lines of at most `room` pixels, at most `most` lines."""
    letters = max(4, int(room / max(draw.textlength("n" * 20, font) / 20, 1)))
    lines: list[str] = []
    for line in textwrap.wrap(words, letters + 2, break_long_words=True):
        if draw.textlength(line, font) > room:
            lines += textwrap.wrap(line, max(2, letters // 2 if not line.isascii() else letters - 3))
        else:
            lines.append(line)
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + "…"]
