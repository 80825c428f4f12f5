"""Keys and values of configs that were renamed.

An old key in a job is an error that names the new key. In the config of a version that an older release wrote, the
old key is read as the new one.
"""

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {
    "guards": "gates",
    "embed.budget": "embed.rate_limiter",
    "embed.budget_name": "embed.rate_limiter_name",
}
"""Old path to new path. Both are in the same section."""
RENAMED_VALUES = {("embed.rate_limiter", "lane"): "memory"}
"""(New path, old value) to new value."""


def with_current_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a manifest with the current keys and values; `config` is not changed.

    A section that is not a mapping is returned unchanged: validation refuses it later.
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
    """The entries under their current keys. Where a section has the old and the new key, the new one is used."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        new = RENAMED_KEYS.get(f"{prefix}{key}", f"{prefix}{key}").removeprefix(prefix)
        if new == key or new not in section:
            found[new] = value
    return found
