"""usearch with default settings: an HNSW index for each kind, in the scalar type that it chooses for the machine."""

from typing import Any

import numpy as np
from contest import KINDS, THREADS, Contender, main, read_rows
from processes import size_of
from usearch.index import Index


class Usearch(Contender):
    """usearch with one file for each kind, loaded into memory."""

    settings = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

    def build(self) -> dict[str, Any]:
        index: Any = None
        for kind in KINDS:
            index, row = None, 0
            for vectors in read_rows(self.data, kind):
                index = index if index is not None else Index(ndim=vectors.shape[1], metric="ip")
                index.add(np.arange(row, row + len(vectors)), vectors, threads=THREADS)
                row += len(vectors)
            index.save(str(self.work / f"{kind}.usearch"))
        return {"disk_mb": size_of(self.work), "chosen": str(index.dtype)}

    def open(self) -> dict[str, Any]:
        self.threads = 1
        self.indexes = {kind: Index.restore(str(self.work / f"{kind}.usearch")) for kind in KINDS}
        return {}

    def set(self, setting: Any) -> None:
        for index in self.indexes.values():
            index.expansion_search = setting

    def use_threads(self, count: int) -> None:
        self.threads = count

    def search(self, kind: str, queries: np.ndarray, k: int) -> np.ndarray:
        keys = self.indexes[kind].search(queries, k, threads=self.threads).keys
        return np.asarray(keys, np.int64).reshape(len(queries), -1)


if __name__ == "__main__":
    main({"usearch": Usearch})
