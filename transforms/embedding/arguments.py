"""The arguments of a transform: single settings of the API, or a whole config that they do not contradict."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ...configs import EmbedConfig
from ...configs.errors import ConfigError


def embed_config(given: Mapping[str, Any], embed: EmbedConfig | None) -> EmbedConfig:
    """Return the settings of single arguments, or a whole config that they do not contradict.

    Raises:
        ConfigError: With the argument, the rule and the value.
    """
    if embed is None:
        try:
            return EmbedConfig.model_validate({"rate_limiter": "host", **given})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            words = str(first["msg"]).removeprefix("Value error, ")
            value = f", got {first['input']!r}" if name else ""
            raise ConfigError(f"EmbedAssets: {f'{name}: ' if name else ''}{words}{value}.") from None
    for name, value in given.items():
        if getattr(embed, name) != value:
            raise ConfigError(
                f"EmbedAssets: {name} is {value!r}, but {getattr(embed, name)!r} in `embed`. Set it in one of them."
            )
    if "rate_limiter" not in embed.model_fields_set:
        return embed.model_copy(update={"rate_limiter": "host"})
    return embed
