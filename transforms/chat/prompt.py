"""The prompt of a row: a Jinja2 template over its fields.

The template comes from the author of the job, the values come from anywhere. So values are only ever inserted, they
reach nothing but themselves, and no value can make a prompt, or a part of one, longer than the limit.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

import jinja2
import orjson
from jinja2 import meta, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...configs.errors import ConfigError

MOST_CHARS = 400_000
_MOST_WIDTH = 10_000
"""Of what is filled up or repeated: a width may be a number of a row."""
_COLUMNS_NAMED = 20
_GLOBALS = ("lipsum", "cycler", "joiner", "namespace")
_WIDTH_METHODS = {"ljust", "rjust", "center", "zfill", "expandtabs", "format", "format_map"}
_LOADING = (nodes.Include, nodes.Extends, nodes.Import, nodes.FromImport)


class PromptError(Exception):
    """A template fails for a row."""


class _Environment(ImmutableSandboxedEnvironment):
    """Inserts values; None is an empty text, as an empty cell of a table."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined, autoescape=False, finalize=lambda value: "" if value is None else value
        )
        for name in _GLOBALS:
            del self.globals[name]
        self.filters["tojson"] = _to_json
        for name in ("center", "indent"):
            self.filters[name] = _bounded(name, self.filters[name])
        for name in ("format", "xmlattr", "urlize", "pprint"):
            del self.filters[name]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*" and not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            times, repeated = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int) and len(repeated) * max(times, 0) > _MOST_WIDTH:
                raise PromptError(f"a text is repeated to more than {_MOST_WIDTH:,} characters")
        elif operator == "**" and abs(right) > 64:
            raise PromptError(f"the right side of {operator} must be at most 64, got {right}")
        elif operator == "%" and isinstance(left, str):
            raise PromptError("texts cannot be formatted with %. Use the filter `round`, or format the column before")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _WIDTH_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)


def _to_json(value: Any) -> str:
    """Unlike Jinja2's own filter, this one does not write `<` as an escape: a prompt is no HTML."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str).decode()


def _bounded(name: str, original: Any) -> Any:
    def bounded(value: str, width: Any = 4, *more: Any, **named: Any) -> str:
        if isinstance(width, int) and width > _MOST_WIDTH:
            raise PromptError(f"the width of {name} must be at most {_MOST_WIDTH:,}, got {width:,}")
        text: str = original(value, width, *more, **named)
        return text

    return bounded


class PromptTemplate:
    """A template of prompts. Thread-safe.

    A field whose value is None is an empty text, and false in a condition.

    Args:
        source: The template.
        name: How messages call it.
        max_chars: The longest prompt.

    Raises:
        ConfigError: When the source is no template, with the line.
    """

    def __init__(self, source: str, *, name: str = "prompt", max_chars: int = MOST_CHARS) -> None:
        self._name = name
        self._max_chars = max_chars
        environment = _Environment()
        try:
            parsed = environment.parse(source)
            for node in parsed.find_all(_LOADING):
                _fail(name, node.lineno, "a template cannot load another one", "Write its text here.")
            self.fields = frozenset(meta.find_undeclared_variables(parsed) - environment.globals.keys())
            """The names of the fields that it uses."""
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            words = (error.message or "it is no template").rstrip(".")
            _fail(name, error.lineno, words, "Correct the template (Jinja2).", error)
        except (jinja2.TemplateError, RecursionError, MemoryError) as error:
            _fail(name, 1, f"it is no template ({type(error).__name__})", "Correct the template (Jinja2).", error)

    def check(self, columns: Collection[str]) -> None:
        """Check that all fields are columns.

        Raises:
            ConfigError: With each field that is none, and the nearest column.
        """
        missing = sorted(self.fields - set(columns))
        if not missing:
            return
        near = {name: difflib.get_close_matches(name, sorted(columns), 1) for name in missing}
        named = [f"{name!r} (did you mean {near[name][0]!r}?)" if near[name] else repr(name) for name in missing]
        shown = sorted(columns)[:_COLUMNS_NAMED]
        more = len(columns) - len(shown)
        known = ", ".join(shown) + (f" and {more:,} more" if more else "")
        are = "is no column" if len(missing) == 1 else "are no columns"
        raise ConfigError(f"{self._name}: {', '.join(named)} {are}. The columns are: {known or 'none'}.")

    def render(self, fields: Mapping[str, Any]) -> str:
        """Return the prompt of a row.

        Raises:
            PromptError: When a field is missing, an expression fails, or the prompt is empty or too long.
        """
        pieces, length = [], 0
        try:
            for piece in self._template.generate(fields):
                pieces.append(piece)
                length += len(piece)
                if length > self._max_chars:
                    raise PromptError(f"the prompt has more than {self._max_chars:,} characters")
        except jinja2.UndefinedError as error:
            raise PromptError(f"the row has no such field: {error.message}") from None
        except PromptError:
            raise
        except Exception as error:  # whatever an expression raises concerns this row
            raise PromptError(f"the template fails: {type(error).__name__}: {error}") from None
        prompt = "".join(pieces).strip()
        if not prompt:
            raise PromptError("the prompt is empty")
        return prompt


def _fail(name: str, line: int, what: str, remedy: str, cause: BaseException | None = None) -> NoReturn:
    raise ConfigError(f"{name} line {line}: {what}. {remedy}") from cause
