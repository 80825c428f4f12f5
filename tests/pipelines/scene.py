"""A catalog with a published version, changed sources, and processes that write and read it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from epithre_beam.index import open_catalog
from epithre_beam.index.publish.verify import find_damage
from epithre_beam.index.storage.store import Store
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings
from epithre_beam.transforms.epithre.emulator.hash_model import content_digest

from .conftest import KEY, Place, write_images
from .faulty import answers

_SCRIPT = Path(__file__).with_name("faulty.py")
_DIMENSION = 64


class Worker:
    """A process of `faulty.py`, controlled by lines of JSON."""

    def __init__(self, role, **environment):
        self._process = subprocess.Popen(
            [sys.executable, str(_SCRIPT), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "EPITHRE_KEY": KEY, "COLUMNS": "200", **environment},
            text=True,
        )

    def ask(self, order):
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


@dataclass(kw_only=True)
class Done:
    """The outcome of a command."""

    returncode: int
    stdout: str
    stderr: str
    steps: list[tuple[str, int]]
    seconds: float

    @property
    def report(self):
        return json.loads(self.stdout)


@dataclass
class Scene:
    """Sources that were published as `base` and then changed; `new` is the result of a run from scratch."""

    folder: Path
    emulator: Emulator
    writer: Worker
    reader: Worker
    base: Path = field(init=False)
    new: Path = field(init=False)
    expected: list = field(init=False)
    """The reader's hits in the old and in the new version."""
    rows: list = field(init=False)
    """Rows of both versions, see `current_rows`."""
    all_digests: dict = field(init=False)
    """The contents of the new version, by the emulator's names."""
    digests: dict = field(init=False)
    """The contents that the old version does not have."""
    first_steps: list[tuple[str, int]] = field(init=False)
    """Steps of a run that writes the first version."""
    steps: list[tuple[str, int]] = field(init=False)
    """Steps of a run that writes the new version from the old one."""
    _made: int = 0

    def __post_init__(self):
        self.base, self.new = self.folder / "base", self.folder / "new"
        write_sources(self.folder)
        assert self.run(self.base).returncode == 0
        change_sources(self.folder)
        self.first_steps = self.run(self.new).steps
        self.expected = [found_in(self.base), found_in(self.new)]
        self.rows = [current_rows(self.base), current_rows(self.new)]
        known = {(kind, row["content_sha256"]) for (kind, _), row in self.rows[0][0].items()}
        self.all_digests = digests_of(self.rows[1])
        self.digests = {content: digest for content, digest in self.all_digests.items() if content not in known}
        self.steps = self.run(self.copy()).steps

    def copy(self, into=None):
        """Another catalog with the base version as the current one."""
        self._made += 1
        return Path(shutil.copytree(self.base, (into or self.folder) / f"catalog{self._made}"))

    def command(self, catalog, *arguments, writer=None, at=None, deed="kill", is_ordinary_user=False):
        """Run the command line in its own process; `deed` happens at the step `at`."""
        order = {"arguments": [str(argument) for argument in arguments], "folder": str(self.folder), "at": at}
        order |= {"catalog": str(catalog), "deed": deed, "is_ordinary_user": is_ordinary_user}
        answer = (writer or self.writer).ask(order)
        texts = [(self.folder / name).read_text() for name in ("stdout", "stderr")]
        steps = self.folder / "steps"
        reported = [(step, number) for step, number in json.loads(steps.read_text())] if steps.exists() else []
        steps.unlink(missing_ok=True)
        return Done(**answer, stdout=texts[0], stderr=texts[1], steps=reported)

    def run(self, catalog, *arguments, **options):
        """Run the job into `catalog`."""
        write_job(self.folder, catalog, self.emulator.base_url)
        return self.command(catalog, "run", "job.yaml", "--json", *arguments, **options)

    def watch(self, catalog):
        """Let the reader open this catalog from now on."""
        self.reader.ask({"catalog": str(catalog), "expected": self.expected})

    def stop_watching(self, *orders):
        """Check that since `watch` the reader saw only complete versions, in one of these orders (0: old, 1: new)."""
        reported = self.reader.ask({})
        assert not reported["problems"]
        assert sum(reported["seen"].values()) >= 2
        assert reported["order"] in [list(order) for order in orders], reported


@contextlib.contextmanager
def open_scene(folder):
    with Emulator(EmulatorSettings(dimension=_DIMENSION, api_keys=(KEY,))) as emulator:
        workers = [Worker("writer"), Worker("reader")]
        try:
            yield Scene(folder, emulator, *workers)
        finally:
            for worker in workers:
                worker.close()


def write_job(folder, catalog, base_url):
    return Place(folder).write_job(
        catalog=str(catalog),
        embed__base_url=base_url,
        embed__dimension=_DIMENSION,
        embed__unit_references=4,
        index__rows_per_file=24,
    )


def write_sources(folder):
    images = folder / "pictures"
    write_images(images, 28)
    shutil.copy2(images / "p000.jpg", images / "same.jpg")
    (images / "none.jpg").write_text("no picture")
    _write_texts(folder, {f"t{i:03d}": (f"text number {i}", i + 0.5) for i in range(40)} | {"empty": ("", 1)})


def change_sources(folder):
    """Make files new, changed, deleted, renamed, copied, touched, or invalid."""
    images = folder / "pictures"
    write_images(images, 5, seed=1, start=100)
    for name, seed in (("p001.jpg", 2), ("p002.jpg", 3)):
        (made,) = write_images(folder / "made", 1, seed=seed)
        made.replace(images / name)
    for name in ("p003.jpg", "p004.jpg"):
        (images / name).unlink()
    (images / "p005.jpg").rename(images / "renamed.jpg")
    shutil.copy2(images / "p006.jpg", images / "copied.jpg")
    os.utime(images / "p007.jpg", (1e9, 1e9))
    (images / "nothing.jpg").write_bytes(b"")
    texts = {f"t{i:03d}": (f"text number {i}", i + 0.5) for i in range(40)}
    texts |= {f"u{i:03d}": (f"another text {i}", -float(i)) for i in range(5)}
    texts |= {"t000": ("a changed text", 0.5), "t001": (texts["t001"][0], 99.0), "t100": texts["t003"]}
    for name in ("t002", "t003"):
        del texts[name]
    _write_texts(folder, texts | {"empty": ("", 1), "void": (" ", 2)})


def _write_texts(folder, texts):
    lines = ["id,text,price", *(f"{name},{text},{price}" for name, (text, price) in texts.items())]
    (folder / "texts.csv").write_text("\n".join(lines) + "\n", "utf-8")


def digests_of(rows):
    """The emulator's names of contents, by kind and sha256."""
    vectors, _ = rows
    found = {}
    for (kind, _), row in vectors.items():
        content = row["text"].encode() if kind == "text" else Path(row["uri"]).read_bytes()
        found[kind, row["content_sha256"]] = content_digest(kind, content).hex()
    return found


def found_in(catalog):
    """The hits of the reader's queries."""
    queries = np.random.default_rng(5).standard_normal((2, _DIMENSION)).astype(np.float32)
    with open_catalog(catalog) as opened:
        return answers(opened, queries)


def current_rows(catalog):
    """The assets of the published version with vectors, and its dead letters; the version must verify."""
    with open_catalog(catalog) as opened:
        manifest = opened.manifest
    assert not list(find_damage(Store(str(catalog)), manifest))
    folder = catalog / "versions" / manifest.version
    rows = [row for path in folder.glob("vectors/*.parquet") for row in pq.read_table(path).to_pylist()]
    dead = [row for path in folder.glob("dead_letters/*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len(rows) + len(dead) == manifest.counts.assets
    return tuple({(row["kind"], row["asset_id"]): row for row in part} for part in (rows, dead))
