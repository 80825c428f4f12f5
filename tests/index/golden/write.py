"""Writes the catalog `v2` that `tests/index/test_golden.py` opens: run once for each format, then kept as it is.

    python -m tests.index.golden.write FOLDER

`v1` was written so by the release before codes, whose manifests have one `file` an index.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import orjson

from epithre_beam.configs import IndexConfig
from tests.index.conftest import clustered_vectors, make

DIMENSION = 24


def write(folder: Path) -> None:
    """A catalog with pictures in two files with codes and texts that are scanned; and what searches of it give."""
    vectors = {"image": clustered_vectors(2100, DIMENSION, 1), "text": clustered_vectors(40, DIMENSION, 2)}
    index = IndexConfig(
        exact_up_to_mb=0, training_rows=256, recall_queries=40, rows_per_index=1100, dimensions=(16, DIMENSION)
    )
    made = make(folder, vectors, rows_per_unit=50, rows_per_file=1050, index=index)
    queries = np.concatenate([clustered_vectors(2500, DIMENSION, seed)[-6:] for seed in (1, 2)])
    answers = []
    with made.open() as catalog:
        for kind in ("image", "text"):
            for k in (1, 10, 20):
                found = catalog.search(queries, k, kinds=kind)
                answers.append(
                    {"kind": kind, "k": k, "hits": [[(h.asset_id, h.score) for h in hits] for hits in found]}
                )
    for name in ("units", "runs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / ".LATEST.json.lock").unlink(missing_ok=True)
    for path in (folder / "versions" / made.manifest.version / "vectors").iterdir():
        path.unlink()  # opening needs none, and they are half of the bytes
    np.save(folder / "queries.npy", queries)
    (folder / "answers.json").write_bytes(orjson.dumps(answers))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
