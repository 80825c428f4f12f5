"""An asset that carries the settings of its source is read by them, from any thread."""

from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs import PrepareConfig, SourceConfig
from epithre_beam.transforms.sources.asset_reader import AssetReader, metadata_rows, source_json
from epithre_beam.transforms.sources.unpreparable import Unpreparable


@pytest.fixture
def reader():
    found = AssetReader(PrepareConfig(max_file_bytes=10))
    yield found
    found.close()


def test_settings_that_are_sent_along_are_the_source_without_its_metadata():
    source = SourceConfig(
        kind="image", table="/t.csv", id="id", uri="u", within=("/a", "/b"), metadata={"x": "int"}, max_rows=7
    )
    assert SourceConfig.model_validate_json(source_json(source)) == source.model_copy(update={"metadata": {}})
    assert "max_expansion" not in source_json(source)  # a default


def test_many_sources_are_read_from_many_threads_each_by_its_own_rules(reader, tmp_path):
    sources = []
    for i in range(20):
        cells = [f"{i}-{row}".encode() for row in range(5)]
        pq.write_table(pa.table({"id": range(5), "c": cells}), tmp_path / f"{i}.parquet")
        sources.append(source_json(SourceConfig(kind="image", table=f"{tmp_path}/{i}.parquet", id="id", bytes="c")))

    def read(number):
        i, row = number % 20, number // 20
        return reader.read(f"{tmp_path}/{i}.parquet#row={row}&column=c", kind="image", source=sources[i])

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(read, range(100)))
    assert found == [f"{number % 20}-{number // 20}".encode() for number in range(100)]


def test_within_holds_for_a_table_and_not_for_a_uri_of_the_program_itself(reader, tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    source = SourceConfig(kind="image", table=f"{tmp_path}/t/t.csv", id="id", uri="u")
    assert reader.read(f"{tmp_path}/a", kind="image") == b"x"
    with pytest.raises(Unpreparable, match="outside"):
        reader.read(f"{tmp_path}/a", kind="image", source=source_json(source))


def test_listed_size_above_the_limit_is_refused_unread(reader):
    with pytest.raises(Unpreparable, match="allows 10 bytes, got 11"):
        reader.read("/none", kind="image", size_bytes=11)


def test_numbers_that_json_lacks_become_none():
    metadata = pa.array([{"x": float("inf"), "y": "a"}, {"x": 1.5, "y": None}])
    assert metadata_rows(pa.table({"metadata": metadata})) == [{"x": None, "y": "a"}, {"x": 1.5, "y": None}]
    assert metadata_rows(pa.table({"id": ["a"]})) == [None]
