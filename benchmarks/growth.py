"""Draws the plot of docs/performance.md: time to build and to search by the number of vectors."""

from typing import Any

from epithre_beam.transforms.reports.svg import FIRST, SECOND, Drawing, add_legend, drawing, make_axes, to_svg

_STYLE = """<style>
:root { --first: #2563a8; --second: #b4561c; --faint: #8a8f98; color: #1f2328; background: #ffffff;
  font: 9.5px "DejaVu Sans", sans-serif }
@media (prefers-color-scheme: dark) {
  :root { --first: #79b8ff; --second: #f0a46c; --faint: #8b949e; color: #e6edf3; background: #0d1117 } }
</style>"""
"""The image is a separate file, so it cannot take its colours from the page."""


def draw_growth(sizes: list[dict[str, Any]]) -> str:
    """Return an SVG document with two logarithmic axes; linear growth rises one decade in each decade."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    totals = [size["total"] for size in sizes]
    build = [size["built"]["build_s"] for size in sizes]
    single = [max(found["median"] for found in size["measured"]["single_ms"].values()) for size in sizes]
    with drawing("growth"):
        figure, axes = make_axes(2.8)
        axes.plot(totals, build, "o-", color=FIRST, label="index built, s")
        axes.plot(totals, [build[0] * n / totals[0] for n in totals], ":", color=FIRST, alpha=0.6, label="if linear")
        axes.plot(totals, single, "s--", color=SECOND, label="one query, ms")
        axes.plot(totals, [single[0] * n / totals[0] for n in totals], ":", color=SECOND, alpha=0.6, label="if linear")
        axes.set_yscale("log")
        axes.set_xscale("log")
        axes.set_xticks(totals, [f"{total:,}" for total in totals])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("vectors of 4000 dimensions, both kinds together")
        add_legend(axes, columns=2)
        reported = "; ".join(
            f"{n:,} vectors: built in {b:.1f} s, a query in {s:.2f} ms"
            for n, b, s in zip(totals, build, single, strict=True)
        )
        svg = to_svg(
            "growth", "Time to build and to search, by size", Drawing(figure=figure, description=f"{reported}.")
        )
    opening, rest = svg.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg">{_STYLE}{rest}\n'
