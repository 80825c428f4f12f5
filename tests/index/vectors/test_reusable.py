"""Reusable vectors are found by content, and only in undamaged files."""

import random
from typing import Any

import pyarrow.parquet as pq
import pytest

from epithre_beam.configs.errors import StoreError
from epithre_beam.index.vectors.reusable import ReusableVectors, content_keys


def test_find_returns_the_vector_of_every_content(small: Any) -> None:
    reusable = ReusableVectors(small.store, [small.manifest], embedding_config_hash="")
    for shard in small.shards:
        for row in pq.read_table(small.folder / shard.file.name).to_pylist():
            found = reusable.find(shard.kind, row["content_sha256"])
            assert found is not None
            assert found.vector.tolist() == row["embedding"]
    assert reusable.find("image", "f" * 64) is None


def test_damaged_assets_table_is_not_read(own_copy: Any) -> None:
    """Following an offset of a damaged Arrow table may read invalid memory and crash."""
    rng = random.Random(2)
    index = own_copy.manifest.indexes[0]
    path = own_copy.store.local_path(f"versions/{own_copy.manifest.version}/{index.assets}")
    whole = path.read_bytes()
    for _ in range(200):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        with pytest.raises(StoreError, match=index.assets):
            list(content_keys(own_copy.store, own_copy.manifest, index))
        assert (
            ReusableVectors(own_copy.store, [own_copy.manifest], embedding_config_hash="").find(index.kind, "0" * 64)
            is None
        )
