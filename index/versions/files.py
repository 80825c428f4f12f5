"""Whether a file of a version is the one that its manifest lists."""

from ..storage.store import Store, sha256_of
from .layout import version_folder
from .manifest import FileEntry


def check_file(store: Store, version: str, entry: FileEntry, *, hashed: bool = True) -> str | None:
    """What is wrong with a file, in a sentence; None when it is as the manifest says.

    Not `hashed`, only its presence and its length are compared.
    """
    name = f"{version_folder(version)}/{entry.name}"
    size = store.size(name)
    if size is None:
        return f"{store.url}/{name} is missing."
    if size != entry.size_bytes:
        return f"{store.url}/{name} must have {entry.size_bytes} bytes, got {size}: the file is damaged."
    if not hashed:
        return None
    try:
        with store.open_read(name) as file:
            found = sha256_of(file)
    except FileNotFoundError:
        return f"{store.url}/{name} is missing."
    if found != entry.sha256:
        return f"{store.url}/{name} must have sha256 {entry.sha256}, got {found}: the file is damaged."
    return None
