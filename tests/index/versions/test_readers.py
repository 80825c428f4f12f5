"""A hold protects a version from prune until it is released, garbage-collected or expired."""

import datetime
import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import Store, open_catalog
from epithre_beam.index.versions.layout import READERS
from epithre_beam.index.versions.readers import VersionHold, read_holds

OPEN = """
import sys, time
from epithre_beam.index import open_catalog
catalog = open_catalog(sys.argv[1], hold_s=float(sys.argv[2]))
print("open", flush=True)
time.sleep(float(sys.argv[3]))
"""


def holds(made: Any) -> list[Path]:
    folder = made.folder / READERS
    return sorted(folder.iterdir()) if folder.exists() else []


def expiry(path: Path) -> datetime.datetime:
    return datetime.datetime.fromisoformat(orjson.loads(path.read_bytes())["expires_at"])


def wait_until(holds_now: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds_now():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_hold_exists_while_the_catalog_is_open(own_copy: Any) -> None:
    with own_copy.open():
        assert holds(own_copy) == []  # without hold_s, a reader writes nothing
    with open_catalog(own_copy.folder, hold_s=60) as one, open_catalog(own_copy.folder, hold_s=60):
        assert len(holds(own_copy)) == 2
        held, void = read_holds(own_copy.store)
        assert list(held) == [own_copy.manifest.version]
        assert f"process {os.getpid()}" in held[own_copy.manifest.version]
        assert void == []
    assert holds(own_copy) == []
    one.close()  # a second call is no error


def test_hold_is_renewed_until_the_catalog_is_garbage_collected(own_copy: Any) -> None:
    catalog = open_catalog(own_copy.folder, hold_s=0.3)
    (path,) = holds(own_copy)
    first = expiry(path)
    wait_until(lambda: expiry(path) > first + datetime.timedelta(seconds=0.5))
    assert read_holds(own_copy.store).readers
    del catalog
    gc.collect()
    wait_until(lambda: not holds(own_copy))


def test_failed_open_leaves_no_hold(own_copy: Any) -> None:
    path = own_copy.files()[-1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CatalogError, match=path.name):
        open_catalog(own_copy.folder, hold_s=60)
    with pytest.raises(CatalogError, match="has no version 'v9'"):
        open_catalog(own_copy.folder, version="v9", hold_s=60)
    assert holds(own_copy) == []


@pytest.mark.parametrize("hold_s", [0, -1, float("nan"), float("inf")])
def test_invalid_hold_s_raises(own_copy: Any, hold_s: float) -> None:
    with pytest.raises(ValueError, match="hold_s must be a positive number of seconds"):
        open_catalog(own_copy.folder, hold_s=hold_s)


def test_hold_raises_if_readers_is_not_writable(own_copy: Any) -> None:
    (own_copy.folder / READERS).write_bytes(b"no folder")
    with pytest.raises(CatalogError, match=r"readers: cannot write .*\. Allow it, or open .* without hold_s"):
        open_catalog(own_copy.folder, hold_s=60)
    own_copy.open().close()


def test_exit_releases_a_hold_and_kill_lets_it_expire(own_copy: Any) -> None:
    command = [sys.executable, "-c", OPEN, str(own_copy.folder)]
    assert subprocess.run([*command, "60", "0"], check=True, capture_output=True).stdout == b"open\n"
    assert holds(own_copy) == []
    process = subprocess.Popen([*command, "2", "60"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    process.kill()
    process.communicate()
    assert read_holds(own_copy.store).readers
    wait_until(lambda: not read_holds(own_copy.store).readers)
    assert len(read_holds(own_copy.store).void) == 1


def test_fork_does_not_release_the_hold_of_its_parent(own_copy: Any) -> None:
    hold = VersionHold(own_copy.store, "v", 60)
    child = os.fork()
    if child == 0:
        hold.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(holds(own_copy)) == 1
    hold.release()
    assert holds(own_copy) == []


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"expires_at": 3}', b'{"expires_at": "2999-01-01T00:00:00"}'])
def test_invalid_hold_file_is_void(tmp_path: Path, content: bytes) -> None:
    store = Store(str(tmp_path))
    store.write(f"{READERS}/v.1.json", content)
    assert read_holds(store) == ({}, [f"{READERS}/v.1.json"])
