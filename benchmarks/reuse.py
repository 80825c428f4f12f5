"""How fast unchanged rows go from one version's file to the next: the figures of decision 009.

    python benchmarks/reuse.py [--groups 48] [--folder DIR]

One file of 4000 dimensions, 2 % of each row group dropped; MB/s of vectors, each line by itself.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from figures import Recording, Table, add_results_option

from epithre_beam.index import Store
from epithre_beam.index.vectors.shards import ROWS_PER_GROUP, write_tables
from epithre_beam.index.vectors.units import open_vectors
from epithre_beam.index.versions.layout import asset_fields, vector_schema

_DIMENSION = 4000


def tables(groups: int) -> Iterator[pa.Table]:
    rng = np.random.default_rng(0)
    for group in range(groups):
        columns = {field.name: pa.nulls(ROWS_PER_GROUP, field.type) for field in asset_fields()}
        columns["asset_id"] = pa.array([f"{group}-{i}" for i in range(ROWS_PER_GROUP)])
        for name, value in (("kind", "text"), ("content_sha256", "a" * 64), ("fingerprint", "f" * 71)):
            columns[name] = pa.array([value] * ROWS_PER_GROUP)
        vectors = rng.standard_normal((ROWS_PER_GROUP, _DIMENSION), dtype=np.float32)
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), _DIMENSION)
        yield pa.table(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=48)
    parser.add_argument("--folder", type=Path)
    add_results_option(parser)
    options = parser.parse_args()
    recording = Recording.start("reuse", options)
    schema = vector_schema(_DIMENSION, {})
    kept = pa.array(np.flatnonzero(np.random.default_rng(1).random(ROWS_PER_GROUP) > 0.02))
    size_mb = options.groups * len(kept) * _DIMENSION * 4 / 1e6

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        store = Store(name)
        write_tables(store, "base.parquet", tables(options.groups), schema)

        def reused_groups() -> Iterator[pa.Table]:
            with store.open_read("base.parquet") as handle:
                file = open_vectors(handle)
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, use_threads=False).take(kept)

        passes = []
        for attempt in range(4):
            started = time.monotonic()
            rows = sum(map(len, reused_groups()))
            read = time.monotonic()
            entry = write_tables(store, f"{attempt}.parquet", reused_groups(), schema)
            written = time.monotonic()
            assert entry.rows == rows
            store.delete(f"{attempt}.parquet")
            passes.append((size_mb / (read - started), size_mb / (written - read)))
    columns = ("read and selected, MB/s", "read, selected and written, MB/s")
    recording.store(
        {
            "read_mb_s": statistics.median(read for read, _ in passes),
            "write_mb_s": statistics.median(written for _, written in passes),
        },
        {"Passes": Table(columns, [(f"{read:.0f}", f"{written:.0f}") for read, written in passes])},
    )


if __name__ == "__main__":
    main()
