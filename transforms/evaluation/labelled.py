"""Reads and checks labelled pairs: a file that lists the relevant assets of each query."""

import csv
import difflib
import itertools
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs import AssetKind
from ...configs.errors import ConfigError
from ...index.versions.layout import KINDS
from ..sources.table_places import csv_rows, json_lines
from ..sources.uri_safety import is_within

_log = logging.getLogger(__name__)

_QUERY_COLUMNS = ("query", "image", "query_id")
_COLUMNS = (*_QUERY_COLUMNS, "query_kind", "relevant", "relevant_kind", "grade")

_Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Relevant:
    """A labelled asset of a query."""

    asset_id: str
    kind: AssetKind | None
    """None when the file does not name it; the kind that has the id is then used."""
    grade: float
    """The relevance; 0 means rated as not relevant."""
    place: str = field(compare=False)
    """Its place in the file: `line 7`, or `row 6` in Parquet."""


@dataclass(frozen=True, kw_only=True)
class LabelledQuery:
    """A query (a text, an image file, or an asset of the catalog) and its labelled assets."""

    kind: AssetKind
    text: str | None = None
    image: Path | None = None
    asset_id: str | None = None
    relevant: tuple[Relevant, ...]

    @property
    def place(self) -> str:
        """Its first place in the file."""
        return self.relevant[0].place

    @property
    def words(self) -> str:
        """The query in readable form."""
        if self.text is not None:
            return self.text
        return self.image.name if self.image is not None else str(self.asset_id)


def read_labels(path: Path) -> tuple[LabelledQuery, ...]:
    """Reads a csv, jsonl or parquet file and groups the rows of the same query, in the order of the file.

    Columns: `query` (a text), `image` (a file in or below the folder of this file), or `query_kind` and `query_id`
    (an asset); `relevant`, an id or, except in csv, a list of ids; `relevant_kind`; `grade`, at least 0. A row with
    several ids has either one kind and one grade for all ids, or one for each id.

    Raises:
        ConfigError: When the file cannot be read or a value is invalid; names the place, the rule and the value.
    """
    try:
        rows = list(_rows(path))
    except OSError as error:
        raise ConfigError(f"--pairs {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--pairs {str(path)!r} cannot be read as {_format(path)}: {reason}.") from error
    if not rows:
        raise ConfigError(f"--pairs {str(path)!r} has no rows. Add at least one.")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    _check_names(names, path)
    if "relevant" not in names or not set(_QUERY_COLUMNS) & set(names):
        raise ConfigError(
            f"--pairs {str(path)!r} must have a column `relevant` and one of `query`, `image` and `query_id`, "
            f"got {', '.join(map(str, names))}."
        )
    found: dict[tuple[str, ...], LabelledQuery] = {}
    relevant: dict[tuple[str, ...], dict[tuple[str, str | None], Relevant]] = {}
    for here, row in rows:
        place = f"{path} {here}"
        query, labels = _query(row, path.parent, place), list(_relevant(row, here, place))
        key = (query.kind, str(query.text), str(query.image), str(query.asset_id))
        found.setdefault(key, query)
        for label in labels:
            if (label.asset_id, label.kind) == (query.asset_id, query.kind):
                raise ConfigError(
                    f"{place}: the query {query.asset_id!r} is labelled relevant for itself, but a query is never its "
                    "own hit. Remove the pair."
                )
            first = relevant.setdefault(key, {}).setdefault((label.asset_id, label.kind), label)
            if first is not label:
                raise ConfigError(
                    f"{place}: the pair of {query.words!r} and {label.asset_id!r} is a duplicate of {first.place}. "
                    "Remove one of them."
                )
    return tuple(_whole(query, tuple(relevant.get(key, {}).values()), path) for key, query in found.items())


def _check_names(names: Sequence[Any], path: Path) -> None:
    """Raises ConfigError for a name that is probably a misspelt known column, which would otherwise be ignored."""
    other = [str(name) for name in names if name not in _COLUMNS]
    known = {re.sub(r"[\W_]", "", column): column for column in _COLUMNS}
    for name in other:
        close = difflib.get_close_matches(re.sub(r"[\W_]", "", name.lower()), known, n=1, cutoff=0.8)
        if close:
            raise ConfigError(
                f"--pairs {str(path)!r}: unknown column {name!r}. Did you mean {known[close[0]]!r}? "
                "If not, rename the column."
            )
    if any(name.strip() for name in other):
        _log.warning("--pairs %r: ignored columns: %s", str(path), ", ".join(map(repr, other)))


def _check_once(names: Sequence[str], path: Path) -> None:
    """Raises ConfigError for a known column that occurs twice."""
    for name in names:
        if name in _COLUMNS and names.count(name) > 1:
            raise ConfigError(f"--pairs {str(path)!r}: duplicate column {name!r}. Remove one of them.")


def _whole(query: LabelledQuery, relevant: tuple[Relevant, ...], path: Path) -> LabelledQuery:
    if not any(label.grade > 0 for label in relevant):
        raise ConfigError(
            f"{path}: the query {query.words!r} has no asset with a grade above 0. Label at least one relevant asset, "
            "or remove the query."
        )
    return LabelledQuery(
        kind=query.kind, text=query.text, image=query.image, asset_id=query.asset_id, relevant=relevant
    )


def _format(path: Path) -> str:
    return path.suffix.lower().lstrip(".")


def _rows(path: Path) -> Iterator[tuple[str, _Row]]:
    """Yields (place, row) for each row that is not blank."""
    match _format(path):
        case "csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                rows = csv_rows(file, strict=True)
                _, names = next(rows, (0, []))
                _check_once(names, path)
                for line, cells in rows:
                    if len(cells) > len(names):
                        raise ConfigError(f"{path} line {line}: {len(cells)} cells, but the header has {len(names)}.")
                    yield f"line {line}", {n: c or None for n, c in itertools.zip_longest(names, cells)}
        case "jsonl":
            with path.open("rb") as lines:
                for number, text in json_lines(lines):
                    try:
                        value = orjson.loads(text)
                    except orjson.JSONDecodeError as error:
                        why = f"{error.msg} at character {error.colno}"
                        raise ConfigError(f"{path} line {number}: invalid JSON: {why}.") from None
                    if not isinstance(value, dict):
                        raise ConfigError(f"{path} line {number}: must be a JSON object, got {str(value)[:60]!r}.")
                    yield f"line {number}", value
        case "parquet":
            names = pq.read_schema(path).names
            _check_once(names, path)
            _check_names(names, path)
            if columns := [name for name in names if name in _COLUMNS]:
                table = pq.read_table(path, columns=columns, use_threads=False)
                yield from ((f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1))
            else:
                yield "", dict.fromkeys(names)  # the caller reports the missing columns
        case other:
            raise ConfigError(f"--pairs must be a file ending in .csv, .jsonl or .parquet, got {other!r} ({path}).")


def _query(row: _Row, folder: Path, place: str) -> LabelledQuery:
    given = [name for name in _QUERY_COLUMNS if row.get(name) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{place}: set exactly one of `query`, `image` and `query_id`, got {' and '.join(given) or 'none'}."
        )
    value = _id(row[given[0]], given[0], place)
    match given[0]:
        case "query":
            return LabelledQuery(kind="text", text=value, relevant=())
        case "query_id":
            kind = _kind(row.get("query_kind"), "query_kind", place)
            if kind is None:
                raise ConfigError(f"{place}: query_id needs a query_kind. Set it to image or text.")
            return LabelledQuery(kind=kind, asset_id=value, relevant=())
    image = folder / value
    # The author of the labels chooses which files are sent to the API: allow only files in the same folder or below.
    if not is_within(str(image), (str(folder.absolute()),)):
        raise ConfigError(f"{place}: image must be a path below the folder of the file, got {value!r}.")
    if not image.is_file():
        raise ConfigError(f"{place}: image: no such file {value!r} in {folder}.")
    return LabelledQuery(kind="image", image=image, relevant=())


def _relevant(row: _Row, here: str, place: str) -> Iterator[Relevant]:
    value = row.get("relevant")
    ids: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    if value is None or not ids:
        raise ConfigError(f"{place}: relevant must be an asset id or a list of ids, got {value!r}.")
    kinds = _as_many(row.get("relevant_kind"), ids, "relevant_kind", place)
    grades = _as_many(row.get("grade"), ids, "grade", place)
    for one, kind, grade in zip(ids, kinds, grades, strict=True):
        yield Relevant(
            asset_id=_id(one, "relevant", place),
            kind=_kind(kind, "relevant_kind", place),
            grade=_grade(grade, place),
            place=here,
        )


def _as_many(value: Any, ids: Sequence[Any], name: str, place: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        return [value] * len(ids)
    if len(value) != len(ids):
        raise ConfigError(f"{place}: {name} must be one value or {len(ids)} values, one for each id, got {len(value)}.")
    return value


def _id(value: Any, name: str, place: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{place}: {name} must be a non-empty text, got {value!r}.")
    return value


def _kind(value: Any, name: str, place: str) -> AssetKind | None:
    if value is not None and value not in KINDS:
        raise ConfigError(f"{place}: {name} must be image or text, got {value!r}.")
    return cast("AssetKind | None", value)


def _grade(value: Any, place: str) -> float:
    if value is None:
        return 1.0
    try:
        grade = float(value)
    except (TypeError, ValueError):
        grade = math.nan
    if not 0 <= grade < math.inf or isinstance(value, bool):
        raise ConfigError(f"{place}: grade must be a number of at least 0, got {value!r}.")
    return grade
