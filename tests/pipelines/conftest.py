"""Small real inputs, and a runner for the command line."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from .preloaded import Preloaded, Program

KEY = "key-for-tests-0123456789"


@dataclass
class Place:
    """A folder with a job."""

    folder: Path

    @property
    def catalog(self) -> Path:
        return self.folder / "catalog"

    def write_job(self, **changes) -> Path:
        job = {
            "catalog": "catalog",
            "sources": [
                {"kind": "image", "files": "pictures/**/*.jpg"},
                {"kind": "text", "table": "texts.csv", "id": "id", "text": "text", "metadata": {"price": "double"}},
            ],
            "embed": {"base_url": "emulator", "emulator_model": "hash", "dimension": 64, "unit_references": 16},
        }
        for key, value in changes.items():
            here = job
            *parents, last = key.split("__")
            for part in parents:
                here = here.setdefault(part, {})
            here[last] = value
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    def cli(self, *arguments, key=KEY, timeout=120, imports_itself=False, **environment) -> subprocess.CompletedProcess:
        """Run a command to its end; `imports_itself`: in a new process instead of a fork."""
        process = self.start(*arguments, key=key, imports_itself=imports_itself, **environment)
        try:
            output, errors = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def start(self, *arguments, key=KEY, imports_itself=False, **environment) -> subprocess.Popen | Program:
        options = self.process(key, environment)
        if imports_itself:
            return subprocess.Popen(command(*arguments), **options)
        return _preloaded().start(arguments, folder=options["cwd"], environment=options["env"])

    def process(self, key, environment) -> dict:
        variables = {k: v for k, v in os.environ.items() if k != "EPITHRE_KEY"}
        variables |= {"COLUMNS": "200", **environment, **({} if key is None else {"EPITHRE_KEY": key})}
        return {
            "cwd": self.folder, "env": variables, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE
        }  # fmt: skip


@functools.cache
def _preloaded() -> Preloaded:
    """Ends with the process that uses it first."""
    return Preloaded()


def sentences(errors: str) -> list[str]:
    """The messages on standard error, without log lines."""
    return [line for line in errors.splitlines() if line.startswith("epithre-beam: ")]


def command(*arguments):
    return [sys.executable, "-m", "epithre_beam.pipelines.commands.cli", *map(str, arguments)]


def write_images(folder: Path, count: int, seed: int = 0, start: int = 0) -> list[Path]:
    """Small distinct JPEGs."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(start, start + count):
        pixels = rng.integers(0, 256, (6 + i % 5, 8, 3)).astype(np.uint8)
        path = folder / f"p{i:03d}.jpg"
        Image.fromarray(pixels).resize((48, 36)).save(path, quality=90)
        paths.append(path)
    return paths


def write_texts(path: Path, count: int) -> dict[str, str]:
    texts = {f"t{i:03d}": f"text number {i}" for i in range(count)}
    lines = ["id,text,price", *(f"{name},{text},{i}.5" for i, (name, text) in enumerate(texts.items()))]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return texts


@pytest.fixture
def place(tmp_path) -> Place:
    """40 images, 50 texts and a job for the emulator."""
    found = Place(tmp_path)
    write_images(tmp_path / "pictures", 40)
    write_texts(tmp_path / "texts.csv", 50)
    found.write_job()
    return found
