"""Listings of buckets are complete, sorted, equal to the driver's listing, and need constant memory."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from epithre_beam.configs import SourceConfig
from epithre_beam.configs.errors import ConfigError
from epithre_beam.index.storage.remote import connect, list_page
from epithre_beam.transforms.sources.buckets import walk_bucket
from epithre_beam.transforms.sources.list_sources import list_references

from ..s3_server import Proxy
from .conftest import STORES, Place

HERE = Path(__file__).parent
FEW, MANY = 6_000, 24_000
NAMES = [
    "a-1.jpg",
    "a.jpg",
    "a/1.jpg",
    "a/2.txt",
    "a/b/3.JPG",
    "a0.jpg",
    ".hidden/4.jpg",
    "é ü#%?/[5] {6}.jpg",
    "z.jpg",
]


@pytest.fixture(scope="module", params=STORES)
def named(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def endless() -> Iterator[dict[int, int]]:
    """Start two buckets and return their ports by number of images."""
    servers = {
        count: subprocess.Popen(
            [sys.executable, str(HERE / "endless_bucket.py"), str(count)], stdout=subprocess.PIPE, text=True
        )
        for count in (FEW, MANY)
    }
    yield {count: int(server.stdout.readline()) for count, server in servers.items() if server.stdout is not None}
    for server in servers.values():
        server.kill()
        server.wait()


def listed(place: Place, url: str) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "lister.py"), url]
    environment = {**os.environ, **place.environment()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_large_bucket_is_listed_completely_in_order_and_bounded_memory(named: str, endless: dict[int, int]) -> None:
    """In one dictionary of all objects, a name takes 1.0 to 3.5 kB, which is 19 to 63 MB more for this bucket."""
    peaks = {}
    for count, port in endless.items():
        place = Place(name=named, port=port)
        found = listed(place, place.url("photos"))
        assert (found["count"], found["is_sorted"]) == (count, True)
        peaks[count] = found["peak_mb"]
    assert peaks[MANY] < peaks[FEW] + 10, peaks


def test_paged_listing_equals_drivers_listing(place: Place, folder: str) -> None:
    fs, path = connect(place.url(folder), place.options())
    names = [name for name in NAMES if place.name != "azure" or "?" not in name]
    for name in names:
        fs.pipe_file(f"{path}/{name}", name.encode())
    own = fs.find(path, detail=True)
    ours = dict(walk_bucket(fs, path))
    assert list(ours) == sorted(own) == sorted(f"{path}/{name}" for name in names)
    for name, info in ours.items():
        assert info["size"] == own[name]["size"]
        for key in info.keys() & {"ETag", "etag", "md5Hash"}:
            assert str(info[key]).strip('"') == str(own[name][key]).strip('"')
    source = SourceConfig(
        kind="image", files=f"{place.url(folder)}/**/*.jpg", storage_options={"skip_instance_cache": True}
    )
    with pytest.MonkeyPatch.context() as patch:
        for key, value in place.environment().items():
            patch.setenv(key, value)
        found = [name for table in list_references(source, 0, {}) for name in table.column("asset_id").to_pylist()]
    assert found == sorted(n for n in names if n.lower().endswith(".jpg") and not n.startswith("."))


def test_parallel_listing_of_folders_keeps_the_order(endless: dict[int, int]) -> None:
    place = Place(name="gcs", port=endless[MANY])
    fs, path = connect(place.url("photos"), place.options())
    flat, token = [], None
    while True:
        page = list_page(fs, path, token)
        flat += [name for name, _ in page.files]
        token = page.token
        if token is None:
            break
    assert [name for name, _ in walk_bucket(fs, path)] == flat
    assert len(flat) == MANY
    walking = walk_bucket(fs, path)
    assert next(walking)[0] == flat[0]
    walking.close()  # no thread remains after an early stop


def test_interrupted_listing_raises(endless: dict[int, int]) -> None:
    """With a short listing, the missing assets would count as deleted."""
    proxy = Proxy(endless[MANY])
    place = Place(name="s3", port=proxy.port)
    options = {**place.options(), "config_kwargs": {"retries": {"total_max_attempts": 1}}}
    for status in ("404", "500"):
        asked: list[str] = []

        def fault(method: str, headers: dict[str, str], status: str = status, asked: list[str] = asked) -> str:
            asked.append(method)
            return status if len(asked) > 20 else "pass"

        proxy.fault = fault
        fs, path = connect(place.url("photos"), options)
        with pytest.raises(OSError, match=r"."):
            list(walk_bucket(fs, path))
    proxy.close()


def test_empty_folder_matches_no_files(place: Place) -> None:
    url = place.url(secrets.token_hex(8))
    source = SourceConfig(kind="image", files=f"{url}/*.jpg", storage_options={"skip_instance_cache": True})
    with pytest.MonkeyPatch.context() as patch:
        for key, value in place.environment().items():
            patch.setenv(key, value)
        with pytest.raises(ConfigError, match=r"matches the pattern|does not exist"):
            list(list_references(source, 0, {}))
