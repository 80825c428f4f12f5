"""Distinguish configuration errors from storage failures when a local folder cannot be created."""

import errno
import os

from ...configs.errors import ConfigError
from ...configs.words import unwritable
from ...index.storage.obstacles import file_in_the_way
from ...index.storage.store import Store
from ...index.versions.layout import LATEST

_NO_FOLDER = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})
_FILE_INSTEAD = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT})


def misplaced(label: str, store: Store, error: OSError) -> ConfigError | None:
    """Return the error for a local folder that cannot be created, if a retry cannot succeed.

    Returns None otherwise: a folder that was written before can be written again, when its disk has space
    or is mounted.

    Args:
        label: Name of the folder in the configuration or on the command line.
        store: The folder.
        error: The error of the first write.
    """
    if not store.is_local:
        return None
    was_written = os.path.lexists(os.path.join(store.path(""), LATEST))  # noqa: PTH118 - the path may be unreadable
    if error.errno not in (_NO_FOLDER if was_written else _NO_FOLDER | _NOT_ALLOWED):
        return None
    if error.errno in _FILE_INSTEAD and (file := file_in_the_way(store.path(""))) is not None:
        return ConfigError(
            f"{label} {store.url!r} cannot be created: the file {str(file)!r} is in the way. "
            "Name another folder, or move the file away."
        )
    return ConfigError(unwritable(label, store.url, error, "Name a folder that you may write."))
