"""Texts and metadata of references, in a file on the local disk.

A database that sorts long texts keeps most of them in memory. Therefore it sorts row numbers, by which the texts are
fetched from this file.
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_BATCH_BYTES = 1 << 16
"""Size of a batch, the unit of reading."""
_HELD_BYTES = 64 << 20
"""Of batches in memory. Each added table is stored in the order of reading, so one batch per table is enough."""


class Payloads:
    """Columns that are added table by table and then read in another order. Call `close` at the end.

    Reading in the order of kind, size, fingerprint and id reads each batch once. Any other order reads up to one batch
    per row. Memory use is constant in both cases.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        """Creates the file.

        Args:
            path: Path of a new file.
            schema: Schema of the columns that are kept.
        """
        self._path = path
        self._schema = schema
        self._writer: pa.RecordBatchFileWriter | None = pa.ipc.new_file(path, schema)
        self._reader: pa.RecordBatchFileReader | None = None
        self._file: pa.NativeFile | None = None
        self._sizes: list[int] = []
        self._starts: npt.NDArray[np.int64] = np.zeros(1, np.int64)
        self._rows = 0
        self._held: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._held_bytes = 0

    def add(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Add rows. Rows cannot be added after the first call of `take`.

        Args:
            table: At least the kept columns, `kind`, `size_bytes`, `fingerprint` and `asset_id`.

        Returns:
            int64, (rows,): the number of each row.
        """
        if self._writer is None:
            raise RuntimeError("rows cannot be added after take()")
        keys = [(name, "ascending") for name in ("kind", "size_bytes", "fingerprint", "asset_id")]
        order = pc.sort_indices(table, keys)
        kept = table.select(self._schema.names).cast(self._schema).take(order).combine_chunks()
        size = max(1, len(kept) * _BATCH_BYTES // max(1, kept.nbytes))
        for batch in kept.to_batches(max_chunksize=size):
            self._writer.write_batch(batch)
            self._sizes.append(len(batch))
        numbers: npt.NDArray[np.int64] = np.empty(len(kept), np.int64)
        numbers[order.to_numpy()] = np.arange(self._rows, self._rows + len(kept))
        self._rows += len(kept)
        return numbers

    def take(self, numbers: npt.NDArray[np.int64]) -> pa.Table:
        """Return the rows with these numbers, in the given order."""
        self._open()
        batches = np.searchsorted(self._starts, numbers, side="right") - 1
        order = np.argsort(batches, kind="stable")
        firsts = np.flatnonzero(np.diff(batches[order], prepend=-1))
        parts = [
            self._batch(int(batches[part[0]])).take(pa.array(numbers[part] - self._starts[batches[part[0]]]))
            for part in np.split(order, firsts[1:])
            if len(part)
        ]
        back: npt.NDArray[np.int64] = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.Table.from_batches(parts, self._schema).combine_chunks().take(pa.array(back))

    def close(self) -> None:
        self._held.clear()
        for opened in (self._writer, self._file):
            if opened is not None:
                opened.close()
        self._writer = self._reader = self._file = None

    def _open(self) -> None:
        if self._reader is not None:
            return
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._sizes, dtype=np.int64)])
        self._file = pa.OSFile(str(self._path), "rb")
        self._reader = pa.ipc.open_file(self._file)

    def _batch(self, number: int) -> pa.RecordBatch:
        found = self._held.get(number)
        if found is None:
            assert self._reader is not None
            found = self._reader.get_batch(number)
            self._held[number] = found
            self._held_bytes += found.nbytes
            while self._held_bytes > _HELD_BYTES and len(self._held) > 1:  # a batch of one row may be large
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        else:
            self._held.move_to_end(number)
        return found
