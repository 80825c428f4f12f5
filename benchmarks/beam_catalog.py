"""Measures catalogs in pipelines: `WriteCatalog` beside `index --from`, and `SearchCatalog` beside calls of FAISS.

    python benchmarks/beam_catalog.py [--rows 20000] [--search-rows 100000] [--queries 10000] [-k 10] [--work DIR]

- `WriteCatalog` gets `--rows` vectors of each kind from Parquet, one row group at a time, and publishes a catalog.
  `epithre-beam index --from` publishes one of the same files. A third process reads the files into the same elements
  and does nothing with them: what a pipeline takes before `WriteCatalog` has anything to do.
- `SearchCatalog` gets the same vectors as the calls of FAISS in `search.py`, in a catalog of `--search-rows` vectors of
  each kind; its hits are counted.

Each subject runs in a separate process, alternately, `--times` times. Quote only the ratios of one run.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import subjects
from clustered import SPECTRA
from figures import Recording, Table, add_results_option
from search import call_faiss, prepare

_QUERIES_READ = 512


def rows_of(place: tuple[str, int]) -> Iterator[Any]:
    """Yield the rows of a row group."""
    import apache_beam as beam

    path, group = place
    table = pq.ParquetFile(path).read_row_group(group, use_threads=False)
    vectors = np.asarray(table.column("embedding").combine_chunks().flatten()).reshape(len(table), -1)
    names, kinds = table.column("id").to_pylist(), table.column("kind").to_pylist()
    for name, kind, vector in zip(names, kinds, vectors, strict=True):
        yield beam.Row(id=name, kind=kind, embedding=vector)


def _row_type() -> Any:
    from apache_beam.typehints.row_type import RowTypeConstraint

    return RowTypeConstraint.from_fields([("id", str), ("kind", str), ("embedding", Any)])


def _groups(data: Path) -> list[tuple[str, int]]:
    paths = sorted(data.glob("*.parquet"))
    return [(str(path), group) for path in paths for group in range(pq.ParquetFile(path).num_row_groups)]


def _pipeline() -> Any:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    return beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))


def read_only(data: Path) -> dict[str, float]:
    """Make the elements, without a step that needs them."""
    import apache_beam as beam

    with _pipeline() as p:
        rows = p | beam.Create(_groups(data)) | beam.FlatMap(rows_of).with_output_types(_row_type())
        _ = rows | beam.Filter(_is_missing)
    return {}


def _is_missing(element: Any) -> bool:
    return element.embedding is None


def write_catalog(data: Path, catalog: Path) -> dict[str, float]:
    """Publish a catalog of the elements."""
    import apache_beam as beam

    from epithre_beam import transforms as epithre

    with _pipeline() as p:
        rows = p | beam.Create(_groups(data)) | beam.FlatMap(rows_of).with_output_types(_row_type())
        _ = rows | epithre.WriteCatalog(str(catalog))
    return {}


def import_folder(data: Path, catalog: Path) -> dict[str, float]:
    from epithre_beam.pipelines.jobs.build_index import import_vectors

    import_vectors(str(catalog), str(data), [])
    return {}


def queries_of(first: int, asked: str) -> Iterator[Any]:
    from epithre_beam import transforms as epithre

    vectors = np.load(asked, mmap_mode="r")[first : first + _QUERIES_READ]
    for number, vector in enumerate(vectors, first):
        yield epithre.Query.of_vector(f"q{number}", vector)


def search_catalog(catalog: Path, asked: Path, k: int, *, blocks: int | None = None) -> dict[str, float]:
    """Search all queries, or some blocks of them, in both kinds, and count the hits."""
    import apache_beam as beam
    from beam_pipelines import counted

    from epithre_beam import transforms as epithre

    p = _pipeline()
    starts = range(0, len(np.load(asked, mmap_mode="r")), _QUERIES_READ)[:blocks]
    queries = (
        p | beam.Create(starts) | beam.FlatMap(partial(queries_of, asked=str(asked))).with_output_types(epithre.Query)
    )
    result = queries | epithre.SearchCatalog(str(catalog), k=k)
    _ = result.hits | beam.Map(_note_hit)
    return {"hits": counted(p)["hits"]}


def _note_hit(_hit: Any) -> None:
    from apache_beam.metrics import Metrics

    Metrics.counter("bench", "hits").inc()


def run_subject(options: argparse.Namespace) -> Mapping[str, float]:
    place: Path = options.folder
    run = {
        "import": lambda: import_folder(options.data, place / "catalog"),
        "write": lambda: write_catalog(options.data, place / "catalog"),
        "read": lambda: read_only(options.data),
        "search": lambda: search_catalog(place / "catalog", place / "asked.npy", options.k),
        "start": lambda: search_catalog(place / "catalog", place / "asked.npy", options.k, blocks=1),
        "faiss": lambda: call_faiss(place / "catalog", place / "asked.npy", options.k),
    }
    return run[options.subject]()


def measure_writing(options: argparse.Namespace, work: Path) -> tuple[dict[str, float], list[list[str]]]:
    data = work / "written"
    if not data.exists():
        program = str(Path(__file__).with_name("clustered.py"))
        made = [program, str(data), "--rows", str(options.rows), "--spectrum", options.spectrum]
        subprocess.run([sys.executable, *made], check=True)
    names = {"import": "`epithre-beam index --from`", "write": "`WriteCatalog`", "read": "the elements alone"}
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(options.times):
        for name in names:
            with tempfile.TemporaryDirectory(dir=work) as folder:
                arguments = ["--folder", folder, "--data", str(data)]
                passes[name].append(subjects.measure_alone(__file__, name, arguments))
    ratios = [w["wall_s"] / i["wall_s"] for w, i in zip(passes["write"], passes["import"], strict=True)]
    figures = {
        "write_ratio": statistics.median(ratios),
        "write_cpu_ratio": statistics.median(
            w["cpu_s"] / i["cpu_s"] for w, i in zip(passes["write"], passes["import"], strict=True)
        ),
        "write_peak_mb": max(taken["peak_mb"] for taken in passes["write"]),
    }
    return figures, [_line(names[name], taken) for name in names for taken in passes[name]]


def measure_searching(options: argparse.Namespace, work: Path) -> tuple[dict[str, float], list[list[str]]]:
    place = work / "searched"
    place.mkdir(exist_ok=True)
    prepare(place, argparse.Namespace(**{**vars(options), "rows": options.search_rows}))
    arguments = ["--folder", str(place), "-k", str(options.k)]
    names = {
        "faiss": "FAISS, calls alone",
        "search": "`SearchCatalog`",
        "start": f"`SearchCatalog`, the first {_QUERIES_READ} queries",
    }
    passes: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    subjects.measure_alone(__file__, "faiss", arguments)  # loads the files into the page cache
    for _ in range(options.times):
        for name in names:
            passes[name].append(subjects.measure_alone(__file__, name, arguments))
    pairs = list(zip(passes["search"], passes["faiss"], strict=True))
    # What the queries after the first block take, of those that the calls have.
    share = 1 - _QUERIES_READ / options.queries
    begun = min(taken["wall_s"] for taken in passes["start"])
    figures = {
        "search_only_ratio": statistics.median((s["wall_s"] - begun) / (share * f["calls_s"]) for s, f in pairs),
        "search_ratio_calls": statistics.median(s["wall_s"] / f["calls_s"] for s, f in pairs),
        "search_ratio_process": statistics.median(s["wall_s"] / f["wall_s"] for s, f in pairs),
        "search_queries_a_second": options.queries / statistics.median(s["wall_s"] for s, _ in pairs),
    }
    return figures, [_line(names[name], taken) for name in names for taken in passes[name]]


def _line(name: str, taken: Mapping[str, float]) -> list[str]:
    calls = f"{taken['calls_s']:.1f}" if "calls_s" in taken else ""
    return [name, f"{taken['wall_s']:.1f}", calls, f"{taken['cpu_s']:.1f}", f"{taken['peak_mb']:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="of each kind, to write")
    parser.add_argument("--search-rows", type=int, default=100_000, help="of each kind, to search in")
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--spectrum", choices=SPECTRA, default="A")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--parts", default="write,search")
    parser.add_argument(
        "--work", type=Path, help="folder of data and catalogs, reused if it exists; default: temporary"
    )
    parser.add_argument("--subject", help="run one subject in this process")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--data", type=Path)
    add_results_option(parser)
    options = parser.parse_args()
    if options.subject:
        subjects.report(lambda: run_subject(options))
        return
    recording = Recording.start("beam_catalog", options)
    figures: dict[str, float] = {}
    tables = {}
    parts = {"write": ("Writing", measure_writing), "search": ("Searching", measure_searching)}
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for part in options.parts.split(","):
            title, run = parts[part]
            found, lines = run(options, work)
            figures |= found
            tables[title] = Table(("subject", "wall s", "calls s", "CPU s", "peak MB"), lines)
    recording.store(figures, tables)


if __name__ == "__main__":
    main()
