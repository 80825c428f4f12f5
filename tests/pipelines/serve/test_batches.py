"""Waiting queries share search calls, each gets its own hits, and some stay queued for the next call."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from epithre_beam.index import open_catalog
from epithre_beam.pipelines.serve.batches import Asked, Batches
from epithre_beam.pipelines.serve.metrics import Metrics

from ...index.conftest import make, unit_vectors

_DIMENSION = 16


@pytest.mark.parametrize(("queries", "most"), [(8, 4), (64, 8)])
def test_a_call_takes_half_of_the_waiting_queries(tmp_path: Path, queries: int, most: int) -> None:
    vectors = unit_vectors(60, _DIMENSION, 1)
    make(tmp_path / "c", {"text": vectors})
    metrics = Metrics()
    with open_catalog(tmp_path / "c") as catalog, contextlib.closing(Batches(metrics)) as batches:
        asked = Asked(
            version=catalog.version, k=3, kinds=None, where_json=None, merge="score", query_kind=None, recall=None
        )

        async def ask_at_once() -> None:
            asking = unit_vectors(queries, _DIMENSION, 2)
            found = await asyncio.gather(*(batches.search(catalog, asked, None, query) for query in asking))
            alone = catalog.search(asking, 3)
            assert [[hit.row for hit in hits] for hits in found] == [[hit.row for hit in hits] for hits in alone]

        asyncio.run(ask_at_once())
    reported = dict(line.rsplit(" ", 1) for line in metrics.exposition().decode().splitlines() if line[:1] != "#")
    name = "epithre_beam_batch_queries"
    assert float(reported[f"{name}_sum"]) == queries
    # The first queries did not wait for others.
    assert float(reported[f'{name}_bucket{{le="{most}.0"}}']) == float(reported[f"{name}_count"])
    assert 4 <= float(reported[f"{name}_count"]) < queries
