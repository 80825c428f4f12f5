"""What a catalog of any size takes, from what one asset was measured to take.

    python benchmarks/scaling.py [--assets 1e6,1e8,1e10] [--image-kb 200] [--items 64] [--limit 6000]

Half of the assets are pictures of `--image-kb`, half are texts of some 120 characters, of 4000 dimensions. Speeds
stand below, each with the command that measured it on two cores of one shared machine (docs/performance.md). Sizes are
measured here: on a catalog of `--rows` clustered vectors of each kind (`clustered.py`), which is built for it, and on a
million references. The tables are those of docs/scaling.md.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa

from epithre_beam.transforms.planning.compare import Comparison
from epithre_beam.transforms.planning.plan import Unit
from epithre_beam.transforms.sources.references import reference_schema

SPEEDS = {
    "reference_us": (12.9, "us to list a reference and compare it with the version in force", "make bench-incremental"),
    "embed_a_second": (1690.0, "assets a second that one lane reads, checks, sends and decodes", "make bench-main-job"),
    "write_mb_s": (243.0, "MB a second that one worker carries over or writes as Parquet", "make bench-carry"),
    "index_us": (110.0, "us to build a row of the index, two cores", "make bench-index"),
    "resident_b": (303.0, "bytes of memory that a row takes while it is searched", "make bench-index"),
}
SIZES = {
    "vector_b": "bytes of a row of Parquet, float32, with its columns",
    "fp16_b": "bytes of a row of the index' vectors",
    "codes_b": "bytes of its codes",
    "assets_b": "bytes of a row of the table of assets",
    "entry_b": "bytes of a file's entry in the manifest",
    "unit_b": "bytes of a unit in the pipeline's graph",
    "compared_b": "bytes of a reference in the comparison's temporary file",
}
ROWS_PER_FILE = 50_000
ROWS_PER_INDEX = 1_000_000
UNIT = 512


def measure(rows: int) -> dict[str, float]:
    """The sizes, of a catalog that is made for it."""
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as name:
        data, catalog = Path(name) / "data", Path(name) / "catalog"
        subprocess.run([sys.executable, here / "clustered.py", data, "--rows", str(rows)], check=True)
        program = Path(sys.executable).with_name("epithre-beam")
        subprocess.run([program, "index", catalog, "--from", data, "--quiet"], check=True)
        (path,) = catalog.glob("versions/*/manifest.json")
        manifest = json.loads(path.read_text())
    files = manifest["files"]

    def a_row(*ends: str, but: str = "no such end") -> float:
        return sum(f["size_bytes"] for f in files if f["name"].endswith(ends) and but not in f["name"]) / (2 * rows)

    unit = Unit(name="0" * 40, kind="image", row_group=123_456, references=512)
    return {
        "vector_b": a_row(".parquet", but="dead_letters"),
        "fp16_b": a_row(".faiss", but=".codes."),
        "codes_b": a_row(".codes.faiss"),
        "assets_b": a_row(".arrow"),
        "entry_b": len(json.dumps(files)) / len(files),
        "unit_b": len(pickle.dumps(unit)),
        "compared_b": _compared_bytes(1_000_000),
    }


def _compared_bytes(count: int) -> float:
    """Of the file that references are compared in, a reference; their ids are those of a folder of pictures."""
    with Comparison({}) as comparison:
        schema = reference_schema({})
        for first in range(0, count, 10_000):
            numbers = range(first, first + 10_000)
            columns = {
                "asset_id": [f"products/{n // 1000:05d}/{n:09d}.jpg" for n in numbers],
                "kind": ["image"] * 10_000,
                "uri": [f"s3://bucket/products/{n // 1000:05d}/{n:09d}.jpg" for n in numbers],
                "fingerprint": [f"etag:{n * 2654435761 % 2**128:032x}" for n in numbers],
                "text": [None] * 10_000,
                "size_bytes": [200_000 + n % 1000 for n in numbers],
                "source": [0] * 10_000,
            }
            comparison.add_references(pa.table([columns[f.name] for f in schema], schema=schema))
        comparison._db.execute("CHECKPOINT")
        found = comparison._db.execute("SELECT path FROM duckdb_databases() WHERE path IS NOT NULL").fetchall()
        return sum(Path(path).stat().st_size for (path,) in found) / count


def of_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} PB"


def of_time(seconds: float) -> str:
    for unit, size in (("s", 120), ("min", 120 * 60), ("h", 72 * 3600)):
        if seconds < size:
            return f"{seconds / {'s': 1, 'min': 60, 'h': 3600}[unit]:,.0f} {unit}"
    days = seconds / 86_400
    return f"{days:,.0f} days" if days < 730 else f"{days / 365:,.0f} years"


def rows(assets: float, options: argparse.Namespace, costs: dict[str, float]) -> list[tuple[str, str]]:
    images = assets / 2
    sent = images * options.image_kb * 1000 * 4 / 3 + (assets - images) * 140
    # A request is full by bytes (4 MB) before it is by items where pictures are large.
    per_image_request = min(options.items, max(1, int(4e6 / (options.image_kb * 1000 * 4 / 3))))
    requests = images / per_image_request + (assets - images) / options.items
    lanes = max(1.0, options.limit / 60 * assets / requests / costs["embed_a_second"])
    files = 2 * assets / ROWS_PER_FILE + 3 * assets / ROWS_PER_INDEX
    return [
        ("requests", f"{requests:,.0f}"),
        (f"time at {options.limit:,} requests a minute", of_time(requests / options.limit * 60 / 0.98)),
        ("sent to the API", of_bytes(sent)),
        (f"cost at {options.price:g} for 1,000 requests", f"{requests / 1000 * options.price:,.0f}"),
        ("lanes that keep up with that limit", f"{lanes:,.1f}"),
        ("comparing a night's listing, one core", of_time(assets * costs["reference_us"] / 1e6)),
        ("its temporary file", of_bytes(assets * costs["compared_b"])),
        ("units; in the graph", f"{assets / UNIT:,.0f}; {of_bytes(assets / UNIT * costs['unit_b'])}"),
        ("vectors as Parquet (half with float16)", of_bytes(assets * costs["vector_b"])),
        ("the same carried over, one worker", of_time(assets * costs["vector_b"] / costs["write_mb_s"] / 1e6)),
        ("index: vectors", of_bytes(assets * costs["fp16_b"])),
        ("index: codes, which a search reads", of_bytes(assets * costs["codes_b"])),
        ("index: tables of assets", of_bytes(assets * costs["assets_b"])),
        (
            "index files; built by one worker",
            f"{assets / ROWS_PER_INDEX:,.0f}; {of_time(assets * costs['index_us'] / 1e6)}",
        ),
        ("memory to search all of it in one process", of_bytes(assets * costs["resident_b"])),
        ("entries of the manifest; its size", f"{files:,.0f}; {of_bytes(files * costs['entry_b'])}"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000, help="of each kind, in the catalog that is measured")
    parser.add_argument("--assets", default="1e6,1e8,1e10")
    parser.add_argument("--image-kb", type=float, default=200)
    parser.add_argument("--items", type=int, default=64, help="in a request")
    parser.add_argument("--limit", type=int, default=6000, help="requests a minute")
    parser.add_argument("--price", type=float, default=0.1, help="of 1,000 requests")
    options = parser.parse_args()
    costs = {name: value for name, (value, _, _) in SPEEDS.items()} | measure(options.rows)
    print("| what one takes | measured | by |\n|---|---|---|")
    for value, what, command in SPEEDS.values():
        print(f"| {what} | {value:,g} | `{command}` |")
    for name, what in SIZES.items():
        print(f"| {what} | {costs[name]:,.0f} | `benchmarks/scaling.py` |")
    sizes = [float(size) for size in options.assets.split(",")]
    tables = [rows(size, options, costs) for size in sizes]
    print("\n| assets | " + " | ".join(f"{size:,.0f}" for size in sizes) + " |")
    print("|---" * (len(sizes) + 1) + "|")
    for line in zip(*tables, strict=True):
        print(f"| {line[0][0]} | " + " | ".join(value for _, value in line) + " |")


if __name__ == "__main__":
    main()
