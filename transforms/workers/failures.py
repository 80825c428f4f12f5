"""How a worker tells the launcher why it failed: a runner wraps an error in pages of its own, or hides it."""

import contextlib
import json
import traceback

from ...configs.errors import DefectError, EpithreBeamError, error_of
from ...index.storage.remote import as_os_error
from .run_folder import RunFolder

_FILE = "failure.json"


def note_failure(run: RunFolder, error: Exception) -> None:
    """Leaves a failure where the launcher finds it, by its code and facts."""
    known = as_known(run, error)
    note = {"code": known.code, "message": str(known), "facts": known.facts}
    # Not orjson: a file's name may have bytes that are no UTF-8, which it refuses.
    data = json.dumps(note, default=str).encode()
    # The storage that failed: the error itself must not be hidden by this one.
    with contextlib.suppress(OSError, EpithreBeamError):
        run.store().write(run.name(_FILE), data)


def failure_of(run: RunFolder) -> EpithreBeamError | None:
    """What a worker of the run left; None when none did."""
    try:
        note = json.loads(run.store().read(run.name(_FILE)))
        return error_of(note["code"], note["message"], note["facts"])
    except (OSError, EpithreBeamError, ValueError, KeyError, TypeError):
        return None


def as_known(run: RunFolder, error: Exception) -> EpithreBeamError:
    """An error of the tree as it is; one of the storage as that; whatever else as a defect, with its traceback."""
    if isinstance(error, EpithreBeamError):
        return error
    storage = as_os_error(error, "The storage")  # a driver may raise where a file is read piece by piece
    if isinstance(storage, OSError):
        return run.unwritable(storage)
    return DefectError(
        f"{type(error).__name__}: {error}", traceback="".join(traceback.format_exception(error)).rstrip()
    )
