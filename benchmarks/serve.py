"""`epithre-beam serve` under load, beside the bare index in one process; it needs wrk (`apt-get install wrk`).

    python benchmarks/serve.py [--rows 100000] [-k 10] [--seconds 10] [--connections 1,4,16,64] [--work DIR]

Makes clustered vectors (`clustered.py`), `--rows` of each kind, and a catalog of them, as `search.py` does: both can
share `--work`. Queries are fresh and look in one kind, as a sentence looks for pictures. The bare index is
`Catalog.search`, one query after another in a loop on one thread, and on as many threads as there are cores. The server
is asked by wrk with a vector as JSON, as base64, and with an asset, over each number of connections: queries a second,
their ratio to the bare index on one thread, median and 99th percentile. Then versions are swapped all the while, and no
request may fail. wrk takes its share of the same cores.
"""

import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from clustered import DIMENSION, SPECTRA, Clustered, asset_id
from figures import Recording, Table, add_results_option
from search import prepare

from epithre_beam.index import Store, open_catalog, read_latest, read_manifest
from epithre_beam.index.publish.publish import publish
from epithre_beam.index.versions.layout import manifest_name

_LUA = """
local asked = {}
function init(args)
  for body in io.lines(args[1]) do
    asked[#asked + 1] = wrk.format("POST", "/api/search", {["Content-Type"] = "application/json"}, body)
  end
end
local i = 0
function request()
  i = i % #asked + 1
  return asked[i]
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %d, "us": %d, "p50_us": %d, "p99_us": %d, "failed": %d}\\n', summary.requests,
    summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""
_QUERIES = 500
_KIND = "image"


def bare_per_s(catalog: Path, queries: np.ndarray, k: int, threads: int, seconds: float) -> float:
    """Queries a second of the index alone."""
    with open_catalog(catalog) as opened, ThreadPoolExecutor(threads) as pool:
        over = time.perf_counter() + seconds

        def ask(first: int) -> int:
            done = 0
            while time.perf_counter() < over:
                opened.search(queries[(first + done) % len(queries)], k, kinds=(_KIND,))
                done += 1
            return done

        began = time.perf_counter()
        done = sum(pool.map(ask, range(0, len(queries), max(1, len(queries) // threads))[:threads]))
        return done / (time.perf_counter() - began)


def write_bodies(work: Path, queries: np.ndarray, rows: int, k: int) -> dict[str, Path]:
    """For each way to ask a file with a request's body on each line."""
    picked = np.random.default_rng(1).integers(0, rows, len(queries)).tolist()
    asked = {
        "vector": [{"vector": [round(x, 7) for x in query.tolist()]} for query in queries],
        "vector_base64": [{"vector_base64": base64.b64encode(query.astype("<f4")).decode()} for query in queries],
        "asset": [{"asset": {"kind": _KIND, "id": asset_id(_KIND, row)}} for row in picked],
    }
    for name, bodies in asked.items():
        lines = [json.dumps({**body, "k": k, "kinds": [_KIND]}, separators=(",", ":")) for body in bodies]
        (work / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {name: work / f"{name}.jsonl" for name in asked}


def load(url: str, script: Path, bodies: Path, connections: int, seconds: float) -> dict[str, float]:
    """What wrk measured."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", script, url, "--", bodies]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.strip().splitlines()[-1])


def second_version(catalog: Path) -> list:
    """The manifests of the version in force and of a copy of it, of links to the same files."""
    store = Store(str(catalog))
    latest = read_latest(store)
    assert latest is not None
    manifest = read_manifest(store, latest.version, latest.manifest_sha256)
    folder = catalog / "versions" / manifest.version
    copy = manifest.model_copy(update={"version": f"{manifest.version[:-6]}c0c0c0", "nonce": "copy"})
    for path in folder.rglob("*"):
        target = catalog / "versions" / copy.version / path.relative_to(folder)
        if path.is_file() and path.name != "manifest.json" and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    (catalog / manifest_name(copy.version)).write_bytes(copy.to_bytes())
    return [manifest, copy]


def swap(catalog: Path, manifests: list, every_s: float, over: threading.Event) -> int:
    """Publishes one after the other until it is over; how many times."""
    store, swaps = Store(str(catalog)), 0
    while not over.wait(every_s):
        swaps += 1
        publish(store, manifests[swaps % 2], read_latest(store).data)
    publish(store, manifests[0], read_latest(store).data)
    return swaps


def per_s(reported: dict[str, float]) -> float:
    return reported["requests"] / reported["us"] * 1e6


def tail(reported: dict[str, float]) -> float:
    return reported["p99_us"] / reported["p50_us"]


def row(name: str, connections: int, reported: dict[str, float], bare: float) -> list[str]:
    speed = [f"{per_s(reported):,.0f}", f"{per_s(reported) / bare:.2f}"]
    times = [f"{reported['p50_us'] / 1000:.2f}", f"{reported['p99_us'] / 1000:.2f}", f"{tail(reported):.1f}"]
    return [name, str(connections), *speed, *times, f"{reported['failed']}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="of each kind")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", default="1,4,16,64")
    parser.add_argument("--spectrum", choices=SPECTRA, default="A")
    parser.add_argument("--work", type=Path, help="where data and catalog are made, or found; absent: temporary")
    add_results_option(parser)
    options = parser.parse_args()
    recording = Recording.start("serve", options)
    options.queries = 1000  # of `search.py`
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        catalog, _ = prepare(work, options)
        queries = Clustered(options.spectrum, 0).queries("text", _QUERIES)
        assert queries.shape[1] == DIMENSION
        bodies = write_bodies(work, queries, options.rows, options.k)
        script = work / "load.lua"
        script.write_text(_LUA)
        cores = os.cpu_count() or 1
        bare_per_s(catalog, queries, options.k, 1, 2)  # files are warm from here on
        bare = bare_per_s(catalog, queries, options.k, 1, options.seconds)
        threaded = bare_per_s(catalog, queries, options.k, cores, options.seconds)
        print(f"{options.rows:,} vectors of the kind that is searched, {DIMENSION} dimensions, k={options.k}")
        print(f"the bare index: {bare:,.0f} queries/s on one thread, {threaded:,.0f} on {cores}")
        loads: dict[tuple[str, int], dict[str, float]] = {}
        program = Path(sys.executable).with_name("epithre-beam")
        arguments = ["--port", "0", "--json", "--rate", "0", "--max-concurrency", "256", "--follow-every", "0.2"]
        server = subprocess.Popen([program, "serve", catalog, *arguments], stdout=subprocess.PIPE, text=True)
        try:
            url = json.loads(server.stdout.readline())["url"]
            for name, path in bodies.items():
                load(url, script, path, 4, 2)
                for connections in map(int, options.connections.split(",")):
                    loads[name, connections] = load(url, script, path, connections, options.seconds)
            over = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                swapping = pool.submit(swap, catalog, second_version(catalog), 0.5, over)
                swapped = load(url, script, bodies["vector_base64"], 16, 2 * options.seconds)
                over.set()
                loads[f"vector_base64, {swapping.result()} versions swapped in meanwhile", 16] = swapped
        finally:
            server.terminate()
            server.wait()
    figures = {
        "bare_a_second": bare,
        "tail": max(tail(reported) for reported in loads.values()),
        "failed": sum(reported["failed"] for reported in loads.values()),
    }
    at_16 = [per_s(loads[name, 16]) / bare for name in bodies if (name, 16) in loads]
    if at_16:
        figures |= {"ratio": min(at_16), "ratio_best": max(at_16)}
    columns = ("asked with", "connections", "queries/s", "ratio", "median ms", "p99 ms", "p99 / median", "failed")
    lines = [row(name, connections, reported, bare) for (name, connections), reported in loads.items()]
    recording.store(figures, {"Load": Table(columns, lines)})


if __name__ == "__main__":
    main()
