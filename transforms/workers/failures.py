"""Report a worker's failure to the launcher, because a runner wraps an error in long text of its own or hides it."""

import json
import traceback

from ...configs.errors import DefectError, EpithreBeamError, error_of
from ...configs.scrubbing import without_credentials
from ...index.storage.remote import as_os_error
from .run_folder import RunFolder

_FILE = "failure.json"
_MARK = "epithre-beam failure "


class UnnotedFailureError(Exception):
    """A failure that could not be written to the run folder. Its text is the note, which the runner passes on."""


def note_failure(run: RunFolder, error: Exception) -> None:
    """Write the code, message and facts of a failure to the run folder, where the launcher reads them.

    Raises:
        UnnotedFailureError: When the note cannot be written, for example because the storage failed.
    """
    known = as_known(run, error)
    note = {"code": known.code, "message": str(known), "facts": known.facts}
    # Not orjson: it refuses file names with bytes that are not valid UTF-8.
    data = json.dumps(note, default=str)
    try:
        run.store().write(run.name(_FILE), data.encode())
    except (OSError, EpithreBeamError):
        raise UnnotedFailureError(_MARK + data) from error


def failure_of(run: RunFolder) -> EpithreBeamError | None:
    """Return the failure that a worker of the run wrote; None if there is none."""
    try:
        note = json.loads(run.store().read(run.name(_FILE)))
        return error_of(note["code"], note["message"], note["facts"])
    except (OSError, EpithreBeamError, ValueError, KeyError, TypeError):
        return None


def failure_in(text: str) -> EpithreBeamError | None:
    """Return the failure in a runner's error text, from a worker that could not write it; None if there is none."""
    _, mark, rest = text.partition(_MARK)
    if not mark:
        return None
    try:
        note, _ = json.JSONDecoder().raw_decode(rest)
        return error_of(note["code"], note["message"], note["facts"])
    except (ValueError, KeyError, TypeError):
        return None


def as_known(run: RunFolder, error: Exception) -> EpithreBeamError:
    """Convert an error to one of this library: a storage error, or a defect with its traceback if it is unknown."""
    if isinstance(error, EpithreBeamError):
        return error
    storage = as_os_error(error, "The storage")  # a storage driver may raise its own errors during a read
    if isinstance(storage, OSError):
        return run.unwritable(storage)
    found_at = without_credentials("".join(traceback.format_exception(error)).rstrip())
    return DefectError(f"{type(error).__name__}: {error}", traceback=found_at)
