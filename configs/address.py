"""Which API embeds queries, where it differs from the catalog's manifest."""

import os
import re
from dataclasses import dataclass

from .caller import ARGUMENTS, Caller
from .errors import ConfigError
from .mistakes import shown
from .schema import VARIABLE_NAME, check_base_url

BASE_URL_VARIABLE = "EPITHRE_BEAM_BASE_URL"
API_KEY_ENV_VARIABLE = "EPITHRE_BEAM_API_KEY_ENV"


@dataclass(frozen=True, kw_only=True)
class ApiAddress:
    """Another address of the model of a catalog."""

    base_url: str | None = None
    api_key_env: str | None = None
    """The name of the environment variable that holds the key."""
    caller: Caller = ARGUMENTS
    """Who gives the address; for messages."""

    def said(self) -> dict[str, str]:
        """The settings given here or in the environment, by their config keys.

        Raises:
            ConfigError: When one is invalid; the message names the option, the argument or the variable.
        """
        found = {
            "base_url": self.base_url or os.environ.get(BASE_URL_VARIABLE, "").strip(),
            "api_key_env": self.api_key_env or os.environ.get(API_KEY_ENV_VARIABLE, "").strip(),
        }
        if url := found["base_url"]:
            try:
                check_base_url(url)
            except ValueError as error:
                place = self.caller.name("base_url") if self.base_url else BASE_URL_VARIABLE
                rule, dot, remedy = str(error).partition(". ")
                raise ConfigError(f"{place} {rule}, got {shown(place, url)}{dot}{remedy}.") from None
        if (name := found["api_key_env"]) and not re.fullmatch(VARIABLE_NAME, name):
            place = self.caller.name("api_key_env") if self.api_key_env else API_KEY_ENV_VARIABLE
            raise ConfigError(
                f"{place} must be the name of an environment variable, such as EPITHRE_KEY, not the key itself. "
                "Export the key and give the name of its variable."
            )
        return {name: value for name, value in found.items() if value}
