"""Queries that wait are searched together, each gets its own hits, and some are left for while others are answered."""

import asyncio
import contextlib
from pathlib import Path

from epithre_beam.index import open_catalog
from epithre_beam.pipelines.serve.batches import Asked, Batches
from epithre_beam.pipelines.serve.metrics import Metrics

from ...index.conftest import make, unit_vectors

_DIMENSION = 16
_QUERIES = 32


def test_half_of_those_that_wait_are_searched_in_a_call(tmp_path: Path) -> None:
    vectors = unit_vectors(60, _DIMENSION, 1)
    make(tmp_path / "c", {"text": vectors})
    metrics = Metrics()
    with open_catalog(tmp_path / "c") as catalog, contextlib.closing(Batches(metrics)) as batches:
        asked = Asked(
            version=catalog.version, k=3, kinds=None, where_json=None, merge="score", query_kind=None, recall=None
        )

        async def ask_at_once() -> None:
            queries = unit_vectors(_QUERIES, _DIMENSION, 2)
            found = await asyncio.gather(*(batches.search(catalog, asked, None, query) for query in queries))
            alone = catalog.search(queries, 3)
            assert [[hit.row for hit in hits] for hits in found] == [[hit.row for hit in hits] for hits in alone]

        asyncio.run(ask_at_once())
    told = dict(line.rsplit(" ", 1) for line in metrics.exposition().decode().splitlines() if line[:1] != "#")
    name = "epithre_beam_batch_queries"
    assert float(told[f"{name}_sum"]) == _QUERIES
    # Those that came first did not wait for others; the rest went by halves.
    assert float(told[f'{name}_bucket{{le="16.0"}}']) == float(told[f"{name}_count"])
    assert 4 <= float(told[f"{name}_count"]) < _QUERIES
