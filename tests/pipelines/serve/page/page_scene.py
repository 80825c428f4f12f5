"""A small catalog of generated images, a server over it, and a browser that records errors."""

import contextlib
import csv
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from playwright.sync_api import Browser, Page

from epithre_beam.transforms.epithre.emulator.captions import Attributes, describe
from epithre_beam.transforms.epithre.emulator.draw import draw_image, sample_attributes

from ....ports import free_port
from ...conftest import Place, command

IMAGES = 56
DIMENSION = 512
HOSTILE_ID = "'\"><b>bold</b>&amp;<script>alert(1)</script>"
HOSTILE_TEXT = (
    "a purple crescent at sunset <img src=x onerror=alert(1)><script>alert(2)</script> &lt;i&gt; javascript:alert(3)"
)
HOSTILE_LANG = "<svg onload=alert(4)>"

_CATS = [("plain", "grass"), ("plain", "wood"), ("striped", "sky"), ("plain", "snow"), ("dotted", "grey"),
         ("plain", "night"), ("checked", "sea"), ("plain", "purple")]  # fmt: skip
_FIGURES = (
    *(Attributes(colour="orange", shape="cat", texture=t, ground=g) for t, g in _CATS),
    *(Attributes(colour="red", shape="bicycle", texture="plain", ground=g) for g in ("grass", "sand", "grey", "sea")),
    *(Attributes(colour="yellow", shape="star", texture="plain", ground=g) for g in ("night", "night", "sea")),
    *(Attributes(colour="blue", shape="fish", texture=t, ground="sand") for t in ("plain", "striped", "dotted")),
    Attributes(colour="purple", shape="crescent", texture="plain", ground="sunset"),
)
_METADATA = {"lang": "string", "price": "double", "added": "date", "on_sale": "bool"}


def write_sources(folder: Path) -> Path:
    """Write 56 images, captions in two languages with metadata, and a job; the last assets are hostile."""
    rng = np.random.default_rng(11)
    (folder / "pictures").mkdir(parents=True)
    cats = [Attributes(colour="grey", shape="cat", texture="plain", ground=g) for g in ("grass", "sand", "sunset")]
    drawn = [*_FIGURES, *cats]
    while len(drawn) < IMAGES:
        attributes = sample_attributes(rng)
        if (attributes.colour, attributes.shape) not in {(a.colour, a.shape) for a in _FIGURES}:
            drawn.append(attributes)
    images, texts = [], []
    for number, attributes in enumerate(drawn):
        name = f"{describe(attributes).removeprefix('a ').removeprefix('an ').replace(' ', '-')}-{number:02d}"
        draw_image(rng, attributes).save(folder / "pictures" / f"{name}.jpg", quality=88)
        lang = "id" if number % 2 else "en"
        added = f"2026-{1 + number % 12:02d}-15"
        metadata = [lang, f"{5 + number * 2.5:.2f}", added, str(number % 4 == 0).lower()]
        is_hostile = attributes.shape == "crescent" and number < len(_FIGURES)
        images.append([HOSTILE_ID if is_hostile else name, f"pictures/{name}.jpg", *metadata])
        texts.append([f"caption-{number:02d}", describe(attributes, "id" if number % 2 else "en"), *metadata])
    texts.append([HOSTILE_ID, HOSTILE_TEXT, HOSTILE_LANG, "1", "2026-01-01", "false"])
    _write_table(folder / "pictures.csv", ["id", "uri", *_METADATA], images)
    _write_table(folder / "texts.csv", ["id", "text", *_METADATA], texts)
    return write_job(folder, "texts.csv")


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def write_job(folder: Path, texts: str) -> Path:
    sources = [
        {"kind": "image", "table": "pictures.csv", "id": "id", "uri": "uri", "metadata": _METADATA},
        {"kind": "text", "table": texts, "id": "id", "text": "text", "metadata": _METADATA},
    ]
    job = {"catalog": "catalog", "sources": sources, "embed": {"base_url": "emulator", "dimension": DIMENSION}}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job), "utf-8")
    return path


def cli(folder: Path, *arguments: object) -> str:
    """Run a command that must succeed, and return its standard output."""
    done = Place(folder).cli(*arguments, key=None)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if k != "EPITHRE_KEY"}, "COLUMNS": "200", **more}


@contextlib.contextmanager
def served(catalog: Path, *options: object, **environment: str) -> Iterator["Server"]:
    """Run `epithre-beam serve` in its own process while the block runs."""
    server = Server(catalog, free_port(), options, environment)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@dataclass
class Server:
    """A running server."""

    catalog: Path
    port: int
    options: Sequence[object]
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        arguments = command("serve", self.catalog, "--port", self.port, *self.options)
        log = self.catalog.parent / f"serve-{self.port}.log"
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                arguments, cwd=self.catalog.parent, env=_environment(self.environment), stdout=errors, stderr=errors
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, log.read_text("utf-8")
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{self.url}health/ready", timeout=5).read()
                return
            time.sleep(0.02)
        raise RuntimeError(f"the server was not ready in a minute: {log.read_text('utf-8')}")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(60)
            self.process = None


@dataclass
class Visit:
    """A page in a browser, and its errors and requests."""

    page: Page
    server: Server
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Errors of the console and of scripts, and dialogs; must stay empty."""

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)

    def open(self, hash_: str = "") -> Page:
        self.page.goto(self.server.url + hash_)
        until(self.page, "document.getElementById('version').textContent !== '…'")
        return self.page

    def search(self, sentence: str) -> Page:
        self.page.fill("#query", sentence)
        with self.page.expect_response("**/api/search*"):
            self.page.press("#query", "Enter")
        until(self.page, "!document.querySelector('#results[aria-busy]')")
        return self.page

    def ids(self, kind: str = "image") -> list[str]:
        """Return the ids of the hits of a kind, in order."""
        return self.page.eval_on_selector_all(
            f".hit[data-kind={kind}]", "hits => hits.map(hit => hit.getAttribute('data-id'))"
        )

    def wait_for_hits(self, condition: str) -> None:
        """Wait until an expression of `ids`, those of the image hits, is true."""
        until(
            self.page,
            "() => { const ids = [...document.querySelectorAll('.hit[data-kind=image]')].map(hit => hit.dataset.id);"
            f" return ids.length && !document.querySelector('#results[aria-busy]') && ({condition}); }}",
        )

    def wait_for_images(self) -> None:
        """Wait until the visible images are loaded and have faded in."""
        until(
            self.page,
            "[...document.querySelectorAll('.open img')].every(img => img.getBoundingClientRect().top > innerHeight"
            " || (img.complete && img.naturalWidth && getComputedStyle(img).opacity === '1'))",
        )


@contextlib.contextmanager
def visiting(browser: Browser, server: Server, *, may_complain: bool = False, **options: object) -> Iterator[Visit]:
    """A visit in its own browser context. It fails on requests to other origins and on errors."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 770}, **options})
    context.set_default_timeout(60_000)
    visit = Visit(context.new_page(), server)
    try:
        yield visit
        elsewhere = [url for url in visit.requests if not url.startswith((server.url, f"blob:{server.url}", "data:"))]
        assert elsewhere == []
        if not may_complain:
            assert visit.complaints == []
    finally:
        context.close()


def until(page: Page, expression: str) -> None:
    """Wait until an expression of the page is true. `Page.wait_for_function` needs eval, which our policy forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"{expression} did not become true"
        time.sleep(0.02)


def keep(page: Page, name: str) -> None:
    """Save a screenshot in the folder EPITHRE_BEAM_SCREENSHOTS, if it is set."""
    folder = os.environ.get("EPITHRE_BEAM_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def copy_catalog(catalog: Path, folder: Path) -> Path:
    return Path(shutil.copytree(catalog, folder / "catalog"))
