"""Collects table values that do not have their declared type: counts all of them and reports the first ten."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...configs.errors import SourceError

_LISTED = 10
_MOST = 10_000
"""Number of invalid values after which the rest of the table is not read."""
_HOW = {
    "int": "Write whole numbers as 1234",
    "double": "Write numbers as 1234.5",
    "bool": "Write true or false",
    "date": "Write dates as 2024-12-31",
    "timestamp": "Write times as 2024-12-31T23:59:59Z",
}


@dataclass(kw_only=True)
class WrongValues:
    """The invalid values of one table."""

    place: str
    """Place of the source in the job."""
    url: str
    metadata: Mapping[str, str]
    """The types of the table's metadata columns, as the job spells them."""
    place_of_row: Callable[[int], str]
    _found: dict[str, dict[int, str | None]] = field(default_factory=dict, init=False)

    def __bool__(self) -> bool:
        return bool(self._found)

    def has(self, key: str, row: int) -> bool:
        return row in self._found.get(key, ())

    def add(self, key: str, value: str | None, row: int) -> None:
        """Record an invalid value.

        Args:
            key: Key of the source: `id`, `text`, `uri` or `metadata.NAME`.
            value: The value as text. None: a required value is missing.
            row: Number of the row, from 0.

        Raises:
            SourceError: If a column has 10,000 invalid values.
        """
        rows = self._found.setdefault(key, {})
        rows[row] = value
        if len(rows) >= _MOST:
            self.check()

    def check(self) -> None:
        """Raise SourceError with a line for each column if there are invalid values."""
        if self._found:
            raise SourceError("\n".join(self._line(key, rows) for key, rows in self._found.items()))

    def _line(self, key: str, rows: Mapping[int, str | None]) -> str:
        kind = self.metadata.get(key.removeprefix("metadata."), "string") if key.startswith("metadata.") else "string"
        name, how = f"{self.place}.{key}", f" {_HOW[kind]}, or declare another type." if kind in _HOW else ""
        if len(rows) == 1:
            ((row, value),) = rows.items()
            here = f"{self.url} {self.place_of_row(row)}"
            if value is None:
                return f"{name}: {here}: {key} is empty."
            return f"{name}: {here}: {value!r} is not valid as {kind}.{how}"
        reported = [
            f"{self.place_of_row(row)}" if value is None else f"{value!r} ({self.place_of_row(row)})"
            for row, value in list(rows.items())[:_LISTED]
        ]
        more = f" and {len(rows) - _LISTED:,} more" if len(rows) > _LISTED else ""
        count = f"{len(rows):,}{' or more' if len(rows) >= _MOST else ''}"
        what = "are empty" if None in rows.values() else f"are not valid as {kind}"
        return f"{name}: {self.url}: {count} values {what}: {', '.join(reported)}{more}.{how}"
