"""Loads the YAML of a job, with environment variables, profiles and `--set`."""

import copy
import difflib
import importlib.resources
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError, create_model

from .errors import ConfigError
from .mistakes import ConfigText, Location, Mistake, Mistakes, Origins, add_mistakes, cut, masked, place_of, shown
from .renamed_keys import RENAMED_KEYS
from .schema import CatalogConfig, EmbedConfig, PrepareConfig, RunConfig, SourceConfig
from .search_schema import SAME, SearchJob
from .yaml_text import DuplicateKeyError, Position, YamlBombError, parse_document, parse_yaml

_Config = TypeVar("_Config", bound=BaseModel)
_PROFILES = importlib.resources.files(__package__) / "profiles"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def load_config(path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> RunConfig:
    """Loads the YAML file of a job.

    Relative paths in the file are resolved against its folder, not against the current directory.

    Args:
        path: The YAML file.
        overrides: `key.path=value` pairs. Values are parsed as YAML; list entries are numbered from 0.
        environ: Where `${NAME}` and `${NAME:-default}` are looked up. None: the environment of the process.

    Raises:
        ConfigError: The config is invalid. The message has the place, the rule and the value of each error.
    """
    path = Path(path)
    environ = os.environ if environ is None else environ
    mistakes = Mistakes(str(path))
    raw, origins = _read_job(path, "`catalog` and `sources`", overrides, environ, mistakes)
    if ("embed", "profile") not in mistakes.unset:
        raw, origins = _with_profile(raw, origins, path.parent, environ, mistakes)
    return _anchor(_validated(raw, RunConfig, origins, mistakes), path.parent)


def load_search_job(
    path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> SearchJob:
    """Loads the YAML file of a bulk search. Arguments as in `load_config`.

    Raises:
        ConfigError: The config is invalid. The message has the place, the rule and the value of each error.
    """
    path = Path(path)
    environ = os.environ if environ is None else environ
    mistakes = Mistakes(str(path))
    raw, origins = _read_job(path, "`catalog`, `output` and `queries`", overrides, environ, mistakes)
    try:  # the catalog's settings are not known yet, so each setting is checked on its own
        EmbedConfig.model_validate(raw.get("embed", {}))
    except ValidationError as error:
        add_mistakes(mistakes, error, origins, SearchJob, ("embed",), is_whole=False)
    return _anchor_search(_validated(raw, SearchJob, origins, mistakes), path.parent)


def _read_job(
    path: Path, example: str, overrides: Iterable[str], environ: Mapping[str, str], mistakes: Mistakes
) -> tuple[dict[Any, Any], Origins]:
    """The plain data of a job with its variables replaced, and the origin of each value."""
    text = _read(path, "job file", example)
    raw: dict[Any, Any] = text.document.data
    names = []
    for override in overrides:
        _set(raw, override)
        names.append(override.partition("=")[0])
    origins = Origins(text=text, options=names)
    return _expand_all(raw, text, origins, environ, mistakes), origins


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """Validates a complete config given as plain data. Its `embed.profile` is not applied again.

    Raises:
        ConfigError: With the path, rule and value of every invalid key, one line each.
    """
    return _validated(raw, RunConfig)


def parse_sources(
    sources: Iterable[SourceConfig | Mapping[str, Any]],
    prepare: PrepareConfig | Mapping[str, Any] | None = None,
    name: str = "The config",
) -> tuple[tuple[SourceConfig, ...], PrepareConfig]:
    """Checks sources and preparation given as plain data or sections. Relative paths start at the working folder.

    Args:
        sources: The entries of `sources` in a job.
        prepare: The section `prepare`; absent: its defaults.
        name: What is being checked, for errors.

    Raises:
        ConfigError: With every wrong key's path, rule and value, a sentence each.
    """
    raw = {"catalog": ".", "sources": list(sources), "prepare": {} if prepare is None else prepare}
    config = _validated(raw, RunConfig, mistakes=Mistakes(name))
    return tuple(_anchor_source(source, Path.cwd()) for source in config.sources), config.prepare


def parse_section(section: str, model: type[_Config], values: Mapping[str, Any], name: str) -> _Config:
    """Checks a section of a config given as plain data.

    Args:
        section: Its name, such as `embed`.
        model: Its class.
        values: Its keys.
        name: What is being checked, for errors.

    Raises:
        ConfigError: With every wrong key, rule and value, a sentence each.
    """
    whole: type[BaseModel] = create_model("Whole", **{section: (model, ...)})  # type: ignore[call-overload]
    config = _validated({section: dict(values)}, whole, mistakes=Mistakes(name))
    found: _Config = getattr(config, section)
    return found


def parse_query_settings(manifest_config: Mapping[str, Any], job: SearchJob) -> RunConfig | CatalogConfig:
    """The settings to embed the queries of a bulk search with: the catalog's, with the job's `embed` settings.

    Args:
        manifest_config: The config in the manifest of the searched version.
        job: The bulk search. Its `output` becomes the catalog, and its `queries` become the sources.

    Raises:
        ConfigError: The job changes a setting that determines vectors, or a setting is invalid.
    """
    before = manifest_config.get("embed", {})
    for name in ("dialect", "model", "dimension", "input_type", "profile"):
        if name in job.embed and job.embed[name] != before.get(name):
            raise ConfigError(
                f"embed.{name} must be the catalog's ({before.get(name)!r}), got "
                f"{shown(f'embed.{name}', job.embed[name])}. Remove it: vectors of another model cannot be compared."
            )
    raw: dict[str, Any] = {"catalog": job.output, "embed": {**before, **job.embed}, "gates": job.gates}
    raw |= {"prepare": manifest_config.get("prepare", {}), "runner": job.runner}
    if not job.queries:
        return _validated(raw, CatalogConfig)
    return _validated({**raw, "sources": job.queries}, RunConfig)


def parse_settings(
    raw: Mapping[str, Any], overrides: Iterable[str] = (), sections: Collection[str] = ()
) -> CatalogConfig:
    """Validates the config in the manifest of a version, without its sources.

    Args:
        raw: The plain data.
        overrides: `key.path=value` pairs. Values are parsed as YAML.
        sections: The sections that `overrides` may change.

    Raises:
        ConfigError: With the path, rule and value of every invalid key, one line each.
    """
    changed = {name: copy.deepcopy(value) for name, value in raw.items() if name in CatalogConfig.model_fields}
    names = []
    for override in overrides:
        names.append(name := override.partition("=")[0])
        if name.partition(".")[0] not in sections:
            if (renamed := RENAMED_KEYS.get(name.partition(".")[0])) is not None:
                raise ConfigError(f"--set {masked(name)}: {name.partition('.')[0]} is now {renamed}. Rename the key.")
            if name.partition(".")[0] not in RunConfig.model_fields:
                known = ", ".join(sections)
                raise ConfigError(f"--set {masked(name)}: this is not a known key. Set a key of {known}.")
            raise ConfigError(
                f"--set {masked(name)}: this cannot change without embedding again. Use `run`, or set a key of "
                f"{', '.join(sections)}."
            )
        _set(changed, override)
    return _validated(changed, CatalogConfig, Origins(options=names))


@dataclass(frozen=True, kw_only=True)
class _Profile:
    """Default settings for the `embed` section."""

    name: str
    """The name in the config, or an absolute path."""
    path: Traversable


def _with_profile(
    raw: dict[Any, Any], origins: Origins, folder: Path, environ: Mapping[str, str], mistakes: Mistakes
) -> tuple[dict[Any, Any], Origins]:
    """The config with the settings of its `embed.profile`, if it has one."""
    embed = raw.get("embed")
    name = embed.get("profile") if isinstance(embed, dict) else None
    if not isinstance(embed, dict) or not isinstance(name, str) or not name:
        return raw, origins  # validation reports other types
    try:
        profile = _find_profile(name, folder)
        text = _read(profile.path, "profile", "`batch_items`", ("embed",))
        if "profile" in text.document.data:
            place = text.place(("embed", "profile"), is_key=True)[1]
            raise ConfigError(f"{place}: a profile must not contain `profile`. Remove it.")
    except ConfigError as error:
        mistakes.add(Mistake((1, 0, 0), "", str(error)))
        return _without_profile(raw), origins
    except ValueError as error:
        mistakes.add(origins.mistake(("embed", "profile"), str(error)))
        return _without_profile(raw), origins
    inherited = frozenset(text.document.data) - frozenset(embed)
    origins = Origins(text=origins.text, profile=text, inherited=inherited, options=origins.options)
    needed = {key: value for key, value in text.document.data.items() if key in inherited}
    settings = _expand_all({"embed": needed}, text, origins, environ, mistakes)["embed"]
    return {**raw, "embed": {**settings, **embed, "profile": profile.name}}, origins


def _without_profile(raw: Mapping[Any, Any]) -> dict[Any, Any]:
    return {**raw, "embed": {key: value for key, value in raw["embed"].items() if key != "profile"}}


def _find_profile(name: str, folder: Path) -> _Profile:
    """Raises ValueError with a message for an unknown name. Relative paths are resolved against `folder`."""
    if "://" in name:
        got = shown("embed.profile", name)
        raise ValueError(f"embed.profile must be the name of a built-in profile or a local path, got {got}.")
    if "/" in name or os.sep in name or name.endswith((".yaml", ".yml")):
        path = anchored(name, folder)
        return _Profile(name=path, path=Path(path))
    found = (profile.name for profile in _PROFILES.iterdir())
    shipped = sorted(file.removesuffix(".yaml") for file in found if file.endswith(".yaml"))
    if name not in shipped:
        close = difflib.get_close_matches(name, shipped, n=1)
        hint = (
            f"Did you mean {close[0]!r}?" if close else f"Use one of {', '.join(shipped)}, or the path of a YAML file."
        )
        raise ValueError(f"embed.profile {shown('embed.profile', name)} is not a known profile. {hint}")
    return _Profile(name=name, path=_PROFILES / f"{name}.yaml")


def _validated(
    raw: Mapping[str, Any],
    model: type[_Config],
    origins: Origins | None = None,
    mistakes: Mistakes | None = None,
) -> _Config:
    """Raises ConfigError with all errors, including those found before (`mistakes`)."""
    mistakes = Mistakes() if mistakes is None else mistakes
    config = None
    try:
        config = model.model_validate(raw)
    except ValidationError as error:  # not chained as the cause, because it repeats every value
        add_mistakes(mistakes, error, origins or Origins(), model)
    mistakes.check()
    assert config is not None
    return config


def _read(path: Traversable, what: str, example: str, section: Location = ()) -> ConfigText:
    """Reads a YAML file with the keys of a `section` of the config."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: a {what} must be UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except (OSError, ValueError) as error:  # ValueError: the name contains a NUL
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path}: the {what} cannot be read ({reason}). Check the path and its permissions."
        ) from error
    try:
        document = parse_document(text)
    except YamlBombError as error:
        raise ConfigError(f"{path}: {error}.") from None
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45, a number of 5000 digits
        raise ConfigError(f"{path}: this is not valid YAML: {error}.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path} {Position(mark.line + 1, mark.column + 1)}" if mark else str(path)
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "it does not parse")
        plain = next((words for begin, words in _YAML_PROBLEMS.items() if problem.startswith(begin)), problem)
        if isinstance(error, DuplicateKeyError):
            raise ConfigError(f"{place}: {problem}.") from None
        # Not `from error`: YAML's error quotes the line, which may contain a secret.
        raise ConfigError(f"{place}: this is not valid YAML: {cut(plain)}.") from None
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}: a {what} must be a mapping of keys such as {example}.")
    return ConfigText(name=str(path), document=document, section=section)


_YAML_PROBLEMS = {
    "expected <block end>": "the indentation matches no line above. Start the keys of a section in the same column",
    "mapping values are not allowed here": "a `:` is not allowed here. Quote the value, or check the indentation",
    "found character '\\t' that cannot start any token": "the line is indented with a tab. Indent with spaces",
    "could not find expected ':'": "a key is not followed by `:`. Add it",
}
"""The beginnings of YAML's messages for common mistakes, and plainer messages."""


def _expand_all(
    raw: dict[Any, Any], text: ConfigText, origins: Origins, environ: Mapping[str, str], mistakes: Mistakes
) -> dict[Any, Any]:
    """Replaces variables. A variable that is not set is recorded as an error and left unchanged."""

    def note(location: Location, name: str) -> None:
        mistakes.unset.add(location)
        mistakes.add(
            origins.mistake(
                location,
                f"{place_of(location)} uses the environment variable {name}, which is not set. "
                f"Set it (`export {name}=…`), or add a default: ${{{name}:-default}}.",
            )
        )

    try:
        expanded: dict[Any, Any] = _expand(raw, (), environ, note)
    except RecursionError as error:
        raise ConfigError(f"{text.name}: an alias (`*name`) contains itself. Write the values out.") from error
    return expanded


def _set(raw: dict[str, Any], override: str) -> None:
    name, sign, value = override.partition("=")
    if not sign or not name:
        raise ConfigError(f"--set takes KEY.PATH=VALUE, such as embed.batch_items=32, got {shown(override, override)}.")
    here: Any = raw
    *parents, last = name.split(".")
    for depth, part in enumerate(parents):
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, dict):
            here = here.setdefault(part, {})
        else:
            raise ConfigError(f"--set {name}: the config has no {'.'.join(parents[: depth + 1])!r}. Check the key.")
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"--set {name}: the value is not valid YAML ({shown(name, value)}). Quote it.") from None
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = parsed
    elif isinstance(here, dict):
        here[last] = parsed
    else:
        raise ConfigError(f"--set {name}: the config has no such key. Check the key.")


def _expand(value: Any, location: Location, environ: Mapping[str, str], note: Callable[[Location, str], None]) -> Any:
    """Replaces `${NAME}` in every string. A string that is only a variable is parsed as YAML."""
    if isinstance(value, dict):
        return {key: _expand(item, (*location, key), environ, note) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, (*location, i), environ, note) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        name, default = match.groups()
        if name in environ:
            return environ[name]
        if default is None:
            note(location, name)
            return match[0]
        return str(default)

    expanded = _VARIABLE.sub(look_up, value)
    if not expanded or not _VARIABLE.fullmatch(value) or expanded == value:
        return expanded
    try:
        return parse_yaml(expanded)
    except (yaml.YAMLError, ValueError, RecursionError):  # such as *.jpg, which YAML reads as an alias
        return expanded


def _anchor(config: RunConfig, folder: Path) -> RunConfig:
    """Resolves the relative paths of the config against `folder`."""
    sources = tuple(_anchor_source(source, folder) for source in config.sources)
    return config.model_copy(update={"catalog": anchored(config.catalog, folder), "sources": sources})


def _anchor_source(source: SourceConfig, folder: Path) -> SourceConfig:
    return source.model_copy(
        update={
            "files": source.files and anchored(source.files, folder),
            "table": source.table and anchored(source.table, folder),
            "within": tuple(anchored(allowed, folder) for allowed in source.within),
        }
    )


def _anchor_search(job: SearchJob, folder: Path) -> SearchJob:
    def anchor(url: str) -> str:
        return url if url == SAME else anchored(url, folder)

    assets = [
        entry.model_copy(update={"catalog": anchor(entry.catalog), "ids": entry.ids and anchor(entry.ids)})
        for entry in job.assets
    ]
    return job.model_copy(
        update={
            "catalog": anchored(job.catalog, folder),
            "output": anchored(job.output, folder),
            "queries": tuple(_anchor_source(source, folder) for source in job.queries),
            "vectors": tuple(v.model_copy(update={"files": anchored(v.files, folder)}) for v in job.vectors),
            "assets": tuple(assets),
        }
    )


def anchored(url: str, folder: Path) -> str:
    """A path or URL that means the same in every working folder: a relative path starts at `folder`."""
    if "://" in url or "::" in url or Path(url).is_absolute():
        return url
    if url.startswith("~"):
        return str(Path(url).expanduser())
    return str(Path(os.path.normpath(folder.absolute() / url)))
