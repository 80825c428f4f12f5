"""Log lines of what happens to a server: a sentence for people, an event with fields for programs."""

import logging
from typing import Any

from ...configs.errors import EpithreBeamError

_log = logging.getLogger(__name__)


class ApiEvents:
    """Reports when the embedding API fails, and once when it answers again."""

    def __init__(self) -> None:
        self._is_failing = False

    def failed(self, error: EpithreBeamError, retry_after_s: int) -> None:
        """Log that the API does not answer a query, or refuses it."""
        self._report(logging.ERROR, "the embedding API fails", error, retry_after_s)

    def failed_at_start(self, error: EpithreBeamError) -> None:
        """Log that the server starts without the API and asks it again."""
        sentence = "searches by text or image fail until the embedding API answers"
        self._report(logging.WARNING, sentence, error, 0)

    def answered(self) -> None:
        """Log that the API answers again, if a failure was logged."""
        if self._is_failing:
            self._is_failing = False
            _log.info("the embedding API answers again", extra=_event("api_recovered"))

    def _report(self, level: int, sentence: str, error: EpithreBeamError, retry_after_s: int) -> None:
        self._is_failing = True
        extra = _event("api_fails", code=error.code, error=str(error), retry_after_s=retry_after_s or None)
        _log.log(level, "%s: %s", sentence, error, extra=extra)


def report_disabled(why: EpithreBeamError | str, level: int) -> None:
    """Log that the server embeds no queries until it is started again."""
    code = why.code if isinstance(why, EpithreBeamError) else "unknown_model"
    extra = _event("embedding_disabled", code=code, error=str(why))
    _log.log(level, "searches by text or image are disabled: %s", why, extra=extra)


def report_unsearchable(version: str, error: EpithreBeamError) -> None:
    """Log that the files of a version cannot be searched."""
    extra = _event("search_failed", version=version, code=error.code, error=str(error))
    _log.error("cannot search the catalog: %s", error, extra=extra)


def _event(name: str, **fields: Any) -> dict[str, Any]:
    return {"event": name, "fields": fields}
