"""The arguments of a transform: single settings of the API, and whole configs that they do not contradict."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ...configs import EmbedConfig
from ...configs.errors import ConfigError

_Config = TypeVar("_Config", bound=BaseModel)


def embed_config(given: Mapping[str, Any], embed: EmbedConfig | Mapping[str, Any] | None) -> EmbedConfig:
    """Return the settings of single arguments and of a config together. By default the host counts the requests.

    Raises:
        ConfigError: With the argument, the rule and the value; also if an argument contradicts the config.
    """
    stated = _stated(embed)
    for name, value in given.items():
        if name in stated and stated[name] != value:
            raise ConfigError(
                f"EmbedAssets: {name} is {value!r}, but {stated[name]!r} in `embed`. Set it in one of them."
            )
    return config_of(EmbedConfig, {"rate_limiter": "host", **stated, **given})


def config_of(kind: type[_Config], config: _Config | Mapping[str, Any] | None, label: str = "EmbedAssets") -> _Config:
    """Return a config that was given as it is, as a mapping or not at all.

    Args:
        kind: The class of the config.
        config: What was given.
        label: The transform, for messages.

    Raises:
        ConfigError: With the setting, the rule and the value.
    """
    try:
        return kind.model_validate(_stated(config))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        words = str(first["msg"]).removeprefix("Value error, ")
        place, value = (f"{name}: ", f", got {first['input']!r}") if name else ("", "")
        raise ConfigError(f"{label}: {place}{words}{value}.") from None


def _stated(config: BaseModel | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(config, BaseModel):
        return {name: getattr(config, name) for name in config.model_fields_set}
    return dict(config or {})
