"""Compare the rows that a pipeline brings with the current version."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .compare import Comparison

DROPPED_SCHEMA = pa.schema([("kind", pa.string()), ("asset_id", pa.string()), ("is_dead", pa.bool_())])
"""Ids that get no row. Without a kind, an id is meant in every kind."""
_CONTENT = pa.schema([("kind", pa.string()), ("asset_id", pa.string()), ("content_sha256", pa.string())])
_IS_DROPPED = "EXISTS (FROM dropped d WHERE d.asset_id = {0}.asset_id AND (d.kind IS NULL OR d.kind = {0}.kind))"
_IS_LISTED = "EXISTS (FROM listed l WHERE l.asset_id = {0}.asset_id AND l.kind = {0}.kind)"
_KEPT = f"NOT {_IS_LISTED.format('b')} AND NOT {_IS_DROPPED.format('b')}"

Positions = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class IncomingChanges:
    """Numbers of rows by kind, compared with the current version."""

    gone: Mapping[str, int]
    """Rows of the current version that the new one lacks."""
    changed: Mapping[str, int]
    """Ids with certainly another content. Of an imported vector the content is unknown, so it does not count."""
    same: int
    """Ids with the same content, of all kinds."""
    new: int
    """Ids that the current version does not have, of all kinds."""
    replaced: int
    """Other ids that the current version has, of all kinds."""


class IncomingComparison(Comparison):
    """The rows of a pipeline and the current version, in a temporary file. Use it in a `with` block."""

    def __init__(self) -> None:
        super().__init__({})
        self._create("content", _CONTENT)
        self._create("dropped", DROPPED_SCHEMA)

    def add_rows(self, references: pa.Table, content_sha256: pa.ChunkedArray) -> None:
        """Add rows: their references, with the columns of `reference_schema`, and the hashes of their contents."""
        self.add_references(references)
        self._insert(
            "content",
            references.select(["kind", "asset_id"]).append_column("content_sha256", content_sha256).cast(_CONTENT),
        )

    def add_dropped(self, ids: pa.Table) -> None:
        """Add ids without a row, with the columns of `DROPPED_SCHEMA`."""
        self._insert("dropped", ids)

    def dead_twice(self) -> tuple[str, str] | None:
        """Return the kind and id of the first asset that is dead and also has a row, or is dead twice; None if none."""
        found = self._db.execute(
            "SELECT d.kind, d.asset_id FROM dropped d WHERE d.is_dead GROUP BY ALL "
            f"HAVING count(*) > 1 OR bool_or({_IS_LISTED.format('d')}) ORDER BY ALL LIMIT 1"
        ).fetchall()
        return found[0] if found else None

    def kept_places(self) -> dict[tuple[str, int], Positions]:
        """Return the rows of the current version that the pipeline neither brings nor drops.

        Returns:
            By file and row group, the positions of its rows, sorted; 4 bytes for each row.
        """
        found: dict[tuple[str, int], list[Positions]] = {}
        schema = pa.schema([("file", pa.int32()), ("row_group", pa.int32()), ("position", pa.int32())])
        query = f"SELECT file, row_group, position FROM base b WHERE {_KEPT} ORDER BY ALL"
        for table in self._select(query, schema):
            files, groups, positions = (table.column(name).to_numpy() for name in schema.names)
            cuts = np.flatnonzero((files[1:] != files[:-1]) | (groups[1:] != groups[:-1])) + 1
            for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(table)], strict=True):
                place = self._files[int(files[start])], int(groups[start])
                found.setdefault(place, []).append(positions[start:end])
        return {place: np.concatenate(parts) for place, parts in found.items()}

    def unseen(self, letters: pa.Table) -> pa.Table:
        """Return the dead letters of the current version whose assets the pipeline neither brings nor drops."""
        self._db.register("letters", letters.append_column("number", pa.array(range(len(letters)), pa.int64())))
        kept = self._db.execute(f"SELECT number FROM letters b WHERE {_KEPT} ORDER BY number").fetchall()
        self._db.unregister("letters")
        return letters.take(pa.array([number for (number,) in kept], pa.int64()))

    def incoming_changes(self, *, keeps_others: bool) -> IncomingChanges:
        """Count the changes.

        Args:
            keeps_others: Whether rows of the current version stay if the pipeline neither brings nor drops them.
        """
        is_gone = f"NOT {_IS_LISTED.format('b')}"
        if keeps_others:
            is_gone += f" AND {_IS_DROPPED.format('b')}"
        gone = self._by_kind(f"SELECT kind, count(*) FROM base b WHERE {is_gone} GROUP BY ALL ORDER BY ALL")
        join = "FROM content c JOIN base b USING (kind, asset_id)"
        changed = self._by_kind(
            f"SELECT kind, count(*) {join} WHERE b.size_bytes IS NOT NULL AND c.content_sha256 <> b.content_sha256 "
            "GROUP BY ALL ORDER BY ALL"
        )
        same = self._number(f"SELECT count(*) {join} WHERE c.content_sha256 = b.content_sha256")
        known = self._number(f"SELECT count(*) {join}")
        rows = self._number("SELECT count(*) FROM content")
        return IncomingChanges(gone=gone, changed=changed, same=same, new=rows - known, replaced=known - same)

    def _by_kind(self, query: str) -> dict[str, int]:
        return dict(self._db.execute(query).fetchall())
