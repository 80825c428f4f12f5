"""The exact index equals that of stock FAISS byte for byte, independent of the blocks of rows."""

import io
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.configs.errors import StoreError
from epithre_beam.index.ann.exact import FACTORY, ExactIndexWriter, check_format
from epithre_beam.index.storage.store import HashingWriter

Floats = npt.NDArray[np.float32]

DIMENSIONS = (1, 7, 8, 16, 63, 64, 4000)
COUNTS = (0, 1, 2, 37)


def drawn(rows: int, dimension: int) -> Floats:
    vectors = np.random.default_rng([rows, dimension]).standard_normal((rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def stock(vectors: Floats) -> bytes:
    """The bytes that FAISS writes for these vectors."""
    index = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return bytes(faiss.serialize_index(index).tobytes())


def ours(vectors: Floats, blocks: list[int]) -> bytes:
    """The bytes that we write when the rows arrive in blocks that end before these rows."""
    buffer = io.BytesIO()
    with HashingWriter(buffer) as file:
        writer = ExactIndexWriter(file, vectors.shape[1], len(vectors))
        for start, end in zip([0, *blocks], [*blocks, len(vectors)], strict=True):
            writer.add(vectors[start:end])
        writer.finish()
    return buffer.getvalue()


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("rows", [n for n in COUNTS if n])
def test_bytes_equal_those_of_faiss(rows: int, dimension: int) -> None:
    vectors = drawn(rows, dimension)
    assert ours(vectors, []) == stock(vectors)


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_empty_index_equals_that_of_faiss(dimension: int) -> None:
    index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    assert ours(np.empty((0, dimension), np.float32), []) == faiss.serialize_index(index).tobytes()


@settings(max_examples=60, deadline=None)
@given(dimension=st.integers(1, 40), rows=st.integers(1, 60), data=st.data())
def test_bytes_do_not_depend_on_blocks(dimension: int, rows: int, data: st.DataObject) -> None:
    """Includes empty blocks, single rows and odd sizes."""
    blocks = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    vectors = drawn(rows, dimension)
    assert ours(vectors, blocks) == stock(vectors)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(width=32, allow_nan=False, min_value=-70000, max_value=70000), min_size=8, max_size=8))
def test_values_are_rounded_like_in_faiss(values: list[float]) -> None:
    """Includes ties, subnormals and values too large for fp16."""
    vectors = np.array([values], np.float32)
    assert ours(vectors, []) == stock(vectors)


def test_fp16_ties_are_rounded_like_in_faiss() -> None:
    halves = np.arange(0x2C00, 0x3C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = ((halves[:-1] + halves[1:]) / 2)[: 4095 // 8 * 8].reshape(-1, 8)
    assert ours(ties, [3, 100]) == stock(ties)


@pytest.mark.parametrize("flags", [0, faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP_IFC], ids=["read", "mmap", "mmap_ifc"])
@pytest.mark.parametrize(("rows", "dimension"), [(500, 32), (40, 4000)])
def test_stock_faiss_finds_the_same_rows_as_numpy(tmp_path: Path, flags: int, rows: int, dimension: int) -> None:
    vectors = drawn(rows, dimension)
    path = tmp_path / "i.faiss"
    path.write_bytes(ours(vectors, [rows // 3]))
    index = faiss.read_index(str(path), flags)
    assert (index.ntotal, index.d, index.metric_type) == (rows, dimension, faiss.METRIC_INNER_PRODUCT)
    queries = drawn(20, dimension)
    scores, found = index.search(queries, 10)
    truth = queries @ vectors.T
    np.testing.assert_allclose(scores, np.take_along_axis(truth, found, 1), atol=3e-4)
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :10], atol=3e-4)


@pytest.mark.parametrize("flags", [0, faiss.IO_FLAG_MMAP_IFC])
def test_empty_index_opens_and_finds_nothing(tmp_path: Path, flags: int) -> None:
    path = tmp_path / "i.faiss"
    path.write_bytes(ours(np.empty((0, 8), np.float32), []))
    index = faiss.read_index(str(path), flags)
    assert index.ntotal == 0
    assert (index.search(drawn(2, 8), 3)[1] == -1).all()


def test_writer_refuses_extra_rows_and_other_dimensions() -> None:
    buffer = io.BytesIO()
    writer = ExactIndexWriter(HashingWriter(buffer), 8, 3)
    writer.add(drawn(2, 8))
    written = buffer.getvalue()
    for wrong in (drawn(2, 8), drawn(1, 9), np.zeros(8, np.float32)):
        with pytest.raises(ValueError, match="at most 1 rows of 8"):
            writer.add(wrong)
    assert buffer.getvalue() == written


def test_writer_raises_for_missing_rows_at_the_end() -> None:
    writer = ExactIndexWriter(HashingWriter(io.BytesIO()), 8, 3)
    writer.add(drawn(2, 8))
    with pytest.raises(StoreError, match="1 rows are missing"):
        writer.finish()


def test_installed_faiss_writes_the_supported_format() -> None:
    for dimension in DIMENSIONS:
        check_format(dimension)
    assert FACTORY == "SQfp16"
    assert type(faiss.index_factory(8, FACTORY)) is faiss.IndexScalarQuantizer
