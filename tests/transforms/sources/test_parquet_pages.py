"""Parquet is read as pyarrow reads it, in limited memory whatever a file claims."""

import io
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.transforms.sources.parquet_pages import CheckedParquet, UnreadableParquetError

MB = 1 << 20


def written(table: pa.Table, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file


def read(file: io.BytesIO, columns: list[str]) -> pa.Table:
    parquet = CheckedParquet(file)
    batches = [batch for group in range(len(parquet.group_rows)) for batch in parquet.batches(group, columns)]
    return pa.Table.from_batches(batches)


def table_of(rows: int) -> pa.Table:
    draw = random.Random(0)
    return pa.table(
        {
            "id": [str(i) for i in range(rows)],
            "few": [f"x{draw.randrange(9)}" * 10 for _ in range(rows)],
            "many": [None if i % 7 == 0 else draw.randbytes(40) for i in range(rows)],
            "f": [i / 3 for i in range(rows)],
            "b": [i % 3 == 0 for i in range(rows)],
            "fixed": pa.array([draw.randbytes(4) for _ in range(rows)], pa.binary(4)),
        }
    )


@pytest.mark.parametrize(
    "options",
    [
        *({"compression": name} for name in ("none", "snappy", "gzip", "zstd", "brotli", "lz4")),
        {"data_page_version": "2.0"},
        {"use_dictionary": False},
        {"row_group_size": 1000, "data_page_size": 1000},
        {"write_page_index": True, "write_page_checksum": True},
        {"use_dictionary": False, "column_encoding": {"few": "DELTA_BYTE_ARRAY", "many": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"use_dictionary": False, "column_encoding": {"f": "BYTE_STREAM_SPLIT"}},
    ],
    ids=str,
)
def test_every_encoding_is_read_as_pyarrow_reads_it(options: dict[str, Any]) -> None:
    table = table_of(5000)
    file = written(table, **options)
    assert read(file, ["few", "id", "many", "f", "b", "fixed"]).select(table.column_names).equals(table)
    assert read(file, ["many"]).equals(table.select(["many"]))


@pytest.mark.parametrize("kind", [pa.string(), pa.binary()], ids=str)
@pytest.mark.parametrize("as_dictionary", [True, False])
def test_repeated_dictionary_values_are_read_in_small_batches(kind: pa.DataType, as_dictionary: bool) -> None:
    """A few kilobytes would decode to gigabytes."""
    rows = 4000
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["a" * MB], kind))
    file = written(pa.table({"t": cells}), compression="zstd", store_schema=as_dictionary)
    assert len(file.getvalue()) < 50_000
    before = pa.total_allocated_bytes()
    batches = CheckedParquet(file).batches(0, ["t"])
    for _ in range(3):
        batch = next(batches)
        assert len(batch) * MB <= 64 * MB
        assert pa.total_allocated_bytes() - before < 300 * MB


def test_repeated_prefixes_are_read_in_small_batches() -> None:
    cells = pa.array(["a" * MB + str(i) for i in range(200)])
    file = written(
        pa.table({"t": cells}), use_dictionary=False, column_encoding={"t": "DELTA_BYTE_ARRAY"}, compression="zstd"
    )
    assert len(file.getvalue()) < 200_000
    assert all(len(batch) <= 64 for batch in CheckedParquet(file).batches(0, ["t"]))


def test_a_page_that_is_too_large_is_refused_before_it_is_decompressed() -> None:
    file = written(
        pa.table({"t": ["a" * (257 * MB)]}), use_dictionary=False, compression="zstd", write_statistics=False
    )
    assert len(file.getvalue()) < 100_000
    peak = pa.default_memory_pool().bytes_allocated()
    with pytest.raises(UnreadableParquetError, match=r"a page has 26[0-9]{7} bytes decompressed"):
        read(file, ["t"])
    assert pa.default_memory_pool().bytes_allocated() - peak < MB


def test_columns_that_are_not_read_are_not_checked() -> None:
    table = pa.table({"id": ["1"], "t": ["a" * (257 * MB)]})
    file = written(table, use_dictionary=False, compression="zstd", write_statistics=False)
    assert read(file, ["id"]).to_pydict() == {"id": ["1"]}


def test_a_damaged_file_raises_and_never_crashes() -> None:
    good = written(table_of(300), row_group_size=100).getvalue()
    draw = random.Random(1)
    outcomes = set()
    for _ in range(300):
        data = bytearray(good)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(4, len(data) - 8)] = draw.randrange(256)
        before = pa.total_allocated_bytes()
        try:
            read(io.BytesIO(bytes(data)), ["id", "few", "many"])
            outcomes.add("read")
        except (UnreadableParquetError, pa.ArrowException, OSError, UnicodeDecodeError):
            outcomes.add("refused")
        assert pa.total_allocated_bytes() - before < 100 * MB
    assert outcomes == {"read", "refused"}
