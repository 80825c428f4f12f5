"""Added rows are read back by number in any order, with constant memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epithre_beam.transforms.planning.payloads import Payloads

KEYS = {"kind": pa.string(), "size_bytes": pa.int64(), "fingerprint": pa.string(), "asset_id": pa.string()}
SCHEMA = pa.schema([("text", pa.string()), ("metadata", pa.struct([("n", pa.int64())]))])

_row = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["image", "text"]),
        "size_bytes": st.none() | st.integers(0, 3),
        "fingerprint": st.sampled_from(["a", "b"]),
        "asset_id": st.text(max_size=2),
        "text": st.none() | st.sampled_from(["", "x", "long " * 30_000]),
        "metadata": st.none() | st.fixed_dictionaries({"n": st.none() | st.integers(0, 9)}),
    }
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(_row, max_size=9), max_size=4), st.randoms(use_true_random=False))
def test_rows_are_read_back_by_number(
    tmp_path_factory: pytest.TempPathFactory, tables: list[list[dict[str, object]]], random: object
) -> None:
    payloads = Payloads(tmp_path_factory.mktemp("p") / "p.arrow", SCHEMA)
    schema = pa.schema([*KEYS.items(), *SCHEMA])
    numbers = [payloads.add(pa.Table.from_pylist(rows, schema=schema)) for rows in tables]
    rows = [row for table in tables for row in table]
    assert sorted(np.concatenate([*numbers, np.empty(0, np.int64)]).tolist()) == list(range(len(rows)))
    asked = [(number, row) for number, row in zip(np.concatenate([*numbers, []]).tolist(), rows, strict=True)]
    random.shuffle(asked)  # type: ignore[attr-defined]
    asked += asked[:2]
    found = payloads.take(np.array([number for number, _ in asked], np.int64))
    assert found.schema == SCHEMA
    assert found.to_pylist() == [{name: row[name] for name in SCHEMA.names} for _, row in asked]
    payloads.close()


_MEASURE = """
import os, sys
from pathlib import Path
import pyarrow as pa
from epithre_beam.transforms.planning.compare import Comparison
from epithre_beam.transforms.sources.references import reference_schema

rows, types = int(sys.argv[1]), {"about": "string"}
schema = reference_schema(types)
with Comparison(types) as comparison:
    for start in range(0, rows, 2000):
        names = [os.urandom(16).hex() for _ in range(2000)]
        columns = {
            "asset_id": names, "kind": ["text"] * 2000, "fingerprint": ["sha256:" + name * 2 for name in names],
            "size_bytes": [3000] * 2000, "source": [0] * 2000, "text": [os.urandom(1500).hex() for _ in names],
            "metadata": [{"about": name * 20} for name in names],
        }
        comparison.add_references(pa.table([columns.get(f.name, [None] * 2000) for f in schema], schema=schema))
    texts = 0
    for table in comparison.todo():
        for row in table.to_pylist():
            assert row["metadata"]["about"] == row["asset_id"] * 20
            texts += len(row["text"])
    assert texts == rows * 3000
print(next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: peak memory is read from /proc")
def test_long_texts_and_metadata_need_no_more_memory_than_short_ones() -> None:
    """The database has 128 MB; the texts and metadata of the second run are 440 MB, of the first 73 MB."""

    def peak_mb(rows: int) -> int:
        command = [sys.executable, "-c", _MEASURE, str(rows)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-1000:]
        return int(done.stdout)

    small, large = peak_mb(20_000), peak_mb(120_000)
    assert large - small < 200, (small, large)
