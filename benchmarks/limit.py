"""The rate limit: how much of it is reached, and what reaching it costs; ours beside the policies of today's clients.

    python benchmarks/limit.py [--minutes 5] [--parts ABCD] [--rates 600 6000] [--subjects ours …]

Every subject runs in a process of its own against an emulator of its own in another (`hash` model), which enforces a
strict sliding window of 60 s and keeps a log. All figures but the lost items are read from that log.

Part A is stored as the result `limit`, B and C together as `client`, D as `client_cpu`.

- A. A limit of 600 and of 6000 requests a minute, latency 0.2 to 1.5 s, endless texts, one a request. The first minute
  is a ramp and is not counted in the share reached; refusals, lost items and windows over the limit are counted from
  the first request on.
- B. A server of which every tenth answer is 429 or 500.
- C. One poisoned picture in a batch of 64, at each of its 64 places.
- D. CPU of encoding and decoding, without any network.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import logging
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from figures import Recording, Table, add_results_option

from epithre_beam.configs import EmbedConfig
from epithre_beam.transforms.epithre.client import Client, Refusal
from epithre_beam.transforms.epithre.emulator import (
    EmulatorProcess,
    EmulatorSettings,
    Faults,
    Limits,
    start_emulator_process,
)
from epithre_beam.transforms.epithre.emulator.hash_model import hash_vector
from epithre_beam.transforms.epithre.vectors import check_vectors

RAMP_S = 60.0
_TAIL_S = 3.0
"""Sending goes on after the last counted second, so that no slow start or end of a subject is counted."""
LATENCY = Faults(latency_s=0.85, latency_jitter_s=0.65)
SMALL = 64
"""Dimension where only requests are counted."""
DIMENSION = 4000
BATCH = 64
MAX_SENDS = 6
_IN_FLIGHT = {600: 64, 6000: 200}
"""More than the limit needs at this latency (9 and 85): no subject is short of tasks."""
_BEAM_THREADS = {600: 64, 6000: 100}
"""With 200 of Beam's threads two cores were busy with the threads, and 18 requests a second were sent."""
_TOGETHER = {
    600: [["ours", "openai", "retry-after", "beam"]],
    6000: [["ours"], ["openai", "retry-after"], ["beam"]],
}
"""What runs at the same time: processes of 10 requests a second fit side by side on two cores, of 100 they do not."""


def text_of(number: int) -> str:
    return f"{number} " + "small text " * 10


# The subjects of part A: each sends for `seconds` and returns what only a client knows.


async def _endless(one: Callable[[str], Awaitable[bool]], in_flight: int, seconds: float) -> dict[str, Any]:
    """Keeps `in_flight` items at work for so long; counts those that their policy gave up."""
    serial = itertools.count()
    until = time.monotonic() + seconds
    done = lost = 0
    worst_stall = 0.0

    async def work() -> None:
        nonlocal done, lost
        while time.monotonic() < until:
            if await one(text_of(next(serial))):
                done += 1
            else:
                lost += 1

    async def watch() -> None:
        nonlocal worst_stall
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            worst_stall = max(worst_stall, time.monotonic() - before - 0.05)

    tasks = [asyncio.create_task(work()) for _ in range(in_flight)]
    watcher = asyncio.create_task(watch())
    await asyncio.sleep(seconds)
    for task in [*tasks, watcher]:
        task.cancel()  # what is still waiting is neither embedded nor lost
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in ended:
        if isinstance(outcome, Exception):
            raise outcome
    return {"embedded": done, "lost": lost, "worst_stall_s": round(worst_stall, 2)}


def run_ours(url: str, rate: int, seconds: float) -> dict[str, Any]:
    async def go() -> dict[str, Any]:
        settings = EmbedConfig(base_url=url, dimension=SMALL, batch_items=1, requests_per_minute=rate)
        async with Client(settings, os.environ["BENCH_KEY"]) as client:

            async def one(text: str) -> bool:
                (outcome,) = await client.embed([client.encode("text", text.encode())])
                return not isinstance(outcome, Refusal)

            return await _endless(one, _IN_FLIGHT[rate], seconds)

    return asyncio.run(go())


def run_openai(url: str, rate: int, seconds: float) -> dict[str, Any]:
    from openai import AsyncOpenAI, OpenAIError

    async def go() -> dict[str, Any]:
        async with AsyncOpenAI(base_url=url, api_key=os.environ["BENCH_KEY"]) as client:

            async def one(text: str) -> bool:
                try:
                    await client.embeddings.create(model="epithre-embed", input=[text])
                except OpenAIError:
                    return False
                return True

            return await _endless(one, _IN_FLIGHT[rate], seconds)

    return asyncio.run(go())


def run_retry_after(url: str, rate: int, seconds: float) -> dict[str, Any]:
    """Waits exactly as told and sends again, as often as ours may send an item."""

    async def go() -> dict[str, Any]:
        headers = {"authorization": f"Bearer {os.environ['BENCH_KEY']}"}
        pool = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=pool) as client:

            async def one(text: str) -> bool:
                for _ in range(MAX_SENDS):
                    answer = await client.post("/embeddings", json=_request([text]))
                    if answer.status_code == 200:
                        return bool(_decode(answer))
                    await asyncio.sleep(float(answer.headers["retry-after"]))
                return False

            return await _endless(one, _IN_FLIGHT[rate], seconds)

    return asyncio.run(go())


def run_beam(url: str, rate: int, seconds: float) -> dict[str, Any]:
    """Beam's own RunInference over its RemoteModelHandler with its defaults, one request at a time a thread.

    The input is bounded: more than its threads can send in the time. Past it, `request` answers without sending.
    """
    import apache_beam as beam
    from apache_beam.ml.inference.base import RemoteModelHandler, RunInference
    from apache_beam.options.pipeline_options import PipelineOptions

    logging.disable(logging.CRITICAL)  # a line and a trace for every 429
    workers = _BEAM_THREADS[rate]
    until = time.monotonic() + seconds
    key = os.environ["BENCH_KEY"]

    class Remote(RemoteModelHandler):  # type: ignore[misc]
        def create_client(self) -> httpx.Client:
            pool = httpx.Limits(max_connections=None)
            return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=120, limits=pool)

        def request(
            self, batch: Sequence[str], model: httpx.Client, inference_args: dict[str, Any] | None = None
        ) -> list[Any]:
            if time.monotonic() >= until:
                return [None] * len(batch)
            answer = model.post("/embeddings", json=_request(list(batch)))
            answer.raise_for_status()
            return _decode(answer)

        def batch_elements_kwargs(self) -> dict[str, Any]:
            return {"min_batch_size": 1, "max_batch_size": 1}

    options = PipelineOptions(
        ["--runner=FnApiRunner", "--direct_running_mode=multi_threading", f"--direct_num_workers={workers}"]
    )
    most = round(workers * seconds / LATENCY.latency_s * 1.3)
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "lost"
        with beam.Pipeline(options=options) as pipeline:
            texts = pipeline | beam.Create(range(most)) | beam.Reshuffle() | beam.Map(text_of)
            _, failed = texts | RunInference(Remote(namespace="limit")).with_exception_handling()
            count = failed.failed_inferences | beam.combiners.Count.Globally()
            _ = count | beam.Map(lambda number: found.write_text(str(number)))
        return {"lost": int(found.read_text())}


_SUBJECTS = {"ours": run_ours, "openai": run_openai, "retry-after": run_retry_after, "beam": run_beam}


def _request(texts: list[str]) -> dict[str, Any]:
    return {"model": "epithre-embed", "input": texts, "encoding_format": "base64"}


def _decode(answer: httpx.Response) -> list[Any]:
    return [np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer.json()["data"]]


# Part A


def read_log(emulator: EmulatorProcess) -> list[dict[str, Any]]:
    """The embeddings requests that the server saw, in the order of arrival."""
    log = httpx.get(f"{emulator.url}/emulator/log", timeout=120).json()
    return [record for record in log if record["number"] is not None]


def check_log(log: list[dict[str, Any]], rate: int, minutes: float) -> dict[str, Any]:
    """What the server's log says of a subject.

    A window is over the limit when more than the limit *arrived* in it, refused requests included: the server itself
    never admits more, so its admissions alone would prove nothing about the client.
    """
    window_ns = 60 * 10**9
    begin = log[0]["arrived_ns"] + round(RAMP_S * 1e9)
    end = begin + round(minutes * 60e9)
    useful = [r for r in log if r["status"] == 200]
    counted = sum(begin <= record["decided_ns"] < end for record in useful)
    arrived = sorted(r["decided_ns"] for r in log if r["decided_ns"] is not None)
    oldest = over = worst = 0
    for position, now in enumerate(arrived):
        while arrived[oldest] <= now - window_ns:
            oldest += 1
        held = position + 1 - oldest
        worst = max(worst, held)
        over += held > rate
    sent = sum(record["body_bytes"] for record in log)
    # Without a status are the few that were under way when the run was cut.
    wasted = sum(record["body_bytes"] for record in log if record["status"] not in {200, None})
    return {
        "share": round(counted / (rate * minutes), 4),
        "worst_window": worst,
        "windows_over": over,
        "requests": len(log),
        "refused": sum(record["status"] == 429 for record in log),
        "wasted_share": round(wasted / sent, 3),
        "wasted_kb": wasted // 1000,
    }


def part_a(rates: Sequence[int], minutes: float, subjects: Sequence[str]) -> tuple[dict[str, float], Table]:
    rows = []
    seconds = RAMP_S + minutes * 60 + _TAIL_S
    for rate, group in [(limit, group) for limit in rates for group in _TOGETHER[limit]]:
        settings = EmulatorSettings(dimension=SMALL, limits=Limits(requests_per_minute=rate), faults=LATENCY)
        with contextlib.ExitStack() as stack:
            running = []
            for subject in [subject for subject in group if subject in subjects]:
                emulator = stack.enter_context(start_emulator_process(settings))
                command = [sys.executable, __file__, "--subject", subject, "--url", emulator.base_url]
                command += ["--rates", str(rate), "--seconds", str(seconds)]
                environment = {**os.environ, "BENCH_KEY": emulator.api_key}
                process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
                running.append((subject, emulator, process))
            for subject, emulator, process in running:
                output, _ = process.communicate()
                found = {"lost": f"ended with status {process.returncode}"}
                if process.returncode == 0:
                    found = json.loads(output.splitlines()[-1])
                figures = {**check_log(read_log(emulator), rate, minutes), **found}
                print(f"A {rate:5d} {subject:12s} {json.dumps(figures)}", flush=True)
                rows.append((rate, subject, figures))
    columns = ("limit", "policy", "of the limit", "429s", "windows over", "items lost", "upload wasted")
    lines = []
    for rate, subject, found in rows:
        counts = [f"{found[name]}" for name in ("refused", "windows_over", "lost")]
        lines.append((f"{rate:,}", subject, f"{found['share']:.1%}", *counts, f"{found['wasted_share']:.1%}"))
    ours = {rate: found for rate, subject, found in rows if subject == "ours"}
    figures: dict[str, float] = {f"share_{rate}": found["share"] for rate, found in ours.items()}
    if ours:
        figures |= {name: sum(found[name] for found in ours.values()) for name in ("refused", "windows_over", "lost")}
    return figures, Table(columns, lines)


# Part B


def part_b(batches: int = 1000, in_flight: int = 16) -> dict[str, float]:
    """Requests sent for those needed, when a tenth of them fail; the storm is the same for both, request by request."""
    from openai import AsyncOpenAI, OpenAIError

    texts = [text_of(number) for number in range(batches * BATCH)]
    chunks = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    faults = Faults(rate_429=0.05, error_500=0.05, latency_s=0.1, latency_jitter_s=0.05)

    async def pooled(one: Callable[[list[str]], Awaitable[int]]) -> int:
        left = iter(chunks)

        async def work() -> int:
            return sum([await one(chunk) for chunk in left])

        return sum(await asyncio.gather(*(work() for _ in range(in_flight))))

    async def ours(emulator: EmulatorProcess) -> int:
        async with Client(EmbedConfig(base_url=emulator.base_url), emulator.api_key, seed=0) as client:

            async def one(chunk: list[str]) -> int:
                found = await client.embed([client.encode("text", text.encode()) for text in chunk])
                pairs = zip(chunk, found, strict=True)
                return sum(
                    isinstance(vector, np.ndarray)
                    and np.allclose(vector, hash_vector("text", text.encode(), DIMENSION), atol=1e-6)
                    for text, vector in pairs
                )

            return await pooled(one)

    async def official(emulator: EmulatorProcess) -> int:
        async with AsyncOpenAI(base_url=emulator.base_url, api_key=emulator.api_key) as client:

            async def one(chunk: list[str]) -> int:
                try:
                    return len((await client.embeddings.create(model="epithre-embed", input=chunk)).data)
                except OpenAIError:
                    return 0

            return await pooled(one)

    print(f"B. {batches} batches of {BATCH} texts, 5 % 429 and 5 % 500")
    figures: dict[str, float] = {}
    for name, subject in (("", ours), ("official_", official)):
        with start_emulator_process(EmulatorSettings(faults=faults)) as emulator:
            embedded = asyncio.run(subject(emulator))
            figures[f"{name}sent_ratio"] = len(read_log(emulator)) / batches
        figures[f"{name}lost"] = len(texts) - embedded
    return figures


# Part C


def part_c() -> dict[str, float]:
    """Extra requests for a batch of 64 pictures of which one is refused, for each of its places."""
    marker = "POISON"
    rng = random.Random(0)
    images = [b"\xff\xd8" + rng.randbytes(3000) for _ in range(BATCH)]
    print(f"C. One poisoned picture in a batch of {BATCH}: requests beyond the first, over its {BATCH} places")

    async def extra(emulator: EmulatorProcess, place: int) -> int:
        async with Client(EmbedConfig(base_url=emulator.base_url, dimension=SMALL), emulator.api_key) as client:
            contents = [p + (marker.encode() if i == place else b"") for i, p in enumerate(images)]
            found = await client.embed([client.encode("image", content) for content in contents])
            assert [i for i, outcome in enumerate(found) if isinstance(outcome, Refusal)] == [place]
            return client.meter.requests - 1

    figures: dict[str, float] = {}
    for naming in ("param", "prose", "nowhere"):
        faults = Faults(poison_marker=marker, poison_names=naming)
        with start_emulator_process(EmulatorSettings(dimension=SMALL, faults=faults)) as emulator:
            extras = [asyncio.run(extra(emulator, place)) for place in range(BATCH)]
        figures[f"extra_{naming}"] = max(extras)
    figures["extra_nowhere_mean"] = statistics.mean(extras)
    return figures


# Part D


def part_d(repetitions: int = 200, rate: int = 3000) -> dict[str, float]:
    """CPU of a thread for what the client does to each batch, as a share of a core at 3,000 vectors a second."""
    settings = EmbedConfig(base_url="http://127.0.0.1:1/v1")
    client = Client(settings, "unused")
    rng = np.random.default_rng(0)
    texts = [text_of(number).encode() for number in range(BATCH)]
    images = [rng.bytes(200_000) for _ in range(BATCH)]
    # What `batch_bytes` really lets into one request: a body of 4 MB instead of one of 17 MB.
    fitting = images[: len(client._packer.pack([client.encode("image", image) for image in images])[0])]

    def encode(kind: str, contents: list[bytes]) -> bytes:
        return client._dialect.body([client.encode(kind, content).piece for content in contents])

    with start_emulator_process() as emulator:
        headers = {"authorization": f"Bearer {emulator.api_key}"}
        answer = httpx.post(f"{emulator.base_url}/embeddings", headers=headers, content=encode("text", texts)).content

    def decode() -> object:
        entries, _ = client._dialect.vectors(answer)
        return check_vectors(entries, BATCH, DIMENSION)

    def share(work: Callable[[], object], items: int) -> float:
        seconds = []
        for _ in range(repetitions):
            before = time.thread_time()
            work()
            seconds.append(time.thread_time() - before)
        # The median: neighbours on the machine spoil the caches of a few repetitions, never speed one up.
        return statistics.median(seconds) / items * rate

    print(f"D. CPU at {rate} vectors of {DIMENSION} a second, share of one core")
    figures = {"decode": share(decode, BATCH)}
    for name, kind, contents in (
        ("texts", "text", texts),
        ("images", "image", fitting),
        ("large_bodies", "image", images),
    ):
        into = share(lambda kind=kind, contents=contents: encode(kind, contents), len(contents))  # type: ignore[misc]
        figures[name] = into + figures["decode"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--parts", default="ABCD")
    parser.add_argument("--rates", type=int, nargs="+", choices=_TOGETHER, default=list(_TOGETHER))
    parser.add_argument("--subjects", nargs="+", choices=_SUBJECTS, default=list(_SUBJECTS))
    parser.add_argument("--subject", choices=_SUBJECTS)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--url")
    add_results_option(parser)
    options = parser.parse_args()
    if options.subject:
        figures = _SUBJECTS[options.subject](options.url, options.rates[0], options.seconds)
        used = resource.getrusage(resource.RUSAGE_SELF)
        figures["cpu_share"] = round((used.ru_utime + used.ru_stime) / options.seconds, 2)
        print(json.dumps(figures))
        return
    # The short parts first: a defect shows in a minute instead of after twenty.
    if {"B", "C"} & set(options.parts):
        recording = Recording.start("client", options)
        figures = part_b() if "B" in options.parts else {}
        recording.store(figures | part_c() if "C" in options.parts else figures)
    if "D" in options.parts:
        recording = Recording.start("client_cpu", options)
        recording.store(part_d())
    if "A" in options.parts:
        recording = Recording.start("limit", options)
        figures, table = part_a(options.rates, options.minutes, options.subjects)
        recording.store(figures, {"Policies": table})


if __name__ == "__main__":
    main()
