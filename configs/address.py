"""Which API embeds queries, where it differs from the catalog's manifest."""

import os
from dataclasses import dataclass

BASE_URL_VARIABLE = "EPITHRE_BEAM_BASE_URL"
API_KEY_ENV_VARIABLE = "EPITHRE_BEAM_API_KEY_ENV"


@dataclass(frozen=True, kw_only=True)
class ApiAddress:
    """Another address of the model of a catalog."""

    base_url: str | None = None
    api_key_env: str | None = None
    """The name of the environment variable that holds the key."""

    def said(self) -> dict[str, str]:
        """The settings given here or in the environment, by their config keys."""
        found = {
            "base_url": self.base_url or os.environ.get(BASE_URL_VARIABLE, "").strip(),
            "api_key_env": self.api_key_env or os.environ.get(API_KEY_ENV_VARIABLE, "").strip(),
        }
        return {name: value for name, value in found.items() if value}
