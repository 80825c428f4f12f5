"""A damaged catalog never opens; a valid one always does, also while versions are published and pruned."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from epithre_beam.configs.errors import ArgumentError, CatalogError
from epithre_beam.index import Manifest, Store, open_catalog, read_latest
from epithre_beam.index.publish.prune import PruneRules, prune
from epithre_beam.index.publish.publish import publish
from epithre_beam.index.storage.store import sha256_of
from epithre_beam.index.versions.layout import manifest_name
from epithre_beam.index.versions.manifest import FileEntry

Floats = npt.NDArray[np.float32]
Draw = Callable[..., Floats]


# ---------------------------------------------------------------------------------------------------- opening


def flip(path: Path, at: int, mask: int = 0x01) -> bytes:
    """Change one byte. Return the original content."""
    before = path.read_bytes()
    changed = bytearray(before)
    changed[at] ^= mask
    path.write_bytes(changed)
    return before


def test_changed_byte_in_any_file_is_refused_with_the_file_name(own_copy: Any) -> None:
    rng = np.random.default_rng(0)
    others = own_copy.files()[1:]
    assert len(others) == 5
    for path in others:
        size = path.stat().st_size
        for at in (0, size - 1, *rng.integers(0, size, 6)):
            before = flip(path, int(at), 1 << int(rng.integers(8)))
            with pytest.raises(CatalogError, match=path.name):
                own_copy.open()
            path.write_bytes(before)
    own_copy.open().close()


def test_flipped_bit_in_latest_json_is_refused(own_copy: Any) -> None:
    """Each bit of LATEST.json is flipped. It then names a missing version or another one."""
    latest = own_copy.files()[0]
    for at in range(latest.stat().st_size):
        for bit in range(8):
            before = flip(latest, at, 1 << bit)
            with pytest.raises(CatalogError, match=r"LATEST\.json|manifest\.json"):
                own_copy.open()
            latest.write_bytes(before)
    own_copy.open().close()


@pytest.mark.parametrize("change", ["missing", "shorter", "longer", "empty"])
def test_missing_or_resized_file_is_refused_with_its_name(own_copy: Any, change: str) -> None:
    for path in own_copy.files():
        before = path.read_bytes()
        if change == "missing":
            path.unlink()
        else:
            path.write_bytes({"shorter": before[: len(before) // 2], "longer": before + b"}", "empty": b""}[change])
        with pytest.raises(CatalogError, match=path.name):
            own_copy.open()
        path.write_bytes(before)
    own_copy.open().close()


@pytest.mark.parametrize("content", ["[]", "3", "null", '"x"', "{}", '{"version": "v"}', "\xff", "{", '{"version": 1}'])
def test_malformed_latest_json_is_refused_with_its_name(own_copy: Any, content: str) -> None:
    own_copy.files()[0].write_bytes(content.encode("latin-1"))
    with pytest.raises(CatalogError, match=r"LATEST\.json must have a version and a manifest_sha256"):
        own_copy.open()


@pytest.mark.parametrize(
    "content", ["[]", "3", "null", '"x"', "{}", '{"format_version": 1}', "{", '{"format_version": "a"}']
)
def test_malformed_manifest_is_refused_with_its_name(own_copy: Any, content: str) -> None:
    """Also if the reader names the version, so that there is no sha256 to compare."""
    name = manifest_name(own_copy.manifest.version)
    own_copy.store.write(name, content.encode())
    with pytest.raises(CatalogError, match=name):
        open_catalog(own_copy.folder, version=own_copy.manifest.version)


def test_manifest_without_its_index_file_is_refused(own_copy: Any) -> None:
    shorter = own_copy.manifest.model_copy(update={"files": ()})
    own_copy.store.write(manifest_name(shorter.version), shorter.to_bytes())
    with pytest.raises(CatalogError, match=r"does not list the file 'index/image-00000-of-00001\.faiss'"):
        open_catalog(own_copy.folder, version=shorter.version)


def test_newer_format_is_refused_with_advice(own_copy: Any) -> None:
    latest = read_latest(own_copy.store)
    newer = own_copy.manifest.model_copy(update={"format_version": 3})
    own_copy.store.write(manifest_name(newer.version), newer.to_bytes())
    publish(own_copy.store, newer, latest.data if latest else None)
    with pytest.raises(CatalogError, match=r"manifest\.json has format 3, .* Install a newer epithre-beam\."):
        own_copy.open()


def test_index_with_the_assets_of_another_kind_is_refused(own_copy: Any) -> None:
    """Each file is valid, but they do not belong together."""
    image, text = own_copy.manifest.indexes
    mixed = own_copy.manifest.model_copy(update={"indexes": (image.model_copy(update={"assets": text.assets}), text)})
    own_copy.store.write(manifest_name(mixed.version), mixed.to_bytes())
    with pytest.raises(CatalogError, match=r"contradicts itself: its indexes use .index/text-assets\.arrow. 2 times"):
        open_catalog(own_copy.folder, version=mixed.version)


def test_open_raises_if_nothing_is_published(tmp_path: Path) -> None:
    (tmp_path / "begun" / "versions").mkdir(parents=True)
    for folder, why in (
        (tmp_path / "begun", r"has no current version: LATEST\.json is missing\. No version is complete"),
        (tmp_path, "there is no catalog here, the folder has no `versions`"),
        (tmp_path / "absent", "there is no catalog here, the folder does not exist"),
    ):
        with pytest.raises(CatalogError, match=why):
            open_catalog(folder)
    with pytest.raises(CatalogError, match="there is no catalog here"):
        open_catalog(tmp_path, version="v7")


def test_remote_catalog_returns_the_same_hits_from_the_cache(small: Any, tmp_path: Path) -> None:
    remote = Store("memory://remote-catalog")
    for name in small.store.names(""):
        remote.write(name, small.store.read(name))
    queries = small.vectors["text"][:7]
    with small.open() as local, open_catalog(remote.url, cache_folder=tmp_path / "cache") as opened:
        assert opened.search(queries, k=20) == local.search(queries, k=20)
        remote.delete("")
        assert opened.search(queries, k=20) == local.search(queries, k=20)
    with pytest.raises(CatalogError, match="there is no catalog here"):
        open_catalog(remote.url, cache_folder=tmp_path / "cache")


def test_version_is_opened_by_name(small: Any, draw_vectors: Draw) -> None:
    queries = draw_vectors(3, 16, 3)
    with small.open() as one, open_catalog(str(small.folder), version=small.manifest.version, verify=False) as other:
        assert one.manifest == other.manifest
        assert one.search(queries) == other.search(queries)


# ---------------------------------------------------------------------------------------------------- pruned versions


def test_readers_see_complete_versions_during_publish_and_prune(
    tmp_path: Path, make_catalog: Any, draw_vectors: Draw
) -> None:
    """Without a version name, one can always be opened: the current version or the next."""
    names = [f"{i:06d}-20250102T030405Z-aaaaaa" for i in range(1, 16)]
    made = [make_catalog({"text": draw_vectors(40, 8, i)}, version=name) for i, name in enumerate(names)]
    store = Store(str(tmp_path / "c"))
    (tmp_path / "c" / "versions").mkdir(parents=True)
    over = threading.Event()

    def replace(i: int) -> None:
        (made[i].folder / "versions" / names[i]).rename(tmp_path / "c" / "versions" / names[i])
        latest = read_latest(store)
        publish(store, made[i].manifest, latest.data if latest else None)
        prune(store, PruneRules(keep=1))

    def read() -> set[str]:
        seen = set()
        while not over.is_set():
            with open_catalog(store.url, hold_s=30 if len(seen) % 2 else None) as catalog:
                assert len(catalog.search(draw_vectors(2, 8, 3), 40)[0]) == 40
                seen.add(catalog.version)
        return seen

    replace(0)
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        try:
            for i in range(1, len(names)):
                replace(i)
        finally:
            over.set()
        seen = set().union(*(reader.result(60) for reader in readers))
    assert len(seen) > 2
    prune(store, PruneRules(keep=1))
    assert [path.name for path in (tmp_path / "c" / "versions").iterdir()] == [names[-1]]


def test_reader_opens_the_next_version_if_its_own_is_pruned(own_copy: Any) -> None:
    """The index of the older version is so large that it is pruned while the reader verifies it."""
    store, older = own_copy.store, "000000-20250101T000000Z-aaaaaa"
    index = own_copy.folder / "versions" / older / own_copy.index("image").files[0]
    index.parent.mkdir(parents=True)
    with index.open("wb") as file:
        file.truncate(1 << 28)
    with index.open("rb") as file:
        big = FileEntry(name=own_copy.index("image").files[0], size_bytes=1 << 28, sha256=sha256_of(file))
    files = [big if entry.name == big.name else entry for entry in own_copy.manifest.files]
    manifest = own_copy.manifest.model_copy(update={"version": older, "files": tuple(files)})
    store.write(manifest_name(older), manifest.to_bytes())

    def make_current(manifest: Manifest) -> None:
        latest = read_latest(store)
        publish(store, manifest, latest.data if latest else None)

    make_current(manifest)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(open_catalog, own_copy.folder)
        while not any(str(index) == os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()):
            assert not reader.done()
        make_current(own_copy.manifest)
        prune(store, PruneRules(keep=1))
        assert not (own_copy.folder / "versions" / older).exists()
        with reader.result(60) as catalog:
            assert catalog.version == own_copy.manifest.version


def test_missing_file_is_named(own_copy: Any) -> None:
    version = own_copy.manifest.version
    for path in own_copy.files()[2:]:
        before = path.read_bytes()
        path.unlink()
        for verify in (True, False):
            with pytest.raises(CatalogError, match=f"{path.name} is missing"):
                open_catalog(own_copy.folder, version=version, verify=verify)
        path.write_bytes(before)


_PRUNED_AFTER_CHECK = """
import os, sys
from pathlib import Path
from epithre_beam.errors import CatalogError
from epithre_beam.index import open_catalog

opened = []

def prune_at_second(event, arguments):
    if event == "open" and str(arguments[0]) == sys.argv[2]:
        opened.append(event)
        if len(opened) == 2:
            os.unlink(sys.argv[2])

sys.addaudithook(prune_at_second)
try:
    open_catalog(sys.argv[1])
except CatalogError as error:
    print(error)
"""


def test_a_file_that_is_pruned_after_its_check_is_named(own_copy: Any) -> None:
    for path in own_copy.files()[2:]:
        before = path.read_bytes()
        command = [sys.executable, "-c", _PRUNED_AFTER_CHECK, str(own_copy.folder), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert path.name in done.stdout, done.stderr
        assert "is missing" in done.stdout or "No such file" in done.stdout
        path.write_bytes(before)


def test_zeroed_files_are_refused_by_name_even_unverified(own_copy: Any) -> None:
    for path in own_copy.files()[2:]:
        before = path.read_bytes()
        path.write_bytes(bytes(len(before)))
        with pytest.raises(CatalogError, match=rf"{path.name}(: index must be 'I|: ends| cannot be opened as)"):
            open_catalog(own_copy.folder, verify=False)
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"url": None}, "url must be a path or a URL, got None"),
        ({"url": ""}, "url must be a path or a URL, got ''"),
        ({"url": 5}, "url must be a path or a URL, got 5"),
        ({"version": 3}, "version must be a version's name, got 3"),
        ({"version": ""}, "version must be a version's name, got ''"),
        ({"storage_options": 5}, "storage_options must be a dict, got 5"),
        ({"cache_folder": 4}, "cache_folder must be a path, got 4"),
        ({"hold_s": "5"}, "hold_s must be a positive number of seconds, got '5'"),
        ({"hold_s": True}, "hold_s must be a positive number of seconds, got True"),
        ({"hold_s": float("nan")}, "hold_s must be a positive number of seconds, got nan"),
        ({"follow": True, "follow_every_s": "5"}, "follow_every_s must be a positive number of seconds, got '5'"),
        ({"follow": True, "follow_every_s": None}, "follow_every_s must be a positive number of seconds, got None"),
    ],
    ids=str,
)
def test_invalid_argument_raises_with_its_name(small: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{sentence}"):
        open_catalog(**{"url": small.store.url, **arguments})


def test_open_raises_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match=r"file is a file\. Give the folder of a catalog"):
        open_catalog(tmp_path / "file")
