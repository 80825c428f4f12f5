"""The index against those of others, side by side at equal measured recall, and its growth.

    python benchmarks/index.py [--rows 100000] [--spectrum A] [--rivals autofaiss,hnsw32,…] [--work DIR]
    python benchmarks/index.py --growth 100000,300000,1000000 [--spectrum A] [--work DIR]

Everything is seeded. Both kinds of vectors are made by `clustered.py`, `--rows` of each; queries are fresh vectors of
the same distribution, and exact answers are computed beside them. Each contender runs in processes of its own, one
after the other, on files that the kernel was asked to forget: one builds, one looks for the cheapest setting that
reaches recall 0.95 at ten in the worst of the four directions, one opens what was built and measures it at that
setting. Rivals have an index for each kind, which is kind to them; `autofaiss-joint` is one over both. The rivals' own
environments are made from `rivals/*.txt` when they are needed first. WORK/index-A-100000.json has all
measurements.

What the columns mean:

- build: wall seconds of both kinds, from Parquet files to files on disk; ours: the command, from its start to the
  published version, without the seconds that it copies the vectors into the catalog. CPU and peak memory are of the
  whole process tree, ours with that copying.
- resident: MB of memory that opening and warm searching add to the process: anonymous + mapped from files (ours without
  the mapped float16 store); for pgvector the server's, with what its processes share.
- one query: median and 99th percentile of 500 warm queries, one thread, the worst of the four directions.
- a second: 2,000 queries at once, two threads, the worst of the four directions.

`--growth` takes numbers of rows over both kinds together, measures ours alone, and beside it how long reading the
vectors and writing them as float16 take, and draws docs/index-growth.svg.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from clustered import KINDS, SPECTRA, Clustered, find_exactly
from figures import Recording, Table, add_results_option
from growth import draw_growth
from rivals.processes import Watch, forget_cached, tree_of

_HERE = Path(__file__).resolve().parent
_QUERIES = 2000
_ASKED_EXACTLY = 1000
_TARGET = 0.95
_STEP_LIMIT_S = 3600
"""Of four thousand dimensions, autofaiss' rotation alone may train for longer than one waits."""
_ENVIRONMENTS = {"with_pgvector.py": "pgvector", "with_usearch.py": "usearch"}
_PROGRAMS = {
    "ours": "ours.py",
    "autofaiss": "with_faiss.py",
    "autofaiss-joint": "with_faiss.py",
    "hnsw32": "with_faiss.py",
    "ivf-sq8": "with_faiss.py",
    "usearch": "with_usearch.py",
    "pgvector": "with_pgvector.py",
    "autofaiss-budget": "with_faiss.py",
}
_HEAD = (
    "contender", "setting", "build s", "CPU s", "peak MB", "resident MB", "disk MB", "text→image", "image→text",
    "image→image", "text→text", "one query ms", "p99", "a second",
)  # fmt: skip
_DIRECTIONS = ("text->image", "image->text", "image->image", "text->text")


class ContenderFailedError(Exception):
    """A contender could not be set up or ended with an error."""


def make_data(folder: Path, spectrum: str, rows: int, seed: int) -> None:
    """Writes `data`, `asked` and the true answers, unless the folder is there. One thread a block is fastest."""
    command = [sys.executable, str(_HERE / "clustered.py"), str(folder / "data")]
    command += ["--rows", str(rows), "--spectrum", spectrum, "--seed", str(seed)]
    subprocess.run(command, check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    asked = folder / "asked"
    asked.mkdir()
    data = Clustered(spectrum, seed)
    queries = {kind: data.queries(kind, _QUERIES) for kind in KINDS}
    for kind in KINDS:
        np.save(asked / f"{kind}.npy", queries[kind])
    both = np.concatenate([queries[kind][:_ASKED_EXACTLY] for kind in KINDS])
    for target in KINDS:
        rows_found = np.split(find_exactly(folder / "data", target, both, 10)[1], 2)
        for source, found in zip(KINDS, rows_found, strict=True):
            np.save(asked / f"{source}-{target}.npy", found)


def python_of(contender: str, environments: Path) -> Path:
    """The interpreter that has what the contender needs; its environment is made if it is not there."""
    program = _PROGRAMS.get(contender, "ours.py")
    name = "autofaiss" if contender.startswith("autofaiss") else _ENVIRONMENTS.get(program)
    if name is None:
        return Path(sys.executable)
    python = environments / name / "bin" / "python"
    done = environments / name / "done"
    if not done.exists():
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        for command in (
            [sys.executable, "-m", "venv", environments / name],
            [*pip, "-r", _HERE / f"rivals/{name}.txt"],
        ):
            made = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            if made.returncode:
                raise ContenderFailedError(f"its environment cannot be made: {_last_line(made.stderr)}")
        done.touch()
    return python


def run_step(contender: str, step: str, python: Path, folder: Path, setting: Any = None) -> dict[str, Any]:
    """Runs one step of a contender in a process of its own; its figures, with what the process tree took."""
    forget_cached(folder / "data")
    program = _HERE / "rivals" / _PROGRAMS.get(contender, "ours.py")
    command = [str(python), str(program), step, "--contender", contender, "--data", str(folder / "data")]
    command += ["--asked", str(folder / "asked"), "--work", str(folder / contender), "--target", str(_TARGET)]
    if setting is not None:
        command += ["--setting", json.dumps(setting)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        watch = Watch(process.pid)
        try:
            printed, _ = process.communicate(timeout=_STEP_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise ContenderFailedError(f"{step} was ended after {_STEP_LIMIT_S / 3600:g} hours") from None
        finally:
            took = watch.end()
            if process.poll() is None:
                for pid in tree_of(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            said.seek(0)
            raise ContenderFailedError(f"{step} ended with {process.returncode}: {_last_line(said.read())}")
    figures = json.loads(printed.splitlines()[-1])
    return {**figures, **{name: round(value, 3) for name, value in took.items()}}


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was said"])[-1]


def compete(contender: str, folder: Path, environments: Path) -> list[dict[str, Any]]:
    """Builds, tunes and measures; autofaiss is measured as it delivers its index, too. Deletes what was built."""
    print(f"{contender} …", file=sys.stderr, flush=True)
    (folder / contender).mkdir()
    try:
        python = python_of(contender, environments)
        built = run_step(contender, "build", python, folder)
        found = run_step(contender, "tune", python, folder)
        settings = [None, found["setting"]] if contender in {"autofaiss", "autofaiss-budget"} else [found["setting"]]
        measured = [run_step(contender, "measure", python, folder, setting) for setting in settings]
    except ContenderFailedError as error:
        return [{"contender": contender, "failed": str(error)}]
    finally:
        shutil.rmtree(folder / contender, ignore_errors=True)
    results = [
        {"contender": contender, "setting": setting, "built": built, "tuned": found, "measured": figures}
        for setting, figures in zip(settings, measured, strict=True)
    ]
    print(to_table(results).to_markdown(), file=sys.stderr, flush=True)
    return results


def resident_mb(result: dict[str, Any]) -> tuple[float, float]:
    """Anonymous, and from files or shared; without the pages of a mapped refine store."""
    resident = result["measured"]["resident_mb"]
    mapped = resident["file"] + resident["shared"] - result["measured"].get("mapped_refine_mb", 0)
    return resident["anon"], max(mapped, 0.0)


def worst_query_ms(result: dict[str, Any]) -> dict[str, float]:
    singles: dict[str, dict[str, float]] = result["measured"]["single_ms"]
    return {name: max(single[name] for single in singles.values()) for name in ("median", "p99")}


def worst_batch(result: dict[str, Any]) -> float:
    return min(result["measured"]["batch_a_second"].values())


def to_table(results: list[dict[str, Any]]) -> Table:
    lines = []
    for result in results:
        if "failed" in result:
            lines.append([result["contender"], f"not measured: {result['failed']}", *[""] * (len(_HEAD) - 2)])
            continue
        built, recall = result["built"], result["measured"]["recall"]
        anon, file = resident_mb(result)
        single = worst_query_ms(result)
        setting = "as delivered" if result["setting"] is None else str(result["setting"])
        setting += "" if min(recall.values()) >= _TARGET else " (below 0.95)"
        cells = [result["contender"], setting, f"{built['build_s']:.1f}", f"{built['cpu_s']:.0f}"]
        cells += [f"{built['peak_mb']:,.0f}", f"{anon:,.0f} + {file:,.0f}", f"{built['disk_mb']:,.0f}"]
        cells += [f"{recall[direction]:.3f}" for direction in _DIRECTIONS]
        cells += [f"{single['median']:.2f}", f"{single['p99']:.2f}", f"{worst_batch(result):,.0f}"]
        lines.append(cells)
    return Table(_HEAD, lines)


def figures_of(result: dict[str, Any], rows: int) -> dict[str, float]:
    """Ours by itself, over so many rows of both kinds; nothing if it failed."""
    if "failed" in result:
        return {}
    built, resident_b = result["built"], sum(resident_mb(result)) * 1e6
    return {
        "build_s": built["build_s"],
        "build_us": built["build_s"] / rows * 1e6,
        "peak_mb": built["peak_mb"],
        "resident_mb": resident_b / 1e6,
        "resident_b": resident_b / rows,
        "disk_mb": built["disk_mb"],
        "recall": min(result["measured"]["recall"].values()),
        "query_ms": worst_query_ms(result)["median"],
        "queries_a_second": worst_batch(result),
    }


def ratios_of(results: list[dict[str, Any]]) -> dict[str, float]:
    """Ours beside autofaiss, tuned to the same recall, where both were measured."""
    measured = {(r["contender"], r["setting"] is None): r for r in results if "failed" not in r}
    ours, other = measured.get(("ours", True)), measured.get(("autofaiss", False))
    if ours is None or other is None:
        return {}
    return {
        "build_ratio": other["built"]["build_s"] / ours["built"]["build_s"],
        "resident_ratio": sum(resident_mb(other)) / sum(resident_mb(ours)),
        "query_ratio": worst_query_ms(other)["median"] / worst_query_ms(ours)["median"],
        "batch_ratio": worst_batch(ours) / worst_batch(other),
    }


def growth_of(sizes: list[dict[str, Any]]) -> tuple[dict[str, float], Table]:
    """The figures of the largest size, what grew since the smallest, and a line for each size."""
    columns = ("vectors, both kinds", "build s", "read + write s", "ratio", "peak MB", "opened s", "resident MB")
    columns += (*_DIRECTIONS, "one query ms", "queries/s")
    lines, found = [], []
    for size in sizes:
        figures = figures_of(size, size["total"])
        figures["read_write_s"] = size["yardstick"]["build_s"]
        figures["open_s"] = size["measured"]["open_s"]
        found.append(figures)
        seconds = (figures["build_s"], figures["read_write_s"])
        cells = [f"{size['total']:,}", *(f"{value:.1f}" for value in seconds), f"{seconds[0] / seconds[1]:.2f}"]
        cells += [f"{figures['peak_mb']:,.0f}", f"{figures['open_s']:.2f}", f"{figures['resident_mb']:,.0f}"]
        cells += [f"{size['measured']['recall'][direction]:.3f}" for direction in _DIRECTIONS]
        lines.append([*cells, f"{figures['query_ms']:.2f}", f"{figures['queries_a_second']:,.0f}"])
    first, last = found[0], found[-1]
    wanted = ("peak_mb", "open_s", "resident_mb", "recall", "query_ms")
    largest = {name: last[name] for name in wanted} | {"build_ratio": last["build_s"] / last["read_write_s"]}
    growth = {name: last[of] / first[of] for name, of in (("build_growth", "build_s"), ("query_growth", "query_ms"))}
    return {**largest, **growth}, Table(columns, lines)


def grow(totals: list[int], spectrum: str, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    """Ours and the yardstick at each size; the data of a size is deleted before the next is made."""
    for total in totals:
        with tempfile.TemporaryDirectory(dir=work) as name:
            folder = Path(name)
            folder.chmod(0o755)
            make_data(folder, spectrum, total // 2, seed)
            (folder / "yardstick").mkdir()
            yardstick = run_step("yardstick", "build", Path(sys.executable), folder)
            shutil.rmtree(folder / "yardstick")
            result = compete("ours", folder, work)[0]
        yield {"total": total, "yardstick": yardstick, **result}


def keep(results: Iterable[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """All of them; what there is so far stands in the file, so that a run of hours may be cut short."""
    found = []
    for result in results:
        found.append(result)
        path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return found


def stop(*_: object) -> None:
    """Ends in order, so that the gigabytes are deleted; who tells a group of processes may say so twice."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="of each kind")
    parser.add_argument("--spectrum", choices=SPECTRA, default="A")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rivals", default=",".join(name for name in _PROGRAMS if name != "ours"), help="or none")
    parser.add_argument("--without-ours", action="store_true")
    parser.add_argument("--growth", help="rows over both kinds, with commas between")
    parser.add_argument("--work", type=Path, help="where data, indexes and environments are made; absent: temporary")
    parser.add_argument("--plot", type=Path, default=_HERE.parent / "docs/index-growth.svg")
    add_results_option(parser)
    options = parser.parse_args()
    rivals = [name for name in options.rivals.split(",") if name not in {"", "none"}]
    unknown = set(rivals) - set(_PROGRAMS)
    if unknown:
        parser.error(f"--rivals must be among {', '.join(_PROGRAMS)}, got {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, stop)
    name = "index_growth" if options.growth else "index_rivals" if rivals else "index"
    recording = Recording.start(name, options)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        work.chmod(0o755)  # PostgreSQL is no root's, and reads from here
        kept = options.work or Path.cwd()
        if options.growth:
            totals = [int(total) for total in options.growth.split(",")]
            path = kept / f"index-growth-{options.spectrum}.json"
            found = keep(grow(totals, options.spectrum, options.seed, work), path)
            drawable = [size for size in found if "failed" not in size]
            if len(drawable) > 1:
                options.plot.write_text(draw_growth(drawable), "utf-8")
            if drawable:
                figures, table = growth_of(drawable)
                recording.store(figures, {"Growth": table})
            return
        contenders = rivals if options.without_ours else ["ours", *rivals]
        path = kept / f"index-{options.spectrum}-{options.rows}.json"
        with tempfile.TemporaryDirectory(dir=work) as place:
            folder = Path(place)
            folder.chmod(0o755)
            make_data(folder, options.spectrum, options.rows, options.seed)
            found = keep((r for c in contenders for r in compete(c, folder, work / "environments")), path)
    if rivals:
        recording.store(ratios_of(found), {"Contenders": to_table(found)})
    else:
        print(to_table(found).to_markdown())
        recording.store(figures_of(found[0], 2 * options.rows))


if __name__ == "__main__":
    main()
