"""Samples rows by the hashes of their ids while a version's files are written.

Training and measuring need rows from the whole catalog. In Parquet, reading a few rows of every row group costs as much
as reading all rows, so the sample is stored separately while the rows are written. The draw depends on ids only: the
same assets are drawn regardless of the history of the catalog, which changes the positions of rows.
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
"""More rows are sampled than wanted, because the hashes of ids are randomly distributed."""
_SPARE_ROWS = 64
_ROWS_PER_GROUP = 256
_HASHES = 1 << 64


@dataclass(frozen=True, kw_only=True)
class SampleRule:
    """The rule for the sample of a kind: rows whose hash is below `share` of the hash range."""

    seed: int = 0
    share: float = 1.0

    @classmethod
    def for_rows(cls, rows: int, wanted: int, seed: int) -> "SampleRule":
        """Returns a rule that almost certainly samples at least `wanted` of `rows`, and few more."""
        return cls(seed=seed, share=min(1.0, (_SPARE * wanted + _SPARE_ROWS) / max(rows, 1)))


def asset_hashes(asset_ids: Iterable[str], seed: int) -> npt.NDArray[np.uint64]:
    """Returns a pseudo-random number for each id: uint64, (ids,)."""
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
    """Passes the tables through and writes a sample of their rows; memory is a few hundred rows.

    Args:
        store: The catalog.
        name: The name of the sample file, which exists after the block.
        tables: The rows of a version's file, in order.
        vectors: The column of vectors.
        rule: The rule that selects the rows.
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
        store.open_write(name, is_temporary=True) as file,
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
    """Sampled rows of a kind, in ascending order of their hashes."""

    kind: str
    rows: npt.NDArray[np.int64]
    """Their positions among the rows of their kind."""
    vectors: npt.NDArray[np.float32]
    """float32, (rows, dimension)."""

    def without(self, first: int) -> "Sample":
        """Returns the sample without its first `first` rows."""
        return Sample(kind=self.kind, rows=self.rows[first:], vectors=self.vectors[first:])


def read_sample(store: Store, kind: str, files: Sequence[tuple[str, int]], count: int) -> Sample:
    """Reads up to `count` rows of a kind whose ids have the lowest hashes.

    Args:
        store: The catalog.
        kind: The kind of the rows.
        files: For each vector file, in order: the name of its sample file and its number of rows.
        count: The maximum number of rows.

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
    except (pa.ArrowException, OSError) as error:  # Arrow raises OSError for a damaged page
        raise StoreError(f"{store.url}/{name}: this run's sample cannot be read ({error}). Run again.") from error
