"""The same assets on every engine: time, memory of each process, what it costs by itself, what a second process gains.

    python benchmarks/engines.py [--assets 2000] [--engines in_memory,prism] [--folder DIR]

Half are pictures of 20 kB, half texts; the emulator (`hash` model, dimension 256) answers at once, in a process of its
own on the same cores. `overhead` is a run of two assets less the same without an engine, on FnApiRunner in memory.
Engines that are not on this machine are left out and named. Every catalog must have the vectors of the first.

The second table pins the work: one process on one core against two on two, for the parts that are bound by CPU:
pictures of 200 kB made smaller, and an index built; each less the same command with next to nothing to do, which is
what the engine costs. Nothing else may run on the machine meanwhile; the emulator takes its share of the first part.
"""

import argparse
import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from assets import write_images, write_texts
from figures import Recording, Table, add_results_option

sys.path.insert(0, str(Path(__file__).parents[1]))
from epithre_beam.index import open_catalog
from epithre_beam.transforms.epithre.emulator import EmulatorSettings, start_emulator_process
from tests.engines.engine import ENGINES, KEY, Engine, Missing

PROGRAM = (sys.executable, "-m", "epithre_beam.pipelines.commands.cli")
DIMENSION = 256
_JOB = """\
catalog: {catalog}
sources:
  - {{kind: image, files: "{folder}/images/**/*.jpg"}}
  - {{kind: text, table: {folder}/texts.csv, id: id, text: text}}
embed: {{base_url: {url}, dimension: {dimension}, lanes: {lanes}, rate_limiter: {rate_limiter}}}
prepare: {prepare}
"""


@dataclass
class Measured:
    """A command that ended well."""

    seconds: float
    peaks_mb: dict[str, list[int]] = field(default_factory=dict)
    """Resident memory at its highest, of each process, by its part: launcher, workers, engine."""


class Memory:
    """Looks at the processes of a command ten times a second."""

    def __init__(self, launcher: int, engine: Engine) -> None:
        self._launcher = launcher
        self._engine = engine
        self._peaks: dict[tuple[str, int], int] = {}

    def look(self) -> None:
        own = {process.pid for process in self._engine.processes}
        with contextlib.suppress(psutil.Error):
            found = [("workers", process) for process in self._engine.workers(self._launcher)]
            found += [("engine", process) for process in self._engine.processes]
            found += [("launcher", psutil.Process(self._launcher))]
            for part, process in found:
                with contextlib.suppress(psutil.Error):
                    if part == "workers" and (process.pid in own or process.name() in {"sh", "dash"}):
                        continue
                    key = (part, process.pid)
                    self._peaks[key] = max(self._peaks.get(key, 0), process.memory_info().rss)

    def peaks_mb(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for (part, _), peak in self._peaks.items():
            found.setdefault(part, []).append(peak // 1_000_000)
        return {part: sorted(peaks, reverse=True) for part, peaks in found.items()}


def measure(engine: Engine, *arguments: str | Path, cores: Sequence[int] | None = None) -> Measured:
    pinned = ("taskset", "--cpu-list", ",".join(map(str, cores))) if cores else ()
    started = time.monotonic()
    process = subprocess.Popen(
        [*pinned, *PROGRAM, *map(str, arguments), "--", *engine.options],
        env={**os.environ, "EPITHRE_KEY": KEY},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    memory, over = Memory(process.pid, engine), threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            memory.look()

    thread = threading.Thread(target=watch)
    thread.start()
    _, errors = process.communicate()
    over.set()
    thread.join()
    if process.returncode:
        sys.exit(f"{engine.name}: exit code {process.returncode}\n{errors[-2000:]}")
    return Measured(time.monotonic() - started, memory.peaks_mb())


def write_job(folder: Path, catalog: Path, url: str, lanes: int = 1, prepare: str = "{}") -> Path:
    rate_limiter = "host" if lanes > 1 else "memory"
    path = folder / "job.yaml"
    fields = {"catalog": catalog, "folder": folder, "url": url, "dimension": DIMENSION, "lanes": lanes}
    path.write_text(_JOB.format(**fields, rate_limiter=rate_limiter, prepare=prepare))
    return path


def write_vectors(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(4)
    folder.mkdir()
    for i, part in enumerate(np.array_split(np.arange(rows), 8)):
        vectors = rng.standard_normal((len(part), DIMENSION)).astype(np.float32)
        kinds = ["image" if row % 2 else "text" for row in part]
        column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIMENSION)
        pq.write_table(
            pa.table({"id": [f"v{row}" for row in part], "kind": kinds, "embedding": column}), folder / f"{i}.parquet"
        )


def digest(catalog: Path) -> str:
    """Of the vectors and indexes of the published version."""
    version, found = catalog / "versions" / open_catalog(catalog).version, hashlib.sha256()
    for path in sorted([*version.glob("vectors/*.parquet"), *version.glob("index/*")]):
        found.update(path.read_bytes())
    return found.hexdigest()


@contextlib.contextmanager
def emulator() -> Iterator[str]:
    with start_emulator_process(EmulatorSettings(dimension=DIMENSION, api_keys=(KEY,))) as found:
        yield found.base_url


def say_peaks(measured: Measured) -> str:
    return "; ".join(
        f"{part} {', '.join(map(str, measured.peaks_mb.get(part, [])))}" for part in sorted(measured.peaks_mb)
    )


def compare_engines(folder: Path, assets: int, names: Sequence[str]) -> Table:
    write_images(folder / "images", assets // 2, size_kb=20)
    write_texts(folder / "texts.csv", assets - assets // 2)
    small = folder / "small"
    write_images(small / "images", 1, size_kb=20)
    write_texts(small / "texts.csv", 1)
    first: tuple[str, float] | None = None
    lines = []
    for name in names:
        with contextlib.ExitStack() as stack:
            (place := folder / name).mkdir()
            try:
                engine = stack.enter_context(ENGINES[name](place))
            except Missing as error:
                lines.append((name, f"not here: {error}", "", "", ""))
                continue
            url = stack.enter_context(emulator())
            alone = measure(engine, "run", write_job(small, place / "small", url), "--quiet")
            lanes = 1 if name in {"in_memory", "bundle_based"} else 2
            whole = measure(engine, "run", write_job(folder, place / "catalog", url, lanes), "--quiet")
            reported = digest(place / "catalog")
            first = first or (reported, alone.seconds)
            assert reported == first[0], f"{name} made another catalog"
            overhead = alone.seconds - first[1]
            speed = (f"{overhead:.1f}", f"{whole.seconds:.1f}", f"{assets / whole.seconds:.0f}")
            lines.append((name, *speed, say_peaks(whole)))
    return Table(("engine", "overhead s", "run s", "assets/s", "MB of each process"), lines)


def compare_processes(folder: Path, images: int, vectors: int) -> dict[str, list[float]]:
    """Seconds of one process on one core and of two on two, of each part, the engine's own cost taken off."""
    small = folder / "small"
    for place, number, rows in ((folder, images, vectors), (small, 1, 2000)):
        write_images(place / "images", number)
        write_texts(place / "texts.csv", 1)
        write_vectors(place / "old", rows)
    os.environ["OMP_NUM_THREADS"] = "1"
    build = ("--set=index.exact_up_to_mb=0", f"--set=index.rows_per_index={vectors // 8}", "--quiet")
    found: dict[str, list[float]] = {"prepare": [], "index": []}
    for name, lanes, cores in (("in_memory", 1, [0]), ("processes", 2, [0, 1])):
        with ENGINES[name](folder) as engine, emulator() as url:
            seconds = {part: [0.0, 0.0] for part in found}
            for i, place in enumerate((folder, small)):
                job = write_job(place, place / f"catalog-{name}", url, lanes, "{max_pixels: 50000}")
                seconds["prepare"][i] = measure(engine, "run", job, "--quiet", cores=cores).seconds
                index = ("index", place / f"index-{name}", f"--from={place / 'old'}", *build)
                seconds["index"][i] = measure(engine, *index, cores=cores).seconds
            for part, (whole, nothing) in seconds.items():
                found[part].append(whole - nothing)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--assets", type=int, default=2000)
    parser.add_argument("--images", type=int, default=2000, help="of 200 kB, to be made smaller; 0: no second table")
    parser.add_argument("--vectors", type=int, default=200_000, help="of which an index is built")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--folder", type=Path, help="for assets and catalogs; removed at the end")
    add_results_option(parser)
    arguments = parser.parse_args()
    recording = Recording.start("engines", arguments)
    figures, tables = {}, {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        (folder / "engines").mkdir()
        tables["Engines"] = compare_engines(folder / "engines", arguments.assets, arguments.engines.split(","))
        if arguments.images:
            (folder / "processes").mkdir()
            found = compare_processes(folder / "processes", arguments.images, arguments.vectors)
            lines = [(part, f"{one:.1f}", f"{two:.1f}", f"{one / two:.2f}") for part, (one, two) in found.items()]
            columns = ("part", "one process, one core, s", "two, two cores, s", "times")
            tables["Two processes against one"] = Table(columns, lines)
            figures = {f"{part}_ratio": one / two for part, (one, two) in found.items()}
    recording.store(figures, tables)


if __name__ == "__main__":
    main()
