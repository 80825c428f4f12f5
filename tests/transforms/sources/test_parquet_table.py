"""A Parquet table's columns are read as what they are, or refused."""

import datetime
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs import SourceConfig
from epithre_beam.configs.errors import ConfigError, SourceError

from .listing import listed, table, write


def test_nanoseconds_are_cut_to_microseconds(tmp_path: Path) -> None:
    stamps = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    pq.write_table(pa.table({"id": ["1"], "t": ["x"], "w": stamps}), tmp_path / "t.parquet")
    found = table(tmp_path / "t.parquet", metadata={"w": "timestamp"})[0]["metadata"]["w"]
    assert found == datetime.datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=datetime.UTC)


def test_a_parquet_text_that_is_no_utf8_is_a_source_error(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    pq.write_table(pa.table({"id": ["1"], "t": bad}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match="UTF8"):
        table(tmp_path / "t.parquet")


def test_bytes_need_a_parquet_column_of_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "b": pa.array([{"bytes": b"x"}])}), tmp_path / "t.parquet")
    with pytest.raises(ConfigError, match=r"sources\[0\]\.bytes: the column 'b' has .* instead of bytes"):
        listed(SourceConfig(kind="image", table=f"{tmp_path}/t.parquet", id="id", bytes="b"))
    write(tmp_path / "t.csv", "id,b\n1,x\n")
    with pytest.raises(ConfigError, match=r"sources\[0\]\.bytes: only a parquet table has columns of bytes"):
        listed(SourceConfig(kind="image", table=f"{tmp_path}/t.csv", id="id", bytes="b"))


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_column_of_uuids_is_read_as_their_texts(tmp_path: Path, store_schema: bool) -> None:
    ids = [uuid.UUID(int=7), uuid.UUID(bytes=b"abcdefghijklmnop")]
    column = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([i.bytes for i in ids], pa.binary(16)))
    pq.write_table(pa.table({"id": column, "t": column}), tmp_path / "t.parquet", store_schema=store_schema)
    found = table(tmp_path / "t.parquet")
    assert [(row["asset_id"], row["text"]) for row in found] == [(str(i), str(i)) for i in ids]


def test_a_column_of_several_values_a_row_is_refused_unread(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "t": [["x"]]}), tmp_path / "t.parquet")
    with pytest.raises(SourceError, match=r"the column 't' must have one value in each row, got list"):
        table(tmp_path / "t.parquet")
