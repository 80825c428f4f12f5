"""What it amounts to that a local folder cannot be begun."""

import errno
import os

from ...configs.errors import ConfigError
from ...configs.words import unwritable
from ...index.storage.store import Store
from ...index.versions.layout import LATEST

_NO_FOLDER = frozenset({errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP})
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT})


def misplaced(label: str, store: Store, error: OSError) -> ConfigError | None:
    """The error of a local folder that cannot be begun, where no other try will change it.

    None where that is not so: what could be written before will be again, when its disk has room or is mounted.

    Args:
        label: What the user calls the folder.
        store: The folder.
        error: From the first write to it.
    """
    if not store.is_local:
        return None
    was_written = os.path.lexists(os.path.join(store.path(""), LATEST))  # noqa: PTH118 - a path that nobody may look at
    if error.errno not in (_NO_FOLDER if was_written else _NO_FOLDER | _NOT_ALLOWED):
        return None
    return ConfigError(unwritable(label, store.url, error, "Name a folder that you may write."))
