"""What a catalog of any size takes, from what one asset was measured to take.

    python benchmarks/scaling.py [--assets 1e6,1e8,1e10] [--image-kb 200] [--items 64] [--limit 6000]

Half of the assets are images of `--image-kb`, half are texts of some 120 characters, of 4000 dimensions. Speeds are
the stored results of other benchmarks; lines that need one that is not stored are left out. Sizes are measured here: on
a catalog of `--rows` clustered vectors of each kind (`clustered.py`), which is built for it, and on a million
references.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
from figures import RESULTS, Recording, Table, add_results_option, read_results

from epithre_beam.transforms.planning.compare import Comparison
from epithre_beam.transforms.planning.plan import Unit
from epithre_beam.transforms.sources.references import reference_schema

SPEEDS = {
    "reference_us": ("µs to list a reference and compare it with the current version", "incremental.reference_us"),
    "embed_a_second": ("assets a second that one lane reads, checks, sends and decodes", "main_job.embed_a_second"),
    "write_mb_s": ("MB a second that one worker reuses or writes as Parquet", "reuse.write_mb_s"),
    "index_us": ("µs to build a row of the index, two cores", "index.build_us"),
    "resident_b": ("bytes of memory that a row takes while it is searched", "index.resident_b"),
}
"""What is not measured here, and the figure that says it."""
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


def stored_speeds() -> dict[str, float]:
    """Those of `SPEEDS` that have a stored result."""
    results, found = read_results(RESULTS), {}
    for name, (_, figure) in SPEEDS.items():
        benchmark, key = figure.split(".")
        if benchmark in results:
            found[name] = results[benchmark]["figures"][key]["value"]
    return found


def rows(assets: float, options: argparse.Namespace, costs: dict[str, float]) -> dict[str, str]:
    """What so many assets take, by what it is."""
    images = assets / 2
    sent = images * options.image_kb * 1000 * 4 / 3 + (assets - images) * 140
    # A request is full by bytes (4 MB) before it is by items where pictures are large.
    per_image_request = min(options.items, max(1, int(4e6 / (options.image_kb * 1000 * 4 / 3))))
    requests = images / per_image_request + (assets - images) / options.items
    files = 2 * assets / ROWS_PER_FILE + 3 * assets / ROWS_PER_INDEX
    found = {
        "requests": f"{requests:,.0f}",
        f"time at {options.limit:,} requests a minute": of_time(requests / options.limit * 60 / 0.98),
        "sent to the API": of_bytes(sent),
        f"cost at {options.price:g} for 1,000 requests": f"{requests / 1000 * options.price:,.0f}",
        "temporary file of the comparison": of_bytes(assets * costs["compared_b"]),
        "work units; in the graph": f"{assets / UNIT:,.0f}; {of_bytes(assets / UNIT * costs['unit_b'])}",
        "vectors as Parquet (half with float16)": of_bytes(assets * costs["vector_b"]),
        "index: vectors": of_bytes(assets * costs["fp16_b"]),
        "index: codes, which a search reads": of_bytes(assets * costs["codes_b"]),
        "index: tables of assets": of_bytes(assets * costs["assets_b"]),
        "index files": f"{assets / ROWS_PER_INDEX:,.0f}",
        "entries of the manifest; its size": f"{files:,.0f}; {of_bytes(files * costs['entry_b'])}",
    }
    if "embed_a_second" in costs:
        lanes = max(1.0, options.limit / 60 * assets / requests / costs["embed_a_second"])
        found["lanes that keep up with that limit"] = f"{lanes:,.1f}"
    if "reference_us" in costs:
        found["comparing a night's listing, one core"] = of_time(assets * costs["reference_us"] / 1e6)
    if "write_mb_s" in costs:
        seconds = assets * costs["vector_b"] / costs["write_mb_s"] / 1e6
        found["vectors reused for the next version, one worker"] = of_time(seconds)
    if "index_us" in costs:
        found["index built, one worker"] = of_time(assets * costs["index_us"] / 1e6)
    if "resident_b" in costs:
        found["memory to search all of it in one process"] = of_bytes(assets * costs["resident_b"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000, help="of each kind, in the catalog that is measured")
    parser.add_argument("--assets", default="1e6,1e8,1e10")
    parser.add_argument("--image-kb", type=float, default=200)
    parser.add_argument("--items", type=int, default=64, help="in a request")
    parser.add_argument("--limit", type=int, default=6000, help="requests a minute")
    parser.add_argument("--price", type=float, default=0.1, help="of 1,000 requests")
    add_results_option(parser)
    options = parser.parse_args()
    recording = Recording.start("scaling", options)
    speeds, measured = stored_speeds(), measure(options.rows)
    sizes = [float(size) for size in options.assets.split(",")]
    columns = [rows(size, options, speeds | measured) for size in sizes]
    lines = [(what, *(column[what] for column in columns)) for what in columns[0]]
    reported = [(what, f"{speeds[name]:,.4g}", figure) for name, (what, figure) in SPEEDS.items() if name in speeds]
    recording.store(
        measured,
        {
            "Speeds": Table(("what", "measured", "figure"), reported),
            "Catalogs": Table(("assets", *(f"{size:,.0f}" for size in sizes)), lines),
        },
    )


if __name__ == "__main__":
    main()
