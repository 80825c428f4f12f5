"""JSON documents for programs (RFC 8259)."""

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON. NaN and infinities become null, as in `serve`; other types become their `str`."""
    return json.dumps(_finite(value), ensure_ascii=False, default=str, indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_finite_name(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _finite_name(name: Any) -> Any:
    return str(name) if isinstance(name, float) else name
