"""Values of a table that are not what the job says: all of them are counted, and the first ten told."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...configs.errors import SourceError

_LISTED = 10
_MOST = 10_000
"""Values after which the rest of the table is not looked through."""
_HOW = {
    "int": "Write whole numbers as 1234",
    "double": "Write numbers as 1234.5",
    "bool": "Write true or false",
    "date": "Write dates as 2024-12-31",
    "timestamp": "Write times as 2024-12-31T23:59:59Z",
}


@dataclass(kw_only=True)
class WrongValues:
    """Collects them for one table."""

    place: str
    """The source's, in the job."""
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
        """Notes a value.

        Args:
            key: Of the source: `id`, `text`, `uri` or `metadata.NAME`.
            value: As a person would write it; None: there is none where there must be one.
            row: From 0.

        Raises:
            SourceError: When there are very many.
        """
        rows = self._found.setdefault(key, {})
        rows[row] = value
        if len(rows) >= _MOST:
            self.check()

    def check(self) -> None:
        """Raises SourceError when any was noted: a line for each column."""
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
