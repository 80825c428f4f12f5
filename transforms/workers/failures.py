"""How a worker tells the launcher why it failed: a runner wraps an error in pages of its own, or hides it."""

import json
import traceback

from ...configs.errors import DefectError, EpithreBeamError, error_of
from ...configs.scrubbing import without_credentials
from ...index.storage.remote import as_os_error
from .run_folder import RunFolder

_FILE = "failure.json"
_MARK = "epithre-beam failure "


class UnnotedFailureError(Exception):
    """A failure that could not be left for the launcher; its text is the note, which a runner passes on in its own."""


def note_failure(run: RunFolder, error: Exception) -> None:
    """Leaves a failure where the launcher finds it, by its code and facts.

    Raises:
        UnnotedFailureError: When it cannot be left there, as when it is the storage that failed.
    """
    known = as_known(run, error)
    note = {"code": known.code, "message": str(known), "facts": known.facts}
    # Not orjson: a file's name may have bytes that are no UTF-8, which it refuses.
    data = json.dumps(note, default=str)
    try:
        run.store().write(run.name(_FILE), data.encode())
    except (OSError, EpithreBeamError):
        raise UnnotedFailureError(_MARK + data) from error


def failure_of(run: RunFolder) -> EpithreBeamError | None:
    """What a worker of the run left; None when none did."""
    try:
        note = json.loads(run.store().read(run.name(_FILE)))
        return error_of(note["code"], note["message"], note["facts"])
    except (OSError, EpithreBeamError, ValueError, KeyError, TypeError):
        return None


def failure_in(text: str) -> EpithreBeamError | None:
    """The failure that a worker could not note, in what a runner says; None when there is none."""
    _, mark, rest = text.partition(_MARK)
    if not mark:
        return None
    try:
        note, _ = json.JSONDecoder().raw_decode(rest)
        return error_of(note["code"], note["message"], note["facts"])
    except (ValueError, KeyError, TypeError):
        return None


def as_known(run: RunFolder, error: Exception) -> EpithreBeamError:
    """An error of the tree as it is; one of the storage as that; whatever else as a defect, with its traceback."""
    if isinstance(error, EpithreBeamError):
        return error
    storage = as_os_error(error, "The storage")  # a driver may raise where a file is read piece by piece
    if isinstance(storage, OSError):
        return run.unwritable(storage)
    found_at = without_credentials("".join(traceback.format_exception(error)).rstrip())
    return DefectError(f"{type(error).__name__}: {error}", traceback=found_at)
