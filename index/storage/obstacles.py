"""A file where a folder is needed."""

import os
from pathlib import Path


def file_in_the_way(folder: str | os.PathLike[str]) -> Path | None:
    """Return the part of a local path that must be a folder, but is a file: the path itself or one above it.

    Returns None if the path is a folder, or one can be created there as far as files are concerned.
    """
    path = Path(folder)
    there = next((one for one in (path, *path.parents) if os.path.lexists(one)), None)
    return None if there is None or there.is_dir() else there
