"""The circuit breaker: after failures in a row, or an answer that is final, no further request is sent."""

import datetime
import time
from typing import NoReturn

from ...configs import EmbedConfig
from ...configs.errors import ApiError, ApiPausedError, UnusableVectorsError, WrongDimensionError
from ...configs.words import of_moment
from .answers import ErrorAnswer, refusal_of
from .vectors import BrokenAnswerError

_FAILURES_IN_A_ROW = 10
_OUTAGE_S = 15.0
_QUIET_S = 2.0
_BROKEN_ANSWERS = 3


class CircuitBreaker:
    """Learns from outcomes whether any further request makes sense. Once open it stays so.

    Args:
        settings: The `embed` section of a config, for messages.
    """

    def __init__(self, settings: EmbedConfig) -> None:
        self._settings = settings
        self._good_answers = 0
        self._failures = 0
        self._failed_at = -1.0
        self._succeeded_at = time.monotonic()
        self._error: ApiError | None = None

    @property
    def is_open(self) -> bool:
        return self._error is not None

    @property
    def is_outage(self) -> bool:
        """Whether nothing has succeeded for so long that waiting for a success makes no sense."""
        return time.monotonic() - self._succeeded_at > _OUTAGE_S

    @property
    def is_quiet(self) -> bool:
        """Whether nothing has succeeded for a little while."""
        return time.monotonic() - self._succeeded_at > _QUIET_S

    def check(self) -> None:
        """Raises ApiError when no request may be sent any more."""
        if self._error is not None:
            raise self._error

    def succeeded(self) -> None:
        self._good_answers += 1
        self._failures = 0
        self._succeeded_at = time.monotonic()

    def refused(self, answer: ErrorAnswer) -> NoReturn:
        """An answer after which no request will ever succeed. Raises ApiRefusedError."""
        self._open(refusal_of(answer, self._settings))

    def asked_to_pause(self, answer: ErrorAnswer, pause_s: float) -> NoReturn:
        """An answer that asks for a longer pause than is waited for. Raises ApiPausedError."""
        self._open(paused_error(answer, pause_s, self._settings))

    def answered_badly(self, error: BrokenAnswerError, started: float) -> None:
        """A 200 without one good vector for each item. Raises ApiError when it opens."""
        self.failed(str(error), started, is_patient=True)
        if self._good_answers or self._failures < _BROKEN_ANSWERS:
            return
        if error.remedy is not None:
            where = f"{self._settings.base_url}, model {self._settings.model!r}"
            self._open(UnusableVectorsError(f"{where}: the API answers no usable vectors: {error}. {error.remedy}."))
        if error.dimension is not None:
            self._open(
                WrongDimensionError(
                    f"embed.dimension is {self._settings.dimension}, but {self._settings.base_url} answers vectors of "
                    f"{error.dimension} dimensions: set embed.dimension={error.dimension}, or another model."
                )
            )

    def failed(self, what: str, started: float, *, is_patient: bool) -> None:
        """Counts failures in a row. Requests that overlapped failed together and count as one.

        Args:
            what: The failure, in a few words.
            started: time.monotonic() when the request was sent.
            is_patient: Whether they count only when they last: the server may come back.

        Raises:
            ApiError: When it opens.
        """
        now = time.monotonic()
        if started >= self._failed_at:
            self._failures += 1
            self._failed_at = now
        # Where others were served, a stretch of bad assets is likelier than a server that wants none at all.
        most = _FAILURES_IN_A_ROW if is_patient or not self._good_answers else 3 * _FAILURES_IN_A_ROW
        if self._failures >= most and (not is_patient or now - self._succeeded_at >= _OUTAGE_S):
            self._open(
                ApiError(
                    f"{self._settings.base_url} failed {self._failures} times in a row without a success "
                    f"(last: {what}): what was embedded so far is kept, run again when the server works."
                )
            )

    def _open(self, error: ApiError) -> NoReturn:
        self._error = self._error or error
        raise self._error


def paused_error(answer: ErrorAnswer, pause_s: float, settings: EmbedConfig) -> ApiPausedError:
    """What an answer amounts to that asks for a longer pause than the settings allow."""
    retry_at = time.time() + pause_s
    moment = datetime.datetime.fromtimestamp(retry_at, datetime.UTC).isoformat(timespec="seconds")
    return ApiPausedError(
        f"{settings.base_url}: the server asked for a pause of {pause_s:.0f} s ({answer}), longer than the "
        f"{settings.max_retry_after_s:g} s that are waited for (in a job: embed.max_retry_after_s). "
        f"What was finished is kept. Run again after {of_moment(retry_at)}.",
        retry_at=moment,
        retry_after_s=pause_s,
    )
