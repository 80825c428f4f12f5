"""A process that opens damaged files, so that its parent notices if C++ code crashes.

    python -m tests.fuzz.worker FOLDER

For each input line `[name, edits]`, it changes a file of the catalog in FOLDER, updates the checksums in the manifest,
uses the file in every way, and answers with a line: `good`, `refused: …`, or `failed: …`.
"""

import hashlib
import json
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from epithre_beam.configs import IndexConfig
from epithre_beam.configs.errors import EpithreBeamError
from epithre_beam.index import Catalog, Manifest, Store, open_catalog, read_manifest
from epithre_beam.index.ann.stored import stored_vectors
from epithre_beam.index.publish.diff import diff_versions
from epithre_beam.index.publish.verify import find_damage
from epithre_beam.index.vectors.letters import iterate_letters
from epithre_beam.index.vectors.reusable import ReusableVectors
from epithre_beam.index.versions.layout import manifest_name

from ..index.conftest import clustered_vectors, make

_MEMORY_BYTES = 1_500_000_000
"""Memory that it may use in addition to an open catalog. A false length in a file requests far more."""
_INTERESTING = (0, 1, -1, 2, 7, 8, 39, 41, 255, 1 << 16, (1 << 31) - 1, -(1 << 31), 1 << 40, (1 << 63) - 1, -(1 << 63))
DIMENSION = 24


def make_catalog(folder: Path) -> None:
    """Create a catalog with an index of codes for images, an exact index for texts, and dead letters."""
    vectors = {"image": clustered_vectors(1100, DIMENSION, 1), "text": clustered_vectors(90, DIMENSION, 2)}
    index = IndexConfig(exact_up_to_mb=0, training_rows=256, recall_queries=20, dimensions=(16, DIMENSION))
    make(folder, vectors, rows_per_unit=100, rows_per_file=1150, dead=3, index=index)
    shutil.rmtree(folder / "units")


def changed(data: bytes, edits: list[list[Any]]) -> bytes:
    """Flip bits, insert numbers, and cut, duplicate or move pieces, at a byte or at a share of the length."""
    new = bytearray(data)
    for what, place, number in edits:
        if not new:
            break
        at = place % len(new) if isinstance(place, int) else min(int(place * len(new)), len(new) - 1)
        match what:
            case "bit":
                new[at] ^= 1 << number % 8
            case "byte":
                new[at] = number % 256
            case "int32":
                new[at : at + 4] = (_INTERESTING[number % len(_INTERESTING)] % (1 << 32)).to_bytes(4, "little")
            case "int64":
                new[at : at + 8] = (_INTERESTING[number % len(_INTERESTING)] % (1 << 64)).to_bytes(8, "little")
            case "cut":
                del new[at:]
            case "drop":
                del new[at : at + number % 64]
            case "double":
                new[at:at] = new[at : at + number % 64]
            case "move":
                other = number % len(new)
                piece = new[at : at + 16]
                new[other : other + len(piece)] = piece
    return bytes(new)


def use_search(folder: Path, _store: Store, _manifest: Manifest, queries: npt.NDArray[np.float32]) -> None:
    """Search without verification, so that no checksum reveals the damage."""
    with open_catalog(folder, verify=False) as catalog:
        for kind in catalog.kinds:
            _check_kind(catalog, kind, queries)


def _check_kind(catalog: Catalog, kind: Any, queries: npt.NDArray[np.float32]) -> None:
    for k in (10, 100):
        for hits in catalog.search(queries, k, kinds=kind):
            assert len({hit.row for hit in hits}) == len(hits) <= k
            assert all(0 <= hit.row < len(catalog.assets(kind)) for hit in hits)
    import pyarrow.compute as pc

    catalog.search(queries, 20, kinds=kind, where=pc.field("metadata", "lang") == "id")
    assert catalog.find_asset(kind, "nobody") is None
    for row in (0, len(catalog.assets(kind)) - 1):
        catalog.asset(kind, row)


def use_parquet(_folder: Path, store: Store, manifest: Manifest, _queries: npt.NDArray[np.float32]) -> None:
    """Read Parquet files as runs, `verify` and `search --exact` do."""
    for kind in manifest.counts.per_kind:
        for vectors in _until_refused(lambda kind=kind: stored_vectors(store, manifest, kind)):
            assert vectors.shape[1] == manifest.dimension
    reusable = ReusableVectors(store, [manifest], "recipe")
    reusable.find("text", hashlib.sha256(b"text5").hexdigest())
    for entry in manifest.files:
        if entry.name.startswith("dead_letters/"):
            with store.open_read(f"versions/{manifest.version}/{entry.name}") as file:
                list(_letters(file))


def _letters(file: Any) -> Any:
    import pyarrow as pa

    try:
        yield from iterate_letters(file)
    except (pa.ArrowException, OSError):  # the callers treat these errors as damage
        return


def _until_refused(values: Callable[[], Any]) -> Any:
    try:
        yield from values()
    except EpithreBeamError:
        return


def use_verify(_folder: Path, store: Store, manifest: Manifest, _queries: npt.NDArray[np.float32]) -> None:
    """Run `versions verify` and `versions diff`."""
    for problem in find_damage(store, manifest):
        assert problem
    diff_versions(store, manifest, manifest)


def main() -> None:
    folder = Path(sys.argv[1])
    store = Store(str(folder))
    version = json.loads((folder / "LATEST.json").read_bytes())["version"]
    written = (folder / manifest_name(version)).read_bytes()
    queries = clustered_vectors(40, DIMENSION, 3)[:3]
    use_search(folder, store, read_manifest(store, version), queries)
    use_verify(folder, store, read_manifest(store, version), queries)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + _MEMORY_BYTES,) * 2)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        name, edits = json.loads(line)
        path = folder / "versions" / version / name
        good = path.read_bytes()
        try:
            answer = _try(folder, store, version, name, path, changed(good, edits), written, queries)
        finally:
            path.unlink()
            path.write_bytes(good)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _try(
    folder: Path, store: Store, version: str, name: str, path: Path, data: bytes, written: bytes, queries: Any
) -> str:
    path.unlink()  # existing memory maps keep the old file
    path.write_bytes(data)
    manifest = json.loads(written)
    (entry,) = [entry for entry in manifest["files"] if entry["name"] == name]
    entry |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    said = json.dumps(manifest).encode()
    store.write(manifest_name(version), said)
    latest = {"version": version, "manifest_sha256": hashlib.sha256(said).hexdigest()}
    (folder / "LATEST.json").write_bytes(json.dumps(latest).encode())
    answer = "good"
    uses = [use_search] if name.startswith("index/") else [use_parquet]
    if hashlib.sha256(data).digest()[0] < 64:  # they take ten times as long
        uses.append(use_verify)
    for use in uses:
        try:
            use(folder, store, read_manifest(store, version), queries)
        except EpithreBeamError as error:
            answer = f"refused: {str(error)[:150]!r}"
        except BaseException:
            return "failed: " + repr(traceback.format_exc()[-3000:])
    return answer


if __name__ == "__main__":
    main()
