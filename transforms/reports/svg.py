"""Draws plots as inline SVG in the colours of the page.

matplotlib is imported only when something is drawn, because it takes 0.3 s and 45 MB. Its font cache is in the usual
place, or in a temporary folder when the home folder is not writable.
"""

import contextlib
import io
import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_IN = 5.2
_BAR_IN = 0.27
_ON_THE_PAGE = {
    "#000001": "currentColor",
    "#000002": "var(--faint)",
    "#000003": "var(--first)",
    "#000004": "var(--second)",
    "#000005": "var(--third)",
    "#000006": "var(--fourth)",
    "#000007": "var(--alarm)",
}
"""Each drawn colour is replaced on the page by the CSS colour, which supports light and dark mode."""
TEXT, FAINT, FIRST, SECOND, THIRD, FOURTH, ALARM = _ON_THE_PAGE
LINES = ((FIRST, "solid"), (SECOND, "dashed"), (THIRD, "dashdot"), (FOURTH, "dotted"))
"""Each colour has its own dash pattern, for readers who cannot distinguish the colours."""
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": TEXT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": TEXT,
    "xtick.color": FAINT,
    "xtick.labelcolor": TEXT,
    "ytick.color": FAINT,
    "ytick.labelcolor": TEXT,
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure and its text description for screen readers."""

    figure: "Figure"
    description: str


@contextlib.contextmanager
def drawing(name: str) -> Iterator[None]:
    """Applies the report's style inside the block, with SVG ids that depend only on `name`."""
    # Suppress matplotlib's log lines about its cache during a run.
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import matplotlib as mpl

        style: Any = {**_STYLE, "svg.hashsalt": name}
        with mpl.rc_context(style):
            yield
    finally:
        log.setLevel(level)


def make_axes(height_in: float = 2.5) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    return figure, figure.add_subplot()


def draw_bars(values: Mapping[str, float], words: Mapping[str, str], ink: str, *, most: float = 0.0) -> Drawing:
    """Draws horizontal bars, the first at the top, each with its label. The axis reaches at least `most`."""
    figure, axes = make_axes(0.5 + _BAR_IN * len(values))
    names = [textwrap.shorten(name, 40, placeholder="…") for name in values]
    bars = axes.barh(range(len(values)), list(values.values()), 0.62, color=ink, alpha=0.75)
    axes.set_yticks(range(len(values)), names)
    axes.bar_label(bars, [words[name] for name in values], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * (max(most, *values.values()) or 1.0))
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    return Drawing(figure=figure, description="; ".join(f"{name}: {words[name]}" for name in values) + ".")


def add_legend(axes: "Axes", columns: int = 3) -> None:
    """Adds a legend above the plot, where it does not cover anything."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2, handlelength=1.8)


def count_in_whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(0)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def use_log_axis(axes: "Axes", low: float, high: float, say: Callable[[float], str]) -> None:
    """Sets a logarithmic x axis with as many round tick values as fit."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) <= 6:
            break
    axes.xaxis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 6) or 1]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value)))
    axes.set_xlim(low, high)


def to_svg(name: str, title: str, drawn: Drawing) -> str:
    """Returns the figure as an inline SVG element for an HTML page.

    It has unique ids, the page's colours and font, a title and a description, and no external references.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.BytesIO()
    canvas: Any = FigureCanvasSVG(drawn.figure)
    canvas.print_svg(file, metadata={"Date": None, "Creator": None})
    root = ElementTree.fromstring(file.getvalue())  # noqa: S314 - drawn a line above
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in {"metadata", "style"}:
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(key): value for key, value in element.attrib.items()}
        element.attrib.clear()
        for key, value in attributes.items():
            element.set(key, _adapted(key, value, name))
    for key in ("width", "height", "version"):
        del root.attrib[key]
    root.attrib |= {"class": "plot", "role": "img", "aria-labelledby": f"{name}-title {name}-description"}
    for position, (tag, text) in enumerate((("title", title), ("desc", drawn.description))):
        element = ElementTree.Element(tag, id=f"{name}-{'title' if tag == 'title' else 'description'}")
        element.text = text
        root.insert(position, element)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _adapted(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-")
    if key == "style":
        for drawn, shown in _ON_THE_PAGE.items():
            value = value.replace(drawn, shown)
    return value.replace("url(#", f"url(#{name}-")
