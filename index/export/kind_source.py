"""The source of an export: the assets and vectors of one kind of a version, in the order of their rows.

Everything comes from the index files, which hold the fp16 vectors that scores are computed from. Nothing is
memory-mapped, and no step holds more than a batch of assets and a block of vectors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...configs.errors import StoreError
from ..ann.exact import StoredRows
from ..vectors.assets_file import iterate_assets
from ..versions.layout import assets_schema
from ..versions.manifest import IndexEntry

_BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class KindSource:
    """The open files of a kind; each is read once, from start to end."""

    entry: IndexEntry
    dimension: int
    types: Mapping[str, str]
    """The metadata columns."""
    assets: IO[bytes]
    vectors: Sequence[IO[bytes]]
    codes: Sequence[IO[bytes] | None]
    advance: Callable[[int], None] = lambda _: None
    """Called with the number of bytes read since the last call."""

    @property
    def kind(self) -> str:
        return self.entry.kind

    def schema(self) -> pa.Schema:
        """The columns of the assets."""
        return assets_schema(self.types)

    def tables(self) -> Iterator[pa.Table]:
        """Reads the assets, a few thousand rows at a time."""
        for batch in iterate_assets(self.assets, self.entry.assets, self.types, self.entry.rows):
            table = pa.Table.from_batches([batch])
            self.advance(table.nbytes)
            yield table

    def encoded(self, file: IO[bytes]) -> Iterator[bytes]:
        """Reads the rest of a file of the source, in blocks."""
        while block := file.read(_BLOCK_BYTES):
            self.advance(len(block))
            yield block

    def rows(self) -> "Rows":
        return Rows(self)


class Rows:
    """Reads the rows of a kind with their vectors, in sequence."""

    def __init__(self, source: KindSource) -> None:
        self._source = source
        self._tables = source.tables()
        self._held: pa.Table | None = None
        for file in source.vectors:
            file.seek(0)
        self._codes = StoredRows(source.vectors, source.dimension)

    def take(self, count: int) -> tuple[pa.Table, npt.NDArray[np.float16]]:
        """Returns the next rows, at most `count` and at least one: assets and vectors (float16, (rows, dimension)).

        Raises:
            StoreError: When the numbers of assets and vectors differ, or no rows are left.
        """
        if self._held is None or not len(self._held):
            self._held = next(self._tables, None)
        if self._held is None:
            raise StoreError(f"The {self._source.kind} assets end before their last row.")
        table = self._held.slice(0, count)
        self._held = self._held.slice(len(table))
        return table, self._vectors(len(table))

    def _vectors(self, count: int) -> npt.NDArray[np.float16]:
        data = self._codes.read(count)
        if len(data) != count * 2 * self._source.dimension:
            raise StoreError(f"The {self._source.kind} vectors end before their last row.")
        self._source.advance(len(data))
        return np.frombuffer(data, "<f2").reshape(count, self._source.dimension)
