"""Reads a run's YAML: environment variables, `--set`, and errors that say where, what and what to do."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from .schema import RunConfig

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_SECRET_NAME = re.compile(r"(?i)(api_?key|secret|token\b|password|credential)")
_SECRET_SHAPE = re.compile(
    r"(?<=://)[^/\s'\"]+(?=@)"  # a URL's user and password
    r"|(?<=\?)[^\s'\",]+"  # its query
    r"|(?=[\w+-]*[0-9])(?=[\w+-]*[A-Za-z])[\w+-]{16,}"  # letters and digits in one long run
)


class ConfigError(Exception):
    """The config or the command line is wrong; the message is one sentence for the person who wrote it."""


def load_config(path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> RunConfig:
    """Reads a job's YAML file.

    Relative paths in it start at the file's own folder, so that a job means the same whoever starts it.

    Args:
        path: The YAML file.
        overrides: `key.path=value` pairs, values read as YAML; a list's entries are numbered from 0.
        environ: Where `${NAME}` and `${NAME:-default}` are looked up; absent: the process's environment.

    Raises:
        ConfigError: With the place, the rule and the value.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"The config {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The config {str(path)!r} must be UTF-8 text: {error.reason}.") from error
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader that also refuses duplicate keys
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45, a number of 5000 digits
        raise ConfigError(f"{path}: this is not valid YAML: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it does not parse"
        # Not `from error`: YAML's own error quotes the line, and with it whatever was pasted there.
        raise ConfigError(f"{path}{place}: this is not valid YAML: {problem}.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config must be a mapping of keys such as `catalog` and `sources`.")
    for override in overrides:
        _set(raw, override)
    try:
        raw = _expand(raw, "", os.environ if environ is None else environ)
    except RecursionError as error:
        raise ConfigError(f"{path}: an alias (`*name`) must not contain itself.") from error
    config = parse_config(raw)
    return _anchor(config, path.parent)


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """Checks a config given as plain data.

    Raises:
        ConfigError: With every wrong key's path, rule and value, a sentence each.
    """
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        sentences = dict.fromkeys(_masked(_sentence(e)) for e in error.errors() if not _is_echo(e))
        raise ConfigError("\n".join(sentences)) from None  # pydantic's own error repeats every value


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence; a config must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *defaults`, which the parent resolves
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def _set(raw: dict[str, Any], override: str) -> None:
    name, sign, value = override.partition("=")
    if not sign or not name:
        raise ConfigError(
            f"--set takes KEY.PATH=VALUE, such as embed.batch_items=32, got {_shown(override, override)}."
        )
    here: Any = raw
    *parents, last = name.split(".")
    for depth, part in enumerate(parents):
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, dict):
            here = here.setdefault(part, {})
        else:
            raise ConfigError(f"--set {name}: there is no {'.'.join(parents[: depth + 1])!r} to set into.")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"--set {name}: the value must be YAML, got {_shown(name, value)}.") from None
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = parsed
    elif isinstance(here, dict):
        here[last] = parsed
    else:
        raise ConfigError(f"--set {name}: there is no such place in the config.")


def _expand(value: Any, place: str, environ: Mapping[str, str]) -> Any:
    """Replaces `${NAME}` in every string; a string that was a variable alone is read as YAML again."""
    if isinstance(value, dict):
        return {key: _expand(item, f"{place}.{key}".lstrip("."), environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, f"{place}[{i}]", environ) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name in environ:
            return environ[name]
        if default is None:
            raise ConfigError(
                f"{place} names the environment variable {name}, which is not set: "
                f"set it, or write ${{{name}:-default}}."
            )
        return str(default)

    expanded = _VARIABLE.sub(look_up, value)
    if not expanded or not _VARIABLE.fullmatch(value):
        return expanded
    try:
        return yaml.safe_load(expanded)
    except (yaml.YAMLError, ValueError):  # such as *.jpg, which YAML takes for an alias
        return expanded


def _anchor(config: RunConfig, folder: Path) -> RunConfig:
    """Makes the config's relative paths start at `folder`."""

    def anchor(url: str) -> str:
        if "://" in url or "::" in url or Path(url).is_absolute():
            return url
        if url.startswith("~"):
            return str(Path(url).expanduser())
        return str(Path(os.path.normpath(folder.absolute() / url)))

    sources = tuple(
        source.model_copy(
            update={
                "files": source.files and anchor(source.files),
                "table": source.table and anchor(source.table),
                "within": tuple(anchor(folder) for folder in source.within),
            }
        )
        for source in config.sources
    )
    return config.model_copy(update={"catalog": anchor(config.catalog), "sources": sources})


def _place(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".")


def _shown(place: str, value: Any) -> str:
    """The value as it stands in an error; never what may be a secret, never a page of it."""
    if _SECRET_NAME.search(place):
        return "a value that is not shown"
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = _masked(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _masked(text: str) -> str:
    """A key is pasted into the wrong place sooner or later, and an error ends in a log: what looks like one goes."""
    return _SECRET_SHAPE.sub("***", text)


def _is_echo(error: Any) -> bool:
    """Whether the error only repeats that an entry of a list is wrong: pydantic then calls the list too short."""
    return error["type"] == "too_short" and bool(len(error["input"]) >= error["ctx"]["min_length"])


def _sentence(error: Any) -> str:
    place = _place(error["loc"]) or "the config"
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    got = f", got {_shown(place, value)}"
    if kind == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known))}."
        return f"{place} is not a known key: {hint}"
    if kind in {"model_type", "dict_type"}:
        return f"{place} must be a mapping of keys{got}."
    if kind == "missing":
        return f"{place} is missing and must be given."
    if kind in {"greater_than_equal", "less_than_equal", "greater_than", "less_than"}:
        word, bound = {
            "greater_than_equal": ("at least", "ge"),
            "less_than_equal": ("at most", "le"),
            "greater_than": ("greater than", "gt"),
            "less_than": ("less than", "lt"),
        }[kind]
        return f"{place} must be {word} {context[bound]:g}{got}."
    if kind == "literal_error":
        close = difflib.get_close_matches(str(value), re.findall(r"'([^']+)'", context["expected"]), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        return f"{place} must be {context['expected']}{got}.{hint}"
    if kind == "value_error":
        message = str(context["error"])
        return f"{place} {message}{'' if isinstance(value, (dict, BaseModel)) else got}."
    if kind == "too_short":
        return f"{place} must have at least {context['min_length']} entry{got}."
    message = error["msg"][0].lower() + error["msg"][1:]
    message = message.replace("input should be", "must be").replace("string should", "must")
    return f"{place} {message}{got}."


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """The keys that the section at `location` knows."""
    section: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
