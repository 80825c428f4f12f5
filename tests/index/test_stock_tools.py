"""pyarrow, DuckDB, Polars and FAISS can read a catalog without this library."""

from pathlib import Path
from typing import Any

import duckdb
import faiss
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

COLUMNS = ["asset_id", "kind", "uri", "text", "content_sha256", "fingerprint", "media_type"]
COLUMNS += ["size_bytes", "width", "height", "prepared", "metadata"]

Answers = tuple[list[dict[str, Any]], npt.NDArray[np.float32]]


def of_pyarrow(files: list[Path]) -> Answers:
    table = ds.dataset([str(file) for file in files]).to_table()
    column = table.column("embedding").combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(table), -1)
    return table.select(COLUMNS).to_pylist(), vectors


def of_duckdb(files: list[Path]) -> Answers:
    with duckdb.connect() as connection:
        relation = connection.read_parquet([str(file) for file in files])
        rows = relation.select(*COLUMNS)
        found = [dict(zip(COLUMNS, row, strict=True)) for row in rows.fetchall()]
        vectors = relation.select("embedding").fetchnumpy()["embedding"]
    return found, np.array([np.asarray(vector) for vector in vectors], np.float32)


def of_polars(files: list[Path]) -> Answers:
    frame = pl.read_parquet(files)
    assert frame.schema["embedding"] == pl.Array(pl.Float32, frame.schema["embedding"].size)
    return frame.select(COLUMNS).to_dicts(), frame["embedding"].to_numpy()


def vector_files(made: Any, kind: str) -> list[Path]:
    folder = made.folder / "versions" / made.manifest.version / "vectors"
    files = sorted(folder.glob(f"{kind}-*.parquet"))
    assert len(files) > 1
    assert all(file.suffix == ".parquet" for file in folder.iterdir())
    return files


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("read", [of_pyarrow, of_duckdb, of_polars], ids=lambda read: read.__name__[3:])
def test_each_tool_reads_the_same_rows_and_vectors(small: Any, read: Any, kind: str) -> None:
    rows, vectors = read(vector_files(small, kind))
    assert rows == small.assets[kind].select(COLUMNS).to_pylist()
    assert vectors.dtype == np.float32
    assert vectors.tobytes() == small.vectors[kind].tobytes()


def test_all_kinds_can_be_read_as_one_table(small: Any) -> None:
    """Reads a glob over the whole folder; all files have the same columns."""
    pattern = str(small.folder / "versions" / small.manifest.version / "vectors" / "*.parquet")
    with duckdb.connect() as connection:
        counts = dict(connection.sql(f"select kind, count(*) from '{pattern}' group by kind").fetchall())
    assert counts == small.manifest.counts.per_kind
    assert pl.scan_parquet(pattern).select(pl.len()).collect().item() == 106
    assert ds.dataset(str(Path(pattern).parent)).count_rows() == 106


def test_tools_can_filter_by_metadata(small: Any) -> None:
    expected = [a["asset_id"] for a in small.assets["text"].to_pylist() if a["metadata"]["lang"] == "id"]
    files = vector_files(small, "text")
    field = pl.col("metadata").struct.field("lang")
    assert pl.read_parquet(files).filter(field == "id")["asset_id"].to_list() == expected
    with duckdb.connect() as connection:
        found = connection.read_parquet([str(f) for f in files]).filter("metadata.lang = 'id'").select("asset_id")
        assert [name for (name,) in found.fetchall()] == expected


def test_embedding_is_a_fixed_size_list_of_unit_norm(small: Any) -> None:
    for kind in small.vectors:
        for file in vector_files(small, kind):
            schema = pq.read_schema(file)
            kept = schema.field("embedding").type
            assert pa.types.is_fixed_size_list(kept)
            assert (kept.value_type, kept.list_size) == (pa.float32(), 16)
            assert not schema.field("embedding").nullable
        norms = np.linalg.norm(of_pyarrow(vector_files(small, kind))[1], axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-6)


@pytest.mark.parametrize("flags", [0, faiss.IO_FLAG_MMAP, faiss.IO_FLAG_MMAP_IFC], ids=["read", "mmap", "mmap_ifc"])
def test_stock_faiss_and_arrow_search_without_this_library(small: Any, flags: int) -> None:
    """Index rows and asset rows have the same positions."""
    folder = small.folder / "versions" / small.manifest.version / "index"
    for kind, vectors in small.vectors.items():
        index = faiss.read_index(str(folder / f"{kind}-00000-of-00001.faiss"), flags)
        assert (index.ntotal, index.d, index.metric_type) == (len(vectors), 16, faiss.METRIC_INNER_PRODUCT)
        _, rows = index.search(vectors, 1)
        assets = pa.ipc.open_file(pa.memory_map(str(folder / f"{kind}-assets.arrow"))).read_all()
        assert assets.take(rows[:, 0]).column("asset_id").equals(small.assets[kind].column("asset_id"))


def test_polars_reads_the_assets(small: Any) -> None:
    folder = small.folder / "versions" / small.manifest.version / "index"
    frame = pl.read_ipc(folder / "text-assets.arrow")
    assert frame["asset_id"].to_list() == small.assets["text"].column("asset_id").to_pylist()


def test_dead_letters_can_be_read_as_a_table(small: Any) -> None:
    file = small.folder / "versions" / small.manifest.version / "dead_letters" / "dead-00000-of-00001.parquet"
    with duckdb.connect() as connection:
        counts = connection.read_parquet(str(file)).aggregate("kind, reason, count(*)").fetchall()
    assert sorted(counts) == [("image", "missing", 2), ("text", "missing", 2)]
