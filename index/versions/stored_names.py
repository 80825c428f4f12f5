"""Names on disk that code calls otherwise. They stay until the next format, which renames them once."""

from collections.abc import Mapping
from typing import Any, Final

GATE_FAILURES: Final = "held_back"
"""Of a manifest and of `report.json`: why a gate did not let the version be published by itself, a sentence each."""

UNIT_FOOTER: Final = {"reused_rows": "carried", "embedding_config_hash": "recipe"}
"""Of a unit's footer: the name in code, and on disk."""


def to_stored(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """`values`, in their order, under the names on disk."""
    return {names.get(name, name): value for name, value in values.items()}


def from_stored(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The reverse of `to_stored`."""
    return to_stored(values, {stored: name for name, stored in names.items()})
