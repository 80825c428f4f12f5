"""Compares the whole job with a bare loop and with the loop of the API's guide, and measures its memory at two sizes.

    python benchmarks/main_job.py [--images 20000] [--texts 20000] [--folder DIR]

All data is seeded. Each subject runs in a separate process against a new emulator process (`hash` model, no limits).
Quote only the ratios of one run.

- `job`: `epithre-beam run`, from files to a published, verified version.
- `bare`: httpx + orjson + pyarrow over the same assets, same batches, same concurrency, no checks, no index.
- `guide`: Pattern A of the provider's guide: the official client, one image in each call. Timed on a sample, because it
  takes one round trip for each image.
"""

import argparse
import asyncio
import base64
import csv
import glob
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import subjects
from assets import write_images, write_texts
from figures import Recording, Table, add_results_option

CONCURRENCY = 8
BATCH_ITEMS = 64
BATCH_BYTES = 4_000_000
_LATENCY_S = 0.05
"""Latency of the emulator; any API across a network takes longer."""
_JOB = """\
catalog: {catalog}
sources:
  - {{kind: image, files: "{images}/**/*.jpg"}}
  - {{kind: text, table: {texts}, id: id, text: text}}
embed:
  base_url: {url}
  api_key_env: BENCH_KEY
  max_concurrency: {concurrency}
"""


def run_job(folder: Path, images: Path, texts: Path, url: str) -> dict[str, float]:
    from epithre_beam.configs import load_config
    from epithre_beam.pipelines.jobs.run import run

    job = folder / "job.yaml"
    catalog = folder / "catalog"
    job.write_text(_JOB.format(catalog=catalog, images=images, texts=texts, url=url, concurrency=CONCURRENCY))
    report = run(load_config(job))
    assert not report["held_back"], report["held_back"]
    return {"assets": report["counts"]["assets"], "embed_s": report["timings_s"]["embed"], **report["timings_s"]}


def run_bare(folder: Path, images: Path, texts: Path, url: str) -> dict[str, float]:
    import httpx
    import numpy as np
    import orjson
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        from pybase64 import b64decode, b64encode
    except ImportError:
        from base64 import b64decode, b64encode

    paths = sorted(glob.glob(f"{images}/**/*.jpg", recursive=True))
    with texts.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    batches: list[list[tuple[str, str]]] = [[]]
    size = 0
    for path in paths:
        length = os.path.getsize(path) * 4 // 3 + 64
        if size + length > BATCH_BYTES or len(batches[-1]) == BATCH_ITEMS:
            batches.append([])
            size = 0
        batches[-1].append(("image", path))
        size += length
    for start in range(0, len(rows), BATCH_ITEMS):
        batches.append([("text", row["text"]) for row in rows[start : start + BATCH_ITEMS]])
    schema = pa.schema([("id", pa.string()), ("embedding", pa.list_(pa.float32(), 4000))])
    left = iter(batches)

    async def work(client: httpx.AsyncClient, writer: pq.ParquetWriter) -> None:
        for batch in left:
            items = [
                value if kind == "text" else {"type": "image", "image": b64encode(Path(value).read_bytes()).decode()}
                for kind, value in batch
            ]
            body = orjson.dumps({"model": "epithre-embed", "input": items, "encoding_format": "base64"})
            answer = orjson.loads((await client.post("/embeddings", content=body)).content)
            vectors = np.stack([np.frombuffer(b64decode(d["embedding"]), "<f4") for d in answer["data"]])
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4000)
            writer.write_table(pa.table([pa.array([v for _, v in batch]), column], schema=schema))

    async def main() -> None:
        headers = {"authorization": f"Bearer {os.environ['BENCH_KEY']}", "content-type": "application/json"}
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
            with pq.ParquetWriter(folder / "bare.parquet", schema, compression="none", use_dictionary=False) as writer:
                await asyncio.gather(*(work(client, writer) for _ in range(CONCURRENCY)))

    asyncio.run(main())
    return {"assets": len(paths) + len(rows)}


def run_guide(folder: Path, images: Path, texts: Path, url: str, sample: int = 400) -> dict[str, float]:
    import numpy as np
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key=os.environ["BENCH_KEY"])
    catalog_vecs = []
    for path in sorted(glob.glob(f"{images}/**/*.jpg", recursive=True))[:sample]:
        with open(path, "rb") as file:
            b64 = base64.b64encode(file.read()).decode()
        r = client.embeddings.create(model="epithre-embed", input=[{"type": "image", "image": b64}])  # type: ignore[list-item]
        catalog_vecs.append((path, np.array(r.data[0].embedding)))
    return {"assets": len(catalog_vecs)}


_SUBJECTS = {"job": run_job, "bare": run_bare, "guide": run_guide}


def measure(subject: str, images: Path, texts: Path, latency_s: float = 0.0) -> dict[str, float]:
    """Run a subject in a separate process. Return its figures, wall seconds and peak memory."""
    with tempfile.TemporaryDirectory(dir=images.parent) as folder:
        arguments = ["--folder", folder, "--images-at", str(images), "--texts-at", str(texts)]
        return subjects.measure(__file__, subject, arguments, faults={"latency_s": latency_s})


def _speed(figures: dict[str, float]) -> float:
    return figures["assets"] / figures["wall_s"]


def _parts(job: dict[str, float]) -> list[tuple[str, str]]:
    """Return the time of each stage of a run, and the rest: listing, comparing, planning, report, start of Python."""
    parts = {
        "embedding: sources read and checked, sent, decoded, stored": job["embed"],
        "vectors written as Parquet": sum(job[name] for name in job if name.startswith("vectors_")),
        "indexes built and measured": sum(job[name] for name in job if name.startswith("index_")),
    }
    parts["all the rest"] = job["wall_s"] - sum(parts.values())
    return [(part, f"{seconds:.1f}") for part, seconds in parts.items()]


def import_seconds() -> float:
    """Measure the seconds of a process that imports the index, minus one that imports nothing; the best of five."""

    def best(statement: str) -> float:
        seconds = []
        for _ in range(5):
            started = time.monotonic()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds.append(time.monotonic() - started)
        return min(seconds)

    return best("import epithre_beam.index") - best("pass")


def first_search_seconds(folder: Path) -> tuple[float, float]:
    """Measure `epithre-beam search` by a text on a small catalog; the best of five.

    Returns:
        Its seconds from the start of the process to its end, and those of a Python that does nothing.
    """
    from epithre_beam.configs import load_config
    from epithre_beam.pipelines.jobs.run import run
    from epithre_beam.transforms.epithre.emulator import EmulatorSettings, start_emulator_process

    images, texts = folder / "few-images", folder / "few.csv"
    write_images(images, 100)
    write_texts(texts, 100)
    with start_emulator_process(EmulatorSettings()) as emulator:
        os.environ["BENCH_KEY"] = emulator.api_key
        job, catalog = folder / "few.yaml", folder / "few"
        job.write_text(
            _JOB.format(catalog=catalog, images=images, texts=texts, url=emulator.base_url, concurrency=CONCURRENCY)
        )
        run(load_config(job))
        program = Path(sys.executable).with_name("epithre-beam")

        def best(command: list[str]) -> float:
            seconds = []
            for _ in range(5):
                started = time.monotonic()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds.append(time.monotonic() - started)
            return min(seconds)

        return best([str(program), "search", str(catalog), "--text", "a mug"]), best([sys.executable, "-c", "pass"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=3, help="how often the bare loop and the job run")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--subject", choices=_SUBJECTS)
    parser.add_argument("--images-at", type=Path)
    parser.add_argument("--texts-at", type=Path)
    parser.add_argument("--url")
    add_results_option(parser)
    options = parser.parse_args()
    if options.subject:
        run = _SUBJECTS[options.subject]
        subjects.report(lambda: run(options.folder, options.images_at, options.texts_at, options.url))
        return
    recording = Recording.start("main_job", options)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        places = {}
        for label, share in (("quarter", 4), ("full", 1)):
            images, texts = folder / f"images-{label}", folder / f"texts-{label}.csv"
            write_images(images, options.images // share)
            write_texts(texts, options.texts // share)
            places[label] = (images, texts)
        quarter = measure("job", *places["quarter"])
        pairs = [(measure("bare", *places["full"]), measure("job", *places["full"])) for _ in range(options.pairs)]
        guide = measure("guide", *places["full"])
        slow_job = measure("job", *places["full"], latency_s=_LATENCY_S)
        slow_guide = measure("guide", *places["full"], latency_s=_LATENCY_S)
        search_s, python_s = first_search_seconds(folder)
    _, job = min(pairs, key=lambda pair: pair[1]["wall_s"])
    slow = f"{_LATENCY_S * 1000:.0f} ms"
    runs = [
        ("`epithre-beam run`, a quarter of the assets", "0", quarter),
        *(
            run
            for one, other in pairs
            for run in (("bare loop: httpx, orjson, pyarrow", "0", one), ("`epithre-beam run`", "0", other))
        ),
        ("the guide's loop, official client", "0", guide),
        ("`epithre-beam run`", slow, slow_job),
        ("the guide's loop, official client", slow, slow_guide),
    ]
    lines = [
        (what, latency, f"{run['assets']:,}", f"{run['wall_s']:.1f}", f"{run['peak_mb']:,}")
        for what, latency, run in runs
    ]
    recording.store(
        {
            "time_ratio": median(job["wall_s"] / bare["wall_s"] for bare, job in pairs),
            "embed_ratio": median(job["embed_s"] / bare["wall_s"] for bare, job in pairs),
            "peak_mb": max(job["peak_mb"] for _, job in pairs),
            "memory_ratio": job["peak_mb"] / quarter["peak_mb"],
            "guide_ratio": _speed(job) / _speed(guide),
            "guide_ratio_50ms": _speed(slow_job) / _speed(slow_guide),
            "embed_a_second": job["assets"] / job["embed_s"],
            "import_s": import_seconds(),
            "search_s": search_s,
            "python_s": python_s,
        },
        {
            "Runs": Table(("subject", "latency", "assets", "wall s", "peak MB"), lines),
            "Where the time of the job goes": Table(("part", "s"), _parts(job)),
        },
    )


if __name__ == "__main__":
    main()
