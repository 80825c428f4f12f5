"""Measures chats in a pipeline: the share of a rate limit that they reach, their speed without one, their memory.

    python benchmarks/chat.py [--rows 10000] [--minutes 4] [--parts limit,fast]

Each subject runs in a separate process against a new emulator process (`hash` model). Quote only the ratios of one run.

- A limit of 600 requests a minute, with a latency of 0.2 to 1.5 s and of 10 s: `ChatAssets`. The share is that of the
  minutes between the first and the last request that the emulator admitted, without the first minute.
- No limit and no latency: `ChatAssets`, and a loop with httpx and the same number of requests in flight that sends the
  same bodies and takes the answers out of theirs.
"""

import argparse
import asyncio
import os
from collections.abc import Mapping
from statistics import median
from typing import Any

import subjects
from figures import Recording, Table, add_results_option

_IN_FLIGHT = 64
_LIMIT = 600
_WORDS = "number and some words, as a product has them in a table, about its colour and its size, " * 3
_QUICK = {"rows": 300, "pairs": 1, "parts": "fast"}
_LATENCIES: dict[str, dict[str, float]] = {
    "0.2 to 1.5 s": {"latency_s": 0.85, "latency_jitter_s": 0.65},
    "10 s": {"latency_s": 10.0},
}


def chat(options: argparse.Namespace) -> Mapping[str, float]:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from beam_pipelines import counted

    from epithre_beam import transforms as epithre

    def row(number: int) -> epithre.ChatRow:
        return epithre.ChatRow.of(str(number), {"words": _WORDS})

    p = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
    rows = p | beam.Create(range(options.rows), reshuffle=False) | beam.Map(row).with_output_types(epithre.ChatRow)
    result = rows | epithre.ChatAssets(
        "{{ id }}: {{ words }}",
        base_url=options.url,
        api_key_env=subjects.KEY_ENV,
        max_concurrency=options.in_flight,
        requests_per_minute=options.limit,
    )
    _ = result.answered | beam.Map(_note)
    return counted(p)


def _note(_element: Any) -> None:
    import apache_beam as beam

    beam.metrics.Metrics.counter("bench", "assets").inc()


def bare(options: argparse.Namespace) -> Mapping[str, float]:
    import httpx
    import orjson

    left = iter(range(options.rows))
    answers: list[str] = []

    async def work(client: httpx.AsyncClient) -> None:
        for number in left:
            messages = [{"role": "user", "content": f"{number}: {_WORDS}"}]
            body = orjson.dumps({"model": "epithre-omni", "messages": messages, "max_tokens": 1024})
            answer = orjson.loads((await client.post("/chat/completions", content=body)).content)
            answers.append(answer["choices"][0]["message"]["content"])

    async def main() -> None:
        headers = {"authorization": f"Bearer {os.environ[subjects.KEY_ENV]}", "content-type": "application/json"}
        limits = httpx.Limits(max_connections=options.in_flight, max_keepalive_connections=options.in_flight)
        async with httpx.AsyncClient(base_url=options.url, headers=headers, timeout=120, limits=limits) as client:
            await asyncio.gather(*(work(client) for _ in range(options.in_flight)))

    asyncio.run(main())
    return {"assets": len(answers)}


def measure_limit(options: argparse.Namespace) -> tuple[dict[str, float], list[list[str]]]:
    figures: dict[str, float] = {"refused": 0, "worst_window": 0}
    rows = []
    for (label, faults), name in zip(_LATENCIES.items(), ("limit_share", "slow_limit_share"), strict=True):
        arguments = ["--rows", str(int(_LIMIT * options.minutes)), "--limit", str(_LIMIT), "--in-flight", "256"]
        limits = {"requests_per_minute": _LIMIT}
        run = subjects.measure(__file__, "chat", arguments, limits=limits, faults=faults, spans=True)
        figures[name] = run["rate_per_minute"] / _LIMIT
        figures["refused"] += run["refused"]
        figures["worst_window"] = max(figures["worst_window"], run["worst_window"])
        rows.append([label, f"{run['rate_per_minute']:.1f}", f"{run['refused']:.0f}", f"{run['worst_window']:.0f}"])
    return figures, rows


def measure_fast(options: argparse.Namespace) -> tuple[dict[str, float], list[list[str]]]:
    def run(subject: str, rows: int) -> dict[str, float]:
        arguments = ["--rows", str(rows), "--in-flight", str(_IN_FLIGHT)]
        figures = subjects.measure(__file__, subject, arguments)
        assert figures["assets"] == rows, figures
        return figures

    quarter = run("chat", options.rows // 4)
    pairs = [(run("bare", options.rows), run("chat", options.rows)) for _ in range(options.pairs)]
    peak = max(ours["peak_mb"] for _, ours in pairs)
    runs = [("`ChatAssets`, a quarter of the rows", options.rows // 4, quarter)]
    for loop, ours in pairs:
        runs += [("a loop with httpx", options.rows, loop), ("`ChatAssets`", options.rows, ours)]
    return {
        "speed_ratio": median(loop["wall_s"] / ours["wall_s"] for loop, ours in pairs),
        "peak_mb": peak,
        "memory_ratio": peak / quarter["peak_mb"],
    }, [
        [
            what,
            f"{rows:,}",
            f"{one['wall_s']:.1f}",
            f"{one['cpu_s']:.1f}",
            f"{one['server_cpu_s']:.1f}",
            f"{one['peak_mb']:,}",
        ]
        for what, rows, one in runs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=4.0, help="how long a limit is used, about")
    parser.add_argument("--pairs", type=int, default=3, help="runs of the transform and the loop, in turn")
    parser.add_argument("--parts", default="limit,fast", help="which to measure; both are needed to store a result")
    parser.add_argument("--quick", action="store_true", help="few rows and no limit, to see that it works")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--in-flight", type=int)
    parser.add_argument("--subject")
    parser.add_argument("--url")
    add_results_option(parser)
    options = parser.parse_args()
    if options.subject:
        subjects.report(lambda: {"chat": chat, "bare": bare}[options.subject](options))
        return
    if options.quick:
        vars(options).update(_QUICK)
    recording = Recording.start("chat", options)
    figures: dict[str, float] = {}
    tables = {}
    if "limit" in options.parts:
        found, rows = measure_limit(options)
        figures |= found
        columns = ("latency", "requests a minute", "refused", "most in 60 s")
        tables["Within a limit of 600 requests a minute"] = Table(columns, rows)
    if "fast" in options.parts:
        found, rows = measure_fast(options)
        figures |= found
        columns = ("subject", "rows", "wall s", "CPU s", "CPU s of the emulator", "peak MB")
        tables["Without a limit"] = Table(columns, rows)
    recording.store(figures, tables)


if __name__ == "__main__":
    main()
