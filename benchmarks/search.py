"""Bulk search beside FAISS called by hand on the same index files, in one run.

    python benchmarks/search.py [--rows 100000] [--queries 10000] [-k 100] [--spectrum A] [--work DIR]

Makes clustered vectors (`clustered.py`), `--rows` of each kind, and a catalog of them (`epithre-beam index --from`).
Then `epithre-beam search-batch` looks for `--queries` fresh queries, half of each kind, in both kinds; and one process
by itself opens the same files with faiss, has the same queries in memory, and calls `search` with the same parameters,
as many queries at once, for both kinds: no Beam, no reading of queries, no merging, no assets, no writing. Files are
warm. Both run `--times` times; the ratios are to the calls alone and to the whole process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clustered import KINDS, SPECTRA, Clustered
from figures import Recording, Table, add_results_option
from rivals.processes import Watch

from epithre_beam.index import Store, read_latest, read_manifest
from epithre_beam.index.ann.kind_index import rows_probed
from epithre_beam.index.ann.tune import probed_cells

_HERE = Path(__file__).resolve().parent
_AT_ONCE = 2048
_FACTOR = 10.0
"""What a list of more than twice `recall_k` takes as candidates for each hit, `KindIndex` says."""


def call_faiss(catalog: Path, queries: Path, k: int) -> dict[str, float]:
    """Searches by hand; seconds of the calls."""
    store = Store(str(catalog))
    latest = read_latest(store)
    assert latest is not None
    manifest = read_manifest(store, latest.version, latest.manifest_sha256)
    folder = catalog / "versions" / manifest.version
    asked = np.load(queries)
    opened = []
    for entry in manifest.indexes:
        for vectors_name, codes_name in entry.parts:
            vectors = faiss.read_index(str(folder / vectors_name), faiss.IO_FLAG_MMAP_IFC)
            assert codes_name is not None, "too few rows: this index is exact"
            codes = faiss.read_index(str(folder / codes_name), faiss.IO_FLAG_MMAP_IFC)
            cells = faiss.extract_index_ivf(codes).nlist
            point = entry.search_parameters
            share = rows_probed(point["cells_share"], k + 1, entry.recall_k, codes.ntotal) / codes.ntotal
            inner = faiss.SearchParametersPreTransform(
                index_params=faiss.IVFSearchParameters(nprobe=probed_cells(min(1.0, share), cells))
            )
            factor = max(point["k_factor"], _FACTOR)
            parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)
            opened.append((faiss.IndexRefine(codes, vectors), parameters, (codes, vectors)))
    began = time.perf_counter()
    for first in range(0, len(asked), _AT_ONCE):
        for index, parameters, _ in opened:
            index.search(asked[first : first + _AT_ONCE], k, params=parameters)
    return {"calls_s": time.perf_counter() - began}


def timed(command: list[str]) -> tuple[dict[str, float], str]:
    """Seconds and peak memory of a command, and what it printed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = Watch(process.pid)
    said, _ = process.communicate()
    took = watch.end()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return {"seconds": time.perf_counter() - began, "peak_mb": took["peak_mb"]}, said


def prepare(work: Path, options: argparse.Namespace) -> tuple[Path, Path]:
    """The catalog, and the queries as Parquet and as an array."""
    data, catalog = work / "data", work / "catalog"
    if not catalog.exists():
        made = [str(_HERE / "clustered.py"), str(data), "--rows", str(options.rows), "--spectrum", options.spectrum]
        subprocess.run([sys.executable, *made], check=True)
        program = Path(sys.executable).with_name("epithre-beam")
        subprocess.run([program, "index", catalog, "--from", data, "--quiet"], check=True)
    asked = work / "asked"
    asked.mkdir(exist_ok=True)
    source = Clustered(options.spectrum, 0)
    arrays = []
    for kind in KINDS:
        vectors = source.queries(kind, options.queries // 2)
        arrays.append(vectors)
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        names = [f"{kind}-{i}" for i in range(len(vectors))]
        table = pa.table({"id": names, "kind": [kind] * len(vectors), "embedding": values})
        pq.write_table(table, asked / f"{kind}.parquet", row_group_size=1024, use_dictionary=False, compression="none")
    np.save(work / "asked.npy", np.concatenate(arrays))
    return catalog, asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="of each kind")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("-k", type=int, default=100)
    parser.add_argument("--spectrum", choices=SPECTRA, default="A")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--work", type=Path, help="where data and catalog are made, or found; absent: temporary")
    parser.add_argument("--by-hand", type=Path, metavar="CATALOG", help="calls faiss only, and prints seconds as JSON")
    add_results_option(parser)
    options = parser.parse_args()
    if options.by_hand:
        print(json.dumps(call_faiss(options.by_hand, options.work / "asked.npy", options.k)))
        return
    recording = Recording.start("search", options)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        catalog, asked = prepare(work, options)
        program = str(Path(sys.executable).with_name("epithre-beam"))
        job = {"catalog": str(catalog), "vectors": [{"files": str(asked)}], "search": {"k": options.k}}
        print(f"{2 * options.rows:,} vectors, {options.queries:,} queries in both kinds, k={options.k}")
        passes = []
        by_hand = [sys.executable, __file__, "--by-hand", str(catalog), "--work", str(work), "-k", str(options.k)]
        timed(by_hand)  # files are warm from here on
        for i in range(options.times):
            (work / "search.yaml").write_text(json.dumps({**job, "output": str(work / f"found-{i}-{time.time()}")}))
            ours, _ = timed([program, "search-batch", str(work / "search.yaml"), "--quiet"])
            bare, said = timed(by_hand)
            calls = json.loads(said)["calls_s"]
            passes.append((ours["seconds"], ours["peak_mb"], calls, bare["seconds"]))
    columns = (
        "search-batch s",
        "peak MB",
        "FAISS, calls s",
        "FAISS, process s",
        "ratio to the calls",
        "to the process",
    )
    lines = [
        (f"{s:.1f}", f"{mb:,.0f}", f"{calls:.1f}", f"{process:.1f}", f"{s / calls:.2f}", f"{s / process:.2f}")
        for s, mb, calls, process in passes
    ]
    recording.store(
        {
            "ratio_calls": statistics.median(s / calls for s, _, calls, _ in passes),
            "ratio_process": statistics.median(s / process for s, _, _, process in passes),
            "queries_a_second": options.queries / statistics.median(s for s, _, _, _ in passes),
            "peak_mb": max(mb for _, mb, _, _ in passes),
        },
        {"Passes": Table(columns, lines)},
    )


if __name__ == "__main__":
    main()
