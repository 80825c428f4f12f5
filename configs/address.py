"""Which API embeds queries, where it differs from the catalog's manifest."""

import os
from dataclasses import dataclass

from .errors import ConfigError
from .mistakes import shown
from .schema import check_base_url

BASE_URL_VARIABLE = "EPITHRE_BEAM_BASE_URL"
API_KEY_ENV_VARIABLE = "EPITHRE_BEAM_API_KEY_ENV"


@dataclass(frozen=True, kw_only=True)
class ApiAddress:
    """Another address of the model of a catalog."""

    base_url: str | None = None
    api_key_env: str | None = None
    """The name of the environment variable that holds the key."""

    def said(self) -> dict[str, str]:
        """The settings given here or in the environment, by their config keys.

        Raises:
            ConfigError: When the address is invalid; the message names the option or the variable.
        """
        found = {
            "base_url": self.base_url or os.environ.get(BASE_URL_VARIABLE, "").strip(),
            "api_key_env": self.api_key_env or os.environ.get(API_KEY_ENV_VARIABLE, "").strip(),
        }
        if url := found["base_url"]:
            try:
                check_base_url(url)
            except ValueError as error:
                place = "--base-url" if self.base_url else BASE_URL_VARIABLE
                rule, dot, remedy = str(error).partition(". ")
                raise ConfigError(f"{place} {rule}, got {shown(place, url)}{dot}{remedy}.") from None
        return {name: value for name, value in found.items() if value}
