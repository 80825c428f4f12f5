"""Validation of the values in a catalog's JSON files. A catalog may be untrusted, so every value is checked.

Names that become paths or columns must match a pattern. Kinds and column types are closed sets. Numbers are JSON
numbers (never true or false) within bounds far beyond those of any real catalog.
"""

import datetime
import re
from collections.abc import Iterable
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, StringConstraints, ValidationError

from ...configs.renamed_keys import with_current_keys
from ...configs.schema import MetadataType, check_metadata_name
from .layout import KINDS

MAX_MANIFEST_BYTES = 32_000_000
"""About 150,000 files, or seven billion vectors at 50,000 rows per file. Parsed, it takes up to 20 times the memory."""
MAX_SMALL_BYTES = 1_000_000
"""Limit of LATEST.json, the lease and a reader hold."""
MAX_COLUMNS = 10_000
"""Limit of metadata columns."""
_MAX_DEPTH = 32
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.-]{0,100}")
_PLAIN = re.compile(r"[\w>-]{1,80}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECTIONS = ("embed", "prepare", "index", "gates")


def is_version(name: Any) -> bool:
    """Whether `name` is a valid version name, such as 000001-20250102T030405Z-abcdef. It is also a folder name."""
    return isinstance(name, str) and _VERSION.fullmatch(name) is not None


def is_sha256(text: Any) -> bool:
    """Whether `text` is a sha256 in lower-case hex."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def wrong_value(error: ValidationError) -> str:
    """Describe the first invalid value of a validation error."""
    first = error.errors(include_url=False)[0]
    parts = (str(part) for part in first["loc"] if part != "[key]")
    place = ".".join(part if _PLAIN.fullmatch(part) else f"{part!r:.80}" for part in parts)  # keys are untrusted too
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # its message has the value already
        return f"{place}: {reason}" if place else reason
    return f"{place}: {reason}, got {first['input']!r:.80}"


def _checked_version(name: str) -> str:
    if not is_version(name):
        raise ValueError(f"must be a version name such as 000001-20250102T030405Z-abcdef, got {name!r:.80}")
    return name


def _checked_instant(text: str) -> str:
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None or not 1970 <= time.year <= 9998:
        raise ValueError(f"must be an ISO time with a time zone, got {text!r:.80}")
    return text


def _checked_config(config: dict[str, Any]) -> dict[str, Any]:
    """Validate a config and rename the keys of older releases. The only place that renames them."""
    config = with_current_keys(config)
    for name in _SECTIONS:
        if not isinstance(config.get(name, {}), dict):
            raise ValueError(f"{name} must be an object, got {config[name]!r:.80}")  # noqa: TRY004 - pydantic's
    if not isinstance(config.get("sources", []), (list, tuple)):
        raise ValueError(f"sources must be a list, got {config['sources']!r:.80}")  # noqa: TRY004 - pydantic's
    level: list[Any] = [config]
    for _ in range(_MAX_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return config
    raise ValueError(f"must be at most {_MAX_DEPTH} objects and lists deep")


def _inside(value: Any) -> Iterable[Any]:
    inner = value.values() if isinstance(value, dict) else value
    return (item for item in inner if isinstance(item, (dict, list, tuple)))


def _one_of(*names: str) -> AfterValidator:
    """Return a validator for strings of a closed set."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"must be one of {', '.join(names)}, got {name!r:.80}")
        return name

    return AfterValidator(check)


Kind = Annotated[str, _one_of(*KINDS)]
Direction = Annotated[str, _one_of(*(f"{query}->{kind}" for query in KINDS for kind in KINDS))]
"""Query kind first."""
SearchParameter = Annotated[str, _one_of("cells_share", "k_factor")]
MetadataName = Annotated[str, AfterValidator(check_metadata_name)]
MetadataKind = Annotated[str, _one_of(*get_args(MetadataType))]
VersionName = Annotated[str, AfterValidator(_checked_version)]
FileName = Annotated[
    str,
    StringConstraints(max_length=250, pattern=r"^[0-9A-Za-z][0-9A-Za-z_.-]*(/[0-9A-Za-z][0-9A-Za-z_.-]*){0,4}$"),
]
"""Up to five path parts of plain characters, none starting with a dot."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, StringConstraints(max_length=1000)]
LongText = Annotated[str, StringConstraints(max_length=100_000)]
Instant = Annotated[str, AfterValidator(_checked_instant)]
Count = Annotated[int, Field(strict=True, ge=0, le=10**12)]
Size = Annotated[int, Field(strict=True, ge=0, le=10**18)]
PrepareRules = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
"""A later release may have later rules."""
Dimension = Annotated[int, Field(strict=True, ge=1, le=65_536)]
"""The same bounds as in a job."""
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e15, le=1e15)]
NotNegative = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1e15)]
Share = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=1)]
Factor = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=10_000)]
Config = Annotated[dict[str, Any], AfterValidator(_checked_config)]
