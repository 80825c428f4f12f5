"""The demo: embed generated images and captions with the main job, then search in two languages."""

import csv
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np

from ...configs import load_config
from ...configs.errors import ConfigError
from ...index.storage.store import Store
from ...transforms.epithre.emulator.captions import Attributes, describe
from ...transforms.epithre.emulator.draw import draw_image, sample_attributes
from ..console.progress import print_summary, shown
from ..console.screen import Screen
from .launch import Runner
from .places import misplaced
from .run import run
from .search import NamedQuery, print_hits, search, write_page

QUERIES = (
    "sepeda merah",
    "an orange cat",
    "bintang kuning di malam hari",
    "a blue fish in the sea",
    "bunga merah muda berbintik",
    "a brown house on green grass",
)
_CERTAIN = (
    *(Attributes(colour="red", shape="bicycle", texture="plain", ground=g) for g in ("grass", "sand", "grey", "sea")),
    *(Attributes(colour="orange", shape="cat", texture="plain", ground=g) for g in ("wood", "snow", "grass", "grey")),
    *(Attributes(colour="yellow", shape="star", texture="plain", ground=g) for g in ("night", "night", "sea")),
    *(Attributes(colour="blue", shape="fish", texture=t, ground="sea") for t in ("plain", "striped", "dotted")),
    *(Attributes(colour="pink", shape="flower", texture="dotted", ground=g) for g in ("grass", "sky", "wood")),
    *(Attributes(colour="brown", shape="house", texture="plain", ground="grass") for _ in range(3)),
)
_JOB = """\
# Written by `epithre-beam demo`. `epithre-beam run job.yaml` runs it again: embedded assets are reused.
catalog: catalog
sources:
  - kind: image
    files: images/**/*.jpg
  - kind: text
    table: captions.csv
    id: sku
    text: description
    metadata: {lang: string, price: double}
embed:
  base_url: emulator          # for the real API: https://api.epithre.com/v1, and the key in EPITHRE_KEY
  requests_per_minute: 600
"""


def run_demo(folder: Path, images: int, console: Screen) -> None:
    """Generate images, run the job, search and show the results.

    Args:
        folder: Output folder; existing images are overwritten.
        images: Number of images, at least 20.
        console: The terminal for the results.

    Raises:
        ConfigError: When `images` is too small, or the folder cannot be written.
    """
    if images < len(_CERTAIN):
        raise ConfigError(f"--images must be at least {len(_CERTAIN)}, got {images}.")
    started = time.monotonic()
    console.print(f"drawing {images} images in {folder}/images", highlight=False)
    try:
        job = write_inputs(folder, images, seed=7)
    except OSError as error:
        raise misplaced("FOLDER", Store(str(folder)), error) or error from error
    with shown(Screen(stderr=True), quiet=False) as watch:
        report = run(load_config(job), Runner(watch=watch, expect=watch.expect))
    config = load_config(job)
    print_summary(console, report, config.catalog)
    console.print()
    queries = [NamedQuery(words, words) for words in QUERIES]
    catalog, results = search(config.catalog, queries, k=6, kinds=("image",))
    print_hits(console, queries, results)
    page = folder / "results.html"
    write_page(page, queries, results, catalog)
    console.print(f"results page: {page.absolute()}", highlight=False, soft_wrap=True)
    program = "epithre-beam" if shutil.which("epithre-beam") else os.path.relpath(sys.argv[0])
    console.print(f"done in {time.monotonic() - started:.1f} s; try another sentence:", highlight=False)
    console.print(f"  {program} search {folder}/catalog --text 'mobil biru'", highlight=False, soft_wrap=True)


def write_inputs(folder: Path, images: int, seed: int) -> Path:
    """Write images named after their content, captions and the job file; return the path of the job file."""
    rng = np.random.default_rng(seed)
    target = folder / "images"
    target.mkdir(parents=True, exist_ok=True)
    everything = [*_CERTAIN, *(sample_attributes(rng) for _ in range(images - len(_CERTAIN)))]
    with (folder / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        captions = csv.writer(file)
        captions.writerow(["sku", "description", "lang", "price"])
        for number, attributes in enumerate(everything):
            english = describe(attributes, "en")
            name = f"{number:04d}-{english.replace(' ', '-')}"
            draw_image(rng, attributes).save(target / f"{name}.jpg", quality=90)
            language: Literal["en", "id"] = "id" if number % 2 else "en"
            captions.writerow([name, describe(attributes, language), language, round(float(rng.uniform(5, 500)), 2)])
    job = folder / "job.yaml"
    job.write_text(_JOB, "utf-8")
    return job
