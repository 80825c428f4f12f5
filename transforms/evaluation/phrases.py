"""Describes the figures of an evaluation in sentences."""

from collections.abc import Sequence

from ...configs.words import of_count
from .document import DirectionFigures, IntervalFigures

FEW_QUERIES = 30
_NOTHING = 0.0005
"""A share that rounds to 0.0 points."""


def of_direction(direction: str) -> str:
    """Formats `text->image` for display."""
    return direction.replace("->", " → ")


def of_interval(interval: IntervalFigures) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f},{interval['high']:.3f}]"


def of_difference(interval: IntervalFigures) -> str:
    if not any(interval.values()):
        return "0"
    return f"{interval['value']:+.3f} [{interval['low']:+.3f},{interval['high']:+.3f}]"


def say_direction(figures: DirectionFigures, ks: Sequence[int], urls: Sequence[str]) -> list[str]:
    """Describes the model error and the index error of one direction, and which of two catalogs is better.

    Args:
        figures: The figures of a direction from the document of an evaluation.
        ks: The list lengths, ascending.
        urls: The URLs of the catalogs.
    """
    k, name = ks[-1], f"recall@{ks[-1]}"
    sentences = []
    for number, (catalog, url) in enumerate(zip(figures["catalogs"], urls, strict=True)):
        of_which = f"{url}: exact" if len(urls) > 1 else "Exact"
        exact, index, error = (catalog[sort][name] for sort in ("exact", "index", "index_error"))
        sentence = f"{of_which} search finds {_share(exact)} of the relevant assets among the first {k}"
        missing = 1 - exact["value"]
        sentence += f"; the model ranks the other {100 * missing:.1f} % lower." if missing > _NOTHING else "."
        if error["value"] > _NOTHING:
            sentence += f" The index finds {_share(index)}: it loses {_points(error)}."
        elif error["value"] < -_NOTHING:
            sentence += (
                f" The index finds {_share(index)}, because it misses some assets that the model ranks too high."
            )
        elif abs(exact["value"] - index["value"]) > _NOTHING:
            sentence += (
                f" The index finds {_share(index)} and loses nothing: the difference is near ties, which fp16 scores "
            )
            sentence += "cannot distinguish."
        else:
            sentence += " The index finds the same share."
        sentences.append(sentence)
        if dead := figures["dead"][number]:
            labelled = of_count(figures["relevant"], "labelled asset")
            sentences.append(
                f"Of the {labelled}, {of_count(dead, 'has', 'have')} no vector "
                f"({of_count(dead, 'dead letter')}) and {'counts' if dead == 1 else 'count'} as not found."
            )
    if len(urls) > 1:
        compared = figures["difference"]
        for difference, subject in (
            (compared["exact"][name], "With exact search"),
            (compared["index"][name], "With the index"),
        ):
            if difference["low"] > 0 or difference["high"] < 0:
                which = urls[1] if difference["value"] > 0 else urls[0]
                sentences.append(f"{subject}, {which} is better in {name}, by {_points(difference, is_plain=True)}.")
            else:
                sentences.append(f"{subject}, {name} shows no significant difference: {_points(difference)}.")
    if figures["queries"] < FEW_QUERIES:
        sentences.append(
            f"{of_count(figures['queries'], 'query is', 'queries are')} too few for reliable intervals. "
            f"Use at least {FEW_QUERIES}."
        )
    return sentences


def _share(interval: IntervalFigures) -> str:
    return "all" if interval["value"] > 1 - _NOTHING else f"{100 * interval['value']:.1f} %"


def _points(interval: IntervalFigures, *, is_plain: bool = False) -> str:
    """Formats a difference of shares in percentage points; `is_plain` omits its sign."""
    values = [100 * interval[name] for name in ("value", "low", "high")]
    if is_plain and values[0] < 0:
        values = [-values[0], -values[2], -values[1]]
    value, low, high = (f"{number + 0.0:.1f}".replace("-0.0", "0.0").replace("-", "−") for number in values)
    return f"{value} points ({low} to {high})"
