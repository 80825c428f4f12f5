"""Where queries are embedded, where that is not as a catalog's manifest says."""

import os
from dataclasses import dataclass

BASE_URL_VARIABLE = "EPITHRE_BEAM_BASE_URL"
API_KEY_ENV_VARIABLE = "EPITHRE_BEAM_API_KEY_ENV"


@dataclass(frozen=True, kw_only=True)
class ApiAddress:
    """Another address of the model that made a catalog."""

    base_url: str | None = None
    api_key_env: str | None = None
    """The name of the variable with the key."""

    def said(self) -> dict[str, str]:
        """What the user says, here or in the environment, by the names that the config has."""
        found = {
            "base_url": self.base_url or os.environ.get(BASE_URL_VARIABLE, "").strip(),
            "api_key_env": self.api_key_env or os.environ.get(API_KEY_ENV_VARIABLE, "").strip(),
        }
        return {name: value for name, value in found.items() if value}
