"""Runs small pipelines on several runners, and collects the elements that come out."""

import hashlib
import json
import pickle
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

IN_MEMORY = ("--runner=FnApiRunner",)
THREADS = ("--runner=FnApiRunner", "--direct_running_mode=multi_threading", "--direct_num_workers=2")
PROCESSES = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
BUNDLES = ("--runner=BundleBasedDirectRunner",)
REPEATED = ("--runner=FnApiRunner", "--direct_runner_bundle_repeat=1")
"""Each bundle runs twice, and the first result is discarded."""
RUNNERS = {
    "in_memory": IN_MEMORY,
    "threads": THREADS,
    "processes": PROCESSES,
    "repeated": REPEATED,
    "bundles": BUNDLES,
}

Build = Callable[[beam.Pipeline], dict[str, beam.PCollection]]


class Keep(beam.PTransform):
    """Write each element to a file of its own, which works in any process."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def expand(self, elements: beam.PCollection) -> beam.PCollection:
        return elements | beam.Map(_keep, str(self._folder))


def _keep(element: Any, folder: str) -> None:
    values = element._asdict() if hasattr(element, "_asdict") else element
    data = pickle.dumps(values)
    # By content, so that a bundle that is repeated keeps its elements once.
    Path(folder, hashlib.sha256(data).hexdigest()).write_bytes(data)


def run(build: Build, folder: Path, options: Iterable[str] = IN_MEMORY) -> dict[str, list[Any]]:
    """Run what `build` builds, and return the elements of its PCollections by name; named tuples as dicts.

    Elements are sorted by their id, or else by their text. Equal elements are
    kept once.
    """
    root = folder / uuid.uuid4().hex
    with beam.Pipeline(options=PipelineOptions([*options, "--no_save_main_session"])) as pipeline:
        outputs = build(pipeline)
        for name, elements in outputs.items():
            (root / name).mkdir(parents=True)
            _ = elements | f"Keep_{name}" >> Keep(root / name)
    return {
        name: sorted((pickle.loads(path.read_bytes()) for path in (root / name).iterdir()), key=_text)
        for name in outputs
    }


def _text(value: Any) -> str:
    if isinstance(value, dict) and "id" in value:
        return str(value["id"])
    return json.dumps(value, sort_keys=True, default=repr)
