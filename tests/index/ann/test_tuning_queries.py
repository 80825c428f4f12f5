"""Queries from a file are grouped by kind and normalised; an invalid file is refused with one sentence."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index.ann.tuning_queries import MOST_QUERIES, read_queries


def write(path: Path, kinds: list[Any], vectors: Any, **others: Any) -> Path:
    pq.write_table(pa.table({"kind": kinds, "embedding": [list(map(float, v)) for v in vectors], **others}), path)
    return path


def test_queries_are_grouped_by_kind_and_normalised(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 8)) * 7
    kinds = ["image" if i % 3 else "text" for i in range(40)]
    write(tmp_path / "q.parquet", kinds, vectors, note=["x"] * 40)
    found = read_queries(str(tmp_path / "q.parquet"), 8)
    assert sorted(found) == ["image", "text"]
    for kind, queries in found.items():
        own = vectors[np.array(kinds) == kind]
        assert queries.dtype == np.float32
        np.testing.assert_allclose(queries, own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-6)


def test_first_queries_are_used_and_empty_kinds_omitted(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((MOST_QUERIES + 5, 4))
    found = read_queries(str(write(tmp_path / "q.parquet", ["text"] * len(vectors), vectors)), 4)
    assert list(found) == ["text"]
    expected = vectors[:MOST_QUERIES] / np.linalg.norm(vectors[:MOST_QUERIES], axis=1, keepdims=True)
    np.testing.assert_allclose(found["text"], expected, atol=1e-6)


def test_folder_of_parquet_files_is_read(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", ["text"], [[0, 1]])
    write(tmp_path / "a.parquet", ["text"], [[1, 0]])
    (tmp_path / "README").write_text("no queries")
    assert read_queries(str(tmp_path), 2)["text"].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("kinds", "vectors", "sentence"),
    [
        (["audio"], [[1, 0]], r"kind must be one of image, text, got 'audio'"),
        ([None], [[1, 0]], r"kind must be one of image, text, got 'None'"),
        (["text"], [[1, 0, 0]], r"vectors must have 2 dimensions, got shape \(3,\)"),
        (["text", "text"], [[1, 0], [1]], "cannot be read"),
        (["text", "text"], [[1, 0], [0, 0]], "row 1 of .* is zero or not finite"),
        (["text", "text"], [[float("nan"), 0], [0, 1]], "row 0 of .* is zero or not finite"),
        ([], [], "vectors must have 2 dimensions"),
    ],
    ids=str,
)
def test_invalid_query_file_is_refused_with_the_reason(
    tmp_path: Path, kinds: list[Any], vectors: Any, sentence: str
) -> None:
    with pytest.raises(CatalogError, match=rf"^index\.queries: .*{sentence}"):
        read_queries(str(write(tmp_path / "q.parquet", kinds, vectors)), 2)


def test_missing_damaged_or_incomplete_query_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"kind": ["text"]}), tmp_path / "other.parquet")
    (tmp_path / "empty").mkdir()
    for name in ("gone.parquet", "damaged.parquet", "other.parquet", "empty"):
        with pytest.raises(CatalogError, match=rf"/{name} cannot be read .*`kind` and `embedding` of 2 numbers"):
            read_queries(str(tmp_path / name), 2)
