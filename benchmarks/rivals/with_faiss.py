"""Stock FAISS indexes and the indexes that autofaiss chooses: one for each kind, and one over both kinds."""

import json
import os
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from contest import KINDS, Contender, count_rows, main, read_rows
from processes import size_of

_POWERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Stock(Contender):
    """A FAISS index with one file for each kind."""

    knob = ""

    def build(self) -> dict[str, Any]:
        for kind in KINDS:
            faiss.write_index(self.make(kind), str(self.work / f"{kind}.index"))
        return {"disk_mb": size_of(self.work)}

    def make(self, kind: str) -> Any:
        raise NotImplementedError

    def open(self) -> dict[str, Any]:
        self.indexes = {kind: faiss.read_index(str(self.work / f"{kind}.index")) for kind in KINDS}
        return {}

    def set(self, setting: Any) -> None:
        for index in self.indexes.values():
            faiss.ParameterSpace().set_index_parameter(index, self.knob, setting)

    def use_threads(self, count: int) -> None:
        faiss.omp_set_num_threads(count)

    def search(self, kind: str, queries: np.ndarray, k: int) -> np.ndarray:
        return self.indexes[kind].search(queries, k)[1]


class Hnsw(Stock):
    """IndexHNSWFlat with 32 links, float32, default efConstruction."""

    knob = "efSearch"
    settings = _POWERS[4:]

    def make(self, kind: str) -> Any:
        index: Any = None
        for vectors in read_rows(self.data, kind):
            index = index or faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
            index.add(vectors)
        return index


class IvfSq8(Stock):
    """IVF with 4 · √rows cells, spherical, and 8 bits for each dimension; trained on the first 64 · cells rows."""

    knob = "nprobe"
    settings = _POWERS

    def make(self, kind: str) -> Any:
        cells = int(4 * np.sqrt(count_rows(self.data, kind)))
        sample: list[np.ndarray] = []
        index: Any = None
        for vectors in read_rows(self.data, kind):
            sample.append(vectors)
            if sum(map(len, sample)) >= 64 * cells:
                break
        training = np.concatenate(sample)[: 64 * cells]
        index = faiss.index_factory(training.shape[1], f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
        index.cp.spherical = True
        index.train(training)
        del sample, training
        for vectors in read_rows(self.data, kind):
            index.add(vectors)
        return index


class Autofaiss(Stock):
    """The index of autofaiss with default options; only the metric is set."""

    options: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def build(self) -> dict[str, Any]:
        chosen = {kind: self.choose(kind, self.folder_of(f"{kind}-*.parquet", kind)) for kind in KINDS}
        return {"chosen": chosen, "disk_mb": sum(p.stat().st_size for p in self.work.glob("*.index")) / 1e6}

    def choose(self, name: str, folder: Path) -> dict[str, str]:
        from autofaiss import build_index

        _, reported = build_index(
            str(folder),
            index_path=str(self.work / f"{name}.index"),
            index_infos_path=str(self.work / f"{name}.json"),
            file_format="parquet",
            embedding_column_name="embedding",
            metric_type="ip",
            verbose=40,
            **self.options,
        )
        return {name: str(reported[name]) for name in ("index_key", "index_param")}

    def folder_of(self, pattern: str, name: str) -> Path:
        """Make a folder with only these files of the data, as autofaiss requires."""
        folder = self.work / f"rows-{name}"
        folder.mkdir()
        for path in sorted(self.data.glob(pattern)):
            os.link(path, folder / path.name)
        return folder

    def open(self) -> dict[str, Any]:
        super().open()
        for kind, index in self.indexes.items():
            self.deliver(kind, index)
        self.read_knob(next(iter(self.indexes.values())))
        return {}

    def deliver(self, name: str, index: Any) -> None:
        """Apply the parameters of autofaiss, tuned for 10 ms for each query."""
        reported = json.loads((self.work / f"{name}.json").read_text())
        faiss.ParameterSpace().set_index_parameters(index, reported["index_param"])

    def read_knob(self, index: Any) -> None:
        """Find the search parameter of the chosen index. Its delivered value stays until `set`."""
        inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
        graph = isinstance(inner, faiss.IndexHNSW)
        self.knob = "efSearch" if graph else "nprobe"
        self.settings = _POWERS[4:] if graph else tuple(n for n in _POWERS if n <= inner.nlist)


class AutofaissBudget(Autofaiss):
    """The index of autofaiss with a memory limit of 1/50 of the float32 vectors."""

    def build(self) -> dict[str, Any]:
        rows = min(count_rows(self.data, kind) for kind in KINDS)
        width = next(read_rows(self.data, KINDS[0])).shape[1]
        budget_mb = max(rows * width * 4 // 50 // 1_000_000, 1)
        self.options = {"max_index_memory_usage": f"{budget_mb}MB"}
        return {**super().build(), "budget_mb": budget_mb}


class AutofaissJoint(Autofaiss):
    """One index of autofaiss over both kinds; hits of the other kind are dropped."""

    hits = 1000
    settings = ()
    """No values: the missing hits cannot be found with another parameter."""

    def build(self) -> dict[str, Any]:
        chosen = self.choose("both", self.folder_of("*.parquet", "both"))
        return {"chosen": chosen, "disk_mb": (self.work / "both.index").stat().st_size / 1e6}

    def open(self) -> dict[str, Any]:
        self.index = faiss.read_index(str(self.work / "both.index"))
        self.deliver("both", self.index)
        self.rows = {kind: count_rows(self.data, kind) for kind in KINDS}
        return {}

    def search(self, kind: str, queries: np.ndarray, k: int) -> np.ndarray:
        first = 0 if kind == KINDS[0] else self.rows[KINDS[0]]
        found = self.index.search(queries, min(self.hits, self.index.ntotal))[1]
        answer = np.full((len(queries), k), -1, np.int64)
        for q, rows in enumerate(found):
            mine = rows[(rows >= first) & (rows < first + self.rows[kind])][:k] - first
            answer[q, : len(mine)] = mine
        return answer


if __name__ == "__main__":
    main(
        {
            "hnsw32": Hnsw,
            "ivf-sq8": IvfSq8,
            "autofaiss": Autofaiss,
            "autofaiss-budget": AutofaissBudget,
            "autofaiss-joint": AutofaissJoint,
        }
    )
