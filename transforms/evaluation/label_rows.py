"""Finds the kinds and rows of labelled assets in the evaluated catalogs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...configs.errors import CatalogError, ConfigError
from ...index.search.catalog import Catalog
from ...index.storage.store import Store
from ...index.vectors.letters import iterate_letters
from ...index.versions.layout import KINDS, version_folder
from .figures import Wanted, row_offsets
from .labelled import LabelledQuery, Relevant

_DEAD, _UNKNOWN = -1, -2
_SHOWN = 3

Rows = npt.NDArray[np.int64]


class NamedCatalog(NamedTuple):
    """An evaluated catalog and its URL."""

    url: str
    catalog: Catalog


class Direction(NamedTuple):
    """The kind of the queries and the kind that is searched."""

    query_kind: str
    kind: str | None
    """None: all kinds."""

    def __str__(self) -> str:
        return f"{self.query_kind}->{self.kind or 'all'}"


@dataclass(frozen=True, kw_only=True)
class PlacedLabels:
    """Labelled queries, and their pairs with the rows in each catalog."""

    queries: tuple[LabelledQuery, ...]
    pair_query: Rows
    """For each pair, the position of its query."""
    pair_kind: npt.NDArray[np.str_]
    grades: npt.NDArray[np.float64]
    rows: tuple[Rows, ...]
    """For each catalog, the rows of the pairs; -1 for an asset whose vector is missing (a dead letter)."""
    own_rows: tuple[Rows, ...]
    """For each catalog, the rows of the queries that are assets; -1 for other queries."""
    dropped: int
    """The number of dropped pairs."""

    def directions(self) -> Iterator[Direction]:
        """Yields each query kind with each kind that has a relevant asset."""
        kinds = np.array([query.kind for query in self.queries])[self.pair_query]
        right = self.grades > 0
        for query_kind in KINDS:
            for kind in KINDS:
                if (right & (kinds == query_kind) & (self.pair_kind == kind)).any():
                    yield Direction(query_kind, kind)

    def wanted(self, number: int, direction: Direction, catalog: Catalog) -> tuple[Rows, Wanted]:
        """Returns the positions of the queries of one direction, and their relevant rows.

        Args:
            number: The position of the catalog.
            direction: The direction. If it covers all kinds, their rows are numbered consecutively.
            catalog: The catalog at this position.
        """
        query_kind, kind = direction
        rows = self.rows[number]
        if kind is None:
            starts = row_offsets(catalog)
            rows = np.where(rows >= 0, rows + np.array([starts.get(str(one), 0) for one in self.pair_kind]), -1)
        chosen = np.array([query.kind == query_kind for query in self.queries])[self.pair_query]
        if kind is not None:
            chosen &= self.pair_kind == kind
        # A query with only grades of 0 in this direction measures nothing.
        positions = np.unique(self.pair_query[chosen & (self.grades > 0)])
        chosen &= np.isin(self.pair_query, positions)
        query = np.searchsorted(positions, self.pair_query[chosen])
        return positions, Wanted(queries=len(positions), query=query, rows=rows[chosen], grades=self.grades[chosen])


def place_labels(
    queries: Sequence[LabelledQuery], catalogs: Sequence[NamedCatalog], *, drop_unknown: bool = False
) -> PlacedLabels:
    """Finds the labelled assets in all catalogs.

    Args:
        queries: The queries from `read_labels`.
        catalogs: The evaluated catalogs.
        drop_unknown: Drop pairs that are not in every catalog instead of refusing the file.

    Raises:
        ConfigError: When an id is unknown, when an id belongs to two kinds and the file does not name one, or when no
            pairs are left.
    """
    pairs = [(number, label) for number, query in enumerate(queries) for label in query.relevant]
    labels = [label for _, label in pairs]
    asked = [(query.asset_id, query.kind) for query in queries]
    ids = list(dict.fromkeys([*(label.asset_id for label in labels), *(name for name, _ in asked if name is not None)]))
    known = [_find(url, catalog, ids) for url, catalog in catalogs]
    kinds = [_kind_of(label, known) for label in labels]
    _refuse_duplicates(pairs, kinds)
    rows = [
        np.array([_row(found, kind, label.asset_id) for kind, label in zip(kinds, labels, strict=True)])
        for found in known
    ]
    own = [
        np.array([-1 if name is None else found[kind].get(name, _UNKNOWN) for name, kind in asked]) for found in known
    ]
    is_bad = np.any([part == _UNKNOWN for part in rows], axis=0)
    is_bad_query = np.any([(part < 0) & np.array([name is not None for name, _ in asked]) for part in own], axis=0)
    if not drop_unknown:
        _refuse_unknown(queries, labels, catalogs, rows, own)
    keep = ~is_bad & ~is_bad_query[[number for number, _ in pairs]]
    query = np.array([number for number, _ in pairs])
    grades = np.array([label.grade for label in labels])
    left = np.unique(query[keep & (grades > 0)])
    keep &= np.isin(query, left)
    if not len(left):
        raise ConfigError("--pairs: no labelled pair has its query and its asset in every catalog.")
    return PlacedLabels(
        queries=tuple(queries[number] for number in left.tolist()),
        pair_query=np.searchsorted(left, query[keep]),
        pair_kind=np.array([str(kind) for kind in kinds])[keep],
        grades=grades[keep],
        rows=tuple(part[keep] for part in rows),
        own_rows=tuple(part[left] for part in own),
        dropped=int((~keep).sum()),
    )


_Found = Mapping[str, Mapping[str, int]]
"""The row, or _DEAD, by kind and id."""


def _find(url: str, catalog: Catalog, ids: Sequence[str]) -> _Found:
    found: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
    store, manifest = Store(url), catalog.manifest
    for entry in manifest.files:
        if entry.name.startswith("dead_letters/"):
            name = f"{version_folder(manifest.version)}/{entry.name}"
            try:
                with store.open_read(name) as file:
                    for table in iterate_letters(file):
                        asked = pc.is_in(table.column("asset_id"), pa.array(ids, pa.string()))
                        for letter in table.filter(asked).to_pylist():
                            found[letter["kind"]][letter["asset_id"]] = _DEAD
            except pa.ArrowInvalid as error:
                raise CatalogError(f"{store.url}/{name}: the dead letters cannot be read: {error}.") from error
    for kind in catalog.kinds:
        column = catalog.assets(kind).column("asset_id")  # type: ignore[arg-type]
        rows = pc.index_in(pa.array(ids, pa.string()), value_set=column).to_pylist()
        found[kind] |= {name: row for name, row in zip(ids, rows, strict=True) if row is not None}
    return found


def _kind_of(label: Relevant, known: Sequence[_Found]) -> str | None:
    """The kind of a labelled asset; None when no catalog has it."""
    if label.kind is not None:
        return label.kind
    kinds = [kind for kind in KINDS if any(label.asset_id in found[kind] for found in known)]
    if len(kinds) > 1:
        raise ConfigError(
            f"--pairs, {label.place}: relevant {label.asset_id!r} is the id of an image and of a text. "
            "Add a column `relevant_kind`."
        )
    return kinds[0] if kinds else None


def _refuse_duplicates(pairs: Sequence[tuple[int, Relevant]], kinds: Sequence[str | None]) -> None:
    """Refuses pairs that occur twice, for example once with and once without the kind."""
    first: dict[tuple[int, str, str | None], Relevant] = {}
    for (number, label), kind in zip(pairs, kinds, strict=True):
        earlier = first.setdefault((number, label.asset_id, kind), label)
        if earlier is not label:
            raise ConfigError(
                f"--pairs, {label.place}: relevant {label.asset_id!r} is a duplicate of {earlier.place} for the same "
                "query. Remove one of them."
            )


def _row(found: _Found, kind: str | None, asset_id: str) -> int:
    return _UNKNOWN if kind is None else found[kind].get(asset_id, _UNKNOWN)


def _refuse_unknown(
    queries: Sequence[LabelledQuery],
    labels: Sequence[Relevant],
    catalogs: Sequence[NamedCatalog],
    rows: Sequence[Rows],
    own: Sequence[Rows],
) -> None:
    for (url, _), of_pairs, of_queries in zip(catalogs, rows, own, strict=True):
        unknown = [labels[i] for i in np.flatnonzero(of_pairs == _UNKNOWN).tolist()]
        if unknown:
            shown = ", ".join(f"{label.asset_id!r} ({label.place})" for label in unknown[:_SHOWN])
            more = "" if len(unknown) <= _SHOWN else f" and {len(unknown) - _SHOWN} more"
            raise ConfigError(
                f"--pairs: {url} has neither a vector nor a dead letter of relevant {shown}{more}. "
                "Correct the ids, or use --drop-unknown to drop such pairs."
            )
        for query, row in zip(queries, of_queries.tolist(), strict=True):
            if query.asset_id is not None and row < 0:
                why = "is a dead letter in" if row == _DEAD else "does not exist in"
                raise ConfigError(
                    f"--pairs, {query.place}: query_id: the {query.kind} {query.asset_id!r} {why} {url}. "
                    "Use an asset with a vector, or use --drop-unknown to drop such pairs."
                )
