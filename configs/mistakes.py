"""Error messages for configs: one line per error, with its place, in the order of the file."""

import difflib
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from .errors import ConfigError
from .renamed_keys import RENAMED_KEYS, RENAMED_VALUES
from .schema import CatalogConfig, EmbedConfig, RunConfig
from .search_schema import SearchJob
from .words import of_count
from .yaml_text import Document

_SECRET_NAME = re.compile(r"(?i)(api_?key|secret|token\b|password|credential)")
_LINES = 50
_LINE_CHARS = 1000
"""Maximum characters of a message: a key may be as long as the file."""
_MASKED_CHARS = 2000
_WORD = string.ascii_letters + string.digits + "_+-"
_SECRET_SHAPE = re.compile(
    r"(?<=://)[^/\s'\"]+(?=@)"  # the user and password of a URL
    r"|(?<=\?)[^\s'\",]+"  # its query
    r"|(?=[\w+-]*[0-9])(?=[\w+-]*[A-Za-z])[\w+-]{16,}"  # a long word of letters and digits
)
_SHORT_OPTIONS = {"embed.max_cost": "--max-cost", "embed.max_requests": "--max-requests"}
"""Options of the command line for single keys."""
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
    "greater_than": ("greater than", "gt"),
    "less_than": ("less than", "lt"),
}

_NUMBERS = {
    **dict.fromkeys(("int_parsing", "int_parsing_size", "int_type", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "a number"),
}
_ALIASES = {
    **dict.fromkeys(("float", "float32", "float64", "number", "decimal"), "double"),
    **dict.fromkeys(("integer", "int32", "int64", "long"), "int"),
    **dict.fromkeys(("str", "text", "varchar"), "string"),
    "boolean": "bool",
    "datetime": "timestamp",
}
"""Names that other programs give to the types of columns."""

Location = tuple[int | str, ...]
"""Keys and list indexes."""


class Mistake(NamedTuple):
    """One error in a config."""

    order: tuple[int, int, int]
    place: str
    """A file with line and column, or an option; empty for plain data."""
    sentence: str

    def __str__(self) -> str:
        return f"{self.place}: {self.sentence}" if self.place else self.sentence


class Mistakes:
    """Collects errors and raises them together.

    Args:
        name: The name of the config, such as the path of its file.
    """

    def __init__(self, name: str = "The config") -> None:
        self._name = name
        self._found: list[Mistake] = []
        self.unset: set[Location] = set()
        """Locations with a variable that is not set. Other errors there are reported once it is set."""

    def add(self, mistake: Mistake) -> None:
        self._found.append(mistake)

    def check(self) -> None:
        """Raises ConfigError if there are errors: their count, then one line per error, sorted by place."""
        lines = list(dict.fromkeys(map(str, sorted(self._found))))
        if not lines:
            return
        more = [f"and {len(lines) - _LINES} more."] if len(lines) > _LINES else []
        head = [f"{self._name} has {of_count(len(lines), 'error')}:"] if len(lines) > 1 else []
        raise ConfigError("\n".join([*head, *lines[:_LINES], *more]))


@dataclass(frozen=True, kw_only=True)
class ConfigText:
    """A YAML file that a config, or a section of it, was read from."""

    name: str
    document: Document
    section: Location = ()
    """The location of its keys in the config."""

    def place(self, location: Location, *, is_key: bool) -> tuple[tuple[int, int], str]:
        """The sort key and the text of a place."""
        inner = location[len(self.section) :]
        position = self.document.position(inner, is_key=is_key) if inner else None
        return position or (0, 0), f"{self.name} {position}" if position else self.name


@dataclass(frozen=True, kw_only=True)
class Origins:
    """The origins of a config's values: its file, its profile, `--set`."""

    text: ConfigText | None = None
    profile: ConfigText | None = None
    inherited: frozenset[str] = frozenset()
    """The keys of `embed` that come from the profile."""
    options: Sequence[str] = field(default=())
    """The keys given with `--set`, in order."""

    def mistake(self, location: Location, sentence: str, *, is_key: bool = False) -> Mistake:
        """A mistake at the place of the value, or of the key, at `location`."""
        sentence = cut(masked(sentence))
        for i, name in reversed(list(enumerate(self.options))):
            parts = name.split(".")
            if [str(part) for part in location[: len(parts)]] == parts:
                return Mistake((2, i, 0), _option(name), sentence)
        return self._in_files(location, sentence, is_key=is_key)

    def mistake_of_rule(self, section: Location, sentence: str) -> Mistake:
        """A mistake in how the keys of a section fit: at the last option that set a key which the sentence names."""
        words = set(re.findall(r"\w+", sentence))
        for i, name in reversed(list(enumerate(self.options))):
            *parents, key = name.split(".")
            if key in words and parents[: len(section)] == [str(part) for part in section]:
                return Mistake((2, i, 0), _option(name), cut(masked(sentence)))
        return self.mistake(section, sentence)

    def _in_files(self, location: Location, sentence: str, *, is_key: bool) -> Mistake:
        is_inherited = location[:1] == ("embed",) and location[1:2] and location[1] in self.inherited
        text = self.profile if is_inherited else self.text
        if text is None:
            return Mistake((0, 0, 0), "", sentence)
        order, place = text.place(location, is_key=is_key)
        return Mistake((1 if is_inherited else 0, *order), place, sentence)


def _option(name: str) -> str:
    """The option that set a key."""
    return _SHORT_OPTIONS.get(name) or f"--set {cut(masked(name))}"


def add_mistakes(
    mistakes: Mistakes,
    error: ValidationError,
    origins: Origins,
    schema: type[BaseModel],
    section: Location = (),
    *,
    is_whole: bool = True,
) -> None:
    """Adds the errors that pydantic found.

    Args:
        mistakes: Where to add them.
        error: From validating a config or a section of it.
        origins: The origins of its values.
        schema: The schema of the whole config.
        section: The section that was validated.
        is_whole: Whether the section is complete. Otherwise rules that concern several keys are skipped.
    """
    found = [one for one in error.errors() if not _is_echo(one) and (is_whole or one["loc"])]
    misplaced = {one["loc"][-1] for one in found if one["type"] == "extra_forbidden"}
    for one in found:
        location, kind = (*section, *one["loc"]), one["type"]
        if any(_hides(unset, location, kind) for unset in mistakes.unset):
            continue
        if kind == "missing" and location[-1] in misplaced:
            continue  # it exists in the wrong place
        is_key = kind in {"extra_forbidden", "missing"}
        sentence = _sentence(one, location, schema)
        is_rule = kind == "value_error" and isinstance(one["input"], (dict, BaseModel))
        mistakes.add(
            origins.mistake_of_rule(location, sentence)
            if is_rule
            else origins.mistake(location, sentence, is_key=is_key)
        )


def _hides(unset: Location, location: Location, kind: str) -> bool:
    """Whether an error may be caused by a variable that is not set, in the value or in a section around it."""
    return location[: len(unset)] == unset or (kind == "value_error" and unset[: len(location)] == location)


def place_of(location: Iterable[int | str]) -> str:
    """A location as text: `sources[0].files`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def shown(place: str, value: Any) -> str:
    """The value for an error message: shortened, and without possible secrets."""
    if _SECRET_NAME.search(place):
        return "a value that is not shown"
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = masked(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def cut(text: str) -> str:
    return text if len(text) <= _LINE_CHARS else f"{text[: _LINE_CHARS - 1]}…"


def masked(text: str) -> str:
    """The text with everything that looks like a key hidden, because users paste keys into wrong places."""
    if len(text) > _MASKED_CHARS:  # the search takes quadratic time, and a cut key would not be recognised
        text = text[:_MASKED_CHARS].rstrip(_WORD) + "…"
    return _SECRET_SHAPE.sub(lambda match: match[0] if _is_like_a_key_of_ours(match[0]) else "***", text)


def _is_like_a_key_of_ours(word: str) -> bool:
    """Whether a word is the name of a setting or similar to one, such as `price_per_1000_itms`."""
    return bool(difflib.get_close_matches(word, _SETTINGS, n=1, cutoff=0.8))


def _is_echo(error: Any) -> bool:
    """Whether the error only repeats that a list entry is invalid: pydantic then reports the list as too short."""
    return error["type"] == "too_short" and bool(len(error["input"]) >= error["ctx"]["min_length"])


def _sentence(error: Any, location: Location, schema: type[BaseModel]) -> str:
    place = place_of(location) or "the config"
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    got = f", got {shown(place, value)}"
    if kind == "extra_forbidden":
        return _of_unknown_key(location, schema)
    if kind in {"model_type", "dict_type"}:
        hint = ", got nothing. Indent its keys below it" if value is None else got
        return f"{place} must be a mapping of keys{hint}."
    if kind == "missing":
        return f"{place} is missing. Add it."
    if kind in _BOUNDS:
        word, bound = _BOUNDS[kind]
        return f"{place} must be {word} {context[bound]:g}{got}."
    if kind == "literal_error":
        allowed = re.findall(r"'([^']+)'", context["expected"])
        alias = _ALIASES.get(str(value).lower())
        close = [alias] if alias in allowed else difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if isinstance(value, str) and (renamed := RENAMED_VALUES.get((place, value))) is not None:
            hint = f" {value!r} is now {renamed!r}."
        return f"{place} must be {context['expected']}{got}.{hint}"
    if kind == "value_error":
        what, dot, remedy = str(context["error"]).partition(". ")
        if isinstance(value, (dict, BaseModel)):  # a rule of a section
            return f"{place}: {what}{dot}{remedy}."
        return f"{place} {what}{got}{dot}{remedy}."
    if kind == "too_short":
        return f"{place} must have at least {of_count(context['min_length'], 'entry', 'entries')}{got}."
    if kind in _NUMBERS:
        return f"{place} must be {_NUMBERS[kind]}{got}."
    if kind == "string_pattern_mismatch" and location[-1] == "api_key_env":
        return f"{place} must be the name of an environment variable, such as EPITHRE_KEY, not the key itself."
    message = error["msg"][0].lower() + error["msg"][1:]
    message = message.replace("input should be", "must be").replace("string should", "must")
    message = message.replace("valid tuple", "list")
    return f"{place} {message}{got}."


# ------------------------------------------------------------------------------------------------ keys and their places


def _sections(schema: type[BaseModel]) -> Iterator[tuple[Location, type[BaseModel]]]:
    """The sections of a config with their locations; a list's entries have the index 0."""
    yield (), schema
    for name, info in schema.model_fields.items():
        for candidate in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                first: Location = (name,) if candidate is info.annotation else (name, 0)
                yield from (((*first, *rest), section) for rest, section in _sections(candidate))
    if schema is SearchJob:  # its other settings come from the catalog
        yield ("embed",), EmbedConfig


_JOBS: Mapping[type[BaseModel], tuple[str, type[BaseModel]]] = {
    RunConfig: ("run", SearchJob),
    CatalogConfig: ("run", SearchJob),
    SearchJob: ("search-batch", RunConfig),
}
"""For each job schema: its command, and the other job schema."""
_SETTINGS = frozenset(
    key for schema in (RunConfig, SearchJob) for _, part in _sections(schema) for key in part.model_fields
)


def _of_unknown_key(location: Location, schema: type[BaseModel]) -> str:
    *parents, key = location
    place, name = place_of(location), str(key)
    if name == "api_key":
        return f"{place}: a config must not contain the key. Set api_key_env to the name of a variable that holds it."
    if (renamed := RENAMED_KEYS.get(place)) is not None:
        return f"{place} is now {renamed}. Rename the key."
    here = tuple(0 if isinstance(part, int) else part for part in parents)
    sections = dict(_sections(schema))
    known = list(sections[here].model_fields) if here in sections else []
    where = f"under `{place_of(parents)}`" if parents else "at the top level"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if homes := [_home(section) for section, part in sections.items() if name in part.model_fields]:
        belongs = f"`{name}` belongs {' or '.join(homes)}"
        return (
            f"{place} is not a known key. Did you mean {close[0]!r}? {belongs}."
            if close
            else f"{belongs}, not {where}."
        )
    if not close:
        if schema in _JOBS:
            command, other = _JOBS[schema]
            if homes := [_home(section) for section, part in _sections(other) if name in part.model_fields]:
                theirs = _JOBS[other][0]
                return (
                    f"`{name}` belongs in a job for `{theirs}` ({' or '.join(homes)}), and this is a job for "
                    f"`{command}`."
                )
        elsewhere = {found: section for section, part in sections.items() for found in part.model_fields}
        if far := difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.85):
            return f"{place} is not a known key. Did you mean {far[0]!r}, {_home(elsewhere[far[0]])}?"
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"{place} is not a known key. Did you mean {close[0]!r}?"
    return f"{place} is not a known key. Known {where}: {', '.join(sorted(known))}."


def _home(section: Location) -> str:
    """The place of a section's keys, in words."""
    if not section:
        return "at the top level"
    return f"under an entry of `{place_of(section[:-1])}`" if section[-1] == 0 else f"under `{place_of(section)}`"
