"""Proves a version: every file is there, whole and the one that was written, and they agree with each other."""

from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq

from .layout import version_folder
from .manifest import FileEntry, Manifest
from .store import Store, sha256_of


def check_file(store: Store, version: str, entry: FileEntry) -> str | None:
    """What is wrong with a file, in a sentence; None when it is as the manifest says."""
    name = f"{version_folder(version)}/{entry.name}"
    size = store.size(name)
    if size is None:
        return f"{store.url}/{name} is missing."
    if size != entry.size_bytes:
        return f"{store.url}/{name} must have {entry.size_bytes} bytes, got {size}: the file is damaged."
    with store.open_read(name) as file:
        found = sha256_of(file)
    if found != entry.sha256:
        return f"{store.url}/{name} must have sha256 {entry.sha256}, got {found}: the file is damaged."
    return None


def find_damage(store: Store, manifest: Manifest) -> Iterator[str]:
    """Reads every byte of a version and yields a sentence for each thing that is wrong."""
    stored: Counter[str] = Counter()
    damaged = set()
    for entry in manifest.files:
        kind = entry.name.removeprefix("vectors/").rsplit("-", 3)[0] if entry.name.startswith("vectors/") else None
        problem = check_file(store, manifest.version, entry)
        if problem:
            yield problem
            damaged.add(kind)
        elif kind is not None:
            with store.open_read(f"{version_folder(manifest.version)}/{entry.name}") as file:
                stored[kind] += pq.read_metadata(file).num_rows
    listed = {entry.name for entry in manifest.files}
    for index in manifest.indexes:
        if stored[index.kind] != index.rows and index.kind not in damaged:
            yield f"The {index.kind} index has {index.rows} rows, and its vectors are {stored[index.kind]}."
        for name in (index.file, index.assets):
            if name not in listed:
                yield f"The {index.kind} index needs {name}, which the manifest does not list."
