"""Products and everything that is made of them have the same bits for any number of threads."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from epithre_beam.configs import IndexConfig
from epithre_beam.index.ann.products import one_thread, product


def threads_of_numpy() -> int:
    return next(library["num_threads"] for library in threadpool_info() if "numpy" in library["filepath"])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 7, 3), (255, 64, 64), (2048, 1000, 130), (700, 513, 257)])
def test_a_product_has_the_same_bits_for_any_number_of_threads(shape: tuple[int, int, int], kind: Any) -> None:
    rows, inner, columns = shape
    rng = np.random.default_rng(rows)
    left, right = rng.standard_normal((rows, inner)).astype(kind), rng.standard_normal((columns, inner)).astype(kind).T
    found = []
    for threads in (1, 2, 3, 8):
        with threadpool_limits(threads, "blas"):
            found.append(product(left, right))
    assert np.allclose(found[0], left @ right, atol=1e-3)
    assert found[0].dtype == kind
    assert {part.tobytes() for part in found} == {found[0].tobytes()}


def test_a_product_of_nothing_has_no_rows() -> None:
    assert product(np.empty((0, 5), np.float32), np.ones((5, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("routed", [None, 1024], ids=["one cell", "cells"])
def test_codes_have_the_same_bits_for_any_number_of_threads(
    routed: int | None, make_catalog: Any, draw_clustered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if routed:
        monkeypatch.setattr("epithre_beam.index.ann.codes._ROUTED_ROWS", routed)
    vectors = {"image": draw_clustered(4000, 200, 1), "text": draw_clustered(2000, 200, 2)}
    index = IndexConfig(training_rows=1000, recall_queries=30, exact_up_to_mb=0, dimensions=(96, 128))
    written = []
    for threads in (1, 2, 5):
        with threadpool_limits(threads):
            catalog = make_catalog(vectors, rows_per_unit=2000, rows_per_file=9000, index=index)
        paths = sorted(Path(catalog.store.local_path("versions")).rglob("*.codes.faiss"))
        written.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths})
    assert len(written[0]) == 2
    assert written[0] == written[1] == written[2]


def test_the_limit_ends_with_the_last_that_needs_it() -> None:
    with threadpool_limits(3, "blas"):
        with one_thread() as outer:
            began, may_end = threading.Event(), threading.Event()

            def compute() -> None:
                with one_thread():
                    began.set()
                    may_end.wait(60)

            other = threading.Thread(target=compute)
            other.start()
            assert began.wait(60)
        assert threads_of_numpy() == 1  # the other thread is still inside
        may_end.set()
        other.join()
        assert threads_of_numpy() == 3
    assert outer == 3
