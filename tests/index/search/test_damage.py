"""Damaged index files are refused, and without verification never crash the process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from epithre_beam.configs.errors import CatalogError
from epithre_beam.index import Store, open_catalog, read_manifest
from epithre_beam.index.publish.verify import find_damage
from epithre_beam.index.versions.layout import manifest_name

GOLDEN = Path(__file__).parents[1] / "golden" / "v2"
CODES = "index/image-00000-of-00002.codes.faiss"

PROGRAM = """
import os, sys
import numpy as np
from epithre_beam.configs.errors import CatalogError; from epithre_beam.index import open_catalog

folder, path, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
queries = np.load(folder + "/queries.npy")
with open(path, "rb") as file:
    good = file.read()
rng = np.random.default_rng(seed)
places = [*range(54), *range(54, 120, 3), *rng.integers(120, len(good), 60).tolist(), *range(len(good) - 30, len(good))]
for at in places:
    damaged = bytearray(good)
    damaged[at] ^= 1 << int(rng.integers(8))
    os.unlink(path)  # existing mappings keep the old file
    with open(path, "wb") as file:
        file.write(damaged)
    try:
        with open_catalog(folder, verify=False) as catalog:
            for k in (10, 100):
                for hits in catalog.search(queries[:3], k, kinds="image"):
                    assert len({hit.row for hit in hits}) == len(hits) <= k
    except CatalogError:
        pass
    print(at, flush=True)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(GOLDEN, tmp_path / "c")
    return tmp_path / "c"


def path_of(copy: Path, name: str) -> Path:
    (version,) = (copy / "versions").iterdir()
    return version / name


def test_flipped_bits_in_codes_never_crash_an_unverified_reader(copy: Path) -> None:
    """The catalog opens and returns existing rows, or reports that the file is damaged.

    Bytes 46 to 53 are not changed: they are the length of the first array, and FAISS allocates that much memory.
    """
    command = [sys.executable, "-c", PROGRAM, str(copy), str(path_of(copy, CODES)), "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, (done.stdout[-20:], done.stderr[-2000:])


@pytest.mark.parametrize("name", [CODES, "index/image-00000-of-00002.faiss"])
def test_truncated_file_is_refused_even_unverified(copy: Path, name: str) -> None:
    path = path_of(copy, name)
    whole = path.read_bytes()
    for length in (0, 10, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        for verify in (True, False):
            with pytest.raises(CatalogError, match=path.name):
                open_catalog(copy, verify=verify)


def test_changed_byte_in_codes_is_refused_with_the_file_name(copy: Path) -> None:
    path = path_of(copy, CODES)
    whole = path.read_bytes()
    for at in np.random.default_rng(1).integers(0, len(whole), 10).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CatalogError, match=rf"{path.name} must have sha256 .* The file is damaged"):
            open_catalog(copy)
    path.write_bytes(whole)
    open_catalog(copy).close()


def test_codes_of_another_file_are_refused(copy: Path) -> None:
    other = path_of(copy, CODES.replace("00000-of", "00001-of"))
    shutil.copyfile(other, path_of(copy, CODES))
    with pytest.raises(CatalogError, match="must have sha256"):
        open_catalog(copy)
    store = Store(str(copy))
    (version,) = (copy / "versions").iterdir()
    assert any(CODES in sentence for sentence in find_damage(store, read_manifest(store, version.name)))


def test_codes_shared_by_two_indexes_are_refused(copy: Path) -> None:
    """The manifest combines the vectors of a scanned kind with the codes of another kind."""
    store = Store(str(copy))
    (version,) = (path.name for path in (copy / "versions").iterdir())
    manifest = read_manifest(store, version)
    indexes = [
        index.model_copy(update={"codes": (CODES,)}) if index.kind == "text" else index for index in manifest.indexes
    ]
    store.write(manifest_name(version), manifest.model_copy(update={"indexes": tuple(indexes)}).to_bytes())
    with pytest.raises(CatalogError, match=r"contradicts itself: its indexes use .*codes\.faiss. 2 times"):
        open_catalog(copy, version=version)


def test_newer_format_is_refused_with_advice(copy: Path) -> None:
    name = manifest_name(next((copy / "versions").iterdir()).name)
    raw = orjson.loads((copy / name).read_bytes())
    (copy / name).write_bytes(orjson.dumps({**raw, "format_version": 3}))
    with pytest.raises(CatalogError, match=r"has format 3, .* Install a newer epithre-beam"):
        open_catalog(copy, version=raw["version"])
