"""Recall and time of searches that a `where` narrows, and of long lists, against exact search.

    python benchmarks/clustered.py FOLDER --rows 100000 --spectrum B
    epithre-beam index CATALOG --from FOLDER
    python benchmarks/filters.py CATALOG FOLDER --spectrum B

One table: the worst of the four directions for each recall, the mean of them for each time. The
queries are fresh; a filter lets a random share of the assets through.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from clustered import KINDS, Clustered, asset_id, read_blocks, row_of
from figures import Recording, Table, add_results_option

from epithre_beam.index import open_catalog

_CASES = ((10, 1.0), (10, 0.5), (10, 0.05), (10, 0.005), (100, 1.0), (100, 0.05), (1000, 1.0), (10_000, 1.0))
_QUERIES = 100
_SINGLE = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--spectrum", default="A")
    parser.add_argument("--seed", type=int, default=0)
    add_results_option(parser)
    options = parser.parse_args()
    options.catalog = Path(options.catalog)
    recording = Recording.start("filters", options)
    data, lines = Clustered(options.spectrum, options.seed), []
    with open_catalog(options.catalog) as catalog:
        scores = {}
        for kind in KINDS:
            asked = np.concatenate([data.queries(source, _QUERIES) for source in KINDS])
            scores[kind] = np.concatenate([asked @ block.T for block in read_blocks(options.folder, kind)], axis=1)
        for k, share in _CASES:
            recalls, batch_s, single_s = [], [], []
            for kind in KINDS:
                numbers = np.array([row_of(name) for name in catalog.assets(kind).column("asset_id").to_pylist()])
                rows = scores[kind].shape[1]
                chosen = np.random.default_rng(1).permutation(rows)[: int(rows * share)]
                allowed = np.zeros(rows, bool)
                allowed[chosen] = True
                names = pa.array([asset_id(kind, row) for row in chosen.tolist()])
                where = None if share == 1 else pc.field("asset_id").isin(names)
                for number, source in enumerate(KINDS):
                    queries = data.queries(source, _QUERIES)
                    exact = np.where(allowed, scores[kind][number * _QUERIES : (number + 1) * _QUERIES], -np.inf)
                    best = np.argpartition(-exact, min(k, len(chosen)) - 1, axis=1)[:, : min(k, len(chosen))]
                    catalog.find_rows(queries[:1], k, kind=kind, where=where)
                    began = time.perf_counter()
                    _, found = catalog.find_rows(queries, k, kind=kind, where=where)
                    batch_s.append(time.perf_counter() - began)
                    began = time.perf_counter()
                    for query in queries[:_SINGLE]:
                        catalog.find_rows(query, k, kind=kind, where=where)
                    single_s.append((time.perf_counter() - began) / _SINGLE)
                    right = [
                        len(set(numbers[row[row >= 0]]) & set(exact)) for row, exact in zip(found, best, strict=True)
                    ]
                    recalls.append(sum(right) / best.size)
            speed = f"{_QUERIES * len(batch_s) / sum(batch_s):,.0f}"
            single_ms = f"{1000 * sum(single_s) / len(single_s):.2f}"
            lines.append((f"{k:,}", f"{share:.1%}", f"{min(recalls):.3f}", speed, single_ms))
    columns = ("k", "matching", "recall", "queries/s in a batch", "one query, ms")
    recording.store({}, {"Narrowed searches and long lists": Table(columns, lines)})


if __name__ == "__main__":
    main()
