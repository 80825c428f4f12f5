"""Names on disk that differ from the names in code. The next format will rename them."""

from collections.abc import Mapping
from typing import Any, Final

GATE_FAILURES: Final = "held_back"
"""Field of the manifest and of `report.json`: why a gate held the version, one sentence each."""

UNIT_FOOTER: Final = {"reused_rows": "carried", "embedding_config_hash": "recipe"}
"""Fields of a unit's footer: name in code to name on disk."""


def to_stored(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return `values` in the same order with the names on disk."""
    return {names.get(name, name): value for name, value in values.items()}


def from_stored(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Reverse `to_stored`."""
    return to_stored(values, {stored: name for name, stored in names.items()})
