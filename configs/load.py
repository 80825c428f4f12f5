"""Reads a run's YAML: environment variables, `--set`, and errors that say where, what and what to do."""

import copy
import difflib
import importlib.resources
import os
import re
import string
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .errors import ConfigError
from .schema import CatalogConfig, RunConfig, Section, SourceConfig
from .search_schema import SAME, SearchJob
from .yaml_text import YamlBombError, parse_yaml

_Config = TypeVar("_Config", bound=Section)
_PROFILES = importlib.resources.files(__package__) / "profiles"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_SECRET_NAME = re.compile(r"(?i)(api_?key|secret|token\b|password|credential)")
_SENTENCES = 50
_SENTENCE_CHARS = 1000
"""Of an error: a key may be as long as the file."""
_MASKED_CHARS = 2000
_WORD = string.ascii_letters + string.digits + "_+-"
_SECRET_SHAPE = re.compile(
    r"(?<=://)[^/\s'\"]+(?=@)"  # a URL's user and password
    r"|(?<=\?)[^\s'\",]+"  # its query
    r"|(?=[\w+-]*[0-9])(?=[\w+-]*[A-Za-z])[\w+-]{16,}"  # letters and digits in one long run
)


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
    environ = os.environ if environ is None else environ
    raw = _read_job(path, "`catalog` and `sources`", overrides, environ)
    profile = _read_profile(raw.get("embed"), path.parent, environ)
    if profile is not None:
        raw = {**raw, "embed": {**profile.settings, **raw["embed"], "profile": profile.name}}
    return _anchor(_validated(raw, profile, RunConfig), path.parent)


def load_search_job(
    path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> SearchJob:
    """Reads the YAML file of a bulk search, as `load_config` does that of a run.

    Raises:
        ConfigError: With the place, the rule and the value.
    """
    path = Path(path)
    raw = _read_job(path, "`catalog`, `output` and `queries`", overrides, os.environ if environ is None else environ)
    return _anchor_search(_validated(raw, None, SearchJob), path.parent)


def _read_job(path: Path, example: str, overrides: Iterable[str], environ: Mapping[str, str]) -> dict[Any, Any]:
    raw = _read(path, "config", example)
    for override in overrides:
        _set(raw, override)
    return _expand_all(raw, path, "", environ)


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """Checks a config given as plain data. It is whole: an `embed.profile` in it says where settings came from.

    Raises:
        ConfigError: With every wrong key's path, rule and value, a sentence each.
    """
    return _validated(raw, None, RunConfig)


def parse_query_settings(manifest_config: Mapping[str, Any], job: SearchJob) -> RunConfig | CatalogConfig:
    """The settings that the queries of a bulk search are embedded with: the catalog's, asked as the job says.

    Args:
        manifest_config: Of the version that is searched.
        job: Its `output` takes the place of the catalog, its `queries` that of the sources.

    Raises:
        ConfigError: When the job changes what decides a vector, or a setting is wrong.
    """
    before = manifest_config.get("embed", {})
    for name in ("dialect", "model", "dimension", "input_type", "profile"):
        if name in job.embed and job.embed[name] != before.get(name):
            raise ConfigError(
                f"embed.{name} must be left away, or be that of the catalog, {before.get(name)!r}: other vectors "
                f"cannot be compared with its own, got {_shown(f'embed.{name}', job.embed[name])}."
            )
    raw: dict[str, Any] = {"catalog": job.output, "embed": {**before, **job.embed}, "gates": job.gates}
    raw |= {"prepare": manifest_config.get("prepare", {}), "runner": job.runner}
    if not job.queries:
        return _validated(raw, None, CatalogConfig)
    return _validated({**raw, "sources": job.queries}, None, RunConfig)


def parse_settings(
    raw: Mapping[str, Any], overrides: Iterable[str] = (), sections: Collection[str] = ()
) -> CatalogConfig:
    """Checks the config of a version, as its manifest has it: its sources, if it has any, are not looked at.

    Args:
        raw: The plain data.
        overrides: `key.path=value` pairs, values read as YAML.
        sections: What they may set.

    Raises:
        ConfigError: With every wrong key's path, rule and value, a sentence each.
    """
    changed = {name: copy.deepcopy(value) for name, value in raw.items() if name in CatalogConfig.model_fields}
    for override in overrides:
        name = override.partition("=")[0]
        if name.partition(".")[0] not in sections:
            if name.partition(".")[0] not in RunConfig.model_fields:
                known = ", ".join(sections)
                raise ConfigError(f"--set {_masked(name)}: this is not a known key; {known} can be set here.")
            raise ConfigError(
                f"--set {_masked(name)}: this cannot be changed without embedding again; {', '.join(sections)} can be "
                "set here, for all else use `run`."
            )
        _set(changed, override)
    return _validated(changed, None, CatalogConfig)


@dataclass(frozen=True, kw_only=True)
class _Profile:
    """Settings of the `embed` section that hold where the config says nothing else."""

    name: str
    """As in the config; a path is absolute."""
    settings: Mapping[str, Any]
    inherited: frozenset[str]
    """The settings that the config left as they are here."""


def _read_profile(embed: Any, folder: Path, environ: Mapping[str, str]) -> _Profile | None:
    """The profile that an `embed` section names, if it names one. Relative paths start at `folder`."""
    name = embed.get("profile") if isinstance(embed, dict) else None
    if not isinstance(name, str) or not name:
        return None  # what is wrong with another value is said with all else that is wrong
    if "://" in name:
        got = _shown("embed.profile", name)
        raise ConfigError(f"embed.profile must be a shipped profile's name or a path on this machine, got {got}.")
    if "/" in name or os.sep in name or name.endswith((".yaml", ".yml")):
        path: Traversable = Path(name := _anchored(name, folder))
    else:
        path = _PROFILES / f"{name}.yaml"
        found = (profile.name for profile in _PROFILES.iterdir())
        shipped = sorted(file.removesuffix(".yaml") for file in found if file.endswith(".yaml"))
        if name not in shipped:
            close = difflib.get_close_matches(name, shipped, n=1)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(shipped)}; or a YAML file's path."
            )
            raise ConfigError(f"embed.profile {_shown('embed.profile', name)} is not a known profile: {hint}")
    settings = _expand_all(_read(path, "profile", "`batch_items`"), path, "embed", environ)
    if "profile" in settings:
        raise ConfigError(f"{path}: a profile must not name a `profile` itself.")
    return _Profile(name=name, settings=settings, inherited=frozenset(settings) - frozenset(embed))


def _validated(raw: Mapping[str, Any], profile: _Profile | None, model: type[_Config]) -> _Config:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        sentences: dict[str, None] = {}
        for one in error.errors():
            if not _is_echo(one):
                place = one["loc"]
                is_inherited = profile and place[:1] == ("embed",) and profile.inherited.intersection(place[1:2])
                origin = f"In the profile {profile.name}: " if profile and is_inherited else ""
                sentences[origin + _cut(_masked(_sentence(one, model)))] = None
        more = [f"and {len(sentences) - _SENTENCES} more."] if len(sentences) > _SENTENCES else []
        raise ConfigError(
            "\n".join([*list(sentences)[:_SENTENCES], *more])
        ) from None  # pydantic's own error repeats every value


def _cut(text: str) -> str:
    return text if len(text) <= _SENTENCE_CHARS else f"{text[: _SENTENCE_CHARS - 1]}…"


def _read(path: Traversable, what: str, example: str) -> dict[Any, Any]:
    """A YAML file that holds a mapping."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"The {what} {str(path)!r} must be UTF-8 text: {error.reason}.") from error
    except (OSError, ValueError) as error:  # a ValueError of a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"The {what} {str(path)!r} cannot be read: {reason}.") from error
    try:
        raw = parse_yaml(text)
    except YamlBombError as error:
        raise ConfigError(f"{path}: {error}.") from None
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45, a number of 5000 digits
        raise ConfigError(f"{path}: this is not valid YAML: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it does not parse"
        # Not `from error`: YAML's own error quotes the line, and with it whatever was pasted there.
        raise ConfigError(f"{path}{place}: this is not valid YAML: {_cut(str(problem))}.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a {what} must be a mapping of keys such as {example}.")
    return raw


def _expand_all(raw: dict[Any, Any], path: Traversable, place: str, environ: Mapping[str, str]) -> dict[Any, Any]:
    try:
        expanded: dict[Any, Any] = _expand(raw, place, environ)
    except RecursionError as error:
        raise ConfigError(f"{path}: an alias (`*name`) must not contain itself.") from error
    return expanded


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
        parsed = parse_yaml(value)
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
        return parse_yaml(expanded)
    except (yaml.YAMLError, ValueError, RecursionError):  # such as *.jpg, which YAML takes for an alias
        return expanded


def _anchor(config: RunConfig, folder: Path) -> RunConfig:
    """Makes the config's relative paths start at `folder`."""
    sources = tuple(_anchor_source(source, folder) for source in config.sources)
    return config.model_copy(update={"catalog": _anchored(config.catalog, folder), "sources": sources})


def _anchor_source(source: SourceConfig, folder: Path) -> SourceConfig:
    return source.model_copy(
        update={
            "files": source.files and _anchored(source.files, folder),
            "table": source.table and _anchored(source.table, folder),
            "within": tuple(_anchored(allowed, folder) for allowed in source.within),
        }
    )


def _anchor_search(job: SearchJob, folder: Path) -> SearchJob:
    def anchor(url: str) -> str:
        return url if url == SAME else _anchored(url, folder)

    assets = [
        entry.model_copy(update={"catalog": anchor(entry.catalog), "ids": entry.ids and anchor(entry.ids)})
        for entry in job.assets
    ]
    return job.model_copy(
        update={
            "catalog": _anchored(job.catalog, folder),
            "output": _anchored(job.output, folder),
            "queries": tuple(_anchor_source(source, folder) for source in job.queries),
            "vectors": tuple(v.model_copy(update={"files": _anchored(v.files, folder)}) for v in job.vectors),
            "assets": tuple(assets),
        }
    )


def _anchored(url: str, folder: Path) -> str:
    if "://" in url or "::" in url or Path(url).is_absolute():
        return url
    if url.startswith("~"):
        return str(Path(url).expanduser())
    return str(Path(os.path.normpath(folder.absolute() / url)))


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
    if len(text) > _MASKED_CHARS:  # the time it takes grows with the square, and half a key is like no key
        text = text[:_MASKED_CHARS].rstrip(_WORD) + "…"
    return _SECRET_SHAPE.sub(lambda match: match[0] if _is_like_a_key_of_ours(match[0]) else "***", text)


def _is_like_a_key_of_ours(word: str) -> bool:
    """Whether a word is a setting's name or a slip of one, such as `price_per_1000_itms`."""
    return bool(difflib.get_close_matches(word, _SETTINGS, n=1, cutoff=0.8))


def _is_echo(error: Any) -> bool:
    """Whether the error only repeats that an entry of a list is wrong: pydantic then calls the list too short."""
    return error["type"] == "too_short" and bool(len(error["input"]) >= error["ctx"]["min_length"])


def _sentence(error: Any, model: type[BaseModel]) -> str:
    place = _place(error["loc"]) or "the config"
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    got = f", got {_shown(place, value)}"
    if kind == "extra_forbidden":
        if error["loc"][-1] == "api_key":
            return f"{place} must not stand in a config: name the key's environment variable in api_key_env."
        known = _known_keys(error["loc"][:-1], model)
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
    message = message.replace("valid tuple", "list")
    return f"{place} {message}{got}."


def _all_keys(section: type[BaseModel]) -> Iterator[str]:
    """The keys of a section and of all within it."""
    for name, field in section.model_fields.items():
        yield name
        for candidate in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from _all_keys(candidate)


_SETTINGS = frozenset((*_all_keys(RunConfig), *_all_keys(SearchJob)))


def _known_keys(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The keys that the section of `model` at `location` knows."""
    section: Any = model
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
