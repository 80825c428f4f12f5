"""What the figures of an evaluation mean, in sentences."""

from collections.abc import Sequence

from ...configs.words import of_count
from .document import DirectionFigures, IntervalFigures

FEW_QUERIES = 30
_NOTHING = 0.0005
"""Of a share: what rounds to 0.0 points."""


def of_direction(direction: str) -> str:
    """`text->image` for people."""
    return direction.replace("->", " → ")


def of_interval(interval: IntervalFigures) -> str:
    return f"{interval['value']:.3f} [{interval['low']:.3f},{interval['high']:.3f}]"


def of_difference(interval: IntervalFigures) -> str:
    if not any(interval.values()):
        return "0"
    return f"{interval['value']:+.3f} [{interval['low']:+.3f},{interval['high']:+.3f}]"


def say_direction(figures: DirectionFigures, ks: Sequence[int], urls: Sequence[str]) -> list[str]:
    """Model error and index error of one direction told apart, and which of two catalogs is better.

    Args:
        figures: Of a direction, as the document of an evaluation has them.
        ks: Lengths of list, in rising order.
        urls: Of the catalogs.
    """
    k, name = ks[-1], f"recall@{ks[-1]}"
    sentences = []
    for number, (catalog, url) in enumerate(zip(figures["catalogs"], urls, strict=True)):
        of_which = f"{url}: of" if len(urls) > 1 else "Of"
        exact, index, error = (catalog[sort][name] for sort in ("exact", "index", "index_error"))
        sentence = f"{of_which} what is labelled right, {_share(exact)} is among the first {k} of exact search"
        missing = 1 - exact["value"]
        sentence += f"; the other {100 * missing:.1f} % the model ranks lower." if missing > _NOTHING else "."
        if error["value"] > _NOTHING:
            sentence += f" The index finds {_share(index)}: it loses {_points(error)}."
        elif error["value"] < -_NOTHING:
            sentence += f" The index finds {_share(index)}, as it leaves out some of what the model ranks too high."
        elif abs(exact["value"] - index["value"]) > _NOTHING:
            sentence += (
                f" The index finds {_share(index)} and loses nothing: the difference is near ties, scores that fp16 "
            )
            sentence += "cannot tell apart."
        else:
            sentence += " The index finds as much."
        sentences.append(sentence)
        if dead := figures["dead"][number]:
            labelled = of_count(figures["relevant"], "labelled asset")
            sentences.append(
                f"Of the {labelled} {of_count(dead, 'has', 'have')} no vector there "
                f"({of_count(dead, 'dead letter')}) and {'counts' if dead == 1 else 'count'} as not found."
            )
    if len(urls) > 1:
        compared = figures["difference"]
        for difference, subject in (
            (compared["exact"][name], "By the model alone"),
            (compared["index"][name], "By what a search gives"),
        ):
            if difference["low"] > 0 or difference["high"] < 0:
                which = urls[1] if difference["value"] > 0 else urls[0]
                sentences.append(f"{subject}, {which} is better in {name}, by {_points(difference, is_plain=True)}.")
            else:
                sentences.append(f"{subject}, these queries show no difference in {name}: {_points(difference)}.")
    if figures["queries"] < FEW_QUERIES:
        sentences.append(
            f"{of_count(figures['queries'], 'query says', 'queries say')} little: with {FEW_QUERIES} and more the "
            "intervals mean something."
        )
    return sentences


def _share(interval: IntervalFigures) -> str:
    return "all" if interval["value"] > 1 - _NOTHING else f"{100 * interval['value']:.1f} %"


def _points(interval: IntervalFigures, *, is_plain: bool = False) -> str:
    """A difference of shares in points; plain: without its sign."""
    values = [100 * interval[name] for name in ("value", "low", "high")]
    if is_plain and values[0] < 0:
        values = [-values[0], -values[2], -values[1]]
    value, low, high = (f"{number + 0.0:.1f}".replace("-0.0", "0.0").replace("-", "−") for number in values)
    return f"{value} points ({low} to {high})"
