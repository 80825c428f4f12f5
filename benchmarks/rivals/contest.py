"""The steps of every contender: build, find the cheapest setting that reaches the recall, and measure at this setting.

Each step runs in a separate process in the contender's environment, which also needs numpy and pyarrow.

    python FILE.py build|tune|measure --contender NAME --data FOLDER --asked FOLDER --work FOLDER [--setting N]
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from processes import read_memory

KINDS = ("image", "text")
DIRECTIONS = tuple((source, target) for source in KINDS for target in KINDS)
K = 10
SINGLE = 500
THREADS = 2


class Contender:
    """A contender builds an index for each kind and searches it. `work` is its folder."""

    settings: Sequence[Any] = ()
    """Values of the parameter that trades speed for recall, the cheapest first; empty if there is no such parameter."""

    def __init__(self, data: Path, work: Path) -> None:
        self.data = data
        self.work = work

    def build(self) -> dict[str, Any]:
        """Build and write the indexes. Return additional figures."""
        raise NotImplementedError

    def open(self) -> dict[str, Any]:
        """Prepare for searches. Return additional figures."""
        raise NotImplementedError

    def set(self, setting: Any) -> None:
        """Set the parameter."""

    def use_threads(self, count: int) -> None:
        """Set the number of threads for the next batches."""

    def search(self, kind: str, queries: np.ndarray, k: int) -> np.ndarray:
        """Return row numbers of the kind, (queries, k), best first; -1 if fewer rows were found."""
        raise NotImplementedError

    def read_memory(self) -> dict[str, float]:
        """Return the resident MB of the process that searches."""
        return read_memory([os.getpid()])

    def measure_more(self, asked: "Asked") -> dict[str, Any]:
        """Return figures that only this contender has."""
        return {}

    def close(self) -> None:
        """Stop what `build` or `open` started."""


class Asked:
    """The queries of each kind, and the exact neighbours of the first queries in each direction."""

    def __init__(self, folder: Path) -> None:
        self.queries = {kind: np.load(folder / f"{kind}.npy") for kind in KINDS}
        self.truth = {(s, t): np.load(folder / f"{s}-{t}.npy") for s, t in DIRECTIONS}

    def recall(self, contender: Contender) -> dict[str, float]:
        """Return the recall at 10 of each direction."""
        found = {}
        for (source, target), truth in self.truth.items():
            rows = contender.search(target, self.queries[source][: len(truth)], K)
            hits = sum(len(np.intersect1d(a, b)) for a, b in zip(rows, truth, strict=True))
            found[f"{source}->{target}"] = hits / truth.size
        return found


def seconds_of(started: float) -> float:
    return time.perf_counter() - started


def read_rows(data: Path, kind: str) -> Any:
    """Yield the vectors of a kind, about 8,000 rows at a time."""
    for path in sorted(data.glob(f"{kind}-*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(8192, columns=["embedding"], use_threads=False):
            column = batch.column(0)
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)


def count_rows(data: Path, kind: str) -> int:
    return sum(pq.read_metadata(path).num_rows for path in data.glob(f"{kind}-*.parquet"))


def tune(contender: Contender, asked: Asked, target: float) -> dict[str, Any]:
    contender.open()
    contender.use_threads(THREADS)
    tried = []
    for setting in contender.settings:
        contender.set(setting)
        recall = asked.recall(contender)
        tried.append({"setting": setting, "recall": recall})
        if min(recall.values()) >= target:
            break
    return {"setting": tried[-1]["setting"] if tried else None, "tried": tried}


def measure(contender: Contender, asked: Asked, setting: Any) -> dict[str, Any]:
    before = contender.read_memory()
    started = time.perf_counter()
    opened = contender.open()
    figures = {"open_s": seconds_of(started), **opened}
    if setting is not None:
        contender.set(setting)
    contender.use_threads(1)
    singles = {direction: time_singles(contender, asked, *direction) for direction in DIRECTIONS}
    figures["single_ms"] = {f"{s}->{t}": found for (s, t), found in singles.items()}
    after = contender.read_memory()
    figures["resident_mb"] = {name: after[name] - before.get(name, 0) for name in after}
    figures["bare_process_mb"] = before
    figures |= contender.measure_more(asked)
    contender.use_threads(THREADS)
    figures["recall"] = asked.recall(contender)
    figures["batch_a_second"] = {f"{s}->{t}": time_batch(contender, asked, s, t) for s, t in DIRECTIONS}
    return figures


def time_singles(contender: Contender, asked: Asked, source: str, target: str) -> dict[str, float]:
    """Measure the milliseconds of single queries, after as many warm-up queries."""
    queries = asked.queries[source][:SINGLE]
    taken = np.empty((2, len(queries)))
    for turn in taken:
        for i in range(len(queries)):
            started = time.perf_counter()
            contender.search(target, queries[i : i + 1], K)
            turn[i] = seconds_of(started) * 1000
    return {"median": float(np.median(taken[1])), "p99": float(np.percentile(taken[1], 99))}


def time_batch(contender: Contender, asked: Asked, source: str, target: str) -> float:
    queries = asked.queries[source]
    contender.search(target, queries[:64], K)
    started = time.perf_counter()
    contender.search(target, queries, K)
    return len(queries) / seconds_of(started)


def main(contenders: dict[str, type[Contender]]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=("build", "tune", "measure"))
    parser.add_argument("--contender", choices=contenders, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--asked", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--setting", type=json.loads)
    parser.add_argument("--target", type=float, default=0.95)
    options = parser.parse_args()
    contender = contenders[options.contender](options.data, options.work)
    try:
        if options.step == "build":
            started = time.perf_counter()
            more = contender.build()
            figures = {"build_s": seconds_of(started), **more}
        elif options.step == "tune":
            figures = tune(contender, Asked(options.asked), options.target)
        else:
            figures = measure(contender, Asked(options.asked), options.setting)
    finally:
        contender.close()
    print(json.dumps(figures))
