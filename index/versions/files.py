"""Compare a file of a version with its entry in the manifest."""

from ..storage.store import Store, sha256_of
from .layout import DAMAGED, version_folder
from .manifest import FileEntry


def check_file(store: Store, version: str, entry: FileEntry, *, hashed: bool = True) -> str | None:
    """Return a sentence about what is wrong with a file, or None if it matches its manifest entry.

    With `hashed` False, only existence and length are compared.
    """
    name = f"{version_folder(version)}/{entry.name}"
    size = store.size(name)
    if size is None:
        return f"{store.url}/{name} is missing."
    if size != entry.size_bytes:
        return f"{store.url}/{name} must have {entry.size_bytes} bytes, got {size}. {DAMAGED}"
    if not hashed:
        return None
    try:
        with store.open_read(name) as file:
            found = sha256_of(file)
    except FileNotFoundError:
        return f"{store.url}/{name} is missing."
    if found != entry.sha256:
        return f"{store.url}/{name} must have sha256 {entry.sha256}, got {found}. {DAMAGED}"
    return None
