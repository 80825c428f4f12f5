"""Reads a run's YAML: environment variables, `--set`, and errors that say where, what and what to do."""

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
from pydantic import ValidationError

from .errors import ConfigError
from .mistakes import ConfigText, Location, Mistake, Mistakes, Origins, add_mistakes, cut, masked, place_of, shown
from .renamed_keys import RENAMED_KEYS
from .schema import CatalogConfig, EmbedConfig, PrepareConfig, RunConfig, Section, SourceConfig
from .search_schema import SAME, SearchJob
from .yaml_text import Position, YamlBombError, parse_document, parse_yaml

_Config = TypeVar("_Config", bound=Section)
_PROFILES = importlib.resources.files(__package__) / "profiles"
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


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
    mistakes = Mistakes(str(path))
    raw, origins = _read_job(path, "`catalog` and `sources`", overrides, environ, mistakes)
    if ("embed", "profile") not in mistakes.unset:
        raw, origins = _with_profile(raw, origins, path.parent, environ, mistakes)
    return _anchor(_validated(raw, RunConfig, origins, mistakes), path.parent)


def load_search_job(
    path: str | Path, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> SearchJob:
    """Reads the YAML file of a bulk search, as `load_config` does that of a run.

    Raises:
        ConfigError: With the place, the rule and the value.
    """
    path = Path(path)
    environ = os.environ if environ is None else environ
    mistakes = Mistakes(str(path))
    raw, origins = _read_job(path, "`catalog`, `output` and `queries`", overrides, environ, mistakes)
    try:  # what the catalog says besides is not known yet, so each setting is checked by itself
        EmbedConfig.model_validate(raw.get("embed", {}))
    except ValidationError as error:
        add_mistakes(mistakes, error, origins, SearchJob, ("embed",), is_whole=False)
    return _anchor_search(_validated(raw, SearchJob, origins, mistakes), path.parent)


def _read_job(
    path: Path, example: str, overrides: Iterable[str], environ: Mapping[str, str], mistakes: Mistakes
) -> tuple[dict[Any, Any], Origins]:
    """The plain data of a job with its variables replaced, and where each value comes from."""
    text = _read(path, "config", example)
    raw: dict[Any, Any] = text.document.data
    names = []
    for override in overrides:
        _set(raw, override)
        names.append(override.partition("=")[0])
    origins = Origins(text=text, options=names)
    return _expand_all(raw, text, origins, environ, mistakes), origins


def parse_config(raw: Mapping[str, Any]) -> RunConfig:
    """Checks a config given as plain data. It is whole: an `embed.profile` in it says where settings came from.

    Raises:
        ConfigError: With every wrong key's path, rule and value, a sentence each.
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
                f"embed.{name} must be that of the catalog ({before.get(name)!r}), got "
                f"{shown(f'embed.{name}', job.embed[name])}. Remove it: other vectors cannot be compared with its own."
            )
    raw: dict[str, Any] = {"catalog": job.output, "embed": {**before, **job.embed}, "gates": job.gates}
    raw |= {"prepare": manifest_config.get("prepare", {}), "runner": job.runner}
    if not job.queries:
        return _validated(raw, CatalogConfig)
    return _validated({**raw, "sources": job.queries}, RunConfig)


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
    names = []
    for override in overrides:
        names.append(name := override.partition("=")[0])
        if name.partition(".")[0] not in sections:
            if (renamed := RENAMED_KEYS.get(name.partition(".")[0])) is not None:
                raise ConfigError(f"--set {masked(name)}: {name.partition('.')[0]} is now {renamed}. Rename the key.")
            if name.partition(".")[0] not in RunConfig.model_fields:
                known = ", ".join(sections)
                raise ConfigError(f"--set {masked(name)}: this is not a known key. Here {known} can be set.")
            raise ConfigError(
                f"--set {masked(name)}: this cannot be changed without embedding again. Use `run` for it; here "
                f"{', '.join(sections)} can be set."
            )
        _set(changed, override)
    return _validated(changed, CatalogConfig, Origins(options=names))


@dataclass(frozen=True, kw_only=True)
class _Profile:
    """Settings of the `embed` section that hold where the config says nothing else."""

    name: str
    """As in the config; a path is absolute."""
    path: Traversable


def _with_profile(
    raw: dict[Any, Any], origins: Origins, folder: Path, environ: Mapping[str, str], mistakes: Mistakes
) -> tuple[dict[Any, Any], Origins]:
    """The config with the settings of the profile that its `embed` section names, if it names one."""
    embed = raw.get("embed")
    name = embed.get("profile") if isinstance(embed, dict) else None
    if not isinstance(embed, dict) or not isinstance(name, str) or not name:
        return raw, origins  # what is wrong with another value is said with all else that is wrong
    try:
        profile = _find_profile(name, folder)
        text = _read(profile.path, "profile", "`batch_items`", ("embed",))
        if "profile" in text.document.data:
            place = text.place(("embed", "profile"), is_key=True)[1]
            raise ConfigError(f"{place}: a profile must not name a `profile` itself.")
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
    """Raises ValueError with a sentence when there is none of this name. Relative paths start at `folder`."""
    if "://" in name:
        got = shown("embed.profile", name)
        raise ValueError(f"embed.profile must be a shipped profile's name or a path on this machine, got {got}.")
    if "/" in name or os.sep in name or name.endswith((".yaml", ".yml")):
        path = anchored(name, folder)
        return _Profile(name=path, path=Path(path))
    found = (profile.name for profile in _PROFILES.iterdir())
    shipped = sorted(file.removesuffix(".yaml") for file in found if file.endswith(".yaml"))
    if name not in shipped:
        close = difflib.get_close_matches(name, shipped, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(shipped)}; or a YAML file's path."
        raise ValueError(f"embed.profile {shown('embed.profile', name)} is not a known profile. {hint}")
    return _Profile(name=name, path=_PROFILES / f"{name}.yaml")


def _validated(
    raw: Mapping[str, Any],
    model: type[_Config],
    origins: Origins | None = None,
    mistakes: Mistakes | None = None,
) -> _Config:
    """Raises ConfigError with all that is wrong, what was found before (`mistakes`) too."""
    mistakes = Mistakes() if mistakes is None else mistakes
    config = None
    try:
        config = model.model_validate(raw)
    except ValidationError as error:  # which repeats every value, so it is no cause
        add_mistakes(mistakes, error, origins or Origins(), model)
    mistakes.check()
    assert config is not None
    return config


def _read(path: Traversable, what: str, example: str, section: Location = ()) -> ConfigText:
    """A YAML file that holds a mapping, the keys of a `section` of the config."""
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: a {what} must be UTF-8 text ({error.reason}). Save it as UTF-8.") from error
    except (OSError, ValueError) as error:  # a ValueError of a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: the {what} cannot be read ({reason}).") from error
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
        # Not `from error`: YAML's own error quotes the line, and with it whatever was pasted there.
        raise ConfigError(f"{place}: this is not valid YAML: {cut(plain)}.") from None
    if not isinstance(document.data, dict):
        raise ConfigError(f"{path}: a {what} must be a mapping of keys such as {example}.")
    return ConfigText(name=str(path), document=document, section=section)


_YAML_PROBLEMS = {
    "expected <block end>": "the indentation fits no line above. Keys of one section start in the same column",
    "mapping values are not allowed here": "a `:` is not allowed here. Quote the value, or check the indentation",
    "found character '\\t' that cannot start any token": "a tab stands here. Indent with spaces",
    "could not find expected ':'": "a key has no `:` behind it",
}
"""How YAML's own words for common slips begin, and plainer ones."""


def _expand_all(
    raw: dict[Any, Any], text: ConfigText, origins: Origins, environ: Mapping[str, str], mistakes: Mistakes
) -> dict[Any, Any]:
    """Replaces variables; those that are not set are noted, and left as they are."""

    def note(location: Location, name: str) -> None:
        mistakes.unset.add(location)
        mistakes.add(
            origins.mistake(
                location,
                f"{place_of(location)} names the environment variable {name}, which is not set. "
                f"Set it (`export {name}=…`), or give it a default: ${{{name}:-default}}.",
            )
        )

    try:
        expanded: dict[Any, Any] = _expand(raw, (), environ, note)
    except RecursionError as error:
        raise ConfigError(f"{text.name}: an alias (`*name`) must not contain itself.") from error
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
            raise ConfigError(f"--set {name}: there is no {'.'.join(parents[: depth + 1])!r} to set into.")
    try:
        parsed = parse_yaml(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"--set {name}: the value must be YAML, got {shown(name, value)}.") from None
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = parsed
    elif isinstance(here, dict):
        here[last] = parsed
    else:
        raise ConfigError(f"--set {name}: there is no such place in the config.")


def _expand(value: Any, location: Location, environ: Mapping[str, str], note: Callable[[Location, str], None]) -> Any:
    """Replaces `${NAME}` in every string; a string that was a variable alone is read as YAML again."""
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
    except (yaml.YAMLError, ValueError, RecursionError):  # such as *.jpg, which YAML takes for an alias
        return expanded


def _anchor(config: RunConfig, folder: Path) -> RunConfig:
    """Makes the config's relative paths start at `folder`."""
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
