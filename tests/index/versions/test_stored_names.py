"""Names on disk do not change when names in code do."""

from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.index.storage.store import Store
from epithre_beam.index.vectors.units import read_unit_footer, write_unit
from epithre_beam.index.versions.layout import asset_fields, unit_name
from epithre_beam.index.versions.manifest import Manifest
from epithre_beam.index.versions.stored_names import UNIT_FOOTER, from_stored, to_stored

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def test_manifest_keeps_its_stored_field_name() -> None:
    path = next(iter(sorted(GOLDEN.glob("**/versions/*/manifest.json"))))
    stored = {**orjson.loads(path.read_bytes()), "held_back": ["too few rows."]}
    manifest = Manifest.model_validate(stored)
    assert manifest.gate_failures == ("too few rows.",)
    written = orjson.loads(manifest.to_bytes())
    assert written["held_back"] == ["too few rows."]
    assert "gate_failures" not in written
    assert Manifest.model_validate_json(manifest.to_bytes()) == manifest


def test_unit_footer_keeps_its_stored_names(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assets = pa.table([pa.array([], field.type) for field in asset_fields()], names=[f.name for f in asset_fields()])
    vectors = np.empty((0, 8), np.float32)
    write_unit(store, "u", assets, vectors, [], deduplicated=0, reused_rows=3, embedding_config_hash="ab")
    footer = orjson.loads((pq.read_metadata(tmp_path / unit_name("u")).metadata or {})[b"epithre_beam.unit"])
    assert (footer["carried"], footer["recipe"]) == (3, "ab")
    assert not set(UNIT_FOOTER) & set(footer)
    found = read_unit_footer(store, "u")
    assert found is not None
    assert (found.reused_rows, found.embedding_config_hash) == (3, "ab")


@pytest.mark.parametrize("values", [{}, {"rows": 1}, {"rows": 1, "reused_rows": 2, "embedding_config_hash": "x"}])
def test_from_stored_reverses_to_stored(values: dict[str, object]) -> None:
    assert from_stored(to_stored(values, UNIT_FOOTER), UNIT_FOOTER) == values
