"""Measures the transforms in pipelines of Beam: their requests, speed, memory, and what they keep of a limit.

    python benchmarks/beam_plugin.py [--images 20000] [--texts 20000] [--folder DIR] [--quick]

Each subject runs in a separate process against a new emulator process (`hash` model). Quote only the ratios of one run.

- Texts whose requests take 0.3 s: `EmbedAssets`, and Beam's `RunInference` around the same client.
- Images and texts without latency: `ReadAssets | EmbedAssets | WriteVectors`, and the bare loop of `main_job.py`, which
  embeds the same and writes Parquet, without checks.
- A limit of 60 requests in 3 s: two `EmbedAssets` in one pipeline on two processes.
- A stream of six bundles, a second apart.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import subjects
from assets import write_images, write_texts
from figures import Recording, Table, add_results_option
from main_job import BATCH_ITEMS, CONCURRENCY, run_bare

_Run = dict[str, float]
_PARTS = ("slow", "fast", "limit", "stream")
_QUICK = {
    "parts": "slow,fast,stream",
    "images": 40,
    "texts": 40,
    "slow_texts": 200,
    "latency": 0.05,
    "pairs": 1,
}


def run_subject(options: argparse.Namespace) -> Mapping[str, float]:
    url, folder, images, texts = options.url, options.folder, options.images_at, options.texts_at
    if options.subject == "bare":  # without Beam
        return run_bare(folder, images, texts, url)
    import beam_pipelines as beam

    run = {
        "embed": lambda: beam.embed_texts(url, options.slow_texts),
        "infer": lambda: beam.run_inference(url, options.slow_texts),
        "infer-any": lambda: beam.run_inference_unbounded(url, options.slow_texts),
        "write": lambda: beam.embed_and_write(folder, images, texts, url, CONCURRENCY),
        "limit": lambda: beam.two_steps(url, options.limited, options.limit, options.window),
        "stream": lambda: beam.stream(url, options.streamed, options.bundles, options.buffering),
    }
    return run[options.subject]()


def measure_slow(options: argparse.Namespace) -> tuple[dict[str, float], list[list[str]]]:
    arguments = ["--slow-texts", str(options.slow_texts)]
    names = {
        "embed": "`EmbedAssets`",
        "infer": f"`RunInference`, batches of at most {BATCH_ITEMS}",
        "infer-any": "`RunInference`, batches as Beam chooses",
    }
    runs = {name: subjects.measure(__file__, name, arguments, faults={"latency_s": options.latency}) for name in names}
    assert {run["assets"] for run in runs.values()} == {options.slow_texts}, runs
    needed = -(-options.slow_texts // BATCH_ITEMS)
    rows = [[what, f"{runs[name]['wall_s']:.1f}", f"{runs[name]['requests']:,}"] for name, what in names.items()]
    return {
        "needed": needed,
        "requests": runs["embed"]["requests"],
        "requests_ratio": runs["embed"]["requests"] / needed,
        "infer_ratio": runs["infer"]["wall_s"] / runs["embed"]["wall_s"],
        "infer_any_ratio": runs["infer-any"]["wall_s"] / runs["embed"]["wall_s"],
    }, rows


def measure_fast(options: argparse.Namespace, folder: Path) -> tuple[dict[str, float], list[list[str]]]:
    places = {}
    for label, share in (("quarter", 4), ("full", 1)):
        images, texts = folder / f"images-{label}", folder / f"texts-{label}.csv"
        write_images(images, options.images // share)
        write_texts(texts, options.texts // share)
        places[label] = (images, texts)

    def run(subject: str, size: str) -> _Run:
        images, texts = places[size]
        with tempfile.TemporaryDirectory(dir=folder) as place:
            arguments = ["--folder", place, "--images-at", str(images), "--texts-at", str(texts)]
            figures = subjects.measure(__file__, subject, arguments)
        wanted = (options.images + options.texts) if size == "full" else options.images // 4 + options.texts // 4
        assert figures["assets"] == wanted, figures
        return figures

    quarter = run("write", "quarter")
    pairs = [(run("bare", "full"), run("write", "full")) for _ in range(options.pairs)]
    runs = [("the transforms, a quarter of the assets", quarter)]
    for bare, write in pairs:
        runs += [("bare loop: httpx, orjson, pyarrow", bare), ("the transforms", write)]
    seconds = ("wall_s", "cpu_s", "server_cpu_s")
    peak = max(write["peak_mb"] for _, write in pairs)
    return {
        "time_ratio": median(write["wall_s"] / bare["wall_s"] for bare, write in pairs),
        "cpu_ratio": median(write["cpu_s"] / bare["cpu_s"] for bare, write in pairs),
        "peak_mb": peak,
        "memory_ratio": peak / quarter["peak_mb"],
    }, [
        [what, f"{run['assets']:,}", *(f"{run[name]:.1f}" for name in seconds), f"{run['peak_mb']:,}"]
        for what, run in runs
    ]


def measure_limit(options: argparse.Namespace) -> dict[str, float]:
    arguments = ["--limited", str(options.limited), "--limit", str(options.limit), "--window", str(options.window)]
    limits = {"requests_per_minute": options.limit, "window_s": options.window}
    run = subjects.measure(__file__, "limit", arguments, limits=limits)
    assert run["assets"] == options.limited, run
    assert run["processes"] == 2, run
    return {"refused": run["refused"], "worst_window": run["worst_window"]}


def measure_stream(options: argparse.Namespace) -> dict[str, float]:
    arguments = ["--streamed", str(options.streamed), "--bundles", str(options.bundles)]
    run = subjects.measure(__file__, "stream", [*arguments, "--buffering", str(options.buffering)])
    assert run["assets"] == options.streamed, run
    return {"stream_requests": run["requests"], "stream_waited_s": run["waited_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=3, help="runs of the transforms and the bare loop, in turn")
    parser.add_argument("--slow-texts", type=int, default=3000)
    parser.add_argument("--latency", type=float, default=0.3, help="seconds of a request with these texts")
    parser.add_argument("--limited", type=int, default=480, help="items that two processes embed within a limit")
    parser.add_argument("--limit", type=int, default=60, help="requests in a window")
    parser.add_argument("--window", type=float, default=3.0, help="seconds")
    parser.add_argument("--streamed", type=int, default=30, help="items of a stream")
    parser.add_argument("--bundles", type=int, default=6)
    parser.add_argument("--buffering", type=float, default=5.0, help="seconds that an item may wait for others")
    parser.add_argument("--parts", default=",".join(_PARTS), help="which to measure; all are needed to store a result")
    parser.add_argument("--quick", action="store_true", help="small sizes and no limit, to see that it works")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--subject")
    parser.add_argument("--images-at", type=Path)
    parser.add_argument("--texts-at", type=Path)
    parser.add_argument("--url")
    add_results_option(parser)
    options = parser.parse_args()
    if options.subject:
        subjects.report(lambda: run_subject(options))
        return
    if options.quick:
        vars(options).update(_QUICK)
    recording = Recording.start("beam_plugin", options)
    parts = options.parts.split(",")
    figures: dict[str, float] = {}
    tables = {}
    if "slow" in parts:
        found, rows = measure_slow(options)
        figures |= found
        tables["Texts"] = Table(("subject", "wall s", "requests"), rows)
    if "fast" in parts:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found, rows = measure_fast(options, Path(folder))
        figures |= found
        columns = ("subject", "assets", "wall s", "CPU s", "CPU s of the emulator", "peak MB")
        tables["Images and texts"] = Table(columns, rows)
    if "limit" in parts:
        figures |= measure_limit(options)
    if "stream" in parts:
        figures |= measure_stream(options)
    recording.store(figures, tables)


if __name__ == "__main__":
    main()
