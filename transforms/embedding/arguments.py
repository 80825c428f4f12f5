"""The arguments of a transform: single settings of the API, and whole configs that they do not contradict."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from ...configs import EmbedConfig
from ...configs.caller import Caller
from ...configs.errors import ConfigError
from ...configs.load import parse_section

_Config = TypeVar("_Config", bound=BaseModel)


ARGUMENTS = (
    "base_url",
    "model",
    "dimension",
    "dialect",
    "api_key_env",
    "requests_per_minute",
    "items_per_minute",
    "tokens_per_minute",
    "batch_items",
    "max_concurrency",
    "max_requests",
    "rate_limiter",
    "redis_url",
    "redis_password_env",
)
"""The settings of `embed` that `EmbedAssets` takes as arguments of their own."""
TRANSFORM = Caller(
    names=tuple((name, name) for name in ARGUMENTS), other="`{}` in `embed`", trial='try base_url="emulator"'
)
"""The author of a pipeline with `EmbedAssets`; its vectors are only kept in a cache."""
SEARCH_TRANSFORM = Caller(other=TRANSFORM.other)
"""The author of a pipeline with `SearchCatalog`, which takes settings in `embed` only."""
CHAT_ARGUMENTS = (
    "base_url",
    "model",
    "api_key_env",
    "max_tokens",
    "requests_per_minute",
    "tokens_per_minute",
    "max_concurrency",
    "max_requests",
    "max_cost",
    "rate_limiter",
    "redis_url",
    "redis_password_env",
)
"""The settings of `chat` that `ChatAssets` takes as arguments of their own."""
CHAT_TRANSFORM = Caller(
    names=tuple((name, name) for name in CHAT_ARGUMENTS), other="`{}` in `chat`", trial='try base_url="emulator"'
)
"""The author of a pipeline with `ChatAssets`."""


def embed_config(given: Mapping[str, Any], embed: EmbedConfig | Mapping[str, Any] | None) -> EmbedConfig:
    """Return the settings of single arguments and of a config together. By default the host counts the requests.

    Raises:
        ConfigError: With the argument, the rule and the value; also if an argument contradicts the config.
    """
    return config_of("embed", EmbedConfig, embed, "EmbedAssets", given, {"rate_limiter": "host"})


def config_of(
    section: str,
    kind: type[_Config],
    config: _Config | Mapping[str, Any] | None,
    label: str = "EmbedAssets",
    given: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> _Config:
    """Return a config that was given as it is, as a mapping or not at all, with the settings of single arguments.

    Args:
        section: The argument, such as `prepare`.
        kind: The class of the config.
        config: What was given.
        label: The transform, for messages.
        given: Single settings that are arguments of their own.
        defaults: Defaults that differ from those of the section.

    Raises:
        ConfigError: With the setting, the rule and the value; also if an argument contradicts the config.
    """
    stated, given = _stated(config), given or {}
    for name, value in given.items():
        if name in stated and stated[name] != value:
            raise ConfigError(
                f"{label}: {name} is {value!r}, but {stated[name]!r} in `{section}`. Set it in one of them."
            )
    try:
        return parse_section(section, kind, {**(defaults or {}), **stated, **given}, label)
    except ConfigError as error:
        message = str(error)
        for name in given:  # as the user wrote it
            message = message.replace(f"{section}.{name} ", f"{name} ").replace(f"{section}.{name}: ", f"{name}: ")
        raise ConfigError(_labelled(label, message)) from None


def _labelled(label: str, message: str) -> str:
    return message if message.startswith(label) else f"{label}: {message}"


def _stated(config: BaseModel | Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(config, BaseModel):
        return {name: getattr(config, name) for name in config.model_fields_set}
    return dict(config or {})
