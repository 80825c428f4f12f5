"""Helpers that make sources and list their references."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from epithre_beam.configs import PrepareConfig, SourceConfig
from epithre_beam.transforms.sources.list_sources import list_references
from epithre_beam.transforms.sources.reading import Reader
from epithre_beam.transforms.sources.references import Reference, reference_schema

Row = dict[str, Any]


def listed(source: SourceConfig, position: int = 0) -> list[Row]:
    types = dict(sorted(source.metadata.items()))
    tables = list(list_references(source, position, types))
    assert all(table.schema == reference_schema(types) for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def files(pattern: Path | str, kind: str = "image") -> list[Row]:
    return listed(SourceConfig.model_validate({"kind": kind, "files": str(pattern)}))


def ids(pattern: Path | str, kind: str = "image") -> list[str]:
    return [row["asset_id"] for row in files(pattern, kind)]


def table(path: Path | str, **columns: Any) -> list[Row]:
    return listed(SourceConfig.model_validate({"kind": "text", "table": str(path), "id": "id", "text": "t"} | columns))


def grow(folder: Path, *names: str) -> Path:
    """Make files, each with its name as content."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_lines(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


def contents(rows: list[Row], source: SourceConfig) -> list[bytes]:
    """Read the bytes of listed rows."""
    reader = Reader([source], PrepareConfig())
    names = Reference.__dataclass_fields__
    return [reader.read(Reference(**{name: row[name] for name in names})) for row in rows]


TREE = ("a.jpg", "b.JPG", "c.png", "IMG_1.Jpeg", "sub/d.jpg", "sub/deep/e.jpg", "sub2/f.webp", "notes.txt", "x1y.jpg")


def text_tables(folder: Path, rows: list[tuple[str, str]]) -> Mapping[str, Path]:
    """Write the same rows as csv, jsonl and parquet."""
    quoted = "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)
    pq.write_table(pa.table({"id": [i for i, _ in rows], "t": [t for _, t in rows]}), folder / "t.parquet")
    return {
        "csv": write(folder / "t.csv", "id,t\n" + quoted),
        "jsonl": json_lines(folder / "t.jsonl", *({"id": i, "t": t} for i, t in rows)),
        "parquet": folder / "t.parquet",
    }
