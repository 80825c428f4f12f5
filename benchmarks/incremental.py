"""Measures a nightly run: nothing changed, 5 % changed, and a comparison of a million references.

    python benchmarks/incremental.py [--assets 50000] [--references 1000000] [--folder DIR]

All data is seeded. Each run is a separate process, and so is the emulator (`hash` model, no limits, no latency). Half
of the assets are images, half are texts. Quote only the ratios of one invocation.
"""

import argparse
import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from assets import write_images, write_texts
from figures import Recording, Table, add_results_option

_JOB = """\
catalog: {catalog}
sources:
  - {{kind: image, files: "{images}/**/*.jpg"}}
  - {{kind: text, table: {texts}, id: id, text: text}}
embed:
  base_url: {url}
  api_key_env: BENCH_KEY
  max_concurrency: 8
"""
_SHARE = 0.01


def run_job(job: Path) -> dict[str, float]:
    from epithre_beam.configs import load_config
    from epithre_beam.pipelines.jobs.run import run

    report = run(load_config(job))
    assert not report["held_back"], report["held_back"]
    counts = report["counts"]
    found = {name: counts[name] for name in ("embedded", "unchanged", "touched", "changed", "moved", "copied", "new")}
    vectors = {name: size for name, size in report["bytes"].items() if name.startswith("vectors/")}
    return {**found, "deleted": counts["deleted"], "vector_bytes": sum(vectors.values()), **report["timings_s"]}


def compare(folder: Path) -> dict[str, float]:
    """Compare the references of a table of texts with a version of as many rows and eight dimensions."""
    from epithre_beam.configs import load_config
    from epithre_beam.index.storage.store import Store
    from epithre_beam.index.versions.latest import read_latest
    from epithre_beam.pipelines.jobs.base import compare as listed_references
    from epithre_beam.pipelines.jobs.base import find_base

    config = load_config(folder / "job.yaml")
    store = Store(config.catalog)
    started = time.monotonic()
    base = find_base(config, store, read_latest(store))
    assert base.usable is not None, base.reasons
    with listed_references(config.sources, config.metadata_types) as comparison:
        listed = time.monotonic()
        comparison.set_base(store, base.usable, retry_dead=False)
        changes = comparison.changes()
        kept = sum(len(group.rows) for group in comparison.kept())
        todo = sum(map(len, comparison.todo()))
    return {"references": kept + todo, "todo": changes.todo, "listing_s": listed - started, "kept": kept}


def make_compared(folder: Path, references: int) -> None:
    """Make a catalog of texts with eight dimensions, and a table in which 1 % of the texts have changed."""
    import hashlib

    import pyarrow as pa

    from epithre_beam.configs import load_config
    from epithre_beam.index.ann.build import build_indexes
    from epithre_beam.index.publish.publish import publish
    from epithre_beam.index.publish.write_manifest import write_manifest
    from epithre_beam.index.storage.store import Store
    from epithre_beam.index.vectors.sample import SampleRule
    from epithre_beam.index.vectors.shards import ShardTask, write_shard
    from epithre_beam.index.versions.layout import asset_fields, vector_schema
    from epithre_beam.index.versions.manifest import Counts, ManifestDraft
    from epithre_beam.transforms.epithre.emulator import EmulatorSettings, emulator_fingerprint

    write_texts(folder / "texts.csv", references)
    job = folder / "job.yaml"
    job.write_text(
        "catalog: catalog\nsources:\n  - {kind: text, table: texts.csv, id: id, text: text}\n"
        "embed: {base_url: emulator, emulator_model: hash, dimension: 8}\n"
    )
    config = load_config(job)
    store = Store(config.catalog)

    def tables():
        with (folder / "texts.csv").open(encoding="utf-8") as file:
            rows = csv.DictReader(file)
            while part := list(itertools.islice(rows, 8192)):
                texts = [row["text"] for row in part]
                contents = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
                columns = {field.name: pa.nulls(len(part), field.type) for field in asset_fields()}
                columns |= {"asset_id": pa.array([row["id"] for row in part]), "kind": pa.array(["text"] * len(part))}
                columns |= {"text": pa.array(texts), "content_sha256": pa.array(contents)}
                columns["fingerprint"] = pa.array([f"sha256:{content}" for content in contents])
                numbers = np.full(8 * len(part), 8**-0.5, np.float32)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(numbers), 8)
                yield pa.table({**columns, "embedding": vectors})

    version = "000001-20260101T000000Z-000000"
    task = ShardTask(kind="text", shard=0, shards=1, parts=(), rule=SampleRule.for_rows(references, 100, 0))
    shard = write_shard(store, version, task, tables(), vector_schema(8, {}))
    (built,) = build_indexes(store, version, [shard], 8, config.index)
    counts = Counts(assets=references, per_kind={"text": references}, embedded=0, reused=0, deduplicated=0, dead=0)
    manifest = write_manifest(
        store,
        ManifestDraft(
            version=version,
            previous=None,
            software="benchmark",
            model=config.embed.model,
            model_fingerprint=emulator_fingerprint(EmulatorSettings(model="hash", dimension=8)),
            dimension=8,
            metadata_types={},
            counts=counts,
            files=(shard.file, *built.files),
            indexes=(built.entry,),
            gate_failures=(),
            config=config.model_dump(mode="json"),
            timings_s={},
        ),
    )
    publish(store, manifest, None)
    lines = (folder / "texts.csv").read_text("utf-8").splitlines()
    for i in range(1, len(lines), 100):
        lines[i] += " changed"
    (folder / "texts.csv").write_text("\n".join(lines) + "\n", "utf-8")


def change(images: Path, texts: Path, count: int, seed: int = 1) -> int:
    """Change, add, delete, rename and copy 1 % of each kind. Return the number of new contents."""
    rng = np.random.default_rng(seed)
    each = max(1, int(count * _SHARE))
    paths = sorted(images.glob("**/*.jpg"))
    edited, deleted, renamed, copied = np.split(rng.permutation(len(paths))[: 4 * each], 4)
    with tempfile.TemporaryDirectory(dir=images.parent) as name:
        fresh = Path(name)
        write_images(fresh, 2 * each, seed=seed + 1, size_kb=20)
        new = sorted(fresh.glob("**/*.jpg"))
        for path, i in zip(new[:each], edited, strict=True):
            shutil.move(path, paths[i])
        (images / "new").mkdir()
        for path in new[each:]:
            shutil.move(path, images / "new" / path.name)
    for i in deleted:
        paths[i].unlink()
    for i in renamed:
        paths[i].rename(paths[i].with_name(f"renamed-{paths[i].name}"))
    for i in copied:
        shutil.copyfile(paths[i], paths[i].with_name(f"copy-{paths[i].name}"))
    lines = texts.read_text("utf-8").splitlines()
    head, rows = lines[0], [line.split(",", 1) for line in lines[1:]]
    edited, deleted, renamed, copied = np.split(rng.permutation(len(rows))[: 4 * each], 4)
    extra = [[f"copy-{rows[i][0]}", rows[i][1]] for i in copied]
    extra += [[f"new-{i}", f"a text that is new {seed} {i}"] for i in range(each)]
    for i in edited:
        rows[i][1] += f" edited {seed}"
    for i in renamed:
        rows[i][0] = f"renamed-{rows[i][0]}"
    gone = set(deleted.tolist())
    rows = [row for i, row in enumerate(rows) if i not in gone] + extra
    texts.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n", "utf-8")
    return 4 * each


def measure(label: str, command: list[str], key: str = "") -> dict[str, float]:
    environment = {**os.environ, "BENCH_KEY": key}
    arguments = [sys.executable, __file__, *command]
    found = subprocess.run(arguments, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    print(f"{label:28s} {json.dumps(figures)}", flush=True)
    return figures


def nights(folder: Path, assets: int) -> dict[str, dict[str, float]]:
    """Measure a first run, a run with nothing changed and a run with 5 % changed."""
    from epithre_beam.transforms.epithre.emulator import EmulatorSettings, start_emulator_process

    images, texts = folder / "images", folder / "texts.csv"
    write_images(images, assets // 2, size_kb=20)
    write_texts(texts, assets - assets // 2)
    found = {}
    with start_emulator_process(EmulatorSettings()) as emulator:
        job = folder / "job.yaml"
        job.write_text(_JOB.format(catalog=folder / "catalog", images=images, texts=texts, url=emulator.base_url))
        for label in ("first", "nothing changed", "a little changed"):
            before = httpx.get(f"{emulator.url}/emulator/stats").json()
            distinct = change(images, texts, assets // 2) if label == "a little changed" else 0
            figures = measure(f"{assets} assets, {label}", ["--job", str(job)], emulator.api_key)
            after = httpx.get(f"{emulator.url}/emulator/stats").json()
            reported = {name: after[name] - before[name] for name in ("requests", "billed_items")}
            print(f"    the server's log: {reported}, {distinct} contents are new", flush=True)
            found[label] = {**figures, **reported, "distinct": distinct}
    return found


def to_table(sizes: dict[str, dict[str, dict[str, float]]]) -> Table:
    lines = []
    for size, runs in sizes.items():
        for label, run in runs.items():
            parts = [sum(run[name] for name in run if name.startswith(part)) for part in ("vectors_", "index_")]
            seconds = [f"{value:.1f}" for value in (run["wall_s"], *parts)]
            counts = [f"{run[name]:,}" for name in ("requests", "billed_items", "read_mb", "peak_mb")]
            lines.append((label + size, *seconds, *counts))
    head = ("run", "wall s", "of which vectors", "of which indexes", "requests", "items sent", "MB read", "peak MB")
    return Table(head, lines)


def copy_speed(catalog: Path, scratch: Path) -> float:
    """Return the MB/s of a plain copy of the newest version's vectors, flushed to disk."""
    newest = max((catalog / "versions").iterdir())
    size, started = 0, time.monotonic()
    for path in (newest / "vectors").iterdir():
        shutil.copyfile(path, scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        size += path.stat().st_size
    seconds = time.monotonic() - started
    scratch.unlink()
    return size / 1e6 / seconds


def _read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    return 0


def _peak_mb() -> int:
    """Return the peak memory of this process. getrusage would include that of the parent process."""
    return next(
        int(line.split()[1]) // 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=int, default=50_000)
    parser.add_argument("--references", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--job", type=Path)
    parser.add_argument("--compare", type=Path)
    add_results_option(parser)
    options = parser.parse_args()
    if options.job or options.compare:
        started = time.monotonic()
        figures = run_job(options.job) if options.job else compare(options.compare)
        figures["wall_s"] = round(time.monotonic() - started, 2)
        figures["read_mb"] = round(_read_bytes() / 1e6)
        figures["peak_mb"] = _peak_mb()
        print(json.dumps(figures))
        return
    recording = Recording.start("incremental", options)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        (folder / "quarter").mkdir()
        (folder / "full").mkdir()
        quarter = nights(folder / "quarter", options.assets // 4)
        shutil.rmtree(folder / "quarter")
        full = nights(folder / "full", options.assets)
        plain = copy_speed(folder / "full/catalog", folder / "copy")
        shutil.rmtree(folder / "full")
        sizes = {}
        for references in (options.references // 4, options.references):
            place = folder / str(references)
            place.mkdir()
            make_compared(place, references)
            sizes[references] = measure(f"{references} references", ["--compare", str(place)])
    first, nothing, little = full.values()
    writing = little["vectors_image"] + little["vectors_text"]
    rate = little["vector_bytes"] / 1e6 / writing
    million = sizes[options.references]
    recording.store(
        {
            "first_s": first["wall_s"],
            "nothing_s": nothing["wall_s"],
            "little_s": little["wall_s"],
            "nothing_ratio": nothing["wall_s"] / first["wall_s"],
            "little_ratio": little["wall_s"] / first["wall_s"],
            "nothing_requests": nothing["requests"],
            "sent_items": little["billed_items"],
            "new_contents": little["distinct"],
            "write_mb_s": rate,
            "copy_mb_s": plain,
            "peak_mb": little["peak_mb"],
            "peak_quarter_mb": quarter["a little changed"]["peak_mb"],
            "compared_s": million["wall_s"],
            "listing_s": million["listing_s"],
            "reference_us": million["wall_s"] / options.references * 1e6,
            "compared_mb": million["peak_mb"],
            "compared_quarter_mb": sizes[options.references // 4]["peak_mb"],
        },
        {"Runs": to_table({"": full, ", a quarter of the assets": quarter})},
    )


if __name__ == "__main__":
    main()
