"""Where queries are embedded, where that is not as a catalog's manifest says."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ApiAddress:
    """Another address of the model that made a catalog."""

    base_url: str | None = None
    api_key_env: str | None = None
    """The name of the variable with the key."""
