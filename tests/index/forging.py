"""A forged catalog: a modified copy of a golden catalog with all sha256 values recomputed."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

GOLDEN = Path(__file__).parent / "golden" / "v2"
CODES = "index/image-00000-of-00002.codes.faiss"
VECTORS = "index/image-00000-of-00002.faiss"
TEXT_VECTORS = "index/text-00000-of-00001.faiss"
ASSETS = "index/text-assets.arrow"
DIMENSION = 24

Manifest = dict[str, Any]


class Forged:
    """A catalog in a folder whose only version a test may modify."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(GOLDEN, folder)
        (self.version_folder,) = (folder / "versions").iterdir()
        self.version = self.version_folder.name
        self._manifest = (self.version_folder / "manifest.json").read_bytes()

    def path(self, name: str) -> Path:
        return self.version_folder / name

    def manifest(self) -> Manifest:
        """The original manifest, without later changes."""
        read: Manifest = orjson.loads(self._manifest)
        return read

    def write(self, manifest: bytes | Manifest) -> None:
        """Makes a manifest the current one."""
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        self.path("manifest.json").write_bytes(data)
        self.write_latest({"version": self.version, "manifest_sha256": hashlib.sha256(data).hexdigest()})

    def write_latest(self, latest: Any) -> None:
        (self.folder / "LATEST.json").write_bytes(json.dumps(latest).encode())

    def change(self, change: Callable[[Manifest], object]) -> None:
        """Applies a change to the original manifest and writes it."""
        manifest = self.manifest()
        change(manifest)
        self.write(manifest)

    def replace(self, name: str, data: bytes, change: Callable[[Manifest], object] = lambda _: None) -> None:
        """Replaces the bytes of a file and updates the manifest."""
        path = self.path(name)
        path.unlink()  # a process that has mapped the old file keeps it
        path.write_bytes(data)

        def say(manifest: Manifest) -> None:
            (entry,) = [entry for entry in manifest["files"] if entry["name"] == name]
            entry |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            change(manifest)

        self.change(say)
