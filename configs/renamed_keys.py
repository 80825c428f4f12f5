"""Keys and values of configs that were renamed.

An old key in a job is refused with the new one named; in the config of a version that an older release wrote, it is
read as the new one.
"""

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {
    "guards": "gates",
    "embed.budget": "embed.rate_limiter",
    "embed.budget_name": "embed.rate_limiter_name",
}
"""Old path: new path. Both are in the same section."""
RENAMED_VALUES = {("embed.rate_limiter", "lane"): "memory"}
"""New path and old value: new value."""


def with_current_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a manifest with today's keys and values; `config` stays as it is.

    A section that is not a mapping stays as it is: whoever validates the config refuses it.
    """
    return {
        name: _with_current_keys(value, name) if isinstance(value, Mapping) else value
        for name, value in _renamed(config, "").items()
    }


def _with_current_keys(section: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        key: RENAMED_VALUES.get((f"{name}.{key}", value), value) if isinstance(value, str) else value
        for key, value in _renamed(section, f"{name}.").items()
    }


def _renamed(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries under their current keys; where a section has the old and the new key, the new one counts."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        new = RENAMED_KEYS.get(f"{prefix}{key}", f"{prefix}{key}").removeprefix(prefix)
        if new == key or new not in section:
            found[new] = value
    return found
