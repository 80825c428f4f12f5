"""Any bytes are a table or an error that names the file. Runs for EPITHRE_BEAM_FUZZ_S seconds."""

import csv
import gzip
import io
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epithre_beam.configs import SourceConfig
from epithre_beam.configs.errors import ConfigError, SourceError
from epithre_beam.transforms.sources.csv_table import CsvTable
from epithre_beam.transforms.sources.list_sources import list_references

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(0)]
SECONDS = float(os.environ.get("EPITHRE_BEAM_FUZZ_S", "20")) / 4
PIECES = [
    b'"',
    b'""',
    b",",
    b"\n",
    b"\r\n",
    b"\r",
    b"id",
    b"t",
    b"x",
    b"\xef\xbb\xbf",
    b"\xff",
    b"\x00",
    "é".encode(),
    b'","',
]


def draws(seed: int) -> Iterator[random.Random]:
    end = time.monotonic() + SECONDS
    draw = random.Random(seed)
    while time.monotonic() < end:
        yield draw


def changed(draw: random.Random, data: bytes) -> bytes:
    """Overwrite, cut, duplicate or insert bytes."""
    out = bytearray(data)
    for _ in range(draw.randrange(1, 8)):
        at = draw.randrange(len(out) + 1)
        match draw.randrange(4):
            case 0:
                out[at : at + 1] = bytes([draw.choice([0, 10, 34, 44, 92, 123, 128, 255, draw.randrange(256)])])
            case 1:
                del out[at : at + draw.randrange(1, 20)]
            case 2:
                out[at:at] = out[at : at + draw.randrange(1, 40)]
            case _:
                out[at:at] = draw.choice(PIECES)
    return bytes(out)


def check(path: Path) -> None:
    source = SourceConfig(kind="text", table=str(path), id="id", text="t", metadata={"p": "double"})
    before, error = pa.total_allocated_bytes(), ""
    try:
        for table in list_references(source, 0, {"p": "double"}):
            table.validate(full=True)
    except (SourceError, ConfigError) as found:
        error = str(found)
    assert not error or str(path) in error
    assert len(error) < 1000
    assert pa.total_allocated_bytes() - before < 500 << 20


def test_csv_rows_match_csv_module_for_any_block_size() -> None:
    for draw in draws(1):
        data = draw.choice([b"", b"id,t\n", b"id,t\r\n"]) + b"".join(draw.choices(PIECES, k=draw.randrange(60)))
        found = []
        for block in (draw.randrange(1, 50), 1 << 20):
            table = CsvTable("t", 1 << 20, block)
            try:
                names = table.names(io.BytesIO(data), set())
                if not names or len(set(names)) < len(names):
                    break
                batches = list(table.batches(io.BytesIO(data), names))
                found.append([list(row) for b in batches for row in zip(*b.to_pydict().values(), strict=True)])
            except SourceError as error:
                found.append(str(error))
        else:
            assert found[0] == found[1], data
            if isinstance(found[0], list):
                text = data.removeprefix(b"\xef\xbb\xbf").decode()
                assert found[0] == [row for row in csv.reader(io.StringIO(text, newline="")) if row][1:], data


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_any_bytes_are_a_table_or_an_error_that_names_it(tmp_path: Path, form: str) -> None:
    rows = [{"id": f"i{i}", "t": f"text {i % 5}", "p": i / 3} for i in range(40)]
    path = tmp_path / f"t.{form}"
    seeds = ["id,t,p\n" + "".join(f'{r["id"]},"{r["t"]}",{r["p"]}\n' for r in rows)]
    seeds.append("".join(json.dumps(row) + "\n" for row in rows))
    good = [seed.encode() for seed in seeds] + [gzip.compress(seeds[0].encode())]
    for options in ({}, {"compression": "zstd", "data_page_version": "2.0"}, {"use_dictionary": False}):
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=15, **options)
        good.append(file.getvalue())
    first = {"csv": 0, "jsonl": 1, "parquet": 3}[form]
    for draw in draws(2):
        path.write_bytes(changed(draw, draw.choice([*good[first:], good[first], good[first]])))
        check(path)
