"""The HTML page of an evaluation: figures with intervals, plots and failing queries, in one self-contained file."""

from ..reports.pages import page_environment
from ..reports.plots import Plot
from ..reports.svg import FIRST, LINES, SECOND, Drawing, add_legend, drawing, make_axes, to_svg, use_log_axis
from .document import Evaluation
from .phrases import of_difference, of_direction, of_interval

_ROW_IN = 0.42


def render_evaluation(document: Evaluation) -> str:
    """Renders the page.

    Args:
        document: The document from `pipelines.jobs.evaluate`; its failures may contain small images under `image`.

    Raises:
        ImportError: When matplotlib is not installed.
    """
    plots = {}
    for name, (title, caption, draw) in _PLOTS.items():
        with drawing(name):
            plots[name] = Plot(title=title, caption=caption, svg=to_svg(name, title, draw(document)))
    environment = page_environment(__package__)
    environment.filters |= {"direction": of_direction, "interval": of_interval, "difference": of_difference}
    return environment.get_template("evaluation.html.j2").render(document=document, plots=plots)


def _recall(document: Evaluation) -> Drawing:
    """Points with intervals: exact search hollow, the index filled, one catalog above the other."""
    name = f"recall@{document['ks'][-1]}"
    directions = list(document["directions"])
    count = len(document["catalogs"])
    figure, axes = make_axes(0.9 + _ROW_IN * len(directions) * count)
    words, labelled = [], set()
    for position, direction in enumerate(directions):
        for number, catalog in enumerate(document["directions"][direction]["catalogs"]):
            for sort, found, shift in (
                ("exact", catalog["exact"][name], -0.11),
                ("index", catalog["index"][name], 0.11),
            ):
                height = position + (number - (count - 1) / 2) * 0.45 + shift / count
                label = f"{sort} search" if sort == "exact" else "index"
                label += f", {'AB'[number]}" if count > 1 else ""
                axes.errorbar(
                    found["value"],
                    height,
                    xerr=[[max(0.0, found["value"] - found["low"])], [max(0.0, found["high"] - found["value"])]],
                    fmt="os"[number],
                    markersize=6,
                    capsize=3,
                    color=(FIRST, SECOND)[number],
                    markerfacecolor=(FIRST, SECOND)[number] if sort == "index" else "none",
                    label=None if label in labelled else label,
                )
                labelled.add(label)
                words.append(f"{of_direction(direction)}, {label}: {of_interval(found)}")
    axes.set_yticks(range(len(directions)), [of_direction(direction) for direction in directions])
    axes.set_ylim(len(directions) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel(name)
    axes.grid(visible=True, axis="x")
    add_legend(axes, columns=2)
    return Drawing(figure=figure, description="; ".join(words) + ".")


def _curves(document: Evaluation) -> Drawing:
    """Recall by list length: a line for exact search, a dot for each length searched with the index."""
    figure, axes = make_axes(2.9)
    words = []
    for (direction, figures), (ink, line) in zip(document["directions"].items(), LINES * 2, strict=False):
        curve, index = figures["curve"], figures["catalogs"][0]["index"]
        axes.plot(
            range(1, len(curve) + 1), curve, color=ink, linestyle=line, linewidth=1.6, label=of_direction(direction)
        )
        found = [index[f"recall@{k}"]["value"] for k in document["ks"]]
        axes.plot(document["ks"], found, "o", color=ink, markersize=4.5)
        words.append(f"{of_direction(direction)} {curve[0]:.2f} after the first, {curve[-1]:.2f} after {len(curve)}")
    use_log_axis(axes, 1, document["depth"], lambda value: f"{value:.0f}")
    axes.set_xlabel("length of the list")
    axes.set_ylabel("recall")
    axes.set_ylim(0, 1.03)
    add_legend(axes, columns=2)
    return Drawing(figure=figure, description=f"Recall of exact search: {'; '.join(words)}.")


_PLOTS = {
    "recall": (
        "Recall by index and by exact search",
        "Hollow: exact search; filled: the index. Their distance is the index error; the rest to 1 is the model error.",
        _recall,
    ),
    "curves": (
        "Recall by list length",
        "Lines: exact search. Dots: the index. If a line still rises, the model ranks relevant assets too low.",
        _curves,
    ),
}
