"""HTML templates, and a filter for untrusted text in them."""

import importlib.resources
import re
import unicodedata

import jinja2

from ...configs.words import of_api_figure, of_asset_count, of_count, of_duration, of_name, of_size

_LONGEST_SHOWN = 300


def page_environment(package: str) -> jinja2.Environment:
    """Creates a template environment that escapes all values.

    Args:
        package: The package with the templates; they can include templates of this package.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([_loader(package), _loader(__package__)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "api_figure": of_api_figure,
        "asset_count": of_asset_count,
        "count_of": of_count,
        "words": of_name,
        "duration": of_duration,
        "size": of_size,
        "visible": visible,
    }
    return environment


def _loader(package: str) -> jinja2.BaseLoader:
    def load(name: str) -> str | None:
        template = importlib.resources.files(package) / name
        return template.read_text("utf-8") if template.is_file() else None

    return jinja2.FunctionLoader(load)


def visible(text: str) -> str:
    """Shortens untrusted text and escapes characters that reorder or hide the text after them.

    Letters of right-to-left scripts are kept; only control and formatting characters are escaped.
    """
    shown = text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"
    return re.sub(
        r"[^\n -~]",
        lambda found: found[0] if unicodedata.category(found[0]) not in {"Cc", "Cf", "Cs"} else _spelled(found[0]),
        shown,
    )


def _spelled(character: str) -> str:
    # Some scripts and emoji need joiners.
    return character if character in "\u200c\u200d" else f"\\u{ord(character):04x}"
