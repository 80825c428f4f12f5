"""Two nightly runs on every store, as processes, with sources and catalog in a bucket and credentials from outside."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epithre_beam.index import open_catalog
from epithre_beam.transforms.epithre.emulator import Emulator, EmulatorSettings

from ..pipelines.conftest import KEY, write_images
from ..pipelines.conftest import Place as Desk
from ..s3_server import Proxy
from .conftest import Place

TEXTS = {f"t{i}": f"text number {i}" for i in range(12)}


class Night:
    """A job with sources and catalog in a bucket, and the API server that it uses."""

    def __init__(self, place: Place, folder: str, desk: Path, emulator: Emulator) -> None:
        self.store = place.store(folder)
        self.emulator = emulator
        self._sent = 0
        self.catalog = place.url(f"{folder}/catalog")
        self._desk = Desk(desk)
        self._environment = place.environment()
        sources = [
            {"kind": "image", "files": place.url(f"{folder}/pictures/**/*.jpg")},
            {"kind": "text", "table": place.url(f"{folder}/texts.csv"), "id": "id", "text": "text"},
        ]
        self._desk.write_job(catalog=self.catalog, sources=sources, embed__base_url=emulator.base_url)

    def write(self, images: list[Path], texts: dict[str, str]) -> None:
        for image in images:
            self.store.write(f"pictures/über #1 100%?/[a] b/{image.name}", image.read_bytes())
        table = "\n".join(["id,text", *(f"{name},{text}" for name, text in texts.items())])
        self.store.write("texts.csv", table.encode())

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._desk.cli(*arguments, **self._environment)

    def asked(self, *arguments: str) -> dict[str, Any]:
        done = self.command(*arguments)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def sent(self) -> int:
        """Return the number of contents sent since the last call."""
        before, self._sent = self._sent, sum(entry.items for entry in self.emulator.log)
        return self._sent - before


@pytest.fixture
def night(place: Place, folder: str, tmp_path: Path) -> Iterator[Night]:
    with Emulator(EmulatorSettings(dimension=64, api_keys=(KEY,))) as emulator:
        yield Night(place, folder, tmp_path, emulator)


def test_two_nightly_runs_in_a_bucket(night: Night, place: Place, proxy: Proxy, tmp_path: Path) -> None:
    images = write_images(tmp_path / "made", 14)
    night.write(images[:12], TEXTS)
    first = night.asked("run", "job.yaml", "--json")
    assert first["status"] == "published"
    assert first["counts"]["per_kind"] == {"image": 12, "text": 12}
    assert night.sent() == 24

    assert night.asked("run", "job.yaml", "--json")["status"] == "unchanged"
    assert night.sent() == 0

    night.store.delete("pictures/über #1 100%?/[a] b/p000.jpg")
    night.write(images[12:], TEXTS | {"t0": "a changed text"})
    second = night.asked("run", "job.yaml", "--json")
    assert second["counts"]["per_kind"] == {"image": 13, "text": 12}
    assert night.sent() == 3

    assert night.command("versions", "verify", night.catalog, "--all").returncode == 0
    found = night.asked("search", night.catalog, "--text", "a changed text", "-k", "3", "--json")
    assert "t0" in json.dumps(found)
    looked = night.command("look", night.catalog, "--sheet", "sheet.html", "--text", "a", "-k", "25", "--map", "m.html")
    assert "13 with a thumbnail" in looked.stdout, looked.stderr
    assert (tmp_path / "sheet.html").read_text("utf-8").count("data:image/jpeg") == 13

    assert night.command("versions", "rollback", night.catalog).returncode == 0
    with open_catalog(night.catalog, storage_options=place.options()) as catalog:
        assert catalog.manifest.version == first["version"]
    pruned = night.asked("versions", "prune", night.catalog, "--keep", "1", "--json")
    assert {piece["name"] for piece in pruned["kept"]} >= {first["version"]}

    opening_reads_no_vectors(
        night.catalog, first["version"], place.options(proxy.port), proxy.paths, tmp_path / "cache"
    )


def opening_reads_no_vectors(
    url: str, version: str, options: dict[str, Any], paths: list[str], cache_folder: Path
) -> None:
    """Check that opening reads no vectors, and that a second opening downloads nothing."""
    rng = np.random.default_rng(3)
    queries = rng.standard_normal((2, 64)).astype(np.float32)
    with open_catalog(url, storage_options=options, cache_folder=cache_folder) as catalog:
        hits = catalog.search(queries, k=5)
    assert [len(found) for found in hits] == [5, 5]
    assert any(f"{version}/index/" in path.replace("%2F", "/") for path in paths)
    assert not any("/vectors/" in path.replace("%2F", "/") for path in paths)
    begun = len(paths)
    with open_catalog(url, storage_options=options, cache_folder=cache_folder) as again:
        assert again.search(queries, k=5) == hits
    read_again = [path for path in paths[begun:] if "/index/" in path.replace("%2F", "/")]
    assert not read_again
