"""A stranger's catalog: a copy of a golden one, changed, with every sha256 made true again."""

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
    """A catalog in a folder, whose only version may be changed at will."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(GOLDEN, folder)
        (self.version_folder,) = (folder / "versions").iterdir()
        self.version = self.version_folder.name
        self._manifest = (self.version_folder / "manifest.json").read_bytes()

    def path(self, name: str) -> Path:
        return self.version_folder / name

    def manifest(self) -> Manifest:
        """As it was at first, whatever was changed since."""
        read: Manifest = orjson.loads(self._manifest)
        return read

    def write(self, manifest: bytes | Manifest) -> None:
        """Puts a manifest in force."""
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        self.path("manifest.json").write_bytes(data)
        self.write_latest({"version": self.version, "manifest_sha256": hashlib.sha256(data).hexdigest()})

    def write_latest(self, latest: Any) -> None:
        (self.folder / "LATEST.json").write_bytes(json.dumps(latest).encode())

    def change(self, change: Callable[[Manifest], object]) -> None:
        """Changes what the manifest was at first."""
        manifest = self.manifest()
        change(manifest)
        self.write(manifest)

    def replace(self, name: str, data: bytes, change: Callable[[Manifest], object] = lambda _: None) -> None:
        """Puts other bytes in a file's place, and says so in the manifest."""
        path = self.path(name)
        path.unlink()  # whoever has mapped the old one keeps it
        path.write_bytes(data)

        def say(manifest: Manifest) -> None:
            (entry,) = [entry for entry in manifest["files"] if entry["name"] == name]
            entry |= {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            change(manifest)

        self.change(say)
