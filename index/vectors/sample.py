"""Rows drawn by the hashes of their ids, kept aside while a version's files are written.

Who trains or measures needs rows from everywhere in the catalog. Once these are in Parquet, a few rows of every row
group cost as much reading as all of them, so they are kept aside when they pass anyway. The draw depends on ids only:
the same assets are drawn whatever the history of the catalog, in which rows change their places.
"""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ...configs.errors import StoreError
from ..storage.store import Store
from .units import vectors_of

_SPARE = 1.25
"""More rows are kept aside than wanted, for the hashes of ids are spread by chance."""
_SPARE_ROWS = 64
_ROWS_PER_GROUP = 256
_HASHES = 1 << 64


@dataclass(frozen=True, kw_only=True)
class SampleRule:
    """Which rows of a kind are kept aside: those whose hash is below `share` of all hashes."""

    seed: int = 0
    share: float = 1.0

    @classmethod
    def for_rows(cls, rows: int, wanted: int, seed: int) -> "SampleRule":
        """A rule that, of `rows`, keeps `wanted` or a few more, all but certainly."""
        return cls(seed=seed, share=min(1.0, (_SPARE * wanted + _SPARE_ROWS) / max(rows, 1)))


def asset_hashes(asset_ids: Iterable[str], seed: int) -> npt.NDArray[np.uint64]:
    """A number for each id, as good as random: uint64, (ids,)."""
    prefix = hashlib.blake2b(f"{seed}\0".encode(), digest_size=8)
    digests = bytearray()
    for asset_id in asset_ids:
        drawn = prefix.copy()
        drawn.update(asset_id.encode())
        digests += drawn.digest()
    return np.frombuffer(bytes(digests), "<u8")


@contextlib.contextmanager
def keep_sample(
    store: Store, name: str, tables: Iterable[pa.Table], vectors: pa.Field, rule: SampleRule
) -> Iterator[Iterator[pa.Table]]:
    """Gives the same tables, and keeps rows of them aside as they pass; memory is that of a few hundred rows.

    Args:
        store: The catalog.
        name: Of the file to keep them in, which is there after the block.
        tables: Rows of a version's file, in its order.
        vectors: The column of vectors.
        rule: Which rows.
    """
    schema = pa.schema([pa.field("hash", pa.uint64()), pa.field("row", pa.int64()), vectors])

    def passing() -> Iterator[pa.Table]:
        held: list[pa.Table] = []
        row = 0
        for table in tables:
            hashes = asset_hashes(table.column("asset_id").to_pylist(), rule.seed)
            drawn = np.flatnonzero(hashes.astype(np.float64) < rule.share * _HASHES)
            if len(drawn):
                kept = table.column("embedding").take(pa.array(drawn))
                held.append(pa.Table.from_arrays([pa.array(hashes[drawn]), pa.array(drawn + row), kept], schema=schema))
            row += len(table)
            if sum(map(len, held)) >= _ROWS_PER_GROUP:
                writer.write_table(pa.concat_tables(held))
                held = []
            yield table
        if held:
            writer.write_table(pa.concat_tables(held))

    with (
        store.open_write(name) as file,
        pq.ParquetWriter(
            pa.PythonFile(file, mode="w"),
            schema,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        yield passing()


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows of a kind, those of the lowest hashes first."""

    kind: str
    rows: npt.NDArray[np.int64]
    """Their positions among the rows of their kind."""
    vectors: npt.NDArray[np.float32]
    """float32, (rows, dimension)."""

    def without(self, first: int) -> "Sample":
        """The rows after the first ones."""
        return Sample(kind=self.kind, rows=self.rows[first:], vectors=self.vectors[first:])


def read_sample(store: Store, kind: str, files: Sequence[tuple[str, int]], count: int) -> Sample:
    """Up to `count` rows of a kind, those whose ids have the lowest hashes.

    Args:
        store: The catalog.
        kind: Of the rows.
        files: Of each file of vectors, in order: the sample kept of it, and its rows.
        count: How many.

    Raises:
        StoreError: When a sample cannot be read.
    """
    hashes, rows, places = [], [], []
    first = 0
    for number, (name, of_file) in enumerate(files):
        with _opened(store, name) as file:
            table = file.read(columns=["hash", "row"], use_threads=False)
        hashes.append(table.column("hash").to_numpy())
        rows.append(table.column("row").to_numpy() + first)
        places += [(number, i) for i in range(len(table))]
        first += of_file
    joined = np.concatenate(rows)
    lowest = np.lexsort((joined, np.concatenate(hashes)))[:count]
    wanted: dict[int, list[tuple[int, int]]] = {}
    for place, drawn in enumerate(lowest.tolist()):
        number, i = places[drawn]
        wanted.setdefault(number, []).append((i, place))
    vectors: npt.NDArray[np.float32] | None = None
    for number, drawn_here in wanted.items():
        inside, outside = np.array(sorted(drawn_here)).T
        begin = 0
        with _opened(store, files[number][0]) as file:
            for batch in file.iter_batches(_ROWS_PER_GROUP, columns=["embedding"], use_threads=False):
                here = (inside >= begin) & (inside < begin + len(batch))
                block = vectors_of(pa.Table.from_batches([batch]))
                if vectors is None:
                    vectors = np.empty((len(lowest), block.shape[1]), np.float32)
                vectors[outside[here]] = block[inside[here] - begin]
                begin += len(batch)
    if vectors is None:
        vectors = np.empty((0, 0), np.float32)
    return Sample(kind=kind, rows=joined[lowest].astype(np.int64), vectors=vectors)


@contextlib.contextmanager
def _opened(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    try:
        with store.open_read(name) as handle:
            yield pq.ParquetFile(handle, pre_buffer=False, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:  # Arrow raises the last for a page that is damaged
        raise StoreError(f"{store.url}/{name}, which this run wrote, cannot be read: {error}; run again.") from error
